"""The quickstart: fine-tune the shipped tiny model on a custom dataset and see what it learnt.

``sh shell/quickstart.sh`` runs :mod:`examples.quickstart.run`. The custom dataset is made by
:mod:`examples.quickstart.digits`, the page to look at by :mod:`examples.quickstart.report`.
"""
