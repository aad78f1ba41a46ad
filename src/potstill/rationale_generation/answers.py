"""What is asked and what comes back; an answer is found again by what it depends on."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from potstill.rationale_generation.settings import Sampling

# A chat's messages ({"role", "content"}), or the text that a completion goes on from.
Prompt = str | list[dict[str, str]]

KEY_VERSION = 1

# Why answers end, by what servers call it; any other word (`stop`) is the end that the model meant.
_REASONS = {
    **dict.fromkeys(
        ("length", "max_tokens", "max_length", "model_length", "max_output_tokens", "limit"), "length"
    ),
    **dict.fromkeys(("content_filter", "safety", "recitation", "prohibited_content"), "content_filter"),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), "tool_calls"),
    **dict.fromkeys(("error", "abort", "cancelled"), "error"),
    "refusal": "refusal",
}


@dataclass(frozen=True)
class Request:
    """One answer that is wanted: its key, its prompt, the seed of its draws."""

    key: str
    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class Answer:
    """What a model said.

    Attributes:
        text: as it came, without the prompt.
        finish: why it ended (`stop`, `length`, ...).
        input_tokens: of the prompt; 0 where the endpoint does not tell.
        output_tokens: of the answer, likewise.
        logprobs: (token, log-probability in nats) pairs, where they were asked for and given.
        top: for each of them the likeliest tokens in its place, as such pairs, likewise.
    """

    text: str
    finish: str
    input_tokens: int
    output_tokens: int
    logprobs: list[tuple[str, float]] | None = None
    top: list[list[tuple[str, float]]] | None = None

    @property
    def reason(self) -> str:
        """Why it ended, in one word: `length`, `content_filter`, `tool_calls`, `refusal`, `error`, or `stop`."""
        return _REASONS.get(self.finish.lower(), "stop")

    @property
    def cut_off(self) -> bool:
        """Whether it ended before the model had said all."""
        return self.reason in ("length", "content_filter", "error")


@dataclass
class Tally:
    """Counts of one run's requests.

    Attributes:
        asked: answers that were asked for.
        answered: of these, the ones that came.
        retried: repetitions of a request.
        failed: requests that met 429, 5xx, a timeout or a broken connection.
        malformed: answers that were no JSON of the protocol.
        empty: answers without text (thoughts alone, tool calls, refusals).
        refused: requests that the endpoint would not take (400, 413, 422), such as too long ones.
        truncated: answers that ended at `max_tokens`.
        input_tokens: of all prompts, those of spoiled answers included.
        output_tokens: of all answers, likewise.
        budget_spent: requests were left out because the budget was spent.
        told_to_wait: requests were left out because the endpoint asks to wait for so many seconds.
        said: what the endpoint said of the last request that it did not answer.
    """

    asked: int = 0
    answered: int = 0
    retried: int = 0
    failed: int = 0
    malformed: int = 0
    empty: int = 0
    refused: int = 0
    truncated: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    budget_spent: bool = False
    told_to_wait: float = 0.0
    said: str = ""

    @property
    def ended_early(self) -> bool:
        """Whether requests were left out that a later run can make."""
        return self.budget_spent or self.told_to_wait > 0

    def count(self, answer: Answer) -> None:
        """Count an answer that is kept."""
        self.answered += 1
        self.truncated += answer.reason == "length"
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens


class Backend(Protocol):
    """Whatever answers requests."""

    def answer(self, requests: Sequence[Request], record: Callable[[Request, Answer], None]) -> Tally:
        """Answer what can be answered; `record` gets each answer as soon as it is there, from any thread."""
        ...


def make_request(
    prompt: Prompt, identity: Mapping[str, Any], sampling: Sampling, stop: Sequence[str], sample: int
) -> Request:
    """The request for sample number `sample` of a prompt.

    Key and seed are functions of prompt, model, sampling and sample number, not of the row's place in its file: a
    longer file, another order or more samples ask only what is new.

    Args:
        prompt: the prompt.
        identity: the model, and what else of its settings decides its answers.
        sampling: how it is drawn. `samples` is no part of the key, nor are `seed` and `top_p` of a greedy answer.
        stop: strings that end an answer.
        sample: number of the sample, from 0.
    """
    options = asdict(sampling)
    del options["samples"]
    if sampling.temperature == 0:
        del options["seed"], options["top_p"]
    parts = {
        "version": KEY_VERSION,
        "prompt": prompt,
        "identity": dict(identity),
        "sampling": options,
        "stop": list(stop),
        "sample": sample,
    }
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=True).encode()).hexdigest()
    return Request(digest[:32], prompt, int(digest[32:40], 16) >> 1)  # 31 bits: some servers take no more
