"""Comparison of two forms of a model: random padded batches, and the largest difference of logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Batch and length: the smallest pass, one sequence, several, more rows than columns.
SHAPES = ((1, 1), (1, 13), (4, 32), (5, 3))

SPANS = ("start_logits", "end_logits")

Batch = dict[str, Tensor]
Outputs = dict[str, Tensor]


def random_batches(vocab_size: int, max_length: int, pad_token: int, types: int) -> Iterator[Batch]:
    """Batches of several shapes, their rows of different lengths and padded on the right.

    Args:
        vocab_size: ids are drawn below it.
        max_length: no batch is longer.
        pad_token: used for padding only.
        types: number of token types; with one, batches have no `token_type_ids`.

    Yields:
        `input_ids` and `attention_mask`, with several types also `token_type_ids`; each (batch, length), int64.
    """
    generator = torch.Generator().manual_seed(0)
    for rows, columns in SHAPES:
        shape = rows, min(columns, max_length)
        ids_BL = torch.randint(vocab_size - 1, shape, generator=generator)
        ids_BL += ids_BL >= pad_token
        lengths_B = (shape[1] - 2 * torch.arange(rows)).clamp(min=1)
        mask_BL = (torch.arange(shape[1]) < lengths_B[:, None]).long()
        batch = {"input_ids": ids_BL.where(mask_BL.bool(), torch.tensor(pad_token)), "attention_mask": mask_BL}
        if types > 1:
            batch["token_type_ids"] = torch.randint(types, shape, generator=generator)
        yield batch


def largest_difference(
    first: Callable[[Batch], Outputs], second: Callable[[Batch], Outputs], batches: Iterator[Batch]
) -> float:
    """Largest absolute difference of two models' outputs, without padding.

    Returns:
        The difference, in logits; NaN or infinite if an output is.
    """
    worst = torch.zeros(())
    for batch in batches:
        mine, other = first(batch), second(batch)
        real_BL = batch["attention_mask"].bool()
        for name, logits in mine.items():
            difference = (logits.float() - other[name].float()).abs()
            per_token = difference.dim() == (2 if name in SPANS else 3)
            worst = torch.maximum(worst, (difference[real_BL] if per_token else difference).max())
    return worst.item()
