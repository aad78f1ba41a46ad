"""One view of every architecture; loading models, and students from teachers."""

from potstill.runtime.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
