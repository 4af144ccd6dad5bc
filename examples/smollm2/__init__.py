"""A real LLM learns to see: SmolLM2-135M-Instruct behind the tiny model's vision tower."""
