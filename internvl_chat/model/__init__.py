"""The model, its configuration and its chat templates; these files travel inside checkpoints."""
