"""Other people's formats into records and back; boxes, halves, skeletons, counts, the guide's tree.

A converter of one record is a pure function in a module of its format; files, images and meta
JSONs are read and written by ``importing``, ``exporting`` and the modules of the verbs.
"""
