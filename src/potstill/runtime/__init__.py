"""The process: files, signals, kernels, Ray."""
