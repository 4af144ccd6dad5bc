"""Parts of the GPU benchmarks ``gpu_train.py`` and ``gpu_decode.py``."""
