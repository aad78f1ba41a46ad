"""Connection to a Ray cluster (experimental): that of RAY_ADDRESS, otherwise this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


def connect() -> bool:
    """Connect to Ray; returns False if this process is connected already."""
    import ray

    if ray.is_initialized():
        return False
    ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    return True


@contextmanager
def connected() -> Iterator[None]:
    """Connect for the block; an existing connection stays open."""
    import ray

    ours = connect()
    try:
        yield
    finally:
        if ours:
            ray.shutdown()
