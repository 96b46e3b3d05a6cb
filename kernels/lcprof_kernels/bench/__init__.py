"""Time every implementation of every operation side by side: `python -m lcprof_kernels.bench`."""
