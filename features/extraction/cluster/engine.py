"""RayEngine: the engine for several hosts, or several GPUs."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Self

from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.cluster import actors, connection
from hoarfrost.features.extraction.cluster.actors import Reference, Started, WorkerLostError
from hoarfrost.features.extraction.cluster.driver import BUSY, BUSY_SECONDS, Driver
from hoarfrost.features.extraction.engines import RayOptions
from hoarfrost.features.extraction.job import Job
from hoarfrost.features.extraction.plan import ExtractOptions, LoopCounts

logger = logging.getLogger(__name__)


class RayEngine:
    """A Ray cluster, joined (or started on this machine) when it is first needed; a context manager.

    Entering raises HoarfrostError if Ray is missing, or nothing answers at its address.
    """

    def __init__(self, own: RayOptions, options: ExtractOptions) -> None:
        self._own = own
        self._options = options
        self._stack = ExitStack()
        self._is_joined = False
        self._early: dict[Reference, Started] = {}  # by the reference to their first answer

    def __enter__(self) -> Self:
        if not connection.is_installed():
            raise HoarfrostError(
                f"--engine ray needs Ray, which is not installed. Install it on every host: {connection.INSTALL}."
            )
        connection.check_address(self._own.address)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start_early(self) -> None:
        """Start the first worker: it loads its libraries while this process loads its own."""
        device = self._device(self._options.precision)
        self._start_in(self._slots(device)[0], device)

    def _start_in(self, slot: connection.Slot, device: str) -> Reference:
        worker = actors.start(slot)
        self._stack.callback(actors.end, worker.actor)  # a program that uses Ray itself keeps its cluster
        asked = actors.ask(worker.actor, "choose_precision", self._options.precision, device)
        self._early[asked] = worker
        return asked

    def choose_precision(self) -> str:
        """Return the precision that is fast where the workers will be: this machine may be of another kind.

        The first host that answers decides; if one is busy or broken, the next is asked.
        """
        asked_for = self._options.precision
        if asked_for not in {"auto", "fast"}:
            return asked_for
        if not self._early:
            self.start_early()
        waiting, device = set(self._early), self._device(asked_for)
        started = {(worker.slot.node_id, worker.slot.number) for worker in self._early.values()}
        others = [slot for slot in self._slots(device) if (slot.node_id, slot.number) not in started]
        is_warned = False
        while True:
            found = actors.answered(list(waiting), BUSY_SECONDS)
            for asked in found:
                try:
                    return str(actors.result_of(asked))
                except WorkerLostError as error:
                    lost = self._early.pop(asked)
                    waiting.remove(asked)
                    if not waiting and not others:
                        raise HoarfrostError(f"{lost.slot.host}: no worker could be started there: {error}.") from error
            if others:
                waiting.add(self._start_in(others.pop(0), device))
            elif not found and not is_warned:
                is_warned = True
                logger.warning(BUSY)

    def embed(self, job: Job, todo: Sequence[int]) -> LoopCounts:
        """Embed images of a dataset, ascending `todo`, with workers that write parts of the cache; include the parts."""
        device, own = self._device(job.recipe.precision), self._own
        first = self._slots(device)[: own.max_workers]
        n_hosts = len({slot.node_id for slot in first})
        found = f"{len(first)} worker{'s' * (len(first) != 1)} on {n_hosts} host{'s' * (n_hosts != 1)}"
        logger.info("Ray: %s%s", found, f"; dashboard {self._dashboard}" if self._dashboard else "")
        early, find_slots = list(self._early.values()), partial(connection.slots, own, device)
        return Driver(job, todo, device, find_slots, early, own.max_workers).run()

    def _join(self) -> None:
        if not self._is_joined:
            self._dashboard = self._stack.enter_context(connection.connected(self._own.address))
            self._is_joined = True

    def _device(self, precision: str) -> str:
        """Return the device to use; for "auto" what the cluster has. Workers check whether the precision runs there."""
        self._join()
        if self._options.device != "auto":
            return self._options.device
        return "cuda" if connection.has_gpus() and not precision.startswith("int8") else "cpu"

    def _slots(self, device: str) -> list[connection.Slot]:
        found = connection.slots(self._own, device)
        if not found:
            kind = "a GPU" if device == "cuda" else "a CPU"
            raise HoarfrostError(
                f"No host of the Ray cluster has room for a worker, which needs {kind} and the CPUs of --cpus-per-worker. "
                "Pass a smaller number or another --device, or add hosts with `ray start`."
            )
        return found
