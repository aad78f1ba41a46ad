"""Requests and answers; an answer is stored under a digest of everything it depends on."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from potstill.rationale_generation.settings import Sampling

# A chat's messages ({"role", "content"}), or the text for a completion.
Prompt = str | list[dict[str, str]]

KEY_VERSION = 1

# Finish reasons by the names of servers; any other name is a regular end (`stop`).
_REASONS = {
    **dict.fromkeys(("length", "max_tokens", "max_length", "model_length", "max_output_tokens", "limit"), "length"),
    **dict.fromkeys(("content_filter", "safety", "recitation", "prohibited_content"), "content_filter"),
    **dict.fromkeys(("tool_calls", "function_call", "tool_use"), "tool_calls"),
    **dict.fromkeys(("error", "abort", "cancelled"), "error"),
    "refusal": "refusal",
}


@dataclass(frozen=True)
class Request:
    """A request for one answer: its key, its prompt, and the seed of its draws."""

    key: str
    prompt: Prompt
    seed: int


@dataclass(frozen=True)
class Answer:
    """An answer of a model.

    Attributes:
        text: Raw text without the prompt.
        finish: Finish reason (`stop`, `length`, ...).
        input_tokens: Tokens of the prompt; 0 if unknown.
        output_tokens: Tokens of the answer; 0 if unknown.
        logprobs: Pairs (token, log-probability in nats), if requested and available.
        top: For each token, the most likely tokens in its place as such pairs, if requested and available.
    """

    text: str
    finish: str
    input_tokens: int
    output_tokens: int
    logprobs: list[tuple[str, float]] | None = None
    top: list[list[tuple[str, float]]] | None = None

    @property
    def reason(self) -> str:
        """Normalized finish reason: `length`, `content_filter`, `tool_calls`, `refusal`, `error`, or `stop`."""
        return _REASONS.get(self.finish.lower(), "stop")

    @property
    def cut_off(self) -> bool:
        """Whether the answer is incomplete."""
        return self.reason in ("length", "content_filter", "error")


@dataclass
class Tally:
    """Counts of one run's requests.

    Attributes:
        asked: Requested answers.
        answered: Received answers with text.
        retried: Repeated requests.
        failed: Requests with status 429 or 5xx, a timeout or a broken connection.
        malformed: Replies that do not follow the protocol.
        empty: Answers without text (thoughts alone, tool calls, refusals).
        refused: Requests rejected with status 400, 413 or 422, such as too long ones.
        truncated: Answers that ended at `max_tokens`.
        input_tokens: Tokens of all prompts, also of answers without text.
        output_tokens: Tokens of all answers, also of those without text.
        budget_spent: Whether requests were skipped because the budget was spent.
        requested_wait: Seconds that the endpoint asked to wait, for which requests were skipped; else 0.
        last_error: Error text of the endpoint for the last failed request.
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
    requested_wait: float = 0.0
    last_error: str = ""

    @property
    def ended_early(self) -> bool:
        """Whether requests were skipped that a later run can make."""
        return self.budget_spent or self.requested_wait > 0

    def count(self, answer: Answer) -> None:
        """Count an answer, with or without text."""
        if answer.text.strip():
            self.answered += 1
            self.truncated += answer.reason == "length"
        else:
            self.empty += 1
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens


def make_request(
    prompt: Prompt, identity: Mapping[str, Any], sampling: Sampling, stop: Sequence[str], sample: int
) -> Request:
    """The request for one sample of a prompt.

    Key and seed depend on prompt, model, sampling and sample number, but not on the row's place in its file, so that
    further rows or samples only need new requests.

    Args:
        prompt: The prompt.
        identity: The model and its settings that affect answers.
        sampling: Sampling; the key excludes `samples`, and `seed` and `top_p` of a greedy answer.
        stop: Strings that end an answer.
        sample: Number of the sample, from 0.
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
    return Request(digest[:32], prompt, int(digest[32:40], 16) >> 1)  # 31 bits: the limit of some servers
