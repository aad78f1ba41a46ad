"""Answers from an HTTP endpoint: concurrent requests with retries and a budget.

The API key is read from the environment, sent in one header, and removed from all replies. Redirections are not
followed, since they would send the key elsewhere.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from potstill.errors import ConfigError, ModelError, PotstillError
from potstill.rationale_generation.answers import Answer, Request, Tally
from potstill.rationale_generation.protocol import backoff, error_text, read_reply, request_body, retry_after
from potstill.rationale_generation.settings import EndpointSettings, Sampling

logger = logging.getLogger(__name__)

REFUSED = (400, 413, 422)
TRANSIENT = (408, 409, 425, 429)
MOST_BYTES = 16 * 2**20
MOST_REFUSED = 3  # rejected requests before the first answer, until the settings count as wrong
MOST_LOST = 10  # consecutive rows that fail after all retries, until the endpoint counts as down
CHECK_SECONDS = 10.0
HIDDEN = "***"
# Shorter keys are placeholders ("EMPTY", "ollama"), and words that answers may contain.
SHORTEST_KEY = 12


@dataclass(frozen=True)
class Reply:
    """Result of one HTTP request; status 0 means no reply."""

    status: int
    body: bytes = b""
    wait: float = 0.0
    fault: str = ""
    unreachable: bool = False

    @property
    def summary(self) -> str:
        """Status and error text in one line."""
        return self.fault or f"{self.status} {error_text(self.body)}".strip()


class Endpoint:
    """An endpoint of OpenAI's protocol.

    Args:
        settings: Address and settings of requests.
        sampling: Sampling of answers.
        stop: Strings that end an answer.
        accepted: Whether requests with these settings were answered before, so that a rejection is due to its row.
        wait: Sleeps for a number of seconds; by default until the run ends.

    Raises:
        ConfigError: The API key is not valid in a header.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        sampling: Sampling,
        stop: tuple[str, ...] = (),
        *,
        accepted: bool = False,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self._settings = settings
        self._sampling = sampling
        self._stop = stop
        self._accepted = accepted
        self._key = _Secret(settings.key_variable)
        self._ended = threading.Event()
        self._wait = wait or self._ended.wait
        self._guard = threading.Lock()
        self._tally = Tally()
        self._requests = self._lost = 0
        self._url = settings.url.rstrip("/")
        host = str(urlsplit(self._url).hostname)
        # Proxies of the environment are not used for this machine.
        proxies = (urllib.request.ProxyHandler({}),) if _is_local(host) else ()
        self._opener = urllib.request.build_opener(_NoRedirection, _Http, _Https, *proxies)
        if self._key and self._url.startswith("http:") and not _is_local(host):
            logger.warning("%s: the API key is sent unencrypted", self._url)

    def check(self) -> None:
        """Check the endpoint and the key by a request for the list of models.

        Raises:
            ConfigError: The endpoint does not answer, or rejects the key.
        """
        reply = self._send("/models", None, min(CHECK_SECONDS, self._settings.timeout))
        if reply.status == 0:
            raise ConfigError(
                f"generation.url={self._url}: does not answer ({reply.fault}); expected the address of a running server"
            )
        if reply.status in (401, 403):
            raise self._fatal(reply)

    def answer(self, requests: Sequence[Request], record: Callable[[Request, Answer], None]) -> Tally:
        """Answer requests concurrently.

        Requests that fail after all retries, and those beyond the budget, are skipped. A user error or an interruption
        ends the run after the current requests; their answers are recorded.

        Args:
            requests: Requests to answer.
            record: Called with each answer at once, from any thread.

        Raises:
            ConfigError: The key is rejected (401, 403), the endpoint is down, or rejects its first requests.
            ModelError: The model does not exist (404).
        """
        self._ended.clear()
        self._tally, self._requests, self._lost = Tally(), 0, 0
        waiting = iter(requests)
        with ThreadPoolExecutor(min(self._settings.concurrency, max(len(requests), 1))) as pool:
            workers = [pool.submit(self._work, waiting, record) for _ in range(pool._max_workers)]
            try:
                for worker in workers:
                    worker.result()
            finally:
                self._ended.set()
        return self._tally

    def _work(self, waiting: Iterator[Request], record: Callable[[Request, Answer], None]) -> None:
        try:
            while not self._ended.is_set():
                with self._guard:
                    request = next(waiting, None)
                if request is None:
                    return
                answer = self._ask(request)
                if answer is not None:
                    record(request, answer)
        except BaseException:
            self._ended.set()  # the others stop before their next request
            raise

    def _ask(self, request: Request) -> Answer | None:
        """One answer, with retries; None if there is none."""
        failed = spoiled = attempt = 0
        body = json.dumps(
            request_body(request, self._settings.model, self._sampling, self._stop, self._settings.extra_body)
        ).encode()
        path = "/chat/completions" if isinstance(request.prompt, list) else "/completions"
        while self._begin(attempt):
            reply = self._send(path, body, self._settings.timeout)
            if 200 <= reply.status < 300:
                answer = self._accept(reply)
                if answer is not None:
                    return answer
                spoiled += 1
            elif reply.status == 0 or reply.status in TRANSIENT or reply.status >= 500:
                failed += 1
                self._fail(reply)
            elif reply.status in REFUSED and self._only_this_row():
                logger.warning("a row was rejected (%d %s)", reply.status, error_text(reply.body))
                return None
            else:
                raise self._fatal(reply)
            if failed > self._settings.retries or spoiled > 1:
                if reply.unreachable or self._lose():
                    raise self._gone(reply)
                return None
            pause = backoff(
                request.key, attempt, self._settings.backoff_seconds, self._settings.longest_wait_seconds
            )
            if reply.wait > self._settings.longest_wait_seconds:
                self._put_off(reply.wait)
                return None
            self._wait(max(pause, reply.wait))
            attempt += 1
        return None

    def _begin(self, attempt: int) -> bool:
        """Count the next request; False if the run has ended or the budget is spent."""
        with self._guard:
            if self._ended.is_set():
                return False
            tokens = self._tally.input_tokens + self._tally.output_tokens
            if _spent(self._requests, self._settings.max_requests) or _spent(
                tokens, self._settings.max_total_tokens
            ):
                self._tally.budget_spent = True
                return False
            self._requests += 1
            self._tally.asked += attempt == 0
            self._tally.retried += attempt > 0
            return True

    def _only_this_row(self) -> bool:
        """Count a rejected request; True if the row is the cause (such as its length), not the settings."""
        with self._guard:
            self._tally.refused += 1
            return self._accepted or self._tally.answered > 0 or self._tally.refused < MOST_REFUSED

    def _accept(self, reply: Reply) -> Answer | None:
        """The answer of a successful reply, counted; None for a reply that is worth a retry.

        An answer without text is accepted if its finish reason explains it (`length`, a refusal).
        """
        answer = read_reply(reply.body)
        with self._guard:
            if answer is None:
                self._tally.malformed += 1
                self._tally.said = reply.summary
                return None
            self._lost = 0
            if answer.text.strip():
                self._tally.count(answer)
                return answer
            self._tally.empty += 1
            self._tally.input_tokens += answer.input_tokens
            self._tally.output_tokens += answer.output_tokens
            return answer if answer.reason not in ("stop", "error") else None

    def _lose(self) -> bool:
        """Count a row that failed after all retries; True after too many in a row."""
        with self._guard:
            self._lost += 1
            return self._lost >= MOST_LOST

    def _put_off(self, seconds: float) -> None:
        """End the run: the endpoint asks to wait."""
        with self._guard:
            self._tally.told_to_wait = max(self._tally.told_to_wait, seconds)
        self._ended.set()

    def _fail(self, reply: Reply) -> None:
        with self._guard:
            self._tally.failed += 1
            self._tally.said = reply.summary

    def _send(self, path: str, body: bytes | None, timeout: float) -> Reply:
        request = _Request(self._url + path, data=body, headers={"Content-Type": "application/json"})
        self._key.sign(request)
        late = Reply(0, fault=f"no complete answer within {timeout:g} s")
        with _TimeLimit(timeout) as request.limit:
            reply = self._exchange(request, timeout)
        return late if request.limit.expired or reply is None else reply

    def _exchange(self, request: _Request, timeout: float) -> Reply | None:
        """The reply to a request; None after a timeout."""
        try:
            try:
                with self._opener.open(request, timeout=timeout) as answer:
                    content = answer.read(MOST_BYTES)
                    if answer.length and len(content) < MOST_BYTES:  # read(n) does not raise
                        return Reply(0, fault=f"the connection broke off, {answer.length} bytes early")
                    return Reply(answer.status, self._key.hide_in_answer(content))
            except HTTPError as error:
                with error:
                    wait = retry_after(error.headers.get("Retry-After"))
                    return Reply(error.code, self._key.hide(error.read(MOST_BYTES)), wait)
        except (
            OSError,
            HTTPException,
            ValueError,
        ) as error:  # a ValueError is http.client's of absurd lengths
            cause = error.reason if isinstance(error, URLError) else error
            if isinstance(cause, TimeoutError):
                return None
            # A URLError is raised before the request was sent.
            fault = self._key.hide(" ".join(f"{type(cause).__name__}: {cause}".split()).encode()).decode()
            return Reply(0, fault=fault[:200], unreachable=isinstance(error, URLError))

    def _fatal(self, reply: Reply) -> PotstillError:
        settings, said = self._settings, error_text(reply.body)
        said = f" ({said})" if said else ""
        if reply.status in (401, 403):
            state = "has a key that is rejected" if self._key else "is not set, but a key is required"
            return ConfigError(
                f"generation.url={self._url}: {reply.status}: the environment variable {settings.key_variable} "
                f"{state}{said}"
            )
        if reply.status == 404:
            return ModelError(
                f"generation.model={settings.model}: {self._url} does not have the model, or not this form of "
                f"request{said}; {self._url}/models lists its models"
            )
        if 300 <= reply.status < 400:
            return ConfigError(
                f"generation.url={self._url}: redirects ({reply.status}); use the final address"
            )
        return ConfigError(
            f"generation.url={self._url}: rejects requests of this form ({reply.status}){said}; see "
            "generation.form and generation.extra_body"
        )

    def _gone(self, reply: Reply) -> ConfigError:
        return ConfigError(
            f"generation.url={self._url}: no longer answers ({reply.summary}); "
            "all answers are kept: run again when the server is up"
        )


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

    def sign(self, request: urllib.request.Request) -> None:
        if self.__value:
            request.add_unredirected_header("Authorization", f"Bearer {self.__value}")

    def hide(self, text: bytes) -> bytes:
        """A text without the key, plain or escaped as JSON."""
        if not self.__value:
            return text
        for written in {self.__value, json.dumps(self.__value)[1:-1], self.__value.replace("/", "\\/")}:
            text = text.replace(written.encode(), HIDDEN.encode())
        return text

    def hide_in_answer(self, text: bytes) -> bytes:
        """The same for an answer, which a placeholder key must not change."""
        return self.hide(text) if len(self.__value) >= SHORTEST_KEY else text


