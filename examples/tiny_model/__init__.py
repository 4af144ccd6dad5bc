"""The tiny model from nothing but a seed: an endless generator of small images with questions, and
the two stages before the recipe.

``sh shell/demo/pretrain_tiny.sh`` runs the parts; each is a command of its own too, from the
repository's root, e.g. ``python -m examples.tiny_model.make_pretrain --help``. docs/tiny_model.md
tells why it is made so.

Everything is a function of (seed, family, split, index): record i is the same whatever the number
of workers, and the training and held-out splits never share a random stream.
"""
