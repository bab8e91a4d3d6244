"""Ray's side of a worker: start it, call it, wait for its answers, end it."""

import uuid
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.cluster.connection import Slot
from hoarfrost.features.extraction.cluster.worker import Worker

Actor = Any  # Ray makes the types of its handles and references as it goes
Reference = Any


class WorkerLostError(Exception):
    """A worker, or its answer, is gone; another may do its work."""


class Started(NamedTuple):
    """A worker that was started in a slot; it is ready when it answers."""

    name: str
    slot: Slot
    actor: Actor


def start(slot: Slot) -> Started:
    """Start a worker in a slot, with a name of its own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # It ends with the driver, as it is not detached. Ray must not restart it: the driver has to know at which images it
    # died.
    make = ray.remote(
        num_cpus=slot.cpus,
        num_gpus=slot.gpus,
        max_restarts=0,
        concurrency_groups={"control": 1},
        scheduling_strategy=NodeAffinitySchedulingStrategy(slot.node_id, soft=False),
    )(Worker)
    name = uuid.uuid4().hex[:12]
    return Started(name, slot, make.remote(name, max(1, slot.cpus)))


def ask(actor: Actor, method: str, *arguments: object) -> Reference:
    """Call a method; return the reference to its answer."""
    return getattr(actor, method).remote(*arguments)


def request_stop(actor: Actor) -> None:
    """Stop the current piece early."""
    actor.stop.options(concurrency_group="control").remote()


def share(value: object) -> Reference:
    """Return a reference to a value that all workers of a host read from the same memory."""
    import ray

    return ray.put(value)


def answered(references: Sequence[Reference], timeout_s: float) -> list[Reference]:
    """Return all answers that have arrived, after waiting for the first."""
    import ray

    found, waiting = ray.wait(list(references), num_returns=1, timeout=timeout_s, fetch_local=False)
    if not found or not waiting:
        return list(found)
    return list(found) + list(ray.wait(waiting, num_returns=len(waiting), timeout=0, fetch_local=False)[0])


def result_of(reference: Reference) -> Any:
    """Return an answer that has arrived; raise the worker's HoarfrostError, or WorkerLostError if it or its host died."""
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, HoarfrostError):
            raise error.cause from error
        raise WorkerLostError(short_reason(f"{type(error.cause).__name__}: {error.cause}")) from error
    except RayError as error:
        is_at_start = isinstance(error, RayActorError) and error.actor_init_failed
        reason = short_reason(str(error) or type(error).__name__, is_last=is_at_start)
        raise WorkerLostError(reason) from error


def end(actor: Actor) -> None:
    """End a worker at once, if it still exists."""
    import ray

    with suppress(Exception):  # Ray may raise if the worker or the cluster is gone
        ray.kill(actor)


def short_reason(text: str, *, is_last: bool = False) -> str:
    """Return the line of an error's text that says why: the first, or the last if a worker could not start."""
    lines = text.strip().split("\n")
    line = lines[-1] if is_last else lines[0]
    is_missing = line.startswith(ModuleNotFoundError.__name__)
    return line.strip().rstrip(".") + ("; the same hoarfrost must be installed on each host" if is_missing else "")
