"""The packages of the library import without the command line: in a clean process, module by module."""

import json
import subprocess
import sys

PACKAGES = ["losses", "models", "interchange", "objectives"]
PROBE = """
import importlib, json, pkgutil, sys
loaded = {}
for name in sys.argv[1:]:
    package = importlib.import_module(f"potstill.{name}")
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
    loaded[name] = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps(loaded))
"""


def test_the_packages_of_the_library_need_neither_hydra_nor_lightning():
    done = subprocess.run([sys.executable, "-c", PROBE, *PACKAGES], capture_output=True, text=True, check=True)
    loaded = json.loads(done.stdout)
    assert [*loaded] == PACKAGES
    for name, modules in loaded.items():
        assert "torch" in modules
        assert not {*modules} & {"hydra", "omegaconf", "lightning", "pytorch_lightning"}, name
