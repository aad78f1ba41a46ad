"""Training: what is refused before the corpus is read, and a run of no steps; whole runs are in integration/."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from potstill.errors import ConfigError, DataError
from potstill.methods.language import build
from potstill.runs import train as train_run
from potstill.runs.checks import validate_train
from potstill.training.callbacks import BestStudent


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["optimizer._target_=torch.optim.Adamm"], "optimizer._target_=torch.optim.Adamm"),
        (["+optimizer.momentun=1"], "momentun"),
        (["+trainer.extra={fast: 1}"], "trainer.extra.fast: not an argument of lightning.Trainer"),
        (["callbacks=early_stopping", "callbacks.early_stopping.mode=up"], "callbacks.early_stopping"),
    ],
)
def test_errors_that_need_torch_are_raised_before_the_corpus_is_read(
    overrides, said, kd, tmp_path, monkeypatch, compose_config
):
    def read(*_, **__):
        raise AssertionError("the corpus was read")

    if "callbacks" not in said:
        monkeypatch.setattr(build, "build_corpora", read)
    config = compose_config(*kd, *overrides, "data.max_length=32", "data.num_proc=1")
    validate_train(config)
    with pytest.raises(ConfigError) as error:
        train_run.train(config, tmp_path)
    assert said in str(error.value)


def test_a_broken_tokenizer_is_a_user_error(kd, tmp_path, compose_config):
    (tmp_path / "tokenizer").mkdir()
    config = compose_config(*kd, f"data.tokenizer={tmp_path}/tokenizer")
    with pytest.raises(DataError, match=r"data\.tokenizer"):
        train_run.train(config, tmp_path)


def test_a_run_too_short_to_log_and_without_evaluation_ends_well(kd, tmp_path, compose_config):
    config = compose_config(*kd, "data.eval_share=0", "trainer.max_steps=0", "data.max_length=32", "data.num_proc=1")
    validate_train(config)
    train_run.train(config, tmp_path)
    assert (tmp_path / "metrics.csv").read_text().startswith("epoch,step")
    assert (tmp_path / "report.html").is_file()


class Judging:
    """A trainer at step 4 whose validation says what weight the student has, and counts itself."""

    def __init__(self):
        self.global_step, self.callback_metrics, self.count, self.loggers = 4, {}, 0, []

    def validate(self, module, **_):
        self.count += 1
        self.callback_metrics = {"val/accuracy": module.student.weight.item(), "bar": 0.0}
        module.validated_at = self.global_step


@pytest.mark.parametrize(("validated_at", "best_at", "count"), [(None, 4, 1), (4, 4, 0), (4, 2, 1), (2, 2, 2)])
def test_no_student_is_validated_twice(validated_at, best_at, count):
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 4.0)
    training = SimpleNamespace(module=SimpleNamespace(student=student, validated_at=validated_at), data=None)
    trainer, best = Judging(), BestStudent("val/accuracy", "max")
    trainer.callback_metrics = {"val/accuracy": 4.0}
    best.value, best.step, best._weights = 9.0, best_at, {"weight": torch.full((1, 1), float(best_at))}
    assert train_run._final_metrics(trainer, training, best) == {"val/accuracy": float(best_at)}
    assert (trainer.count, student.weight.item()) == (count, best_at)
