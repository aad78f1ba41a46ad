"""Requests to an HTTP endpoint, concurrent, with retries and a budget.

The API key is read from the environment, sent in one header, and removed from all replies. Redirections are not
followed, since they would send the key elsewhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Protocol, TypeVar
from urllib.parse import urlsplit

import httpx2

from potstill.errors import ConfigError, EndpointError, ModelError, PotstillError
from potstill.rationale_generation.answers import Tally
from potstill.rationale_generation.protocol import backoff, error_text, retry_after
from potstill.rationale_generation.settings import EndpointSettings

logger = logging.getLogger(__name__)

REJECTED = (400, 413, 422)
TRANSIENT = (408, 409, 425, 429)
MAX_REJECTED = 3  # rejected requests before the first answer, until the settings count as wrong
MAX_FAILED_ROWS = 10  # consecutive rows that fail after all retries, until the endpoint counts as down
CHECK_SECONDS = 10.0
HIDDEN = "***"
# Shorter keys are placeholders ("EMPTY", "ollama"), and words that answers may contain.
SHORTEST_KEY = 12

T = TypeVar("T")


class Keyed(Protocol):
    """A request with a key of its own, from which the jitter of its retries is drawn."""

    @property
    def key(self) -> str:
        """The key."""


Q = TypeVar("Q", bound=Keyed)
Q_co = TypeVar("Q_co", covariant=True)
A = TypeVar("A")


class Requests(Protocol[Q_co]):
    """Requests in the order in which they are sent, which may be made when they are taken."""

    def __len__(self) -> int:
        """Their number."""

    def __iter__(self) -> Iterator[Q_co]:
        """The requests."""


class ReplyError(Exception):
    """A reply that does not follow the protocol, or does not hold what was requested."""


@dataclass(frozen=True)
class Reply:
    """Result of one HTTP request; status 0 means no reply."""

    status: int
    body: bytes = b""
    wait: float = 0.0
    error: str = ""
    unreachable: bool = False

    @property
    def summary(self) -> str:
        """Status and error text in one line."""
        return self.error or f"{self.status} {error_text(self.body)}".strip()


class Client(ABC, Generic[Q, A]):
    """A client of an endpoint of OpenAI's protocol, for one kind of request and answer.

    Args:
        settings: Address and settings of requests.
        accepted: Whether requests with these settings were answered before, so that a rejection is due to its row.
        wait: Waits a number of seconds; by default until the run ends.

    Attributes:
        max_bytes: Bytes of a reply that are read.
        needs_all: Whether a request without an answer ends the run; otherwise it is skipped.
        advice: What to check where requests are rejected.

    Raises:
        ConfigError: The API key is not valid in a header.
    """

    max_bytes: ClassVar[int] = 16 * 2**20
    needs_all: ClassVar[bool] = False
    advice: ClassVar[str] = "see generation.form and generation.extra_body"
    _client: httpx2.AsyncClient

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        accepted: bool = False,
        wait: Callable[[float], Awaitable[object]] | None = None,
    ) -> None:
        self._settings = settings
        self._accepted = accepted
        self._key = _Secret(settings.key_variable)
        self._ended = threading.Event()
        self._wait = wait or self._pause
        self._tally = Tally()
        self._requests = self._failed_rows = 0
        self._url = settings.url.rstrip("/")
        self._is_local = _is_local(str(urlsplit(self._url).hostname))
        if self._key and self._url.startswith("http:") and not self._is_local:
            logger.warning("%s: the API key is sent unencrypted", self._url)

    @abstractmethod
    def compose(self, request: Q) -> tuple[str, dict[str, Any]]:
        """The path below the address, and the JSON body of a request."""

    @abstractmethod
    def read(self, request: Q, body: bytes) -> A:
        """The answer in the body of a reply.

        Raises:
            ReplyError: It is worth a retry.
        """

    @abstractmethod
    def count(self, answer: A, tally: Tally) -> bool:
        """Count an answer; whether it can be used. Another one is requested once again."""

    def check(self) -> None:
        """Check the endpoint and the key by a request for the list of models.

        Raises:
            EndpointError: The endpoint does not answer, or rejects the key.
        """
        reply = self._run(lambda: self._send("/models", None, min(CHECK_SECONDS, self._settings.timeout)))
        if reply.status == 0:
            raise EndpointError(
                f"generation.url={self._url}: does not answer ({reply.error}); expected the address of a running server"
            )
        if reply.status in (401, 403):
            raise self._fatal(reply)

    def answer(self, requests: Requests[Q], record: Callable[[Q, A], None]) -> Tally:
        """Answer requests concurrently.

        Requests beyond the budget, and without `needs_all` those that fail after all retries, are skipped. A user error
        or an interruption ends the run after the current requests; their answers are recorded.

        Args:
            requests: Requests to answer.
            record: Called with each answer at once, in a thread other than the caller's.

        Returns:
            The counts of all calls.

        Raises:
            EndpointError: The key is rejected (401, 403), the endpoint is down, or rejects its first requests; with
                `needs_all` a request fails.
            ModelError: The model does not exist (404).
        """
        self._ended.clear()
        self._run(lambda: self._answer_all(requests, record))
        return self._tally

    @property
    def tally(self) -> Tally:
        """The counts of all calls of `answer`."""
        return self._tally

    def _run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine in a thread with its own event loop, so that an interruption does not cancel requests."""

        async def with_client() -> T:
            try:
                self._client = httpx2.AsyncClient(
                    verify=ssl.create_default_context(),
                    trust_env=not self._is_local,  # proxies of the environment are not used for this machine
                    timeout=None,  # a request has one limit for all of its parts
                    limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
                )
            except (ImportError, ValueError) as error:
                raise EndpointError(
                    f"generation.url={self._url}: the proxy of the environment is not supported ({error})"
                ) from None
            async with self._client:
                return await work()

        logging.getLogger("httpx2").setLevel(logging.WARNING)  # it logs every request
        with ThreadPoolExecutor(1) as pool:
            try:
                return pool.submit(asyncio.run, with_client()).result()
            finally:
                self._ended.set()

    async def _answer_all(self, requests: Requests[Q], record: Callable[[Q, A], None]) -> None:
        waiting = iter(requests)

        async def work() -> None:
            try:
                while not self._ended.is_set() and (request := next(waiting, None)) is not None:
                    if (answer := await self._ask(request)) is not None:
                        record(request, answer)
            except BaseException:
                self._ended.set()  # the others stop before their next request
                raise

        count = min(self._settings.concurrency, len(requests))
        for error in await asyncio.gather(*(work() for _ in range(count)), return_exceptions=True):
            if error is not None:
                raise error

    async def _ask(self, request: Q) -> A | None:
        """One answer, with retries; None if there is none."""
        settings, tally = self._settings, self._tally
        path, content = self.compose(request)
        body = json.dumps(content).encode()
        failed = unusable = attempt = 0
        while self._begin(attempt):
            reply = await self._send(path, body, settings.timeout)
            if 200 <= reply.status < 300:
                if (answer := self._accept(request, reply)) is not None:
                    return answer
                unusable += 1
            elif reply.status == 0 or reply.status in TRANSIENT or reply.status >= 500:
                failed += 1
                tally.failed += 1
                tally.last_error = reply.summary
            elif reply.status in REJECTED and self._only_this_row():
                logger.warning("a row was rejected (%d %s)", reply.status, error_text(reply.body))
                return None
            else:
                raise self._fatal(reply)
            if failed > settings.retries or unusable > 1:
                self._failed_rows += 1
                if reply.unreachable or self.needs_all or self._failed_rows >= MAX_FAILED_ROWS:
                    state = (
                        f"has unusable replies ({tally.last_error})"
                        if unusable > 1
                        else f"no longer answers ({reply.summary})"
                    )
                    raise EndpointError(
                        f"generation.url={self._url}: {state}; all answers are kept: run again when it works"
                    )
                return None
            if reply.wait > settings.longest_wait_seconds:
                tally.requested_wait = max(tally.requested_wait, reply.wait)
                self._ended.set()
                return None
            pause = backoff(request.key, attempt, settings.backoff_seconds, settings.longest_wait_seconds)
            await self._wait(max(pause, reply.wait))
            attempt += 1
        return None

    async def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._ended.is_set() and (left := until - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 0.1))

    def _begin(self, attempt: int) -> bool:
        """Count the next request; False if the run has ended or the budget is spent."""
        if self._ended.is_set():
            return False
        tally = self._tally
        tokens = tally.input_tokens + tally.output_tokens
        if _spent(self._requests, self._settings.max_requests) or _spent(tokens, self._settings.max_total_tokens):
            tally.budget_spent = True
            return False
        self._requests += 1
        tally.asked += attempt == 0
        tally.retried += attempt > 0
        return True

    def _only_this_row(self) -> bool:
        """Count a rejected request; True if the row is the cause (such as its length), not the settings."""
        self._tally.refused += 1
        if self.needs_all:
            return False
        return self._accepted or self._tally.answered > 0 or self._tally.refused < MAX_REJECTED

    def _accept(self, request: Q, reply: Reply) -> A | None:
        """The answer of a successful reply, counted; None for a reply that is worth a retry."""
        try:
            answer = self.read(request, reply.body)
        except ReplyError as error:
            self._tally.malformed += 1
            self._tally.last_error = str(error) or reply.summary
            return None
        self._failed_rows = 0
        return answer if self.count(answer, self._tally) else None

    async def _send(self, path: str, body: bytes | None, timeout: float) -> Reply:
        """The reply to a POST of a body, or to a GET without one."""
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", **self._key.header()}
        method = "GET" if body is None else "POST"
        try:
            async with (
                asyncio.timeout(timeout),
                self._client.stream(method, self._url + path, content=body, headers=headers) as reply,
            ):
                content = b""
                async for chunk in reply.aiter_raw():
                    content += chunk
                    if len(content) >= self.max_bytes:
                        break
        except TimeoutError:
            return Reply(0, error=f"no complete answer within {timeout:g} s")
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            cause = _first_cause(error)
            text = self._key.hide(" ".join(f"{type(cause).__name__}: {cause}".split()).encode()).decode()
            return Reply(0, error=text[:200], unreachable=isinstance(error, httpx2.ConnectError | httpx2.ProxyError))
        # A placeholder key must not change an answer.
        hide = not reply.is_success or self._key.is_long
        wait = 0.0 if reply.is_success else retry_after(reply.headers.get("Retry-After"))
        return Reply(reply.status_code, self._key.hide(content) if hide else content, wait)

    def _fatal(self, reply: Reply) -> PotstillError:
        settings, reason = self._settings, error_text(reply.body)
        reason = f" ({reason})" if reason else ""
        if reply.status == 404:
            return ModelError(
                f"generation.model={settings.model}: {self._url} does not have the model, or not this form of "
                f"request{reason}; {self._url}/models lists its models"
            )
        if reply.status in (401, 403):
            state = "has a key that is rejected" if self._key else "is not set, but a key is required"
            problem = f"{reply.status}: the environment variable {settings.key_variable} {state}{reason}"
        elif 300 <= reply.status < 400:
            problem = f"redirects ({reply.status}); use the final address"
        else:
            problem = f"rejects requests of this form ({reply.status}){reason}; {self.advice}"
        return EndpointError(f"generation.url={self._url}: {problem}")


