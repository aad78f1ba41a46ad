"""Outputs of a teacher, computed once and stored on disk."""
