"""The best student: which is kept, and that it goes on from a checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from potstill.training.callbacks import BestStudent, LastCheckpoint


def trainer(step, value, callbacks=()):
    metrics = {} if value is None else {"val/accuracy": torch.tensor(value)}
    return SimpleNamespace(global_step=step, callback_metrics=metrics, callbacks=list(callbacks))


def module(weight):
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, weight)
    return SimpleNamespace(student=student)


@pytest.mark.parametrize(("mode", "best"), [("max", 4), ("min", 2)])
def test_the_first_of_the_best_is_kept(mode, best):
    kept = BestStudent("val/accuracy", mode)
    for step, value in ((2, 0.5), (4, 0.9), (6, 0.9), (8, 0.5), (9, None)):
        kept.on_validation_end(trainer(step, value), module(float(step)))
    assert kept.step == best
    end = module(9.0)
    kept.restore(end)
    assert end.student.weight.item() == best


def test_an_interrupted_best_goes_on(tmp_path):
    kept, resumed = BestStudent("val/accuracy", "max"), BestStudent("val/accuracy", "max")
    kept.on_validation_end(trainer(2, 0.9), module(2.0))
    torch.save(kept.state_dict(), tmp_path / "state")
    resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    resumed.on_validation_end(trainer(4, 0.8), module(4.0))
    assert (resumed.step, resumed.value) == (2, pytest.approx(0.9))
    end = module(4.0)
    resumed.restore(end)
    assert end.student.weight.item() == 2.0


def test_a_step_is_saved_when_the_next_one_begins(tmp_path):
    """The end is saved, too, and no step twice."""
    written, last = [], LastCheckpoint(tmp_path, 2)
    for step in (0, 1, 2, 3, 4):
        now = trainer(step, None)
        now.save_checkpoint = lambda _, step=step: written.append(step)
        last.on_train_batch_start(now)
    last.on_train_end(now, None)
    assert written == [2, 4]


def test_a_student_that_was_never_validated_stays_as_it_is():
    end = module(3.0)
    BestStudent("val/accuracy", "max").restore(end)
    assert end.student.weight.item() == 3.0
