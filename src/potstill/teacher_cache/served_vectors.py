"""Vectors of a model behind an HTTP endpoint, by `/embeddings` of OpenAI's protocol."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from potstill.rationale_generation.answers import Tally
from potstill.rationale_generation.client import Client, ReplyError
from potstill.rationale_generation.settings import EndpointSettings
from potstill.runtime.json_text import parse_json


@dataclass(frozen=True)
class TextBatch:
    """Consecutive texts of one request.

    Attributes:
        first: number of the first one.
        texts: the texts.
    """

    first: int
    texts: tuple[str, ...]

    @property
    def key(self) -> str:
        """See `Keyed`."""
        return str(self.first)


class TextBatches:
    """The texts from one of them on, in requests; they are read when they are taken.

    Args:
        texts: all texts.
        count: their number.
        first: number of the first one that is requested.
        size: texts of a request.
    """

    def __init__(self, texts: Iterable[str], count: int, first: int, size: int) -> None:
        self._texts, self._first, self._size = texts, first, size
        self._count = -(-(count - first) // size)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[TextBatch]:
        rest, first = islice(self._texts, self._first, None), self._first
        while texts := tuple(islice(rest, self._size)):
            yield TextBatch(first, texts)
            first += len(texts)


class Made(NamedTuple):
    """Vectors of the texts of a request.

    Attributes:
        vectors: (texts, width), float32.
        tokens: tokens that the server counted.
    """

    vectors: Tensor
    tokens: int


class VectorRequests(Client[TextBatch, Made]):
    """A client of `/embeddings`; all vectors have the width of the first ones.

    Args:
        settings: as in `Client`.
        width: of the vectors; None: not known yet.
        wait: as in `Client`.

    Attributes:
        width: of the vectors; None before the first answer.
    """

    max_bytes: ClassVar[int] = 2**30
    needs_all: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "a text may be too long for the model (of vLLM, +generation.extra_body.truncate_prompt_tokens=-1 cuts it), or "
        "a request too large (generation.batch_size)"
    )

    def __init__(
        self,
        settings: EndpointSettings,
        width: int | None = None,
        *,
        wait: Callable[[float], Awaitable[object]] | None = None,
    ) -> None:
        super().__init__(settings, wait=wait)
        self.width = width

    def compose(self, request: TextBatch) -> tuple[str, dict[str, Any]]:
        """See `Client`."""
        settings = self._settings
        body = {"model": settings.model, "input": list(request.texts), "encoding_format": "float"}
        body |= settings.extra_body
        return "/embeddings", {name: value for name, value in body.items() if value is not None}

    def read(self, request: TextBatch, body: bytes) -> Made:
        """See `Client`."""
        try:
            content = parse_json(body)
            entries = {int(entry["index"]): entry["embedding"] for entry in content["data"]}
            usage = content.get("usage") or {}
            tokens = int(usage.get("prompt_tokens") or usage.get("total_tokens") or 0)
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise ReplyError("the reply has no data of {index, embedding}") from None
        wanted = len(request.texts)
        if sorted(entries) != list(range(wanted)) or len(content["data"]) != wanted:
            raise ReplyError(f"vectors of {len(content['data'])} texts for the {wanted} that were sent")
        try:
            rows = [_numbers(entries[number]) for number in range(wanted)]
        except (ValueError, TypeError, binascii.Error):
            raise ReplyError("an embedding is no list of numbers") from None
        width = self.width or len(rows[0])
        for row in rows:
            if len(row) != width:
                raise ReplyError(f"a vector of {len(row)} numbers, and others have {width}")
            if not np.isfinite(row).all() or not row.any():
                raise ReplyError("a vector that is not finite, or zero")
        self.width = width
        return Made(torch.from_numpy(np.stack(rows)), tokens)

    def count(self, answer: Made, tally: Tally) -> bool:
        """See `Client`."""
        tally.answered += 1
        tally.input_tokens += answer.tokens
        return True


def _numbers(embedding: Any) -> NDArray[np.float32]:
    """One vector, of numbers or of base64."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), "<f4").astype(np.float32)
    found = np.asarray(embedding)
    if found.ndim != 1 or found.dtype.kind not in "fiu":
        raise ValueError
    with np.errstate(over="ignore"):
        return found.astype(np.float32)
