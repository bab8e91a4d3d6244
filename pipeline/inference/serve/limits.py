"""What a request may cost: bytes, seconds, and how many at a time. What is refused is not kept."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

FORM_BYTES = 64 << 10  # that a form's own text takes beside the file
LINGER_SECONDS = 2.0  # in which what a refused client still sends is thrown away


@dataclass(frozen=True)
class Limits:
    """What a request may cost.

    Attributes
    ----------
    max_bytes : int
        Of an uploaded file.
    max_pixels : int
        Of the image in it.
    seconds : float
        For sending it, and again for answering.
    at_once : int
        Requests that are worked on together; others are asked to come again.
    """

    max_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    seconds: float = 30.0
    at_once: int = 64


class _RefusedError(Exception):
    """The request was answered already."""


class LimitRequests:
    """Refuses requests that are too large (413), too slow (408) or too many (429) with a reason as JSON."""

    def __init__(self, app: Application, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self._n_active = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self._n_active >= self.limits.at_once:
            await refuse(send, 429, "too many requests at a time; try again in a second", receive)
            return
        self._n_active += 1
        try:
            await self._limited(scope, receive, send)
        finally:
            self._n_active -= 1

    async def _limited(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        is_refused = False
        n_bytes = 0
        deadline = asyncio.get_running_loop().time() + self.limits.seconds

        async def refused(status: int, why: str, unread: Receive | None = None) -> None:
            nonlocal is_refused
            is_refused = True
            await refuse(send, status, why, unread)

        async def counted() -> Message:
            nonlocal n_bytes
            try:
                async with asyncio.timeout_at(deadline if not is_whole else None):
                    message = await receive()
            except TimeoutError:
                await refused(408, f"the request was not sent within {self.limits.seconds:g} s")
                raise _RefusedError from None
            await noted(message)
            return message

        is_whole = False

        async def noted(message: Message) -> None:
            nonlocal n_bytes, is_whole
            if message["type"] != "http.request":
                return
            n_bytes += len(message.get("body", b""))
            is_whole = not message.get("more_body", False)
            if n_bytes > self.limits.max_bytes + FORM_BYTES:
                await refused(413, self._too_large(), None if is_whole else receive)
                raise _RefusedError

        async def unless_refused(message: Message) -> None:
            if not is_refused:
                await send(message)

        if _declared(scope) > self.limits.max_bytes + FORM_BYTES:
            await refuse(send, 413, self._too_large(), receive)
            return
        try:
            await self.app(scope, counted, unless_refused)
        except _RefusedError:
            return

    def _too_large(self) -> str:
        return f"too large: at most {self.limits.max_bytes / 1e6:g} MB"


def _declared(scope: MutableMapping[str, Any]) -> int:
    lengths = [value for name, value in scope["headers"] if name == b"content-length"]
    return int(lengths[0]) if lengths and lengths[0].isdigit() else 0


async def refuse(send: Send, status: int, why: str, unread: Receive | None) -> None:
    """Answer with a reason, and end the connection, once what is `unread` of the request was thrown away."""
    content = json.dumps({"detail": why}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": True})
    if unread is not None:
        await _thrown_away(unread)
    await send({"type": "http.response.body", "body": b""})


async def _thrown_away(receive: Receive) -> None:
    """Read what is still being sent, for a while: a connection that is closed before is reset, and the reason lost."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            message = await receive()
            while message["type"] == "http.request" and message.get("more_body", False):
                message = await receive()
