"""The demo page: talk to one checkpoint, or to two side by side, in a browser.

``conversation``, ``limits``, ``drawing``, ``messages`` and ``session_requests`` know neither Gradio
nor the network; ``answering`` runs the models; ``page`` and ``server`` are the Gradio part.
"""
