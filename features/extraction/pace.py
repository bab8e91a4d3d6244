"""How long images take to read and to decode, measured while an extraction runs: what bounds it."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from hoarfrost.features.encoder.backbone.compiling import Supply

READERS_THAT_WAIT = 32  # most of a read over a network is waiting
SLOW_READ_S = 0.005  # of a file: as over a network, or from a disk that is not in this machine

T = TypeVar("T")


@dataclass
class Timed:
    """The seconds that images took in one step, in threads that each do the whole step."""

    seconds: float = 0.0
    n_images: int = 0

    @property
    def mean_s(self) -> float:
        """Seconds of a thread per image; 0 before the first."""
        return self.seconds / self.n_images if self.n_images else 0.0


class Pace:
    """Times reading and decoding. `n_readers` threads read: as many as decode, but more where files are at URLs."""

    def __init__(self, n_decoders: int, *, is_remote: bool = False) -> None:
        self._n_decoders = n_decoders
        self.n_readers = max(n_decoders, READERS_THAT_WAIT) if is_remote else n_decoders
        self._read, self._decode = Timed(), Timed()
        self._lock = threading.Lock()

    def reading(self, read: Callable[[], T]) -> T:
        """Return what `read` returns, and time it as the reading of one image."""
        return self._timed(self._read, read)

    def decoding(self, decode: Callable[[], T], n_images: int = 1) -> T:
        """Return what `decode` returns, and time it as the decoding of some images."""
        return self._timed(self._decode, decode, n_images)

    def _timed(self, step: Timed, work: Callable[[], T], n_images: int = 1) -> T:
        started = time.perf_counter()
        try:
            return work()
        finally:
            with self._lock:
                step.seconds += time.perf_counter() - started
                step.n_images += n_images

    def supply(self) -> Supply:
        """Return the seconds per image that all threads together take."""
        return Supply(self._read.mean_s / self.n_readers, self._decode.mean_s / self._n_decoders)

    def waits_for_files(self) -> bool:
        """Return whether reading takes longer than decoding, and so long that it must be waiting."""
        return self._read.mean_s > max(SLOW_READ_S, self._decode.mean_s)


class Readers:
    """The threads that read: more of them from when reading turns out to wait. What waits to be decoded stays bounded."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._pools = [ThreadPoolExecutor(pace.n_readers, "read")]

    def threads(self) -> ThreadPoolExecutor:
        """Return the threads for the next files."""
        if self._pace.n_readers < READERS_THAT_WAIT and self._pace.waits_for_files():
            self._pace.n_readers = READERS_THAT_WAIT
            self._pools.append(ThreadPoolExecutor(READERS_THAT_WAIT, "read"))
        return self._pools[-1]

    def shutdown(self, *, wait: bool, cancel_futures: bool) -> None:
        """End all threads."""
        for pool in self._pools:
            pool.shutdown(wait=wait, cancel_futures=cancel_futures)
