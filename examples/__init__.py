"""Whole runs on small data, each a package of its own; run them from the repository's root.

``tiny_model`` makes the shipped model, ``quickstart`` fine-tunes it on a custom dataset,
``smollm2`` puts its vision tower before a real LLM. Imports point that way only: the two later ones
use what the first has, and nothing in internvl_chat imports any of them. Beside them lies what all
share: ``annotations`` (records and meta JSON), ``answering`` (ask a model), ``durations``.
"""
