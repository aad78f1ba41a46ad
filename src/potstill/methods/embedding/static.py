"""The first vectors of a static student, of the teacher's vectors of single tokens."""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.config import TrainConfig
from potstill.data.common.ragged import starts_of
from potstill.data.common.tokenizers import load_backend
from potstill.data.corpus.sentences import SentenceRows, Sentences, TextVectors
from potstill.methods.common.teacher_cache import place_of
from potstill.methods.embedding.models import Side
from potstill.models.static import static_vectors
from potstill.teacher_cache.computing import frozen

log = logging.getLogger(__name__)

PROBED = 1024  # texts whose vectors give scale and shift
BATCH = 512  # tokens at a time


def start_static(
    config: TrainConfig,
    student: Side,
    teacher: Side,
    targets: TextVectors,
    texts: Sentences | SentenceRows,
    components: Tensor | None,
) -> None:
    """Give a static student its first vectors, in one pass of the teacher over the vocabulary.

    See `static_vectors`. They are scaled and shifted so that the squared distance to the teacher's vectors of texts
    is as small as possible; the row of the padding is 0.

    Args:
        config: of the run.
        student: of a model `static`.
        teacher: whose vectors are followed.
        targets: its vectors of training texts, by number in their corpus.
        texts: of the training.
        components: what the teacher's vectors are multiplied with; None: nothing.
    """
    numbers = np.sort(np.random.default_rng(config.seed).permutation(texts.used)[:PROBED])
    corpus = (texts.sentences if isinstance(texts, SentenceRows) else texts).corpus
    log.info("vectors of %d tokens by the teacher", student.vocabulary.size)
    with frozen(teacher.model, config.trainer.precision, place_of(config).device):
        tokens = teacher.encoder.encode(token_texts(student, teacher), teacher.vocabulary.pad_id, BATCH)
    wanted = targets(texts.texts[numbers]).double()
    counts, smoothing = torch.from_numpy(corpus.token_counts), student.model.config.smoothing
    vectors = static_vectors(tokens, counts, smoothing, components)
    own, counted = texts.read(numbers)
    starts = torch.from_numpy(starts_of(counted))
    made = torch.nn.functional.embedding_bag(torch.from_numpy(own), vectors, starts, mode="mean").double()
    if components is not None:
        wanted = wanted @ components.double().T
    centre, mean = made.mean(0), wanted.mean(0)
    spread = (made - centre).square().sum().clamp_min(1e-12)
    scale = ((made - centre) * (wanted - mean)).sum() / spread
    vectors = (scale * (vectors - centre) + mean).float()
    vectors[student.vocabulary.pad_id] = 0
    table = student.model.get_input_embeddings()
    with torch.no_grad():
        table.weight[: len(vectors)] = vectors  # type: ignore[operator]


def token_texts(student: Side, teacher: Side) -> list[NDArray[np.int32]]:
    """Each token of the student as a text in the teacher's tokens."""
    theirs = load_backend(teacher.vocabulary.path)
    own = load_backend(student.vocabulary.path)
    if own.get_vocab() == theirs.get_vocab():
        ends = (teacher.vocabulary.start_id, teacher.vocabulary.end_id)
        before, after = ([end] * (end is not None and theirs.num_special_tokens_to_add(False) > 0) for end in ends)
        return [np.array([*before, number, *after], np.int32) for number in range(student.vocabulary.size)]
    theirs.enable_truncation(teacher.encoder.backbone.max_length)
    texts = [own.decode([number], skip_special_tokens=False) for number in range(student.vocabulary.size)]
    return [np.array(one.ids or [teacher.vocabulary.pad_id], np.int32) for one in theirs.encode_batch(texts)]
