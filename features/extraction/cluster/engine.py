"""RayEngine: the engine that `extract` uses where there are several hosts, or several GPUs."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.cluster import actors
from hoarfrost.features.extraction.cluster.actors import Reference, Started, WorkerLostError
from hoarfrost.features.extraction.cluster.connection import (
    Slot,
    check_address,
    connected,
    has_gpus,
    require_ray,
    slots,
)
from hoarfrost.features.extraction.cluster.driver import BUSY, BUSY_SECONDS, Driver
from hoarfrost.features.extraction.engines import RayOptions
from hoarfrost.features.extraction.job import Job
from hoarfrost.features.extraction.plan import ExtractOptions, LoopCounts

logger = logging.getLogger(__name__)


class RayEngine:
    """A Ray cluster, joined (or started on this machine) when it is first needed; a context manager.

    Parameters
    ----------
    own : RayOptions
    options : ExtractOptions

    Raises
    ------
    HoarfrostError
        On entering: Ray is missing, or nothing answers at its address.
    """

    def __init__(self, own: RayOptions, options: ExtractOptions) -> None:
        self._own = own
        self._options = options
        self._stack = ExitStack()
        self._is_joined = False
        self._early: dict[Reference, Started] = {}  # by what they were asked

    def __enter__(self) -> Self:
        require_ray()
        check_address(self._own.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def start_early(self) -> None:
        """Start the first worker, where there will be work for it: it loads its libraries while this process does."""
        device = self._device(self._options.precision)
        self._start_in(self._slots(device)[0], device)

    def _start_in(self, slot: Slot, device: str) -> Reference:
        worker = actors.start(slot)
        self._stack.callback(
            actors.end, worker.actor
        )  # whatever comes: a program that uses Ray itself keeps its cluster
        asked = actors.ask(worker.actor, "choose_precision", self._options.precision, device)
        self._early[asked] = worker
        return asked

    def choose_precision(self) -> str:
        """Return the precision that is fast where the workers will be: this machine may be of another kind.

        Whichever host answers first decides; where one is at work for others, or broken, the next is asked.
        """
        asked_for = self._options.precision
        if asked_for != "auto":
            return asked_for
        if not self._early:
            self.start_early()
        waiting, device = set(self._early), self._device(asked_for)
        started = {(worker.slot.node_id, worker.slot.number) for worker in self._early.values()}
        others = [slot for slot in self._slots(device) if (slot.node_id, slot.number) not in started]
        is_said = False
        while True:
            found = actors.answered(list(waiting), BUSY_SECONDS)
            for asked in found:
                try:
                    return str(actors.result_of(asked))
                except WorkerLostError as error:
                    lost = self._early.pop(asked)
                    waiting.remove(asked)
                    if not waiting and not others:
                        reason = f"{lost.slot.host}: no worker could be started there: {error}."
                        raise HoarfrostError(reason) from error
            if others:
                waiting.add(self._start_in(others.pop(0), device))
            elif not found and not is_said:
                is_said = True
                logger.warning(BUSY)

    def embed(self, job: Job, todo: Sequence[int]) -> LoopCounts:
        """Embed images of a dataset, ascending `todo`, by workers that write parts; take those in.

        Raises
        ------
        HoarfrostError
            By what is wrong; what is finished is committed then.
        """
        device = self._device(job.recipe.precision)
        first = self._slots(device)[: self._own.max_workers]
        logger.info(
            "Ray: %d %s on %d %s%s", len(first), "worker" if len(first) == 1 else "workers",
            len({slot.node_id for slot in first}), "host" if len({slot.node_id for slot in first}) == 1 else "hosts",
            f"; dashboard {self._dashboard}" if self._dashboard else "",
        )  # fmt: skip
        driver = Driver(
            job, todo, device, lambda: slots(self._own, device), [*self._early.values()], self._own.max_workers
        )
        return driver.run()

    def _join(self) -> None:
        if not self._is_joined:
            self._dashboard = self._stack.enter_context(connected(self._own.address))
            self._is_joined = True

    def _device(self, precision: str) -> str:
        """Return the device to use, for "auto" what the cluster has; the workers check whether the precision runs there."""
        self._join()
        if self._options.device != "auto":
            return self._options.device
        return "cuda" if has_gpus() and not precision.startswith("int8") else "cpu"

    def _slots(self, device: str) -> list[Slot]:
        found = slots(self._own, device)
        if not found:
            kind = "a GPU" if device == "cuda" else "a CPU"
            raise HoarfrostError(
                f"No host of the Ray cluster has room for a worker: none has {kind} and as many CPUs as --cpus-per-worker "
                "asks for. Pass less, or another --device, or join hosts with `ray start`."
            )
        return found
