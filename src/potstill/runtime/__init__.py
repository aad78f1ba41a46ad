"""The process: files, locks, signals, redaction, kernels, Ray."""
