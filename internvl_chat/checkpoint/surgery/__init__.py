"""Checkpoint surgery: from one checkpoint on disk to another, a weight file at a time."""
