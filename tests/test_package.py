"""The wheel is whole: the package and its configs, usable from any folder."""

import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import potstill

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    for needed in ("build", "hatchling"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(code, unpacked, cwd):
    """Run code with the wheel before the checkout on the path, as an installation has it."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(unpacked)}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


def test_the_wheel_holds_the_configs(wheel):
    inside = set(zipfile.ZipFile(wheel).namelist())
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "conf").rglob("*.yaml")}
    # conf/local/ is the user's own and not part of the package.
    missing = {f"potstill/{name}" for name in configs if "local" not in Path(name).parts} - inside
    assert not missing
    modules = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert not modules - inside
    assert {
        f"potstill/rationale_generation/demonstrations/{task}.yaml" for task in ("anli1", "cqa", "esnli", "svamp")
    } <= inside
    assert not [name for name in inside if name.startswith("tests/") or "__pycache__" in name]


def test_an_installed_wheel_finds_its_own_configs(unpacked, tmp_path):
    done = python(
        "import potstill; from potstill.config import config_folder; print(potstill.__file__); print(config_folder())",
        unpacked,
        tmp_path,
    )
    assert done.stdout.split() == [str(unpacked / "potstill" / "__init__.py"), str(unpacked / "potstill" / "conf")]


def test_the_version_is_the_one_that_the_package_states(wheel):
    assert wheel.name.split("-")[:2] == ["potstill", potstill.__version__]
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert f"\nVersion: {potstill.__version__}\n" in archive.read(name).decode()


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_the_entry_points_work_from_the_wheel(name, unpacked, tmp_path):
    code = f"import sys; sys.argv = ['potstill-{name}', '--help']; from potstill.cli.main import {name}; {name}()"
    done = python(code, unpacked, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "group=option" in done.stdout
    assert "\ndata: " in done.stdout
    entry_points = next(unpacked.glob("*.dist-info/entry_points.txt")).read_text()
    assert f"potstill-{name} = potstill.cli.main:{name}" in entry_points
