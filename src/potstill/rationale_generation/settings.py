"""What a generation run is told: how to sample, and where the model is. Imports neither torch nor transformers."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from potstill.errors import ConfigError
from potstill.runtime.redaction import redacted

DAY = 86_400  # seconds

# Fields of a request that `extra_body` cannot set, and what does.
_OWN_FIELDS = {
    "model": "is set by generation.model",
    "messages": "is the prompt of each row; see generation.prompts",
    "prompt": "is the prompt of each row; see generation.prompts",
    "stream": "a stream is not read; leave it out",
    "n": "one answer of a reply is read; set generation.samples",
}


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn.

    Attributes:
        max_tokens: longest answer, in tokens of the model.
        temperature: 0 is greedy.
        top_p: nucleus sampling (Holtzman et al. 2020); 1 keeps the whole distribution.
        samples: answers to a row; the labels of several are put to the vote (Wang et al. 2023).
        seed: of all draws; greedy answers do not depend on it.
        logprobs: keep the log-probability (nats) of every token, and those of the likeliest tokens in its place, in
            the journal, and write what they say of the labels.

    Raises:
        ConfigError: a value that cannot be.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0
    logprobs: bool = False

    def __post_init__(self) -> None:
        _at_least("max_tokens", self.max_tokens, 1)
        _at_least("temperature", self.temperature, 0)
        _at_least("samples", self.samples, 1)
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"generation.top_p={self.top_p}: expected more than 0 and at most 1")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"generation.samples={self.samples}: greedy samples are all alike; "
                "set generation.temperature above 0, or samples to 1"
            )


@dataclass(frozen=True)
class EndpointSettings:
    """An HTTP endpoint that speaks OpenAI's protocol (vLLM, llama.cpp, Ollama, hosted ones).

    Attributes:
        url: base address, up to and including the version, e.g. `http://localhost:8000/v1`.
        model: name of the model, as the endpoint has it.
        key_variable: environment variable that holds the API key; where it is not set, no key is sent.
        concurrency: requests under way at a time.
        timeout: seconds of a whole request, to the last byte of its reply, until it counts as failed.
        retries: repetitions of a request that met 429, 5xx or a broken connection.
        backoff_seconds: the first wait; every further one is twice as long, less a part that is drawn.
        longest_wait_seconds: upper bound of a wait; a `Retry-After` beyond it ends the run, to be gone on with then.
        max_requests: requests of this run, repetitions included; None is no limit.
        max_total_tokens: tokens of prompts and answers of this run. No request is begun once they are spent; those
            under way end, so up to `concurrency` answers lie beyond. None is no limit.
        extra_body: more fields of the request's body (`top_k`, ...); one that is None is left out, such as
            `{max_tokens: null, max_completion_tokens: 400}` or `{seed: null}` for endpoints that refuse the usual.

    Raises:
        ConfigError: a value that cannot be.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 5
    backoff_seconds: float = 1.0
    longest_wait_seconds: float = 120.0
    max_requests: int | None = None
    max_total_tokens: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra_body", _as_json(self.extra_body))
        try:
            parts = urlsplit(self.url)
            named, host = parts.username or parts.password or parts.query, parts.hostname
            # Each raises where no request could name it.
            _ = parts.port, (host or "").encode("idna"), parts.path.encode("ascii")
        except ValueError:
            raise ConfigError(
                "generation.url: is no address; expected e.g. http://localhost:8000/v1"
            ) from None
        if named:  # not repeated: it may hold a secret
            raise ConfigError(
                "generation.url: holds a user name, password or query; "
                "put the key into the environment variable that generation.key_variable names"
            )
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigError(f"generation.url={self.url}: expected e.g. http://localhost:8000/v1")
        if not self.model:
            raise ConfigError("generation.model: is empty; expected the endpoint's name of a model")
        _at_least("concurrency", self.concurrency, 1)
        _at_least("retries", self.retries, 0)
        _at_least("backoff_seconds", self.backoff_seconds, 0)
        _at_least("longest_wait_seconds", self.longest_wait_seconds, 0)
        if not 0 < self.timeout <= DAY:
            raise ConfigError(
                f"generation.timeout={self.timeout}: expected more than 0 and at most {DAY} seconds"
            )
        if not re.fullmatch(r"[A-Za-z_]\w*", self.key_variable, re.ASCII):
            # The value is not repeated: it may be the key itself.
            raise ConfigError(
                "generation.key_variable: is no name of an environment variable; put the key into one, such as "
                "OPENAI_API_KEY, and give its name"
            )
        for name in ("max_requests", "max_total_tokens"):
            if (value := getattr(self, name)) is not None:
                _at_least(name, value, 1)

    def identity(self) -> dict[str, Any]:
        """What of these settings an answer depends on."""
        return {"model": self.model, "extra_body": redacted(dict(self.extra_body), "extra_body")}


@dataclass(frozen=True)
class LocalSettings:
    """A causal or sequence-to-sequence model of transformers, run in this process.

    Attributes:
        model: folder or hub id.
        batch_size: rows at a time.
        device: of torch, `cpu` or `cuda`.
        dtype: of the weights.

    Raises:
        ConfigError: a value that cannot be.
    """

    model: str
    batch_size: int = 8
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _at_least("batch_size", self.batch_size, 1)
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"generation.dtype={self.dtype}: expected float32, bfloat16 or float16")

    def identity(self) -> dict[str, Any]:
        """What of these settings an answer depends on."""
        return {"model": self.model, "dtype": self.dtype}


def _at_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise ConfigError(f"generation.{name}={value}: expected {least} or more")


def _as_json(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request as JSON has them, names of nested ones as texts.

    Raises:
        ConfigError: a value that JSON has not, or a field that decides what is asked or how the reply is read.
    """
    made = {}
    for name, value in extra.items():
        if name in _OWN_FIELDS and value is not None:
            raise ConfigError(f"generation.extra_body.{name}={value}: {_OWN_FIELDS[name]}")
        try:
            made[str(name)] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(
                f"generation.extra_body.{name}={value!r:.60}: cannot be sent as JSON ({error}); expected texts, "
                "numbers, true, false, null, lists and dictionaries of them"
            ) from None
    return made
