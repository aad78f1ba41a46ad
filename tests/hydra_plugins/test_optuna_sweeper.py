"""A search: its distributions, the states of trials, and a real one that prunes, fails a job and is resumed."""

import json

import pytest
import yaml

optuna = pytest.importorskip("optuna")

from hydra.core.override_parser.overrides_parser import OverridesParser  # noqa: E402
from hydra.core.utils import JobReturn, JobStatus  # noqa: E402

from hydra_plugins.potstill.optuna_sweeper import _tell, best_of, distribution  # noqa: E402
from potstill.errors import ConfigError  # noqa: E402
from potstill.training.monitoring import PruneTrial  # noqa: E402


@pytest.mark.parametrize(
    ("typed", "drawn"),
    [
        ("a=x,y", optuna.distributions.CategoricalDistribution(["x", "y"])),
        ("a=choice(1,2)", optuna.distributions.CategoricalDistribution(["1", "2"])),
        ("a=range(1,8,step=2)", optuna.distributions.IntDistribution(1, 7, step=2)),
        ("a=interval(0.5,2)", optuna.distributions.FloatDistribution(0.5, 2.0)),
        ("a=interval(1,4)", optuna.distributions.FloatDistribution(1.0, 4.0)),
        ("a=int(interval(1,4))", optuna.distributions.IntDistribution(1, 4)),
        ("a=tag(log,interval(1e-5,1e-3))", optuna.distributions.FloatDistribution(1e-5, 1e-3, log=True)),
    ],
)
def test_an_override_is_a_distribution(typed, drawn):
    (parsed,) = OverridesParser.create().parse_overrides([typed])
    assert distribution(parsed) == drawn


def test_a_glob_is_rejected_as_a_distribution():
    (parsed,) = OverridesParser.create().parse_overrides(["experiment=glob(*)"])
    with pytest.raises(ConfigError, match=r"^experiment=glob\(\*\): .*interval"):
        distribution(parsed)


def test_the_states_of_trials():
    study = optuna.create_study()
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    ends = [(JobStatus.COMPLETED, 3.0), (JobStatus.COMPLETED, None), (JobStatus.COMPLETED, float("nan")),
            (JobStatus.FAILED, RuntimeError()), (JobStatus.COMPLETED, 2.0)]  # fmt: skip
    for status, value in ends:
        trial = study.ask(space)
        _tell(study, trial, JobReturn(status=status, _return_value=value))
    pruned = study.ask(space)
    pruned.report(9.0, 1)
    pruned.set_user_attr("pruned", True)
    _tell(study, pruned, JobReturn(status=JobStatus.COMPLETED, _return_value=1.0))
    best = best_of(study)
    assert (best["best_value"], best["best_job"]) == (2.0, 4)
    assert best["trials"] == {"complete": 2, "fail": 3, "pruned": 1}


def test_validations_are_reported_and_the_worse_trial_is_pruned(tmp_path):
    journal = str(tmp_path / "study.journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(journal))
    study = optuna.create_study(study_name="potstill", storage=storage)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1)
    for value, ends in ((1.0, False), (5.0, True), (0.5, False)):
        trial = study.ask()
        assert PruneTrial(journal, trial.number, "val/loss", pruner)._report(value, 10) is ends
        found = study.trials[trial.number]
        assert found.intermediate_values == {10: value}
        assert found.user_attrs.get("pruned", False) is ends
        study.tell(trial, value)


@pytest.mark.integration
def test_a_search_is_resumed_and_prunes_bad_trials(command, text_file, eval_file, tmp_path):
    folder = tmp_path / "search"

    def search(trials):
        return command(
            "train.py", "-m", "hydra/sweeper=optuna", f"hydra.sweeper.n_trials={trials}",
            "optimizer.lr=choice(0.01,1e-9)", "trial.pruner.n_startup_trials=1", "objective=mlm", "student=bert_tiny",
            "data=text_files", f"data.train_files=[{text_file}]", f"data.eval_files=[{eval_file}]",
            "data.vocabulary_size=200", "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "logger=csv",
            "trainer.max_steps=6", "trainer.val_check_interval=2", "trainer.enable_progress_bar=false",
            "checkpoint.every_n_steps=null", f"hydra.sweep.dir={folder}",
        )  # fmt: skip

    assert search(2).returncode == 0
    done = search(4)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    best = yaml.safe_load((folder / "optimization_results.yaml").read_text())
    assert best["best_params"] == {"optimizer.lr": "0.01"}
    assert sum(best["trials"].values()) == 4
    ended = {
        (yaml.safe_load((folder / job / "config.yaml").read_text())["optimizer"]["lr"],
         json.loads((folder / job / "summary.json").read_text())["train/steps"])
        for job in "0123"
    }  # fmt: skip
    assert (0.01, 6) in ended
    assert best["trials"].get("pruned", 0) == 0 or (1e-9, 2) in ended
    table = command("evaluate.py", f"sweep={folder}", f"hydra.run.dir={tmp_path}/table")
    assert table.returncode == 0, table.stderr
    assert "trial" not in (tmp_path / "table" / "report.html").read_text().partition("Configuration")[0].lower()
