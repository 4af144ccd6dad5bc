"""The quickstart: fine-tune the shipped tiny model on a custom dataset and see what it has learned.

``sh shell/quickstart.sh`` makes an environment and runs ``python -m examples.quickstart.run``. The
custom dataset is made by :mod:`examples.quickstart.digits`, the page to look at by
:mod:`examples.quickstart.report`. docs/quickstart.md tells what it shows.
"""
