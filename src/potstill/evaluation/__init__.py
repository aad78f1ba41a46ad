"""Judging models: perplexity, efficiency, reports."""
