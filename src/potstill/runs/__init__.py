"""Training runs, evaluations, pipelines and sweeps, and their results on disk."""
