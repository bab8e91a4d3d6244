"""Parts of a training run side by side: reported in the caller's thread, and stopped by the first error."""

import threading
import time
from collections.abc import Callable

import pytest
import torch

from hoarfrost.features.errors import TrainingError
from hoarfrost.training.jobs import Found, Job, OnEpoch, finished
from tests.support.commands import NumberOfThreads


def job(name: str, n_epochs: int = 2, *, is_small: bool = True) -> Job:
    def run(on_epoch: OnEpoch) -> Found:
        for epoch in range(1, n_epochs + 1):
            on_epoch(f"{name} on {torch.get_num_threads()}", epoch)
        return [TrainingError(name)]

    return Job(run, is_small)


def names(found: Found) -> list[str]:
    return [str(one) for one in found]


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_results_are_in_the_order_of_the_jobs_and_epochs_are_reported_here(
    n_threads: NumberOfThreads, n: int, one_by_one: bool
) -> None:
    n_threads(n)
    seen: list[tuple[str, int]] = []

    def on_epoch(shape: str, epoch: int) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((shape, epoch))

    jobs = [job("a"), job("large", is_small=False), job("b"), job("c")]
    assert names(finished(jobs, on_epoch, one_by_one=one_by_one)) == ["a", "large", "b", "c"]
    assert sorted(seen) == [
        (name, epoch) for name in ("a on 1", "b on 1", "c on 1", f"large on {n}") for epoch in (1, 2)
    ]
    assert torch.get_num_threads() == n


def endless(on_epoch: OnEpoch) -> Found:
    while True:
        time.sleep(0.001)
        on_epoch("endless", 1)


def broken(_: OnEpoch) -> Found:
    raise TrainingError("broken")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("runs", "on_epoch", "error"),
    [([endless, broken], lambda *_: None, TrainingError), ([endless, endless], interrupt, KeyboardInterrupt)],
)
def test_an_error_or_an_interruption_stops_the_jobs_beside_it(
    n_threads: NumberOfThreads, runs: list[Callable[[OnEpoch], Found]], on_epoch: OnEpoch, error: type[BaseException]
) -> None:
    n_threads(2)
    before = threading.active_count()  # other tests of this process may have left some
    with pytest.raises(error):
        finished([Job(run, is_small=True) for run in [*runs, endless]], on_epoch, one_by_one=False)
    assert threading.active_count() <= before
    assert torch.get_num_threads() == 2
