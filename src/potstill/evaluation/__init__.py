"""Metrics, evaluators, bootstrap, latency and model size."""
