"""Early stopping: rejected before the first step where its metric is never logged."""

import json

import pytest

from potstill.errors import ConfigError
from potstill.runs import train as train_run
from potstill.runs.checks import validate_train

pytestmark = pytest.mark.integration

STOPPING = ("callbacks=early_stopping", "logger=csv", "trainer.enable_progress_bar=false", "data.num_proc=1")
TINY = (
    "+student.config={model_type: bert, num_hidden_layers: 1, hidden_size: 16, num_attention_heads: 2, "
    "intermediate_size: 16, max_position_embeddings: 64}"
)


@pytest.fixture
def train(source, eval_file, bert_tokenizer, compose_config, tmp_path):
    def start(*overrides):
        config = compose_config(
            *source, "objective=mlm", TINY, f"data.tokenizer={bert_tokenizer}", f"data.eval_files=[{eval_file}]",
            "data.batch_size=20", "data.max_length=32", *STOPPING, *overrides,
        )  # fmt: skip
        validate_train(config)
        train_run.train(config, tmp_path)
        return json.loads((tmp_path / "summary.json").read_text())

    return start


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("trainer.max_steps=2",), "trainer.val_check_interval="),  # within an epoch
        (("trainer.max_steps=2", "trainer.val_check_interval=3"), "trainer.val_check_interval="),
        (("trainer.max_steps=2", "callbacks.early_stopping.monitor=val/perplexity"), "trainer.val_check_interval="),
        (("trainer.max_steps=2", "callbacks.early_stopping.monitor=accuracy"), "trainer.val_check_interval="),
        (("trainer.max_steps=2", "callbacks.early_stopping.monitor=train/loss"), "trainer.log_every_n_steps="),
        (("trainer.max_epochs=1", "callbacks.early_stopping.monitor=val/accuracy"), "val/perplexity"),
    ],
)
def test_early_stopping_that_never_comes(overrides, key, train, tmp_path):
    with pytest.raises(ConfigError, match=r"^callbacks\.early_stopping\.monitor=") as error:
        train(*overrides)
    assert key in str(error.value)
    assert not (tmp_path / "checkpoints" / "last.ckpt").exists()
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("monitor", ["val/loss", "val/perplexity", "val/loss_mlm", "train/loss"])
def test_early_stopping_that_comes(monitor, train):
    summary = train(
        f"callbacks.early_stopping.monitor={monitor}", "trainer.max_steps=5", "trainer.val_check_interval=2",
        "trainer.log_every_n_steps=1", "callbacks.early_stopping.patience=9",
    )  # fmt: skip
    assert summary["train/steps"] == 5
