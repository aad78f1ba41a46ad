"""The best student: which is kept, and that it goes on from a checkpoint."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

from potstill.callbacks import BestStudent, LastCheckpoint, is_validated_next


def trainer(step, value, callbacks=()):
    metrics = {} if value is None else {"val/accuracy": torch.tensor(value)}
    return SimpleNamespace(
        global_step=step, callback_metrics=metrics, callbacks=list(callbacks),
        state=SimpleNamespace(fn=TrainerFn.FITTING),
    )  # fmt: skip


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


def test_a_step_that_is_validated_is_saved_after_its_validation(tmp_path):
    written = []
    last, kept = LastCheckpoint(tmp_path, 2), BestStudent("val/accuracy", "max")
    for step, value in ((2, None), (3, None), (4, 0.5), (6, None), (8, 0.4)):
        now = trainer(step, value)
        now.save_checkpoint = lambda _, step=step: written.append((step, kept.step))
        now.check_val_every_n_epoch, now.enable_validation, now.val_check_batch = None, True, 4
        last.on_train_batch_end(now, None, None, None, step - 1)
        if value is not None:
            assert (step, kept.step) not in written
            for callback in (kept, last):
                callback.on_validation_end(now, module(1.0))
    assert written == [(2, None), (4, 4), (6, 4), (8, 4)]


@pytest.mark.parametrize(
    ("epoch", "step", "index", "every", "batches", "follows"),
    [
        (0, 10, 3, None, 5, True),
        (0, 11, 4, None, 5, False),
        (0, 7, 6, 1, 7, True),
        (1, 12, 4, 1, 7, False),
        (0, 7, 6, 2, 7, False),
        (1, 14, 6, 2, 7, True),
        (0, 10, 3, None, float("inf"), False),
    ],
)
def test_when_lightning_validates(epoch, step, index, every, batches, follows):
    now = SimpleNamespace(current_epoch=epoch, global_step=step, check_val_every_n_epoch=every)
    now.enable_validation, now.val_check_batch = True, batches
    assert is_validated_next(now, index) == follows
    now.enable_validation = False
    assert not is_validated_next(now, index)


def test_a_student_that_was_never_validated_stays_as_it_is():
    end = module(3.0)
    BestStudent("val/accuracy", "max").restore(end)
    assert end.student.weight.item() == 3.0
