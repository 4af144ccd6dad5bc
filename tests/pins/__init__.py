"""What the program does today, written down: ``python -m tests.pins.snapshot compare``."""
