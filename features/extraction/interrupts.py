"""Stop signals: finish the current batch, save it, and say how to continue."""

import logging
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hoarfrost.features.decoding.isolated import resume_decoding, stop_decoding
from hoarfrost.features.errors import HoarfrostError

logger = logging.getLogger(__name__)


class StoppedError(HoarfrostError):
    """A signal stopped the extraction early; `when` is the message for embeddings that do not stay."""

    def __init__(self, n_saved: int, n_images: int) -> None:
        count = f"{n_saved:,} of {n_images:,} images"
        super().__init__(f"Interrupted; {count} saved. Run the same command again to continue.")
        self.when = f"Interrupted after {count}"


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a stop after the current batch; a second one acts as usual."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        resume_decoding()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        stop_decoding()  # of images that may take minutes
        self._restore()  # a second signal acts as usual
        with suppress(RuntimeError):  # the signal came while the same stream was written to
            logger.info("Stopping; saving the current batch. Press Ctrl-C again to stop at once.")

    def check(self, n_left: int, readable: npt.NDArray[np.bool_]) -> None:
        """Raise StoppedError if a signal came, unless no image is left: then only folding into the cache is.

        `readable` (n,) bool are the dataset's images that have an embedding by now.
        """
        if self.received is not None and n_left:
            raise StoppedError(int(readable.sum()), len(readable))
