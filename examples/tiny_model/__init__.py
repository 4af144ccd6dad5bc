"""Seeded, endless generator of small pictures with questions, and the making of the tiny model.

Run the parts from the repository's root, e.g. ``python -m examples.tiny_model.make_pretrain -h``.
Everything is a function of (seed, family, split, index): record i is the same whatever the number
of workers, and the training and held-out splits never share a random stream.
"""
