"""Evaluation: benchmarks declared in one registry, one runner, pure scorers."""
