"""A `top` store of a causal language model behind an HTTP endpoint, from the log-probabilities of its prompts.

vLLM returns them for completions with `prompt_logprobs`: at each token of a prompt the likeliest tokens, and the token
itself. The next token of the last one is scored by one more token at the end, which no other position sees.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, overload

import numpy as np
import torch

from potstill.data.common.ragged import Ints
from potstill.data.common.store import Gathered
from potstill.data.corpus.store import Corpus
from potstill.data.corpus.teacher_rows import SequenceUnits
from potstill.rationale_generation.answers import Tally
from potstill.rationale_generation.client import Client, ReplyError
from potstill.rationale_generation.settings import EndpointSettings
from potstill.runtime.json_text import parse_json
from potstill.teacher_cache.formats import TopFormat
from potstill.teacher_cache.parts import Parts, build_in_parts
from potstill.teacher_cache.sparse_rows import Top

PART_TOKENS = 1 << 16  # tokens of a part, which a killed run may lose
_ROUNDING = 1e-3  # by which probabilities may exceed 1
_COMPARED = 4  # tokens whose spelling is compared, at least
_NEUTRAL = {"max_tokens": 1, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Text:
    """A sequence to score.

    Attributes:
        number: its place in the order of a store.
        ids: its tokens.
    """

    number: int
    ids: Ints

    @property
    def key(self) -> str:
        """See `Keyed`."""
        return str(self.number)


class Texts(Sequence[Text]):
    """Sequences of a corpus in the order of a store, from one of them on; their tokens are read when they are taken."""

    def __init__(self, corpus: Corpus, units: SequenceUnits, first: int) -> None:
        self._corpus, self._order, self._first = corpus, units.order, first

    def __len__(self) -> int:
        return len(self._order) - self._first

    @overload
    def __getitem__(self, place: int) -> Text: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Text]: ...
    def __getitem__(self, place: int | slice) -> Text | Sequence[Text]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = self._first + place
        return Text(number, self._corpus.gather(self._order[number : number + 1])[0].astype(np.int64))


class PromptScores(Client[Text, Top]):
    """A client of vLLM's completions that returns the likeliest tokens behind each token of a text.

    Args:
        settings: as in `Client`.
        form: of the store; at temperature 1 alone.
        spelling: text of a token, which is compared with the server's.
        wait: as in `Client`.

    Raises:
        ValueError: the form has other temperatures.
    """

    max_bytes: ClassVar[int] = 2**30
    needs_all: ClassVar[bool] = True
    advice: ClassVar[str] = (
        "vLLM needs --max-logprobs of at least teacher.cache.k, and a --max-model-len of data.max_length + 2"
    )

    def __init__(
        self,
        settings: EndpointSettings,
        form: TopFormat,
        spelling: Callable[[int], str],
        *,
        wait: Callable[[float], Awaitable[object]] | None = None,
    ) -> None:
        if form.temperatures != (1.0,):
            raise ValueError(f"temperatures {form.temperatures}: the likeliest tokens give those at 1 alone")
        super().__init__(settings, wait=wait)
        self._form, self._spelling = form, spelling
        self._compared = self._differing = 0  # tokens by their spelling
        self._k = min(form.k, form.vocabulary_size)

    def compose(self, request: Text) -> tuple[str, dict[str, Any]]:
        """See `Client`."""
        settings = self._settings
        ids = request.ids.tolist()
        body = {"model": settings.model, "prompt": [*ids, ids[-1]], "prompt_logprobs": self._k, **_NEUTRAL}
        body |= settings.extra_body
        return "/completions", {name: value for name, value in body.items() if value is not None}

    def read(self, request: Text, body: bytes) -> Top:
        """See `Client`."""
        try:
            content = parse_json(body)
            found = content["choices"][0].get("prompt_logprobs", content.get("prompt_logprobs"))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
            raise ReplyError("the reply is no completion") from None
        if not isinstance(found, list):
            raise ReplyError("the reply has no prompt_logprobs, which vLLM returns")
        sent = [*request.ids.tolist(), int(request.ids[-1])]
        if len(found) != len(sent):
            raise ReplyError(f"prompt_logprobs of {len(found)} tokens for the {len(sent)} that were sent")
        try:
            self._compare(found[1:], sent[1:])
            rows = [self._row(entries, token) for entries, token in zip(found[1:], sent[1:], strict=True)]
        except (ValueError, TypeError, KeyError, AttributeError):
            raise ReplyError("prompt_logprobs are not of the form {token: {logprob, rank}}") from None
        log_probs_NK = torch.tensor([log_probs for _, log_probs in rows], dtype=torch.float32)
        mass_N = log_probs_NK.double().exp().sum(dim=1)
        if (greatest := float(mass_N.max())) > 1 + _ROUNDING:
            raise ReplyError(f"the probabilities of a position add up to {greatest:.4f}")
        whole = self._k == self._form.vocabulary_size
        tails_N1 = torch.full_like(mass_N, -math.inf) if whole else torch.log1p(-mass_N.clamp(max=1.0))
        return Top(torch.tensor([ids for ids, _ in rows]), log_probs_NK, tails_N1[:, None].float())

    def count(self, answer: Top, tally: Tally) -> bool:
        """See `Client`."""
        tally.answered += 1
        tally.input_tokens += len(answer.ids) + 1
        return True

    def _row(self, entries: Mapping[str, Mapping[str, Any]], sent: int) -> tuple[list[int], list[float]]:
        """The k likeliest tokens of one position and their log-probabilities; equal ones in the server's order."""
        if str(sent) not in entries:
            raise ReplyError("prompt_logprobs are of other tokens than those that were sent")
        pairs = []
        for token, entry in entries.items():
            value, number, rank = float(entry["logprob"]), int(token), entry.get("rank")
            if not 0 <= number < self._form.vocabulary_size:
                raise ReplyError(f"{number} is no token of data.tokenizer, which has {self._form.vocabulary_size}")
            if math.isnan(value) or value > _ROUNDING:
                raise ReplyError(f"{value} is no log-probability")
            pairs.append((-value, math.inf if rank is None else rank, number))
        if len(pairs) < self._k:
            raise ReplyError(f"{len(pairs)} tokens for teacher.cache.k={self._k}")
        kept = sorted(pairs)[: self._k]
        return [number for *_, number in kept], [-value for value, *_ in kept]

    def _compare(self, found: Sequence[Mapping[str, Mapping[str, Any]]], sent: Sequence[int]) -> None:
        """Compare the spelling of the tokens, as far as the server returns it.

        Raises:
            ReplyError: most of all tokens so far differ.
        """
        example = ""
        for entries, token in zip(found, sent, strict=True):
            theirs, ours = entries.get(str(token), {}).get("decoded_token"), self._spelling(token).strip()
            theirs = theirs.strip() if isinstance(theirs, str) else ""
            if not theirs or not ours or "\N{REPLACEMENT CHARACTER}" in theirs + ours:
                continue  # a part of a character, or a special token
            self._compared += 1
            if theirs != ours:
                self._differing += 1
                example = f"token {token} is {theirs!r:.40} there and {ours!r:.40} in data.tokenizer"
        if example and self._compared >= _COMPARED and self._differing > self._compared / 2:
            raise ReplyError(f"the server has another tokenizer: {example}")


