"""An endpoint that answers prompts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from potstill.rationale_generation.answers import Answer, Request, Tally
from potstill.rationale_generation.client import Client, ReplyError
from potstill.rationale_generation.protocol import read_reply, request_body
from potstill.rationale_generation.settings import EndpointSettings, Sampling


class Endpoint(Client[Request, Answer]):
    """An endpoint that answers prompts.

    Args:
        settings: As in `Client`.
        sampling: Sampling of answers.
        stop: Strings that end an answer.
        accepted: As in `Client`.
        wait: As in `Client`.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        sampling: Sampling,
        stop: tuple[str, ...] = (),
        *,
        accepted: bool = False,
        wait: Callable[[float], Awaitable[object]] | None = None,
    ) -> None:
        super().__init__(settings, accepted=accepted, wait=wait)
        self._sampling = sampling
        self._stop = stop

    def compose(self, request: Request) -> tuple[str, dict[str, Any]]:
        """See `Client`."""
        settings = self._settings
        path = "/chat/completions" if isinstance(request.prompt, list) else "/completions"
        return path, request_body(request, settings.model, self._sampling, self._stop, settings.extra_body)

    def read(self, request: Request, body: bytes) -> Answer:
        """See `Client`."""
        if (answer := read_reply(body)) is None:
            raise ReplyError
        return answer

    def count(self, answer: Answer, tally: Tally) -> bool:
        """See `Client`; an answer without text is accepted if its finish reason explains it (`length`, a refusal)."""
        tally.count(answer)
        return bool(answer.text.strip()) or answer.reason not in ("stop", "error")
