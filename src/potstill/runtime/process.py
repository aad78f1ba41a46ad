"""How this process runs: what it asks of the C runtime before torch is loaded, and which warnings it leaves out.

Steps on a CPU are faster, and no result changes. A step allocates and frees tensors of the vocabulary's size. glibc
maps such blocks afresh each time, and the kernel clears every page of them: a quarter to a third of a step. And
OpenMP's threads spin while they wait; where other work shares the cores, each of a step's many small parallel regions
then waits for a thread that is not running.
"""

from __future__ import annotations

import contextlib
import ctypes
import getpass
import logging
import os
import stat
import tempfile
import warnings
from pathlib import Path

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
SPINS = "20000"  # about as fast as the default (300,000) alone, several times faster beside other work


def prepare() -> None:
    """Keep freed memory for the next step, and wait without spinning for long; variables that are set are respected."""
    os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if any(name.startswith("MALLOC_") for name in os.environ) or "LD_PRELOAD" in os.environ:
        return  # the user has an allocator, or settings, of their own
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)


def is_first_rank() -> bool:
    """Whether this process is the first, or the only one, of a run."""
    ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ]
    return not ranks or ranks[0] == "0"


def have_home() -> None:
    """Give a user without a home or a name, as containers have, both: libraries keep caches there and ask for the name.

    The folder is one of the user's own among the temporary ones, the name the number.
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
    """Keep to the log what a user can act on."""
    # What Lightning and torch advise here is either done elsewhere or does not apply.
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*LeafSpec.*",
        ".*your dataloader is not resumable.*",  # its position follows from the number of steps
        ".*sync_dist=True.*",  # the module's means are over all ranks already
        ".*lr_scheduler.step.*",
        ".*Experiment logs directory .* exists and is not empty.*",  # Hydra's record is in it
        ".*smaller than the logging interval.*",
        r".*module\(s\) in eval mode at the start of training.*",  # the teacher's
    ):
        warnings.filterwarnings("ignore", message)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
