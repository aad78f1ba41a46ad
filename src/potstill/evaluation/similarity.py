"""Scored pairs of texts: how well the similarity of two vectors follows the score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cosine_similarity

from potstill.data.common.ragged import starts_of
from potstill.data.common.tokenizers import Vocabulary, load_backend
from potstill.data.tasks.features import encode_texts
from potstill.data.tasks.readers import Rows
from potstill.errors import ModelError
from potstill.evaluation.bootstrap import Metric
from potstill.evaluation.metrics import REGRESSIONS
from potstill.models.sentence import SentenceEncoder
from potstill.models.sentence_folders import COSINE, SentenceSettings
from potstill.runtime.atomic import write_whole

CORRELATIONS = ("spearman", "pearson")
SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    COSINE: lambda a, b: cosine_similarity(a, b, dim=-1),
    "dot": lambda a, b: (a * b).sum(-1),
    "euclidean": lambda a, b: -torch.linalg.vector_norm(a - b, dim=-1),
    "manhattan": lambda a, b: -(a - b).abs().sum(-1),
}


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs of texts with scores, in the tokens of one encoder.

    Attributes:
        ids: tokens of each distinct text, with special tokens.
        sides: (2, pairs), numbers of the two texts of each pair.
        scores: (pairs,) float64.
        texts: the two texts of each pair, as written.
        pad_id: padding id.
        metrics: names of the correlations.
        batch_size: texts at a time.
    """

    ids: Sequence[NDArray[np.integer]]
    sides: NDArray[np.int64]
    scores: Tensor
    texts: tuple[Sequence[str], Sequence[str]]
    pad_id: int
    metrics: tuple[str, ...] = CORRELATIONS
    batch_size: int = 64

    @torch.no_grad()
    def similarities(self, encoder: SentenceEncoder) -> Tensor:
        """The similarity of the vectors of each pair, (pairs,) float64.

        Raises:
            ModelError: the model compares vectors by an unknown function.
        """
        name = encoder.settings.similarity
        if name not in SIMILARITIES:
            raise ModelError(f"similarity_fn_name={name}: one of {', '.join(SIMILARITIES)}")
        model = encoder.backbone.model
        training = model.training
        model.eval()
        vectors = encoder.encode(self.ids, self.pad_id, self.batch_size).double()
        model.train(training)
        return SIMILARITIES[name](*(vectors[torch.from_numpy(side)] for side in self.sides))

    def correlations(self, similarities: Tensor) -> dict[str, float]:
        """The correlations of similarities and scores, by name."""
        rows = np.arange(len(similarities))
        return {name: self.metric(name, similarities)(rows) for name in self.metrics}

    def metric(self, name: str, similarities: Tensor) -> Metric:
        """A correlation as a function of numbers of pairs, which may repeat, for the bootstrap."""
        return lambda rows: REGRESSIONS[name](similarities[rows], self.scores[rows])

    def write(self, path: Path, similarities: Tensor) -> None:
        """Write the pairs with score and similarity, one per line, tabs in texts replaced."""
        lines = ["first\tsecond\tscore\tsimilarity"]
        for one, other, score, found in zip(*self.texts, self.scores.tolist(), similarities.tolist(), strict=True):
            lines.append("\t".join([*(" ".join(text.split()) for text in (one, other)), f"{score:g}", f"{found:.6f}"]))
        write_whole(path, "\n".join(lines) + "\n")


def scored_pairs(
    rows: Rows,
    scores: NDArray[np.floating],
    vocabulary: Vocabulary,
    settings: SentenceSettings,
    *,
    prompt: str,
    max_length: int,
    metrics: Sequence[str] = CORRELATIONS,
    batch_size: int = 64,
) -> ScoredPairs:
    """Tokenize the pairs of a benchmark, each distinct text once.

    Args:
        rows: pairs of texts.
        scores: (pairs,) of `encode_labels`.
        vocabulary: of the encoder's tokenizer.
        settings: of the encoder.
        prompt: text before every text.
        max_length: most tokens of a text, with special tokens.
        metrics: names of the correlations.
        batch_size: texts at a time.
    """
    first, second = rows.texts
    numbers = {text: number for number, text in enumerate(dict.fromkeys([*first, *second]))}
    tokenizer = load_backend(vocabulary.path)
    tokenizer.enable_truncation(max_length)
    texts = (f"{prompt}{text.lower() if settings.lower else text}" for text in numbers)
    made = encode_texts(texts, tokenizer, filler=[vocabulary.pad_id])
    return ScoredPairs(
        np.split(made.ids, starts_of(made.lengths.astype(np.int64))[1:]),
        np.array([[numbers[text] for text in side] for side in (first, second)]),
        torch.from_numpy(np.asarray(scores, np.float64)),
        (first, second),
        vocabulary.pad_id,
        tuple(metrics),
        batch_size,
    )
