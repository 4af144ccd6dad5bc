"""Official releases of benchmarks, read into the rows that the tasks' files have; writes nothing.

Formats: the layout's are those of docs/eval_data.md; the releases' are their authors'.
"""
