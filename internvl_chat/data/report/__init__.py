"""The page of ``internvl-chat data report``: numbers, a gallery of samples, bad records.

``run`` puts the parts together; ``tallies`` and ``figures`` count, ``sampling`` chooses what is
shown, ``spans``, ``tile_images`` and ``gallery`` turn a loaded record into what the page holds of
it, ``charts`` lays histograms out, ``page`` writes.
"""
