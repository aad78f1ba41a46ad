import math

import torch

from potstill.models.export.comparison import SHAPES, largest_difference, random_batches


def test_batches_are_padded_and_always_the_same():
    batches = list(random_batches(20, 10, pad_token=3, types=2))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(b, min(n, 10)) for b, n in SHAPES]
    for batch in batches:
        assert torch.equal(batch["input_ids"] == 3, batch["attention_mask"] == 0)
        assert batch["attention_mask"][:, 0].all()
    assert max(int(batch["input_ids"].max()) for batch in batches) == 19
    assert any((batch["attention_mask"] == 0).any() for batch in batches)
    again = list(random_batches(20, 10, 3, 2))
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))
    assert "token_type_ids" not in next(random_batches(20, 10, 3, types=1))


def difference(first, second, mask):
    batch = {"attention_mask": torch.tensor(mask)}
    return largest_difference(lambda _: first, lambda _: second, iter([batch]))


def test_padding_of_tokens_is_left_out():
    mask = [[1, 1], [1, 0]]
    shifted = torch.zeros(2, 2, 3)
    shifted[0, 1, 2], shifted[1, 1] = -0.25, 9.0
    assert difference({"logits": torch.zeros(2, 2, 3)}, {"logits": shifted}, mask) == 0.25
    spans = {"start_logits": torch.zeros(2, 2), "end_logits": shifted[..., 2]}
    assert difference({name: torch.zeros(2, 2) for name in spans}, spans, mask) == 0.25
    # Two labels of two sequences have the mask's shape and are no tokens.
    assert difference({"logits": torch.zeros(2, 2)}, {"logits": torch.tensor([[0.0, 0.0], [0.0, 9.0]])}, mask) == 9


def test_nan_is_returned():
    broken = {"logits": torch.tensor([[float("nan"), 0.0]])}
    assert math.isnan(difference({"logits": torch.zeros(1, 2)}, broken, [[1]]))
    assert math.isnan(difference(broken, broken, [[1]]))
