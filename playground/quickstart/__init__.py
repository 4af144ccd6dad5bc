"""The quickstart: fine-tune the shipped tiny model on a custom dataset and see what it learnt.

``sh shell/quickstart.sh`` runs :mod:`playground.quickstart.run`. The custom dataset is made by
:mod:`playground.quickstart.digits`, the page to look at by :mod:`playground.quickstart.report`.
"""
