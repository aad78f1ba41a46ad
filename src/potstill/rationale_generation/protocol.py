"""OpenAI's HTTP protocol: bodies of requests, answers in replies, and waiting times."""

import hashlib
import math
import time
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

from potstill.rationale_generation.answers import Answer, Request
from potstill.rationale_generation.settings import Sampling
from potstill.runtime.json_text import parse_json

LONGEST_WAIT = 366 * 86_400.0  # seconds, limit of a `Retry-After`
TOP_OF_CHAT, TOP_OF_COMPLETION = 20, 5
_NOT_THE_PROTOCOL = (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)

Pairs = list[tuple[str, float]]


def request_body(
    request: Request, model: str, sampling: Sampling, stop: tuple[str, ...], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """The JSON body of a request, for `/chat/completions` (a prompt of messages) or `/completions` (a text)."""
    chat = isinstance(request.prompt, list)
    body: dict[str, Any] = {
        "model": model,
        "messages" if chat else "prompt": request.prompt,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
    }
    if sampling.temperature > 0:
        body |= {"top_p": sampling.top_p, "seed": request.seed}
    if stop:
        body["stop"] = list(stop)
    if sampling.logprobs:
        # The maximum of OpenAI's endpoints, so that all choices are among them.
        body |= {"logprobs": True, "top_logprobs": TOP_OF_CHAT} if chat else {"logprobs": TOP_OF_COMPLETION}
    body |= extra
    return {name: value for name, value in body.items() if value is not None}


def read_reply(reply: bytes) -> Answer | None:
    """The answer in the body of a reply, chat or completion; None if it does not follow the protocol.

    `reasoning_content` and `reasoning` are ignored. Without content the text is empty, and `finish` has the reason.
    """
    try:
        content = parse_json(reply)
        choice = content["choices"][0]
        message = choice["message"] if "message" in choice else {"content": choice["text"]}
        text = _text(message["content"] if message.get("content") is not None else "")
        finish = str(choice.get("finish_reason") or "")
        if not text.strip() and (message.get("refusal") or message.get("tool_calls") or message.get("function_call")):
            finish = "refusal" if message.get("refusal") else "tool_calls"
        usage = content.get("usage")
        usage = usage if isinstance(usage, dict) else {}
        return Answer(
            text,
            finish,
            _count(usage.get("prompt_tokens")),
            _count(usage.get("completion_tokens")),
            *_probabilities(choice.get("logprobs")),
        )
    except _NOT_THE_PROTOCOL:
        return None


def _text(content: Any) -> str:
    """Content that is text, or a list of parts, of which those with text are read (not those with thoughts)."""
    if isinstance(content, list):
        kinds = ("text", "output_text")
        return "".join(part["text"] for part in content if part.get("type", "text") in kinds)
    if not isinstance(content, str):
        raise TypeError("not text")
    return content


def error_text(reply: bytes) -> str:
    """The error text of a reply in one line of at most 200 characters, possibly empty."""
    text = reply.decode(errors="replace")
    try:
        content = parse_json(text)
        error = content.get("error", content.get("message", content.get("detail", text)))
        text = str(error["message"] if isinstance(error, dict) and "message" in error else error)
    except (ValueError, AttributeError, RecursionError):
        pass
    return " ".join(text.split())[:200]


def backoff(key: str, attempt: int, first: float, longest: float) -> float:
    """Seconds to wait before retry `attempt` (from 0): exponential backoff with deterministic jitter.

    The bound doubles from `first` to `longest`; the wait is between half of it and all of it, by a hash of the
    request's key and the attempt.
    """
    digest = hashlib.sha256(f"{key}/{attempt}".encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    return min(longest, first * 2.0 ** min(attempt, 60)) * (0.5 + 0.5 * share)


def retry_after(value: str | None) -> float:
    """Seconds of a `Retry-After` header, a number or a date (RFC 9110, 10.2.3); 0 without one."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            moment = parsedate_to_datetime(value)
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT) if not math.isnan(seconds) else 0.0


def _count(value: Any) -> int:
    """A number of tokens; 0 for invalid values."""
    return int(value) if isinstance(value, int | float) and 0 <= value < math.inf else 0


def _probabilities(value: Any) -> tuple[Pairs | None, list[Pairs] | None]:
    """Log-probabilities of tokens, and of the most likely tokens in their places; None for missing or invalid ones.

    Chats list them as entries of `content`, completions in the lists `tokens`, `token_logprobs` and `top_logprobs`.
    """
    try:
        if isinstance(value.get("content"), list):
            tokens = [(str(entry["token"]), float(entry["logprob"])) for entry in value["content"]]
            listed = [
                [(one["token"], one["logprob"]) for one in entry.get("top_logprobs") or []]
                for entry in value["content"]
            ]
        else:
            pairs = list(zip(value["tokens"], value["token_logprobs"], strict=True))
            tokens = [(str(token), float(one)) for token, one in pairs if one is not None]
            top = value.get("top_logprobs") or [None] * len(pairs)
            listed = [list((own or {}).items()) for own, (_, one) in zip(top, pairs, strict=True) if one is not None]
        likely = [[(str(token), float(one)) for token, one in own if one is not None] for own in listed]
    except _NOT_THE_PROTOCOL:
        return None, None
    # Servers return -inf for impossible tokens, and rounding may give a little above 0.
    valid = all(one < 1e-3 for pairs in (tokens, *likely) for _, one in pairs)
    return (tokens, likely if any(likely) else None) if valid else (None, None)
