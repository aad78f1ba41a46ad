"""potstill: distillation of language models with PyTorch Lightning and Hydra.

The public names are imported when they are first used, so `import potstill` is quick. Importing this package loads
neither torch nor Hydra, so that an invalid configuration is rejected within a second or two.

Example:
    >>> import potstill
    >>> "train" in dir(potstill)
    True
"""

from potstill.runtime.lazy import attach_stub

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
