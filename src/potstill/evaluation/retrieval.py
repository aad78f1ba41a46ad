"""Retrieval: whether the documents that are most similar to a query are the relevant ones, by exact search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from potstill.data.common.tokenizers import Vocabulary
from potstill.data.tasks.retrieval import Collection
from potstill.evaluation.bootstrap import Metric
from potstill.evaluation.encoders import EncoderBenchmark, Measured, token_ids
from potstill.evaluation.similarity import similarity_of
from potstill.models.sentence import SentenceEncoder
from potstill.models.sentence_folders import COSINE, SentenceSettings
from potstill.runtime.atomic import write_whole

Floats = NDArray[np.float64]
CHUNK = 16384  # documents that are encoded and compared at a time
SCORES = 2**23  # scores of queries and documents that are held at a time

_SCORE_OF: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    COSINE: lambda a, b: normalize(a, dim=-1) @ normalize(b, dim=-1).T,
    "dot": lambda a, b: a @ b.T,
    "euclidean": lambda a, b: -torch.cdist(a, b),
    "manhattan": lambda a, b: -torch.cdist(a, b, p=1),
}


def search(
    queries_QW: Tensor,
    chunks: Iterable[Tensor],
    similarity: str,
    depth: int,
    excluded: Sequence[int | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """The most similar documents of every query, by comparison with all of them.

    Args:
        queries_QW: vectors of the queries, (queries, width).
        chunks: vectors of the documents, in their order, each (documents, width).
        similarity: one of `similarity.SIMILARITIES`.
        depth: documents per query.
        excluded: number of a document that is not returned, for each query.

    Returns:
        (queries, depth) numbers of the documents, the most similar first, -1 behind the last; and their similarities,
        -inf behind the last. Of two equal ones that are returned the earlier document comes first.
    """
    compare, count, start = _SCORE_OF[similarity], len(queries_QW), 0
    best_QK = torch.full((count, depth), -torch.inf, device=queries_QW.device)
    found_QK = torch.full((count, depth), -1, device=queries_QW.device)
    own_Q = torch.tensor([-1 if one is None else one for one in excluded or [None] * count], device=queries_QW.device)
    for chunk_DW in chunks:
        numbers_D = torch.arange(start, start + len(chunk_DW), device=queries_QW.device)
        size = max(SCORES // max(len(chunk_DW), 1), 1)
        for first in range(0, count, size):
            rows = slice(first, first + size)
            scores = compare(queries_QW[rows], chunk_DW)
            scores.masked_fill_(numbers_D[None] == own_Q[rows, None], -torch.inf)
            top, places = scores.topk(min(depth, len(chunk_DW)), dim=1)
            merged = torch.cat([best_QK[rows], top], 1)
            names = torch.cat([found_QK[rows], numbers_D[places]], 1)
            # First by number, then by similarity, both stable: equal ones stay in the order of the documents.
            by_number = names.argsort(dim=1, stable=True)
            order = by_number.gather(1, merged.gather(1, by_number).argsort(dim=1, descending=True, stable=True))
            best_QK[rows] = merged.gather(1, order)[:, :depth]
            found_QK[rows] = names.gather(1, order)[:, :depth]
        start += len(chunk_DW)
    found_QK[best_QK == -torch.inf] = -1
    return found_QK, best_QK


def _ndcg(gains_QK: Floats, ideal_QK: Floats, relevant_Q: Floats) -> Floats:
    def discounted(gains: Floats) -> Floats:
        return np.asarray((gains / np.log2(np.arange(2, gains.shape[1] + 2))).sum(1))

    return discounted(gains_QK) / discounted(ideal_QK)


def _recall(gains_QK: Floats, ideal_QK: Floats, relevant_Q: Floats) -> Floats:
    return np.asarray((gains_QK > 0).sum(1) / relevant_Q)


def _precision(gains_QK: Floats, ideal_QK: Floats, relevant_Q: Floats) -> Floats:
    return np.asarray((gains_QK > 0).mean(1))


def _mrr(gains_QK: Floats, ideal_QK: Floats, relevant_Q: Floats) -> Floats:
    hit_QK = gains_QK > 0
    return np.where(hit_QK.any(1), 1 / (hit_QK.argmax(1) + 1), 0.0)


def _map(gains_QK: Floats, ideal_QK: Floats, relevant_Q: Floats) -> Floats:
    hit_QK = gains_QK > 0
    precision_QK = hit_QK.cumsum(1) / np.arange(1, hit_QK.shape[1] + 1)
    return np.asarray((precision_QK * hit_QK).sum(1) / relevant_Q)


# Functions of the grades of the first k documents found, of the k best grades, and of the number of relevant documents.
_METRICS = {"ndcg": _ndcg, "recall": _recall, "precision": _precision, "mrr": _mrr, "map": _map}


def cutoff_of(metric: str) -> int:
    """The `k` of a metric `name@k`."""
    return int(metric.partition("@")[2])


@dataclass(frozen=True)
class Rankings(Measured):
    """The documents that were found.

    Attributes:
        found: (queries, depth) numbers of documents, -1 behind the last.
        similarities: (queries, depth).
        collection: queries, documents and their grades.
    """

    found: NDArray[np.int64]
    similarities: NDArray[np.float32]
    collection: Collection
    metrics: tuple[str, ...]
    examples: str = "queries"

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.found)

    def values(self, name: str) -> Floats:
        """A metric `name@k` of every query, (queries,).

        Source: Järvelin & Kekäläinen 2002 (nDCG with linear gains and the logarithm to base 2); the others as defined
        by trec_eval.
        """
        depth, relevant = cutoff_of(name), self.collection.relevant
        gains, ideal = np.zeros((len(self), depth)), np.zeros((len(self), depth))
        for query, (own, found) in enumerate(zip(relevant, self.found[:, :depth].tolist(), strict=True)):
            gains[query, : len(found)] = [own.get(number, 0) for number in found]
            best = sorted(own.values(), reverse=True)[:depth]
            ideal[query, : len(best)] = best
        return _METRICS[name.partition("@")[0]](gains, ideal, np.array([len(own) for own in relevant], np.float64))

    def metric(self, name: str) -> Metric:
        """See `Measured`."""
        values = self.values(name)
        return lambda rows: float(values[rows].mean())

    def write(self, path: Path) -> None:
        """Write the rankings as TREC's programs read them: query, Q0, document, rank, similarity, name."""
        lines = []
        for query, numbers, similarities in zip(
            self.collection.query_ids, self.found.tolist(), self.similarities.tolist(), strict=True
        ):
            for rank, (number, similarity) in enumerate(zip(numbers, similarities, strict=True), 1):
                if number >= 0:
                    document = self.collection.document_ids[number]
                    lines.append(f"{query} Q0 {document} {rank} {similarity:.6f} potstill")
        write_whole(path.with_suffix(".trec"), "\n".join(lines) + "\n")


