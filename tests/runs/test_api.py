"""Training and evaluation from Python: the same run as on the command line, in this process, without exits."""

import json
import sys
import threading
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

import potstill
from potstill.cli.api import TrainingResult, overrides_of
from potstill.errors import ConfigError

SHORT = {"max_steps": 2, "log_every_n_steps": 1, "enable_progress_bar": False}


def test_keyword_options_are_overrides():
    assert overrides_of(
        "train",
        {
            "objective": "kd",
            "benchmark": None,
            "teacher": {"model": Path("a folder/it's"), "models": None},
            "data.train_files": ["a,b.txt", "c.txt"],
            "student": {"config": {"model_type": "bert"}, "layers": (0, 2)},
        },
    ) == [
        "objective=kd",
        "benchmark=null",
        r"teacher.model='a folder/it\'s'",
        "teacher.models=null",
        "data.train_files=['a,b.txt','c.txt']",
        "++student.config.model_type='bert'",
        "student.layers=[0,2]",
    ]


def test_a_run_returns_the_student_its_tokenizer_metrics_and_history(kd, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["notebook"])
    first = potstill.train(*kd, folder=tmp_path / "first", trainer=SHORT)
    assert first.folder == tmp_path / "first"
    assert first.metrics["train/steps"] == 2
    assert first.history["train/loss_ce"][0] == [0, 1]
    assert not first.student.training
    ids = torch.tensor([first.tokenizer("the cat").input_ids])
    assert first.student(ids).logits.shape == (*ids.shape, first.student.config.vocab_size)
    assert not GlobalHydra.instance().is_initialized()
    assert HydraConfig.instance().cfg is None

    second = TrainingResult.open(first.folder)
    assert second.metrics == first.metrics
    with pytest.raises(ConfigError, match=r"hydra\.run\.dir=.*overwrite=true"):
        potstill.train(*kd, folder=tmp_path / "first", trainer=SHORT)

    found = potstill.evaluate(
        model=str(first.folder / "student"), benchmark="mlm", data="text_files", folder=tmp_path / "evaluation",
        **{"data.eval_files": [kd[1].partition("=")[2].strip("[]")], "trainer.enable_progress_bar": False},
    )  # fmt: skip
    assert found.folder == tmp_path / "evaluation"
    assert found.metrics["perplexity"] == json.loads((found.folder / "summary.json").read_text())["perplexity"]
    assert (found.folder / "report.html").is_file()


def test_a_run_in_a_thread_has_a_folder_of_its_own(kd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = []
    thread = threading.Thread(target=lambda: done.append(potstill.train(*kd, trainer=SHORT)))
    thread.start()
    thread.join()
    assert done[0].folder.parent == tmp_path / "runs" / "train"
    assert [*(tmp_path / "runs" / "train").iterdir()] == [done[0].folder]


@pytest.mark.parametrize(
    ("overrides", "options", "key"),
    [
        (["trainer.max_step=3"], {}, "trainer.max_step"),
        ([], {"trainer": {"max_step": 3}}, "trainer.max_step"),
        ([], {"objective": "kdd"}, "kdd"),
        ([], {"trainer.max_steps": "many"}, "trainer.max_steps"),
        (["not an override"], {}, "not an override"),
        ([], {"trainer.devices": 2}, "trainer.devices=2"),
        ([], {"doctor": True}, "doctor=True"),
        (["experiment=textbrewer"], {}, "stages"),
    ],
)
def test_user_errors_are_raised(overrides, options, key, tmp_path):
    with pytest.raises(potstill.PotstillError, match=key):
        potstill.train(*overrides, folder=tmp_path / "run", **options)
    assert not GlobalHydra.instance().is_initialized()
    assert not (tmp_path / "run" / "summary.json").exists()
