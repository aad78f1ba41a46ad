"""The packages of the library import without the command line: in a clean process, module by module."""

import json
import subprocess
import sys

import pytest

PROBE = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(found.name)
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


@pytest.mark.parametrize("package", ["losses", "models", "interchange", "objectives"])
def test_a_package_of_the_library_needs_neither_hydra_nor_lightning(package):
    done = subprocess.run(
        [sys.executable, "-c", PROBE, f"potstill.{package}"], capture_output=True, text=True, check=True
    )
    loaded = {*json.loads(done.stdout)}
    assert "torch" in loaded
    assert not loaded & {"hydra", "omegaconf", "lightning", "pytorch_lightning"}
