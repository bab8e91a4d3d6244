"""What a connection may cost before it has asked for anything: uvicorn itself waits for a request without end."""

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0  # in which the first line and the headers of a request must have arrived
MOST_CONNECTIONS = 200  # beyond it the one that has waited longest is closed; systems allow from 256 open files


class LimitedConnection(H11Protocol):
    """A connection that is closed if no request arrives in time, or if too many others wait."""

    _waiting_since = 0.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start to wait for the first request."""
        super().connection_made(transport)
        self._wait()
        while len(self.connections) > MOST_CONNECTIONS:
            waiting = [one for one in self.connections if isinstance(one, LimitedConnection) and one.is_waiting]
            longest = min(waiting, key=lambda one: one._waiting_since, default=self)
            self.connections.discard(longest)
            longest.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Wait, unless what has arrived is a whole request."""
        super().data_received(data)
        if self.is_waiting:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered."""
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete

    def _wait(self) -> None:
        if self._timer is None:
            self._waiting_since = self.loop.time()
            self._timer = self.loop.call_later(HEADER_SECONDS, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
