"""One thread that computes batches of the items that arrived during the batch before."""

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
LINGER = 0.5  # of the last batch's time: how long to wait for more items if several clients ask


class Batcher(Generic[Item, Result]):
    """Turns single requests into batches: the backbone embeds eight images in little more than the time of one.

    `compute` returns a result for each of at most `largest` items; it is called in a thread of its own.
    """

    def __init__(self, compute: Callable[[list[Item]], Sequence[Result]], largest: int) -> None:
        self._compute, self._largest = compute, largest
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
        """Queue an item for one of the next batches, and return the future of its result."""
        future: Future[Result] = Future()
        self._waiting.put((item, future))
        return future

    def _work(self) -> None:
        linger = 0.0
        while (first := self._waiting.get()) is not None:
            batch = self._gathered(first, linger)
            started = time.monotonic()
            self._answer([(item, future) for item, future in batch if future.set_running_or_notify_cancel()])
            # A batch takes as long for one image as for all; of many clients, those just answered ask again at once.
            is_asked_by_many = len(batch) > 1 or not self._waiting.empty()
            linger = LINGER * (time.monotonic() - started) if is_asked_by_many else 0.0

    def _gathered(self, first: "tuple[Item, Future[Result]]", linger: float) -> "list[tuple[Item, Future[Result]]]":
        """Return the first and those that wait, or arrive within `linger` seconds, up to a batch."""
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
        except Exception as error:  # the waiting requests get it; the thread continues
            for _, future in batch:
                future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            future.set_result(result)
