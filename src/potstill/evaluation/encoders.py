"""Benchmarks of sentence encoders: texts in an encoder's tokens, and what its vectors give."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from potstill.data.common.ragged import starts_of
from potstill.data.common.tokenizers import Vocabulary, load_backend
from potstill.data.tasks.features import encode_texts
from potstill.evaluation.bootstrap import Metric
from potstill.models.sentence import SentenceEncoder
from potstill.models.sentence_folders import SentenceSettings


class Measured(ABC):
    """What the vectors of a model give on a benchmark.

    Attributes:
        metrics: names of the metrics.
        examples: what is counted, in the plural.
    """

    metrics: tuple[str, ...]
    examples: str

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def metric(self, name: str) -> Metric:
        """A metric as a function of numbers of examples, which may repeat, for the bootstrap."""

    @abstractmethod
    def write(self, path: Path) -> None:
        """Write what was found for every example."""

    def figures(self) -> dict[str, float]:
        """All metrics by name."""
        rows = np.arange(len(self))
        return {name: self.metric(name)(rows) for name in self.metrics}


class EncoderBenchmark(ABC):
    """A benchmark in the tokens of one encoder.

    Attributes:
        metrics: names of the metrics.
    """

    metrics: tuple[str, ...]

    @abstractmethod
    def measure(self, encoder: SentenceEncoder) -> Measured:
        """Compare the vectors of an encoder, in evaluation mode.

        Raises:
            ModelError: the model compares vectors by an unknown function.
        """


def token_ids(
    texts: Iterable[str], vocabulary: Vocabulary, settings: SentenceSettings, *, prompt: str, max_length: int
) -> Sequence[NDArray[np.int32]]:
    """The tokens of each text, with special tokens; one token at least.

    Args:
        texts: as written.
        vocabulary: of the encoder's tokenizer.
        settings: of the encoder.
        prompt: text before every text.
        max_length: most tokens of a text, with special tokens; longer ones are cut.
    """
    tokenizer = load_backend(vocabulary.path)
    tokenizer.enable_truncation(max_length)
    shown = (f"{prompt}{text.lower() if settings.lower else text}" for text in texts)
    made = encode_texts(shown, tokenizer, filler=[vocabulary.pad_id])
    return np.split(made.ids, starts_of(made.lengths.astype(np.int64))[1:])
