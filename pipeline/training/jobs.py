"""Independent parts of a training, several at once: each on one core, so that results do not depend on how many there are."""

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event

import torch

from hoarfrost.features.errors import TrainingError
from hoarfrost.training.records import TrainedHead

OnEpoch = Callable[[str, int], None]
Found = list[TrainedHead | TrainingError]


@dataclass(frozen=True)
class Job:
    """Heads that are trained together. A small job is slower on two cores than on one: they wait for each other."""

    run: Callable[[OnEpoch], Found]
    is_small: bool


def finished(jobs: Sequence[Job], on_epoch: OnEpoch, *, one_by_one: bool) -> Found:
    """Run all jobs and return what they found, in their order: small ones side by side, large ones on all cores.

    `on_epoch` is called in this thread only. With `one_by_one` no job runs beside another.
    """
    n_threads = torch.get_num_threads()
    beside = [] if one_by_one else [place for place, job in enumerate(jobs) if job.is_small]
    found: dict[int, Found] = {}
    try:
        torch.set_num_threads(1)
        found.update(zip(beside, _side_by_side([jobs[place] for place in beside], n_threads, on_epoch), strict=True))
        for place, job in enumerate(jobs):
            if place not in found:
                torch.set_num_threads(1 if job.is_small else n_threads)
                found[place] = job.run(on_epoch)
    finally:
        torch.set_num_threads(n_threads)
    return [one for place in range(len(jobs)) for one in found[place]]


def _side_by_side(jobs: Sequence[Job], n_workers: int, on_epoch: OnEpoch) -> list[Found]:
    """Run jobs in threads of one core each. The first error, or an interruption, stops the others after their epoch."""
    if n_workers < 2 or len(jobs) < 2:
        return [job.run(on_epoch) for job in jobs]
    events: SimpleQueue[tuple[str, int] | Future[Found]] = SimpleQueue()
    stopped = Event()

    def report(shape: str, epoch: int) -> None:
        if stopped.is_set():
            raise CancelledError
        events.put((shape, epoch))

    with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(job.run, report) for job in jobs]
        for future in futures:
            future.add_done_callback(events.put)
        try:
            n_left = len(futures)
            while n_left:
                event = events.get()
                if isinstance(event, Future):
                    event.result()
                    n_left -= 1
                else:
                    on_epoch(*event)
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]
