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
from torchmetrics.functional.classification import binary_average_precision

from potstill.data.common.tokenizers import Vocabulary
from potstill.data.tasks.readers import Rows
from potstill.errors import ModelError
from potstill.evaluation.bootstrap import Metric
from potstill.evaluation.encoders import EncoderBenchmark, Measured, token_ids
from potstill.evaluation.metrics import REGRESSIONS
from potstill.models.sentence import SentenceEncoder
from potstill.models.sentence_folders import COSINE, SentenceSettings
from potstill.runtime.atomic import write_whole

AVERAGE_PRECISION = "average_precision"
SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    COSINE: lambda a, b: cosine_similarity(a, b, dim=-1),
    "dot": lambda a, b: (a * b).sum(-1),
    "euclidean": lambda a, b: -torch.linalg.vector_norm(a - b, dim=-1),
    "manhattan": lambda a, b: -(a - b).abs().sum(-1),
}


def similarity_of(encoder: SentenceEncoder) -> str:
    """How an encoder's vectors are compared, one of `SIMILARITIES`.

    Raises:
        ModelError: by an unknown function.
    """
    name = encoder.settings.similarity
    if name not in SIMILARITIES:
        raise ModelError(f"similarity_fn_name={name}: one of {', '.join(SIMILARITIES)}")
    return name


@dataclass(frozen=True)
class Similarities(Measured):
    """The similarity of each pair.

    Attributes:
        found: (pairs,) float64.
        scores: (pairs,) float64; 0 and 1 for the average precision, by which pairs of 1 are found.
        texts: the two texts of each pair, as written.
    """

    found: Tensor
    scores: Tensor
    texts: tuple[Sequence[str], Sequence[str]]
    metrics: tuple[str, ...]
    examples: str = "pairs"

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.found)

    def metric(self, name: str) -> Metric:
        """See `Measured`."""
        if name != AVERAGE_PRECISION:
            return lambda rows: REGRESSIONS[name](self.found[rows], self.scores[rows])
        _, ranks = self.found.unique(return_inverse=True)  # torchmetrics takes numbers from 0 to 1
        shares, wanted = ranks / len(ranks), self.scores.long()
        return lambda rows: float(binary_average_precision(shares[rows], wanted[rows], validate_args=False))

    def write(self, path: Path) -> None:
        """Write the pairs with score and similarity, one per line, tabs in texts replaced."""
        lines = ["first\tsecond\tscore\tsimilarity"]
        for one, other, score, found in zip(*self.texts, self.scores.tolist(), self.found.tolist(), strict=True):
            lines.append("\t".join([*(" ".join(text.split()) for text in (one, other)), f"{score:g}", f"{found:.6f}"]))
        write_whole(path.with_suffix(".tsv"), "\n".join(lines) + "\n")


@dataclass(frozen=True)
class ScoredPairs(EncoderBenchmark):
    """Pairs of texts with scores, in the tokens of one encoder.

    Attributes:
        ids: tokens of each distinct text, with special tokens.
        sides: (2, pairs), numbers of the two texts of each pair.
        scores: (pairs,) float64.
        texts: the two texts of each pair, as written.
        pad_id: padding id.
        metrics: `spearman`, `pearson`, `average_precision`.
        batch_size: texts at a time.
    """

    ids: Sequence[NDArray[np.integer]]
    sides: NDArray[np.int64]
    scores: Tensor
    texts: tuple[Sequence[str], Sequence[str]]
    pad_id: int
    metrics: tuple[str, ...]
    batch_size: int = 64

    def measure(self, encoder: SentenceEncoder) -> Similarities:
        """See `EncoderBenchmark`."""
        compare = SIMILARITIES[similarity_of(encoder)]
        vectors = encoder.encode(self.ids, self.pad_id, self.batch_size).double()
        found = compare(*(vectors[torch.from_numpy(side)] for side in self.sides))
        return Similarities(found, self.scores, self.texts, self.metrics)


def scored_pairs(
    rows: Rows,
    scores: NDArray[np.floating],
    vocabulary: Vocabulary,
    settings: SentenceSettings,
    *,
    prompt: str,
    max_length: int,
    metrics: Sequence[str],
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
        metrics: see `ScoredPairs`.
        batch_size: texts at a time.
    """
    first, second = rows.texts
    numbers = {text: number for number, text in enumerate(dict.fromkeys([*first, *second]))}
    return ScoredPairs(
        token_ids(numbers, vocabulary, settings, prompt=prompt, max_length=max_length),
        np.array([[numbers[text] for text in side] for side in (first, second)]),
        torch.from_numpy(np.asarray(scores, np.float64)),
        (first, second),
        vocabulary.pad_id,
        tuple(metrics),
        batch_size,
    )
