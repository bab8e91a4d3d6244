"""Cluster: the engine that `extract` uses where there are several hosts, or several GPUs."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from features.cluster import actors
from features.cluster.actors import Reference, Started, WorkerLostError
from features.cluster.connection import INSTALL, Slot, check_address, connected, has_gpus, require_ray, slots
from features.cluster.driver import Driver
from features.errors import HoarfrostError
from features.job import Job
from features.plan import ExtractOptions, LoopCounts

logger = logging.getLogger(__name__)


class Cluster:
    """A Ray cluster, joined (or started on this machine) when it is first needed; a context manager.

    Parameters
    ----------
    options : ExtractOptions

    Raises
    ------
    HoarfrostError
        On entering: Ray is missing, or nothing answers at its address.
    """

    def __init__(self, options: ExtractOptions) -> None:
        self._options = options
        self._stack = ExitStack()
        self._is_joined = False
        self._first: tuple[Started, Reference] | None = None

    def __enter__(self) -> Self:
        require_ray()
        check_address(self._options.address)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def start_early(self) -> None:
        """Start the first worker, where there will be work for it: it loads its libraries while this process does."""
        device = self._device(self._options.precision)
        first = actors.start(self._slots(device)[0])
        self._first = first, actors.ask(first.actor, "choose_precision", self._options.precision, device)

    def choose_precision(self, options: ExtractOptions) -> str:
        """Choose what is fast where the workers will be: this machine may be of another kind."""
        if options.precision != "auto":
            return options.precision
        if self._first is None:
            self.start_early()
        assert self._first is not None
        first, asked = self._first
        try:
            precision: str = actors.result_of(asked)
        except WorkerLostError as error:
            raise HoarfrostError(f"{first.slot.host}: no worker could be started there: {error}.") from error
        return precision

    def embed(self, job: Job, todo: Sequence[int]) -> LoopCounts:
        """Embed images of a data set, ascending `todo`, by workers that write parts; take those in.

        Raises
        ------
        HoarfrostError
            By what is wrong; what is finished is committed then.
        """
        device = self._device(job.recipe.precision)
        first = self._slots(device)
        logger.info(
            "Ray: %d %s on %d %s%s", len(first), "worker" if len(first) == 1 else "workers",
            len({slot.node_id for slot in first}), "host" if len({slot.node_id for slot in first}) == 1 else "hosts",
            f"; dashboard {self._dashboard}" if self._dashboard else "",
        )  # fmt: skip
        started = [self._first[0]] if self._first is not None else []
        return Driver(job, todo, device, lambda: slots(self._options, device), started).run()

    def _join(self) -> None:
        if not self._is_joined:
            self._dashboard = self._stack.enter_context(connected(self._options.address))
            self._is_joined = True

    def _device(self, precision: str) -> str:
        """Turn "auto" into what the cluster has; whether the precision runs there, the workers will say."""
        self._join()
        if self._options.device != "auto":
            return self._options.device
        return "cuda" if has_gpus() and not precision.startswith("int8") else "cpu"

    def _slots(self, device: str) -> list[Slot]:
        found = slots(self._options, device)
        if not found:
            kind = "a GPU" if device == "cuda" else "a CPU"
            raise HoarfrostError(
                f"No host of the Ray cluster has room for a worker: none has {kind} and as many CPUs as --cpus-per-worker "
                "asks for. Pass less, or another --device, or join hosts with `ray start`."
            )
        return found


def say_what_is_idle(n_gpus: int) -> None:
    """Say what it costs that Ray is not installed on a machine with several GPUs."""
    logger.warning(
        "this machine has %d GPUs, and only one of them is used: the others need Ray. It takes about %d times as long as it "
        "might. Install it: %s", n_gpus, n_gpus, INSTALL,
    )  # fmt: skip
