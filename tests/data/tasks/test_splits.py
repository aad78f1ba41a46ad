"""Sources of a benchmark's parts: files, the folder of a task, the folder of GLUE."""

import pytest

from potstill.data.tasks.splits import evaluated_parts, training_parts
from potstill.errors import ConfigError, PotstillError


@pytest.fixture
def glue(tmp_path):
    (tmp_path / "SST-2").mkdir()
    for part in ("train", "dev"):
        (tmp_path / "SST-2" / f"{part}.tsv").write_text("sentence\tlabel\nfine\t1\n")
    return tmp_path


def test_both_folders_hold_the_same_part(glue, compose_config):
    paths = []
    for folder in (glue, glue / "SST-2"):
        benchmark = compose_config("objective=finetune", "benchmark=sst2", f"benchmark.folder={folder}").benchmark
        paths.append(training_parts(benchmark, None).train[0].source.path)
    assert paths == [glue / "SST-2" / "train.tsv"] * 2


def test_a_part_that_is_missing_is_named_with_its_folder(glue, compose_config):
    (glue / "SST-2" / "dev.tsv").unlink()
    benchmark = compose_config("objective=finetune", "benchmark=sst2", f"benchmark.folder={glue}").benchmark
    with pytest.raises(ConfigError, match="has no SST-2/dev "):
        training_parts(benchmark, None)


def benchmark_of(compose_config, *overrides):
    return compose_config("objective=finetune", *overrides).benchmark


@pytest.mark.parametrize("evaluated", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [
        ["benchmark=sst2", "benchmark.label_column=nope"],
        ["benchmark=cola", "benchmark.label_column=nope"],
        ["benchmark=cola", "benchmark.label_column=7"],
        ["benchmark=text_classification", "benchmark.text_columns=[sentence]", "benchmark.label_column=nope"],
        ["benchmark=sst2", "benchmark.text_columns=[nope]"],
    ],
)
def test_a_configured_column_must_be_there(evaluated, overrides, tmp_path, compose_config):
    path = tmp_path / "rows.tsv"
    path.write_text("sentence\tlabel\nfine\t1\n")
    files = [f"benchmark.{part}_file={path}" for part in ("train", "eval")]
    benchmark = benchmark_of(compose_config, *overrides, *files)
    parts = evaluated_parts(benchmark, None) if evaluated else training_parts(benchmark, None).eval
    with pytest.raises(PotstillError, match=r"benchmark\.(label|text)_column"):
        parts[""].check()


def test_a_label_column_takes_the_place_of_a_benchmarks_own(tmp_path, compose_config):
    path = tmp_path / "rows.tsv"
    path.write_text("sentence\tlabel\tgold\nfine\t1\t0\n")
    benchmark = benchmark_of(
        compose_config, "benchmark=sst2", "benchmark.label_column=gold", f"benchmark.eval_file={path}"
    )
    assert evaluated_parts(benchmark, None)[""].read().labels == ["0"]


@pytest.mark.parametrize("name", ["rows.tsv", "rows.csv", "rows.jsonl"])
def test_lines_to_skip_keep_the_others_numbers(name, tmp_path, compose_config):
    path = tmp_path / name
    rows = {
        "rows.tsv": "# a\ntext\tlabel\n# b\nfine\tyes\n",
        "rows.csv": '# a\ntext,label\n# b\n"fine",yes\n',
        "rows.jsonl": '# a\n# b\n# c\n{"text": "fine", "label": "yes"}\n',
    }
    path.write_text(rows[name])
    benchmark = benchmark_of(compose_config, "benchmark=text_classification", f"benchmark.eval_file={path}")
    read = evaluated_parts(benchmark, None, "^#")[""].read()
    with pytest.raises(PotstillError, match=r"data\.skip=\(:"):
        evaluated_parts(benchmark, None, "(")[""].check()
    assert (read.texts, read.labels, read.places) == ((["fine"],), ["yes"], ["line 4"])