@dataclass(frozen=True)
class Retrieval(EncoderBenchmark):
    """A collection in the tokens of one encoder.

    Attributes:
        collection: queries, documents and their grades.
        queries: tokens of each query, with special tokens.
        documents: tokens of each document.
        pad_id: padding id.
        metrics: `name@k` with the names ndcg, recall, precision, mrr, map.
        batch_size: texts at a time.
    """

    collection: Collection
    queries: Sequence[NDArray[np.integer]]
    documents: Sequence[NDArray[np.integer]]
    pad_id: int
    metrics: tuple[str, ...]
    batch_size: int = 64

    def measure(self, encoder: SentenceEncoder) -> Rankings:
        """See `EncoderBenchmark`.

        A document with the query's own id is not returned, as in BEIR, unless it is relevant to the query.
        """
        device = encoder.backbone.model.device

        def encode(ids: Sequence[NDArray[np.integer]]) -> Tensor:
            return encoder.encode(ids, self.pad_id, self.batch_size).to(device)

        numbers = {name: number for number, name in enumerate(self.collection.document_ids)}
        found, similarities = search(
            encode(self.queries),
            (encode(self.documents[start : start + CHUNK]) for start in range(0, len(self.documents), CHUNK)),
            similarity_of(encoder),
            min(max(map(cutoff_of, self.metrics)), len(self.documents)),
            [
                None if (number := numbers.get(name)) in relevant else number
                for name, relevant in zip(self.collection.query_ids, self.collection.relevant, strict=True)
            ],
        )
        return Rankings(found.cpu().numpy(), similarities.cpu().numpy(), self.collection, self.metrics)


def retrieval_of(
    collection: Collection,
    vocabulary: Vocabulary,
    settings: SentenceSettings,
    *,
    prompts: tuple[str, str],
    max_length: int,
    metrics: Sequence[str],
    batch_size: int = 64,
) -> Retrieval:
    """Tokenize a collection.

    Args:
        collection: queries and documents.
        vocabulary: of the encoder's tokenizer.
        settings: of the encoder.
        prompts: texts before every query, and before every document.
        max_length: most tokens of a text, with special tokens.
        metrics: see `Retrieval`.
        batch_size: texts at a time.
    """
    queries, documents = (
        token_ids(texts, vocabulary, settings, prompt=prompt, max_length=max_length)
        for texts, prompt in zip((collection.queries, collection.documents), prompts, strict=True)
    )
    return Retrieval(collection, queries, documents, vocabulary.pad_id, tuple(metrics), batch_size)
