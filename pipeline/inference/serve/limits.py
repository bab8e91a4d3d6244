"""What a request may cost: bytes, seconds, and how many at a time. Refused requests are not kept."""

import asyncio
import json
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

FORM_BYTES = 64 << 10  # of a form's own text, beside the file
LINGER_SECONDS = 2.0  # in which what a refused client still sends is thrown away


@dataclass(frozen=True)
class Limits:
    """What a request may cost."""

    max_bytes: int = 20_000_000  # of an uploaded file
    max_pixels: int = 50_000_000  # of the image in it
    seconds: float = 30.0  # for sending it, and again for answering
    at_once: int = 64  # requests that are answered at the same time; others are refused, and may try again
    at_once_per_client: int = 32  # by its address, so that one cannot keep out all others

    @property
    def too_large(self) -> str:
        """The reason for refusing a file with too many bytes."""
        return f"too large: at most {self.max_bytes / 1e6:g} MB"


class _RefusedError(Exception):
    """The request was answered already."""


class LimitRequests:
    """Refuses requests from pages elsewhere (403), and too large (413), too slow (408) or too many ones (429)."""

    def __init__(self, app: Application, limits: Limits) -> None:
        self.app = app
        self.limits = limits
        self._n_active: Counter[str] = Counter()  # by client

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if _is_foreign(scope):
            await refuse(send, 403, "a page of another origin may not use this service", receive)
            return
        client = (scope.get("client") or ("",))[0]
        if self._n_active.total() >= self.limits.at_once or self._n_active[client] >= self.limits.at_once_per_client:
            await refuse(send, 429, "too many requests at a time; try again in a second", receive)
            return
        self._n_active[client] += 1
        try:
            await self._limited(scope, receive, send)
        finally:
            self._n_active -= Counter([client])

    async def _limited(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        limit, n_bytes = self.limits.max_bytes + FORM_BYTES, 0
        is_refused = is_whole = False
        deadline = asyncio.get_running_loop().time() + self.limits.seconds

        async def refused(status: int, why: str, unread: Receive | None) -> _RefusedError:
            nonlocal is_refused
            is_refused = True
            await refuse(send, status, why, unread)
            return _RefusedError()

        async def counted() -> Message:
            nonlocal n_bytes, is_whole
            try:
                async with asyncio.timeout_at(None if is_whole else deadline):
                    message = await receive()
            except TimeoutError:
                why = f"the request was not sent within {self.limits.seconds:g} s"
                raise (await refused(408, why, None)) from None
            if message["type"] == "http.request":
                n_bytes += len(message.get("body", b""))
                is_whole = not message.get("more_body", False)
                if n_bytes > limit:
                    raise await refused(413, self.limits.too_large, None if is_whole else receive)
            return message

        async def unless_refused(message: Message) -> None:
            if not is_refused:
                await send(message)

        if _declared_bytes(scope) > limit:
            await refuse(send, 413, self.limits.too_large, receive)
            return
        with suppress(_RefusedError):
            await self.app(scope, counted, unless_refused)


def _is_foreign(scope: MutableMapping[str, Any]) -> bool:
    """Return whether a browser sends the request for a page of another origin."""
    headers = dict(scope["headers"])
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != headers.get(b"host")


def _declared_bytes(scope: MutableMapping[str, Any]) -> int:
    length = dict(scope["headers"]).get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


async def refuse(send: Send, status: int, why: str, unread: Receive | None) -> None:
    """Answer with a reason, and end the connection once the `unread` rest of the request was thrown away."""
    content = json.dumps({"detail": why}).encode()
    headers = {b"content-type": b"application/json", b"content-length": b"%d" % len(content), b"connection": b"close"}
    if status == 429:
        headers[b"retry-after"] = b"1"
    await send({"type": "http.response.start", "status": status, "headers": list(headers.items())})
    await send({"type": "http.response.body", "body": content, "more_body": True})
    if unread is not None:
        await _thrown_away(unread)
    await send({"type": "http.response.body", "body": b""})


async def _thrown_away(receive: Receive) -> None:
    """Read what is still being sent, for a while: a connection closed earlier is reset, and the reason lost."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            message = await receive()
            while message["type"] == "http.request" and message.get("more_body", False):
                message = await receive()
