"""Operations of torch's that are slow on a CPU, done otherwise for the whole process."""

from potstill.runtime.kernels.masks import use_fast_masks
from potstill.runtime.kernels.onednn import use_onednn

__all__ = ["use_kernels"]


def use_kernels() -> None:
    """Do them otherwise from now on, whoever calls them."""
    use_onednn()
    use_fast_masks()
