import pytest
import torch

from potstill.evaluation.classes import class_table, entity_table


def test_scores_per_class():
    """Gold a a b b c, predicted a b b b a: `c` is never predicted, and `d` never occurs."""
    predicted = torch.tensor([0, 1, 1, 1, 0])
    logits = torch.nn.functional.one_hot(predicted, 4).float()
    table = class_table(["a", "b", "c", "d"], logits, torch.tensor([0.0, 0, 1, 1, 2]).double())
    assert table.columns == ["class", "rows", "precision", "recall", "f1"]
    expected = [
        ["a", 2, 0.5, 0.5, 0.5],
        ["b", 2, 2 / 3, 1.0, 0.8],
        ["c", 1, None, 0.0, 0.0],
        ["d", 0, None, None, None],
    ]
    for row, wanted in zip(table.rows, expected, strict=True):
        assert row[:2] == wanted[:2]
        assert row[2:] == [pytest.approx(value) if value is not None else None for value in wanted[2:]]


def test_scores_per_label_of_sets():
    gold = torch.tensor([[1, 1, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]).double()
    logits = torch.tensor([[1.0, 1, -1, -1], [1, -1, -1, -1], [-1, -1, -1, 1]])
    table = class_table(["a", "b", "c", "d"], logits, gold)
    assert list(table.rows) == [
        ["a", 2, 0.5, 0.5, 0.5],
        ["b", 2, 1.0, 0.5, pytest.approx(2 / 3)],
        ["c", 0, None, None, None],
        ["d", 0, 0.0, None, 0.0],
    ]


def test_scores_per_type_of_entity():
    table = entity_table({"val/f1": 0.5, "val/f1_PER": 0.75, "val/f1_LOC": 0.25, "val/loss": 1.0})
    assert table is not None
    assert list(table.rows) == [["PER", 0.75], ["LOC", 0.25]]
    assert entity_table({"val/f1": 0.5}) is None
