"""Benchmarks in their layout on disk, invented, for tests."""
