"""Supervised fine-tuning: arguments, process group, trainer."""
