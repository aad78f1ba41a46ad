"""Faster CPU kernels for some operations of torch, for the whole process."""

from potstill.runtime.kernels.masks import use_fast_masks
from potstill.runtime.kernels.onednn import use_onednn

__all__ = ["use_kernels"]


def use_kernels() -> None:
    """Override the kernels of this process."""
    use_onednn()
    use_fast_masks()
