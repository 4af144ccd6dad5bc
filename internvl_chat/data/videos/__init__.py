"""What is behind ``data/video.py``: times, animated images, and the reader process."""
