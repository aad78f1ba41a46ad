"""A teacher's outputs, computed once and kept on disk."""
