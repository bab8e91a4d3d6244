"""Stop signals: finish the current batch, commit, and tell the user how to continue."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

from hoarfrost.features.errors import HoarfrostError


class StoppedError(HoarfrostError):
    """A signal stopped the extraction early; it can be resumed where what is finished was kept."""

    def __init__(self, when: str) -> None:
        super().__init__(f"{when}; what is finished is committed. Run the same command again to go on from there.")
        self.when = when


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a stop after the batch under way; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is Python's
        self.received = signal.Signals(number)
        self._restore()

    def check(self, done: int, total: int) -> None:
        """Raise StoppedError if a signal came, unless all is done: then only folding into the cache is left."""
        if self.received is not None and done < total:
            raise StoppedError(f"Stopped by {self.received.name} after {done} of {total} images")
