"""Parts of benchmarks/train_step.py: the workload and one module per system."""