def store_served(
    folder: Path,
    identity: Mapping[str, Any],
    form: TopFormat,
    corpus: Corpus,
    client: PromptScores,
    progress: Callable[[int], None],
) -> int:
    """The store of a corpus, computed by a server if it does not exist.

    See `build_in_parts`.

    Args:
        folder: of the store.
        identity: origin of the outputs.
        form: of the outputs.
        corpus: sequences.
        client: asks the server.
        progress: called with the number of tokens done.

    Returns:
        The number of tokens that are stored; fewer than the corpus has if the budget is spent, or if the server asks to
        wait for long.

    Raises:
        CacheError: as `build_in_parts`.
        EndpointError: as `Client.answer`.
        ModelError: as `Client.answer`.
        WriteError: as `build_in_parts`.
    """
    units = SequenceUnits(corpus.lengths)

    def pack(tops: list[Top]) -> Gathered:
        return form.pack(Top(*(torch.cat(columns) for columns in zip(*tops, strict=True))))

    def compute(parts: Parts[Top]) -> None:
        def record(text: Text, top: Top) -> None:
            parts.add(text.number, top)
            progress(parts.items)

        client.answer(Texts(corpus, units, parts.done), record)

    counts = corpus.lengths[units.order].astype(np.int64)
    return build_in_parts(folder, identity, form.fields, counts, pack, compute, part_items=PART_TOKENS)
