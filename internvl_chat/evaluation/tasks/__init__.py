"""Declarations of benchmarks, grouped by family; ``registry.py`` lists them all."""
