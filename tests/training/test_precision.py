"""float16 with loss scaling: the plugin of a GPU, run on the CPU."""

import csv

import pytest
import torch

from potstill.errors import ConfigError, TrainingError
from potstill.runs import train as train_run
from potstill.runs.checks import validate_train
from potstill.training import precision as own
from potstill.training.strategies import check_hardware

pytestmark = pytest.mark.slow

SMALL = [
    "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1", "data.eval_share=0", "schedule=constant", "schedule.warmup_steps=0",
    "student.layers=[0,3]", "trainer.gradient_clip_val=0.1", "trainer.accumulate_grad_batches=2",
]  # fmt: skip


@pytest.fixture
def train(kd, tmp_path, compose_config):
    def start(folder, *overrides):
        config = compose_config(*kd, *SMALL, *overrides)
        (tmp_path / folder).mkdir(exist_ok=True)
        train_run.train(config, tmp_path / folder)
        with (tmp_path / folder / "metrics.csv").open() as file:
            return [row for row in csv.DictReader(file) if row["train/loss"]]

    return start


def weights(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def scale(monkeypatch, initial):
    monkeypatch.setattr(own.torch.amp, "GradScaler", lambda device: _scaler(device, initial))


_GradScaler = torch.amp.GradScaler


def _scaler(device, initial):
    return _GradScaler(device, init_scale=initial)


@pytest.mark.parametrize("objective", ["kd", "diito"])
def test_a_run_in_float16_follows_one_in_float32(objective, train, tmp_path, monkeypatch):
    """Terms, clipped gradients and weights, over accumulated micro-batches; the norm is of the unscaled gradient."""
    scale(monkeypatch, 2.0**10)
    run = [f"objective={objective}", "trainer.max_steps=4", "objective.gradient_shares_every=2"]
    half, single = train("half", *run, "trainer.precision=16-mixed"), train("single", *run)
    assert len(half) == len(single) == 4
    for mine, other in zip(half, single, strict=True):
        for name in other:
            if name.startswith(("train/loss", "train/grad_norm", "train/lr")) and other[name]:
                assert float(mine[name]) == pytest.approx(float(other[name]), rel=0.03, abs=1e-4), name
    shares = [name for name in single[2] if name.startswith("train/gradient_share_")]
    assert len(shares) >= 3
    for name in shares:
        assert float(half[2][name]) == pytest.approx(float(single[2][name]), abs=0.02)
    ours, theirs = weights(tmp_path / "half"), weights(tmp_path / "single")
    moved = {name: theirs[name] - value for name, value in ours.items() if value.is_floating_point()}
    assert max(float(part.abs().max()) for part in moved.values()) < 4 * 2 * 5e-4  # of AdamW, rate 5e-4


def test_a_gradient_that_overflows_is_skipped_and_the_scale_falls(train, tmp_path, monkeypatch):
    scale(monkeypatch, 2.0**34)
    rows = train("half", "trainer.max_steps=30", "trainer.precision=16-mixed")
    skipped = [float(row["train/skipped_steps"] or 0) for row in rows]
    count = int(skipped[-1])
    assert 0 < count < 21
    assert skipped == [min(step + 1, count) for step in range(30)]
    saved = torch.load(tmp_path / "half" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["Float16"]["scale"] == 2.0 ** (34 - count)
    assert saved["skipped_steps"] == count


def test_a_scale_that_does_not_help_ends_the_run(train, monkeypatch):
    scale(monkeypatch, 2.0**100)
    with pytest.raises(TrainingError, match="gradient norm is"):
        train("half", "trainer.max_steps=30", "trainer.precision=16-mixed")


def test_a_resumed_run_has_the_scale_of_its_checkpoint(train, tmp_path, monkeypatch):
    scale(monkeypatch, 2.0**26)
    run = ["trainer.precision=16-mixed", "objective=diito"]
    train("whole", *run, "trainer.max_steps=16")
    train("first", *run, "trainer.max_steps=8")
    train("first", *run, "trainer.max_steps=16", f"ckpt_path={tmp_path}/first/checkpoints/last.ckpt")
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "first")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_needs_a_gpu(kd, compose_config, monkeypatch):
    with pytest.raises(ConfigError, match=r"trainer\.precision=16-mixed: needs a GPU"):
        validate_train(compose_config(*kd, "trainer.precision=16-mixed"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = compose_config(*kd, "trainer.precision=16-mixed", "trainer.accelerator=auto")
    validate_train(config)
    with pytest.raises(ConfigError, match=r"trainer\.precision=16-mixed"):
        check_hardware(config.trainer)
    sharded = compose_config(*kd, "trainer.precision=16-mixed", "trainer.accelerator=gpu", "trainer.strategy=fsdp")
    with pytest.raises(ConfigError, match=r"trainer\.precision=16-mixed: 32-true or bf16-mixed"):
        validate_train(sharded)
