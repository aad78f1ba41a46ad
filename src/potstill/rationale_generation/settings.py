"""Settings of a generation run: sampling and model. Imports neither torch nor transformers."""

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

# Fields of a request that `extra_body` cannot set, and the reason.
_OWN_FIELDS = {
    "model": "is set by generation.model",
    "messages": "is the prompt of each row; see generation.prompts",
    "prompt": "is the prompt of each row; see generation.prompts",
    "input": "is the texts of data.train_files",
    "stream": "streams are not supported; remove it",
    "n": "one answer per reply is read; use generation.samples",
}


@dataclass(frozen=True)
class Sampling:
    """Sampling of answers.

    Attributes:
        max_tokens: Maximum number of tokens of an answer.
        temperature: Temperature; 0 for greedy decoding.
        top_p: Nucleus sampling (Holtzman et al. 2020); 1 for the whole distribution.
        samples: Answers per row; several are decided by a vote of their labels (Wang et al. 2023).
        seed: Seed of all draws; not used for greedy decoding.
        logprobs: Whether to store the log-probabilities (nats) of tokens and of their most likely alternatives, and to
            write probabilities of labels.

    Raises:
        ConfigError: An invalid value.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    seed: int = 0
    logprobs: bool = False

    def __post_init__(self) -> None:
        _check_least(self, max_tokens=1, temperature=0, samples=1)
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"generation.top_p={self.top_p}: expected more than 0 and at most 1")
        if self.samples > 1 and self.temperature == 0:
            raise ConfigError(
                f"generation.samples={self.samples}: greedy samples are identical; "
                "set generation.temperature above 0, or samples to 1"
            )


@dataclass(frozen=True)
class EndpointSettings:
    """An HTTP endpoint with OpenAI's protocol (vLLM, llama.cpp, Ollama, hosted ones).

    Attributes:
        url: Base address with the version, e.g. `http://localhost:8000/v1`.
        model: Name of the model at the endpoint.
        key_variable: Environment variable of the API key; without it no key is sent.
        concurrency: Concurrent requests.
        timeout: Seconds for a complete request and reply.
        retries: Retries of a request after 429, 5xx or a broken connection.
        backoff_seconds: First waiting time, which doubles with each retry, with jitter.
        longest_wait_seconds: Maximum waiting time; a longer `Retry-After` ends the run, which can be resumed.
        max_requests: Maximum number of requests of this run, with retries; None for no limit.
        max_total_tokens: Maximum number of tokens of prompts and answers of this run, which running requests may
            exceed; None for no limit.
        extra_body: Further fields of the request's body (`top_k`, ...); None removes a field, such as
            `{max_tokens: null, max_completion_tokens: 400}` or `{seed: null}`.

    Raises:
        ConfigError: An invalid value.
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
            # Each raises ValueError for an invalid address.
            _ = parts.port, (host or "").encode("idna"), parts.path.encode("ascii")
        except ValueError:
            raise ConfigError(
                "generation.url: is not a valid address; expected e.g. http://localhost:8000/v1"
            ) from None
        if named:  # not repeated: it may hold a secret
            raise ConfigError(
                "generation.url: must not have a user name, password or query; "
                "put the key into the environment variable generation.key_variable"
            )
        if parts.scheme not in ("http", "https") or not host:
            raise ConfigError(f"generation.url={self.url}: expected e.g. http://localhost:8000/v1")
        if not self.model:
            raise ConfigError("generation.model: is empty; expected the name of a model at the endpoint")
        _check_least(self, concurrency=1, retries=0, backoff_seconds=0, longest_wait_seconds=0)
        _check_least(self, max_requests=1, max_total_tokens=1)
        if not 0 < self.timeout <= DAY:
            raise ConfigError(f"generation.timeout={self.timeout}: expected more than 0 and at most {DAY} seconds")
        if not re.fullmatch(r"[A-Za-z_]\w*", self.key_variable, re.ASCII):
            # The value is not repeated: it may be the key itself.
            raise ConfigError(
                "generation.key_variable: must be the name of an environment variable, such as OPENAI_API_KEY"
            )

    def identity(self) -> dict[str, Any]:
        """The settings that an answer depends on."""
        return {"model": self.model, "extra_body": redacted(dict(self.extra_body), "extra_body")}


@dataclass(frozen=True)
class LocalSettings:
    """A causal or sequence-to-sequence model of transformers, run in this process.

    Attributes:
        model: Folder or hub id.
        batch_size: Rows per batch.
        device: Device of torch, `cpu` or `cuda`.
        dtype: Type of the weights.

    Raises:
        ConfigError: An invalid value.
    """

    model: str
    batch_size: int = 8
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        _check_least(self, batch_size=1)
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"generation.dtype={self.dtype}: expected float32, bfloat16 or float16")

    def identity(self) -> dict[str, Any]:
        """The settings that an answer depends on."""
        return {"model": self.model, "dtype": self.dtype}


def _check_least(settings: object, **least: float) -> None:
    """Check the minimum of each field; None is no limit."""
    for name, bound in least.items():
        value = getattr(settings, name)
        if value is not None and not bound <= value < math.inf:
            raise ConfigError(f"generation.{name}={value}: expected {bound} or more")


def _as_json(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a request as JSON values.

    Raises:
        ConfigError: A value that is not JSON, or a field that `extra_body` cannot set.
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