class _TimeLimit:
    """Closes the connection of a request after a number of seconds, even while data arrives."""

    def __init__(self, seconds: float) -> None:
        self.expired = False
        self._sockets: list[socket.socket] = []
        self._guard = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _TimeLimit:
        self._timer.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._timer.cancel()
        with self._guard:
            for own in self._sockets:
                own.close()
            self._sockets.clear()

    def watch(self, connected: socket.socket) -> None:
        """Add a socket of the request; a duplicate is kept, since TLS detaches the original."""
        with self._guard:
            self._sockets.append(connected.dup())
        if self.expired:
            self._end()

    def _end(self) -> None:
        self.expired = True
        with self._guard:
            for own in self._sockets:
                with suppress(OSError):
                    own.shutdown(socket.SHUT_RDWR)


class _Request(urllib.request.Request):
    """A request with a time limit."""

    limit: _TimeLimit


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: _Request) -> Any:  # type: ignore[override]
        return self.do_open(partial(_connection, HTTPConnection, req.limit), req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: _Request) -> Any:  # type: ignore[override]
        return self.do_open(partial(_connection, HTTPSConnection, req.limit), req)


def _connection(kind: type[HTTPConnection], limit: _TimeLimit, host: str, **options: Any) -> HTTPConnection:
    connection = kind(host, **options)
    create = connection._create_connection  # type: ignore[attr-defined]

    def connect(*args: Any) -> socket.socket:
        made: socket.socket = create(*args)
        limit.watch(made)
        return made

    connection._create_connection = connect  # type: ignore[attr-defined]
    return connection


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Return None, so that the redirection itself is the reply."""


def _spent(used: int, limit: int | None) -> bool:
    return limit is not None and used >= limit


def _is_local(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
