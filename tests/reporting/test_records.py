"""Records of a configuration, and files in the folder of a run."""

import os

import pytest
import yaml

from potstill.reporting.records import flattened, read_yaml
from potstill.reporting.sweeps import read_sweep
from potstill.runtime.small_files import read_small


def test_aliases_and_deep_nesting_are_rejected(tmp_path):
    lines = ["a0: &a0 [x, x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    (tmp_path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(yaml.YAMLError):
        read_yaml(tmp_path / "config.yaml")
    (tmp_path / "deep.yaml").write_text("[" * 20_000)
    with pytest.raises(yaml.YAMLError):
        read_yaml(tmp_path / "deep.yaml")


def test_only_small_regular_files_are_read(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe"):
        read_small(tmp_path / "pipe")
    monkeypatch.setattr("potstill.runtime.small_files.SMALL_BYTES", 10)
    (tmp_path / "long").write_text("x" * 11)
    with pytest.raises(ValueError, match="10 bytes"):
        read_small(tmp_path / "long")


def test_a_sweep_with_unreadable_files_is_read(tmp_path):
    for number in range(3):
        (tmp_path / str(number) / ".hydra").mkdir(parents=True)
        (tmp_path / str(number) / "summary.json").write_text('{"val/loss": 1.0}')
    bomb = "\n".join(["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40))])
    (tmp_path / "0" / "config.yaml").write_text(bomb)
    (tmp_path / "0" / ".hydra" / "overrides.yaml").write_text(bomb)
    os.mkfifo(tmp_path / "1" / "config.yaml")
    os.mkfifo(tmp_path / "1" / ".hydra" / "overrides.yaml")
    (tmp_path / "2" / "summary.json").unlink()
    os.mkfifo(tmp_path / "2" / "summary.json")
    jobs = read_sweep(tmp_path)
    assert [job.figures for job in jobs] == [{"val/loss": 1.0}, {"val/loss": 1.0}, {}]


def test_flattened():
    nested = {"seed": 1, "trainer": {"max_steps": 3, "extra": {}}, "student": {"config": {"layers": [1, 2]}}}
    assert flattened(nested) == {"seed": 1, "trainer.max_steps": 3, "student.config.layers": [1, 2]}
