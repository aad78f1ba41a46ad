"""What a resumed run takes of its checkpoint, and what of its command line."""

import csv

import pytest
import torch

from potstill.errors import CheckpointError
from potstill.methods.language import Language
from potstill.runs import train as train_run
from potstill.runs.checks import validate_train
from potstill.runtime.checksums import add_checksum

pytestmark = pytest.mark.slow

SMALL = [
    "data.max_length=32", "data.num_proc=1", "data.batch_size=8", "trainer.enable_progress_bar=false",
    "trainer.log_every_n_steps=1", "data.eval_share=0", "schedule.warmup_steps=2", "student=half",
]  # fmt: skip


@pytest.fixture
def train(kd, tmp_path, compose_config):
    def start(folder, *overrides):
        config = compose_config(*kd, *SMALL, *overrides)
        validate_train(config)
        (tmp_path / folder).mkdir(exist_ok=True)
        train_run.train(config, tmp_path / folder)
        with (tmp_path / folder / "metrics.csv").open() as file:
            return {int(row["step"]): row for row in csv.DictReader(file) if row["train/loss"]}

    return start


@pytest.fixture
def last(tmp_path):
    return tmp_path / "first" / "checkpoints" / "last.ckpt"


def test_the_command_line_is_in_force_from_the_first_resumed_step(train, last):
    """The schedule is that of the new total, and no step is repeated or left out."""
    first = train("first", "trainer.max_steps=4", "optimizer.lr=1e-3")
    assert [float(row["train/lr"]) for row in first.values()] == pytest.approx([0, 5e-4, 1e-3, 5e-4])
    more = train(
        "first", "trainer.max_steps=10", "optimizer.lr=2e-4", "optimizer.weight_decay=0.3", "optimizer.betas=[0.8,0.9]",
        "optimizer.eps=1e-7", f"ckpt_path={last}",
    )  # fmt: skip
    assert list(more) == list(range(10))
    rates = [float(more[step]["train/lr"]) for step in range(4, 10)]
    assert rates == pytest.approx([2e-4 * (10 - step) / 8 for step in range(4, 10)])
    groups = torch.load(last, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    for group in groups:
        assert (list(group["betas"]), group["eps"]) == ([0.8, 0.9], 1e-7)


def test_a_longer_run_equals_one_that_was_as_long_from_the_start(train, last):
    """With a rate that does not depend on the total."""
    still = ["schedule=constant", "optimizer.lr=1e-3"]
    train("first", "trainer.max_steps=4", *still)
    whole, more = (
        train("whole", "trainer.max_steps=20", *still),
        train("first", "trainer.max_steps=20", f"ckpt_path={last}", *still),
    )
    timed = ("train/step_seconds", "train/tokens_per_second", "train/peak_memory_gb")
    assert [{k: v for k, v in row.items() if k not in timed} for row in more.values()] == [
        {k: v for k, v in row.items() if k not in timed} for row in whole.values()
    ]


@pytest.mark.parametrize(
    ("override", "before"),
    [
        ("seed=1", "42"),
        ("data.mlm_share=0.5", "0.15"),
        ("data.batch_size=4", "8"),
        ("optimizer._target_=torch.optim.Adam", "torch.optim.AdamW"),
        ("optimizer.amsgrad=True", "null"),
        ("trainer.max_steps=2", "step 3"),
        ("trainer.max_epochs=1", "epoch 2"),
    ],
)
def test_what_cannot_be_honoured_is_rejected(override, before, train, last, monkeypatch):
    steps = 16 if "max_epochs" in override else 3
    train("first", f"trainer.max_steps={steps}")
    monkeypatch.setattr(Language, "build", lambda *_: pytest.fail("the data were read"))
    further = [] if "trainer.max" in override else [f"trainer.max_steps={steps}"]
    plus = "+" if "amsgrad" in override else ""
    with pytest.raises(CheckpointError) as error:
        train("second", *further, f"{plus}{override}", f"ckpt_path={last}")
    assert str(error.value).startswith(override)
    assert before in str(error.value)
    assert str(last) in str(error.value)


def test_an_old_checkpoint_is_rejected(train, last):
    train("first", "trainer.max_steps=1")
    saved = torch.load(last, weights_only=True)
    del saved["run"]
    with last.open("wb") as file:
        torch.save(saved, file)
        add_checksum(file)
    with pytest.raises(CheckpointError, match=f"ckpt_path={last}"):
        train("second", "trainer.max_steps=2", f"ckpt_path={last}")


def test_the_settings_of_a_callback_are_those_of_the_command_line(train, last, eval_file):
    stop = [
        "callbacks=early_stopping",
        "callbacks.early_stopping.patience=1",
        "callbacks.early_stopping.monitor=val/loss",
    ]
    checked = [f"data.eval_files=[{eval_file}]", "trainer.val_check_interval=1", "optimizer.lr=0", *stop]
    assert len(train("first", "trainer.max_steps=9", *checked)) == 2  # nothing gets better
    assert len(train("first", "trainer.max_steps=9", *checked, "resume=auto")) == 2  # it stays ended
    patient = [*checked, "callbacks.early_stopping.patience=3", f"ckpt_path={last}"]
    assert len(train("first", "trainer.max_steps=9", *patient)) == 4


def test_the_rate_of_each_block_is_that_of_the_option_and_stays(train, last):
    train("first", "trainer.max_steps=2", "optimizer.layer_decay=0.5", "schedule.name=constant")
    (optimizer,) = torch.load(last, weights_only=True)["optimizer_states"]
    rates = {group["lr"] for group in optimizer["param_groups"]}
    assert sorted(rates, reverse=True) == pytest.approx([max(rates) * 0.5**place for place in range(4)])
    with pytest.raises(CheckpointError, match=r"optimizer\.layer_decay"):
        train("second", "trainer.max_steps=3", "schedule.name=constant", f"ckpt_path={last}")
