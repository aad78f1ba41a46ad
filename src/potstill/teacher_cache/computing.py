"""Computing a teacher's outputs for a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import PreTrainedModel

from potstill.data.common.batching import IGNORED
from potstill.data.common.store import Gathered, ShardWriter
from potstill.data.corpus.datamodule import MicroBatch
from potstill.data.tasks.datamodule import TaskBatch
from potstill.models.backbone import Backbone, backbone_of
from potstill.models.preparing import MIXED
from potstill.objectives.interchange import hidden_states
from potstill.objectives.task import predicted_in
from potstill.teacher_cache.formats import FullFormat, SampledFormat, TopFormat
from potstill.teacher_cache.hidden import HiddenFormat

CHUNK = 512  # rows whose logits are held at once
# Types of the weights by trainer.precision, where they are not as loaded.
WHOLE = {"bf16-true": torch.bfloat16, "64-true": torch.float64}

Progress = Callable[[int], None]


@contextmanager
def computing(teacher: PreTrainedModel, precision: str, device: torch.device) -> Iterator[Backbone]:
    """A frozen teacher on its device, in the precision of Lightning's trainer."""
    with frozen(teacher, precision, device):
        yield backbone_of(teacher)


@contextmanager
def frozen(teacher: nn.Module, precision: str, device: torch.device) -> Iterator[None]:
    """As `computing`, of any module."""
    teacher.requires_grad_(False).eval().to(device=device, dtype=WHOLE.get(precision))
    mixed = torch.autocast(device.type, MIXED.get(precision), enabled=precision in MIXED)
    with torch.inference_mode(), mixed:
        yield


def write_vocabulary(
    backbone: Backbone,
    batches: Iterable[MicroBatch],
    form: TopFormat | SampledFormat | HiddenFormat,
    writer: ShardWriter,
    progress: Progress,
) -> None:
    """Write the outputs of a language model at all real tokens.

    Args:
        backbone: From `computing`.
        batches: Sequences in the order of items.
        form: Format of the outputs; columns beyond the vocabulary of a sparse one are dropped.
        writer: Writer of the store.
        progress: Called with the number of tokens done.
    """
    weight, bias = backbone.decoder
    for micro in batches:
        (last_BLD,) = hidden_states(backbone, "teacher", micro, None, whole=True).base
        real_ND = last_BLD.flatten(0, 1)[micro.positions]
        if isinstance(form, HiddenFormat):
            writer.append(form.encode(real_ND, micro.labels != IGNORED))
            progress(writer.written)
            continue
        for hidden_ND in real_ND.split(CHUNK):
            logits_NV = linear(backbone.head(hidden_ND), weight, bias)[:, : form.vocabulary_size].float()
            writer.append(form.encode(logits_NV, np.arange(writer.written, writer.written + len(logits_NV))))
        progress(writer.written)


def write_logits(
    backbone: Backbone,
    batches: Iterable[TaskBatch],
    form: FullFormat,
    writer: ShardWriter,
    progress: Progress,
    *,
    every_token: bool = False,
) -> None:
    """Write the logits of a task model: of rows, of the first tokens of their words, or of all their tokens.

    Args:
        backbone: From `computing`.
        batches: Rows in the order of items.
        form: Format of the logits.
        writer: Writer of the store.
        progress: Called with the number of rows done.
        every_token: Of tagged words, whether all real tokens are written.
    """
    for micro in batches:
        (last_BLD,) = hidden_states(backbone, "teacher", micro, None, whole=True).base
        writer.append(_encoded(backbone.classify(last_BLD, micro.attention_mask), micro, form, every_token))
        progress(writer.written)


def _encoded(logits: Tensor, micro: TaskBatch, form: FullFormat, every_token: bool) -> Gathered:
    if logits.ndim == 2:
        return form.encode(logits)
    words_BL = micro.words
    wanted_BL = micro.attention_mask.bool() if words_BL is None else predicted_in(micro, words_BL, every_token)
    return form.encode(logits[wanted_BL], wanted_BL.sum(dim=1).cpu().numpy())
