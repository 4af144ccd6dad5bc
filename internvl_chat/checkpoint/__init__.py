"""Building, loading and saving checkpoints."""
