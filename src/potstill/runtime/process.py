"""Settings of this process: memory allocation and OpenMP before torch is loaded, home folder, warnings.

Steps on a CPU become faster with equal results. A step allocates and frees tensors of the vocabulary's size, which
glibc maps anew each time, and the kernel clears every page: a quarter to a third of a step. OpenMP's threads spin while
they wait; on shared cores each small parallel region then waits for a thread that is not running.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import getpass
import logging
import os
import stat
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SPINS = "20000"  # as fast as the default (300,000) on idle cores, several times faster on shared ones


def prepare() -> None:
    """Keep freed memory for the next step, and limit spinning; existing environment variables take precedence."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if any(name.startswith("MALLOC_") for name in os.environ) or "LD_PRELOAD" in os.environ:
        return  # the user has configured an allocator
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Do not collect garbage while large libraries are imported, which leave none; it takes a fifth of their time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def is_first_rank() -> bool:
    """Whether this process is the first, or the only one, of a run."""
    ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ]
    return not ranks or ranks[0] == "0"


def have_home() -> None:
    """Set HOME and USER for users without them, as in containers, since libraries need both.

    The home is a temporary folder owned by the user, the name the user id.
    """
    try:
        Path.home()
    except RuntimeError:
        home = Path(tempfile.gettempdir()) / f"potstill-{os.getuid()}"
        with contextlib.suppress(FileExistsError):
            home.mkdir(mode=0o700)
        found = home.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            home = Path(tempfile.mkdtemp(prefix="potstill-"))
        os.environ["HOME"] = str(home)
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["USER"] = str(os.getuid())


def quiet() -> None:
    """Hide warnings that a user cannot act on."""
    # This advice of Lightning and torch is followed elsewhere or does not apply.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*your dataloader is not resumable.*",  # the position follows from the number of steps
        ".*sync_dist=True.*",  # means are over all ranks already
        ".*lr_scheduler.step.*",
        ".*Experiment logs directory .* exists and is not empty.*",  # Hydra's record is in it
        ".*smaller than the logging interval.*",
        r".*module\(s\) in eval mode at the start of training.*",  # the teacher's
    ):
        warnings.filterwarnings("ignore", message)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
