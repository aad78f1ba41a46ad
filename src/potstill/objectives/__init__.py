"""Weighted sets of named loss terms, and the features of teacher and student that each of them reads."""

from potstill.runtime.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
