"""Checkpoints that are kept with their students."""

import json

import pytest
import torch
from transformers import AutoModelForMaskedLM

from potstill.errors import ConfigError
from potstill.runs import evaluate as evaluate_run
from potstill.runs import train as train_run
from potstill.runs.checks import validate_evaluate, validate_train

SMALL = [
    "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1", "schedule.warmup_steps=2", "student=half", "logger=csv",
]  # fmt: skip


@pytest.fixture
def train(kd, eval_file, tmp_path, compose_config):
    def start(folder, *overrides):
        config = compose_config(*kd, *SMALL, f"data.eval_files=[{eval_file}]", *overrides)
        validate_train(config)
        (tmp_path / folder).mkdir(exist_ok=True)
        train_run.train(config, tmp_path / folder)
        return tmp_path / folder

    return start


def weights(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def steps_of(folder):
    return sorted(int(path.name.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*"))


@pytest.mark.slow
def test_each_is_a_checkpoint_and_a_student(train, source, eval_file, compose_config, tmp_path):
    plain = train("plain", "trainer.max_steps=6")
    kept = train("kept", "trainer.max_steps=6", "checkpoint.keep=all", "checkpoint.every_n_steps=2")
    assert steps_of(kept) == [2, 4, 6]
    ends = [weights(folder / "checkpoints") for folder in (plain, kept)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])  # keeping changes nothing
    for step in (2, 4, 6):
        own = kept / "checkpoints" / f"step_{step:06d}"
        student = AutoModelForMaskedLM.from_pretrained(own / "student").state_dict()
        saved = weights(own)
        assert all(torch.equal(value, saved[f"student.{key}"]) for key, value in student.items())
    # Resumed from the middle, the run ends as it did.
    middle = kept / "checkpoints" / "step_000004" / "last.ckpt"
    resumed = weights(train("resumed", "trainer.max_steps=6", f"ckpt_path={middle}") / "checkpoints")
    assert all(torch.equal(ends[1][key], resumed[key]) for key in resumed)
    # Its student is evaluated as any other.
    evaluated = [*source[:1], f"data.eval_files=[{eval_file}]", "data.max_length=32", "data.num_proc=1"]
    newest = kept / "checkpoints" / "step_000006" / "student"
    config = compose_config(f"model={newest}", *evaluated, name="evaluate")
    validate_evaluate(config)
    evaluate_run.evaluate(config, tmp_path)
    found, summary = (json.loads((folder / "summary.json").read_text()) for folder in (tmp_path, kept))
    assert found["perplexity"] == pytest.approx(summary["val/perplexity"], rel=1e-5)


@pytest.mark.slow
def test_the_newest_are_kept_at_parts_of_epochs(train):
    folder = train("run", "trainer.max_epochs=2", "checkpoint.every_n_epochs=0.5", "checkpoint.keep=2",
                   "checkpoint.every_n_steps=null")  # fmt: skip
    total = json.loads((folder / "summary.json").read_text())["train/steps"]
    assert steps_of(folder) == [round(total * 3 / 4 + 0.25), total]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["checkpoint.keep=0"], "checkpoint.keep=0"),
        (["checkpoint.keep=some"], "checkpoint.keep=some"),
        (["checkpoint.keep=1.5"], "checkpoint.keep=1.5"),
        (["checkpoint.keep=all", "trainer.strategy=fsdp"], "checkpoint.keep=all"),
        (["checkpoint.every_n_epochs=0"], "checkpoint.every_n_epochs=0.0"),
    ],
)
def test_invalid_values(overrides, key, kd, compose_config):
    with pytest.raises(ConfigError, match=f"^{key}: "):
        validate_train(compose_config(*kd, *SMALL, *overrides))


@pytest.mark.slow
def test_a_checkpoint_of_lightnings_callback_is_resumed(train):
    own = ["+callbacks.own._target_=lightning.pytorch.callbacks.ModelCheckpoint", "+callbacks.own.save_top_k=-1"]
    whole = train("whole", "trainer.max_steps=6", *own, "+callbacks.own.every_n_train_steps=3")
    (middle,) = (whole / "checkpoints").glob("*step=3.ckpt")
    assert not any(key.startswith("teacher.") for key in torch.load(middle, weights_only=True)["state_dict"])
    more = train("more", "trainer.max_steps=6", f"ckpt_path='{middle}'")
    ends = [weights(folder / "checkpoints") for folder in (whole, more)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
