"""One thread computes: on all that arrived while it was computing before, up to a batch."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGEST_BATCH = 8
LINGER = 0.5  # of what the last batch took: as long is waited for more, where more than one client asks


class Batcher(Generic[Item, Result]):
    """Turns single requests into batches, for the backbone takes eight images in little more than the time of one.

    Parameters
    ----------
    compute : callable
        Takes a list of items, gives as many results; called in one thread of its own.
    largest : int
        Of a batch.
    """

    def __init__(self, compute: Callable[[list[Item]], Sequence[Result]], largest: int) -> None:
        self._compute = compute
        self._largest = largest
        self._waiting: queue.SimpleQueue[tuple[Item, Future[Result]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="compute", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._waiting.put(None)
        self._thread.join()

    def submit(self, item: Item) -> "Future[Result]":
        """Have an item computed in one of the next batches."""
        future: Future[Result] = Future()
        self._waiting.put((item, future))
        return future

    def _work(self) -> None:
        linger = 0.0
        while (first := self._waiting.get()) is not None:
            batch = self._gathered(first, linger)
            started = time.monotonic()
            self._answer([(item, future) for item, future in batch if future.set_running_or_notify_cancel()])
            # A batch takes as long for one image as for all; those just answered ask again at once, if they are many.
            is_asked_by_many = len(batch) > 1 or not self._waiting.empty()
            linger = LINGER * (time.monotonic() - started) if is_asked_by_many else 0.0

    def _gathered(self, first: "tuple[Item, Future[Result]]", linger: float) -> "list[tuple[Item, Future[Result]]]":
        """Give the first and those that wait, or come within `linger` seconds, up to a batch."""
        batch, deadline = [first], time.monotonic() + linger
        while len(batch) < self._largest:
            try:
                following = self._waiting.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                break
            if following is None:
                self._waiting.put(None)  # for `_work`, once this batch is done
                break
            batch.append(following)
        return batch

    def _answer(self, batch: "list[tuple[Item, Future[Result]]]") -> None:
        if not batch:
            return
        try:
            results = self._compute([item for item, _ in batch])
        except Exception as error:  # those who wait are told; the thread goes on
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
