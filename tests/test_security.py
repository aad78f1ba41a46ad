"""No release with a known vulnerability satisfies the requirements, and SECURITY.md names what they leave out."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REQUIREMENTS = [
    Requirement(line)
    for line in [
        *PROJECT["dependencies"],
        *(one for extra in PROJECT["optional-dependencies"].values() for one in extra),
    ]
]
PINNED = dict(
    line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
)
LEFT_OUT = {
    "lightning": ["2.5.6", "2.6.1", "2.6.2", "2.6.3", "2.6.5"],
    "transformers": ["4.57.0", "5.2.0", "5.4.0"],
    "torch": ["2.8.0", "2.9.1", "2.10.0"],
    "hydra-core": ["1.3.2", "1.3.5"],
    "onnx": ["1.17.0", "1.20.1"],
    "ray": ["2.40.0", "2.53.0"],
}


@pytest.mark.parametrize("name", LEFT_OUT)
def test_releases_with_known_vulnerabilities_are_left_out(name):
    found = [requirement for requirement in REQUIREMENTS if requirement.name == name]
    assert found
    for requirement in found:
        assert not list(requirement.specifier.filter(LEFT_OUT[name]))
        assert requirement.specifier.contains(PINNED[name])
    assert re.search(rf"^\| {name} ", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)


def test_lightnings_parts_are_of_one_release():
    assert PINNED["lightning"] == PINNED["pytorch-lightning"]
