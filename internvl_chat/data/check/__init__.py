"""``internvl-chat data check``: what is wrong with a meta JSON's datasets, and how to mend it."""
