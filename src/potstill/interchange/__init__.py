"""Interchange interventions: mappings of variables, swapped positions and the counterfactual run."""

from potstill.runtime.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
