"""potstill: distillation of language models with PyTorch Lightning and Hydra.

Importing this package is cheap on purpose: nothing here imports torch, so that a faulty configuration is
refused within a second or two.
"""

__version__ = "0.1.0"
