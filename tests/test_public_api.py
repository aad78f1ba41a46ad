"""The public names: imported when they are used, documented, and their examples run."""

import doctest
import importlib
import subprocess
import sys

import pytest

PACKAGES = ["", ".losses", ".models", ".interchange", ".objectives", ".teacher_cache"]
NAMES = sorted(
    {
        getattr(importlib.import_module(f"potstill{package}"), name)
        for package in PACKAGES
        for name in importlib.import_module(f"potstill{package}").__all__
    },
    key=lambda found: found.__qualname__,
)


def test_the_package_imports_without_torch_and_lists_its_names():
    code = "import sys, potstill; print({'torch', 'hydra', 'lightning'} & {*sys.modules}, *dir(potstill))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, *names = done.stdout.split()
    assert loaded == "set()"
    assert {"train", "evaluate", "backbone_of", "student_from_layers"} <= {*names}


def test_an_unknown_name_is_an_attribute_error():
    import potstill

    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        _ = potstill.distil


@pytest.mark.parametrize("found", NAMES, ids=lambda found: found.__qualname__)
def test_an_exported_name_has_an_example_that_runs(found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("POTSTILL_CACHE", str(tmp_path / "cache"))
    tests = [test for test in doctest.DocTestFinder(recurse=False).find(found, globs={}) if test.examples]
    if issubclass_of_exception(found):
        return
    assert tests, f"{found.__module__}.{found.__qualname__} has no example"
    for test in tests:
        failures = (
            doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL).run(test).failed
        )
        assert not failures


def issubclass_of_exception(found):
    return isinstance(found, type) and issubclass(found, Exception)
