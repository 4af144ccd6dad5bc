"""Whole runs on small data, each a package of its own: nothing in internvl_chat imports them."""
