"""What this installation can do: versions, hardware, kernels, readers. Nothing here needs torch."""
