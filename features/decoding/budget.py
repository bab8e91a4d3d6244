"""How much memory the threads and the processes that decode may take together."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

PIXELS_AT_ONCE = 64 << 20  # of all threads, or processes, together


class OverBudgetError(Exception):
    """An image of `n_pixels` is larger than a process may decode without asking."""

    def __init__(self, n_pixels: int) -> None:
        super().__init__(n_pixels)
        self.n_pixels = n_pixels


class PixelBudget:
    """The number of pixels that all threads together may decode at once: each takes up to ten bytes for a moment."""

    def __init__(self, n_pixels: int = PIXELS_AT_ONCE) -> None:
        self._n_pixels = n_pixels
        self._n_taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, n_pixels: int) -> Iterator[None]:
        """Wait until so many pixels may be decoded; an image that is larger than the whole budget is decoded alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._n_taken or self._n_taken + n_pixels <= self._n_pixels)
            self._n_taken += n_pixels
        try:
            yield
        finally:
            with self._changed:
                self._n_taken -= n_pixels
                self._changed.notify_all()


class Share(PixelBudget):
    """What one process may decode without asking; `of` raises OverBudgetError for a larger image."""

    @contextmanager
    def of(self, n_pixels: int) -> Iterator[None]:
        """Return at once."""
        if n_pixels > self._n_pixels:
            raise OverBudgetError(n_pixels)
        yield
