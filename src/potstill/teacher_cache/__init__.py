"""Outputs of a teacher, computed once and stored on disk."""

from potstill.runtime.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
