"""Shorthands of the command line."""

from types import SimpleNamespace

import pytest
from hydra.core.hydra_config import HydraConfig

from potstill.cli.multirun import Jobs, expand, group_with_sweep, names_glue
from potstill.errors import ConfigError

NINE = "cola,sst2,mrpc,stsb,qqp,mnli,qnli,rte,wnli"


def test_glue_is_nine_tasks():
    expanded = expand("train", ["objective=finetune", "benchmark=glue", "-m", "seed=1,2"])
    assert expanded == ["-m", "objective=finetune", f"benchmark={NINE}", "seed=1,2"]


@pytest.mark.parametrize(
    ("typed", "stands_for"),
    [
        ("benchmark=glue,lcqmc", f"benchmark={NINE},lcqmc"),
        ("benchmark=rte,glue", "benchmark=rte,cola,sst2,mrpc,stsb,qqp,mnli,qnli,wnli"),
        ("benchmark=sst2,cola", "benchmark=sst2,cola"),
        ("benchmark.name=glue", "benchmark.name=glue"),
        ("student.model=glue", "student.model=glue"),
    ],
)
def test_lists_with_glue(typed, stands_for):
    assert expand("train", ["--multirun", typed]) == ["--multirun", stands_for]


def test_glue_needs_a_sweep():
    with pytest.raises(ConfigError, match=r"^benchmark=glue: .*-m"):
        expand("train", ["objective=finetune", "benchmark=glue"])
    with pytest.raises(ConfigError, match=r"^benchmark=glue: .*sweep="):
        expand("evaluate", ["-m", "benchmark=glue"])


def test_names_glue():
    assert names_glue(["-m", "benchmark=cola,glue"])
    assert not names_glue(["-m", "benchmark=cola", "student.model=glue"])


def test_sweep_is_a_group_of_train_and_a_key_of_evaluate():
    assert expand("train", ["+sweep=seeds", "-m"]) == ["-m", "sweep=seeds"]
    for typed in ("sweep=runs/multirun/a", "+sweep=runs/multirun/a"):
        assert expand("evaluate", [typed]) == ["sweep.folder=runs/multirun/a"]


def test_pluses_of_groups_go_and_others_stay():
    assert expand("train", ["+experiment=diito", "+debug=fast", "+optimizer.amsgrad=true"]) == [
        "experiment=diito",
        "debug=fast",
        "+optimizer.amsgrad=true",
    ]


def test_keys_of_a_swept_benchmark_have_one_to_be_composed_with():
    expanded = expand("train", ["benchmark.folder=a", "benchmark=cola,sst2", "-m"])
    assert expanded == ["-m", "benchmark.folder=a", "benchmark=cola", "benchmark=cola,sst2"]
    assert expand("train", ["benchmark.folder=a", "benchmark=cola"]) == ["benchmark.folder=a", "benchmark=cola"]


def test_runs_of_a_sweep_are_grouped_by_its_folder_unless_they_are_grouped_already(compose_config, tmp_path):
    config = compose_config("logger=csv", raw=True)
    group_with_sweep(config, None)
    assert config.logger.group is None
    group_with_sweep(config, tmp_path / "2026-01-31")
    assert config.logger.group == "2026-01-31"
    group_with_sweep(config, tmp_path / "other")
    assert config.logger.group == "2026-01-31"
    group_with_sweep(compose_config("model=bert", name="evaluate", raw=True), tmp_path)  # has no logger


def test_an_error_that_cannot_be_written_is_printed(monkeypatch, tmp_path, capsys):
    hydra = SimpleNamespace(runtime=SimpleNamespace(output_dir=str(tmp_path / "gone")))
    monkeypatch.setattr(HydraConfig, "get", staticmethod(lambda: hydra))
    jobs = Jobs()
    jobs.fail("no space")
    assert jobs.errors == ["no space"]
    assert capsys.readouterr().err == "error: no space\n"
