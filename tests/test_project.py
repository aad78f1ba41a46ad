"""The project's files agree with each other: workflow, Makefile, versions of Python, citation."""

import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())


def test_the_workflow_runs_targets_of_the_makefile():
    steps = [step.get("run", "") for job in WORKFLOW["jobs"].values() for step in job["steps"]]
    used = set(re.findall(r"\bmake ([\w-]+)", "\n".join(re.sub(r"#.*", "", step) for step in steps)))
    assert used <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"check", "test-fast", "test", "docs"} <= used


def test_the_workflow_tests_every_supported_python_and_the_lowest_dependencies():
    matrix = WORKFLOW["jobs"]["full"]["strategy"]["matrix"]
    classified = [one.rpartition(" ")[2] for one in PROJECT["classifiers"] if "Python :: 3." in one]
    assert matrix["python"] == classified
    assert PROJECT["requires-python"] == f">={classified[0]},<3.{int(classified[-1].partition('.')[2]) + 1}"
    assert {"python": classified[0], "dependencies": "lowest"} in matrix["include"]


def test_every_dependency_has_a_lower_bound():
    extras = [one for group in PROJECT["optional-dependencies"].values() for one in group]
    unbounded = [one for one in [*PROJECT["dependencies"], *extras] if ">=" not in one]
    assert [one for one in unbounded if not one.startswith("potstill[")] == []


def test_the_version_is_stated_once():
    assert "version" in PROJECT["dynamic"]
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text())
