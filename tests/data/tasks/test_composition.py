"""Where a benchmark's parts are read from: the task's own folder, or that of all of GLUE."""

import pytest

from potstill.data.tasks.composition import training_parts
from potstill.errors import ConfigError


@pytest.fixture
def glue(tmp_path):
    (tmp_path / "SST-2").mkdir()
    for part in ("train", "dev"):
        (tmp_path / "SST-2" / f"{part}.tsv").write_text("sentence\tlabel\nfine\t1\n")
    return tmp_path


def test_both_folders_hold_the_same_part(glue, compose_config):
    paths = []
    for folder in (glue, glue / "SST-2"):
        benchmark = compose_config(
            "objective=finetune", "benchmark=sst2", f"benchmark.folder={folder}"
        ).benchmark
        paths.append(training_parts(benchmark, None).train[0].path)
    assert paths == [glue / "SST-2" / "train.tsv"] * 2


def test_a_part_that_is_missing_is_named_with_its_folder(glue, compose_config):
    (glue / "SST-2" / "dev.tsv").unlink()
    benchmark = compose_config("objective=finetune", "benchmark=sst2", f"benchmark.folder={glue}").benchmark
    with pytest.raises(ConfigError, match="holds no SST-2/dev "):
        training_parts(benchmark, None)
