"""The engines that embed images, and their options. Light to import: an engine's libraries load when it is opened."""

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class EngineOptions:
    """Which engine embeds, and its own options; one subclass for each engine, listed in `ENGINES`.

    Attributes
    ----------
    name : str
        The value of `--engine`.
    implementation : str
        "module:class" of a `hoarfrost.features.extraction.job.Engine`.
    """

    name: ClassVar[str]
    implementation: ClassVar[str]


@dataclass(frozen=True)
class LocalOptions(EngineOptions):
    """One machine: this process, or Ray's workers where it has several GPUs."""

    name = "local"
    implementation = "hoarfrost.features.extraction.local:LocalEngine"


@dataclass(frozen=True)
class RayOptions(EngineOptions):
    """The workers of a Ray cluster.

    Attributes
    ----------
    address : str or None
        The Ray cluster to join: "auto" (the one that this machine is part of) or "HOST:PORT" of its head; by default
        Ray starts on this machine alone.
    gpus_per_worker : float or None
        GPUs for each worker, by default 1; 0.5 puts two on a GPU.
    cpus_per_worker : int or None
        CPUs for each worker; by default all of its host, divided by the host's GPUs where these embed.
    max_workers : int or None
        The most workers to start; by default as many as there is room for.
    """

    name = "ray"
    implementation = "hoarfrost.features.extraction.cluster:RayEngine"

    address: str | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: int | None = None
    max_workers: int | None = None


ENGINES: dict[str, type[EngineOptions]] = {each.name: each for each in (LocalOptions, RayOptions)}
