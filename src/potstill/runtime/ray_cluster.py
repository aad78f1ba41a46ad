"""A cluster of Ray's, for a while: the one of RAY_ADDRESS, else this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def connect() -> bool:
    """Connect to Ray, unless that is done.

    Returns:
        Whether this call did.
    """
    import ray

    if ray.is_initialized():
        return False
    ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    return True


@contextmanager
def connected() -> Iterator[None]:
    """Connect for the length of the block; a Ray that was there before stays, with its processes."""
    import ray

    ours = connect()
    try:
        yield
    finally:
        if ours:
            ray.shutdown()
