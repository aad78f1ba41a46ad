"""Settings of the process before torch is imported; settings of the user take precedence."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from potstill.runtime import process

ALLOCATE = """
import sys
from potstill.runtime.process import prepare
prepare()
assert 'torch' not in sys.modules
import ctypes, os, re
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
block = libc.malloc(ctypes.c_size_t(64 << 20))
heap = next(line for line in open('/proc/self/maps') if line.rstrip().endswith('[heap]'))
start, stop = (int(part, 16) for part in re.match(r'([0-9a-f]+)-([0-9a-f]+)', heap).groups())
print(start <= block < stop, os.environ['GOMP_SPINCOUNT'])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize(
    ("own", "expected"),
    [({}, "True 20000"), ({"GOMP_SPINCOUNT": "7"}, "True 7"), ({"MALLOC_TOP_PAD_": "131072"}, "False 20000")],
)
def test_large_blocks_are_on_the_heap_unless_the_user_configured_malloc(own, expected):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GOMP_")) and k != "LD_PRELOAD"}
    done = subprocess.run(
        [sys.executable, "-c", ALLOCATE], env={**clean, **own}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == expected, done.stderr


def test_a_user_without_home_and_name(monkeypatch, tmp_path):
    import getpass
    import pwd

    def unknown(_):
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process.have_home()
    try:
        assert Path.home() == tmp_path / f"potstill-{os.getuid()}"
        assert Path.home().stat().st_mode & 0o777 == 0o700
        assert getpass.getuser() == str(os.getuid())
    finally:  # set by `have_home`
        os.environ.pop("HOME", None)
        os.environ.pop("USER", None)


def test_the_collector_runs_again_after_imports_as_it_did_before():
    with process.importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with process.importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
