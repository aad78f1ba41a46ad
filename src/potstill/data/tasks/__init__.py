"""Benchmarks as rows, features and batches of a task model."""
