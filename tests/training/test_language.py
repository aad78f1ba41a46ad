"""A pass of evaluation over ranks; two real ones are in tests/integration/test_data_parallel.py."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForMaskedLM

from potstill.objectives.language import LanguageObjective
from potstill.training.language import LanguageDistillation


@pytest.fixture
def module(bert_teacher):
    student, teacher = (AutoModelForMaskedLM.from_pretrained(bert_teacher) for _ in range(2))
    found = LanguageDistillation(student, teacher, LanguageObjective("masked", {"ce": 1.0, "cos": 1.0}, 2.0))
    found._trainer = SimpleNamespace(world_size=1, sanity_checking=False)
    return found


def test_a_rank_without_a_batch_takes_part_in_the_sums(module, monkeypatch):
    """Otherwise the ranks with a batch would wait for it."""
    summed = []
    monkeypatch.setattr(module._means, "compute", lambda: summed.append(module._means.update_called) or {})
    module.on_validation_epoch_start()
    module.on_validation_epoch_end()  # without a batch it logs nothing
    assert summed == [True]


def test_means_without_a_count_are_not_logged_and_an_earlier_pass_is_reset(module, monkeypatch):
    logged = {}
    monkeypatch.setattr(module, "log_dict", logged.update)
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    for nats in (9.0, 1.0):
        module.on_validation_epoch_start()
        for name in ("mlm", "ce"):
            module._add(name, torch.tensor(nats), 4)
        module.on_validation_epoch_end()
    assert logged == {"val/loss_ce": 1.0, "val/loss": 1.0, "val/perplexity": pytest.approx(2.7183, rel=1e-4)}