class _Secret:
    """An API key that appears in no representation and no message."""

    def __init__(self, variable: str) -> None:
        self.__value = os.environ.get(variable, "").strip()
        if not all("!" <= sign <= "~" for sign in self.__value):
            raise ConfigError(
                f"generation.key_variable={variable}: the variable has blanks or invalid characters; it must be the "
                "key alone"
            )

    def __bool__(self) -> bool:
        return bool(self.__value)

    def __repr__(self) -> str:
        return HIDDEN

    def __reduce__(self) -> Any:
        raise TypeError("a key cannot be pickled")

    @property
    def is_long(self) -> bool:
        return len(self.__value) >= SHORTEST_KEY

    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.__value}"} if self.__value else {}

    def hide(self, text: bytes) -> bytes:
        """A text without the key, plain or escaped as JSON."""
        if not self.__value:
            return text
        for written in {self.__value, json.dumps(self.__value)[1:-1], self.__value.replace("/", "\\/")}:
            text = text.replace(written.encode(), HIDDEN.encode())
        return text


def _first_cause(error: BaseException) -> BaseException:
    """The error at the beginning of a chain, such as a refused connection."""
    while inner := error.__cause__ or error.__context__ or next(iter(getattr(error, "exceptions", ())), None):
        error = inner
    return error


def _spent(used: int, limit: int | None) -> bool:
    return limit is not None and used >= limit


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
