"""Decoding by threads against processes, with a network that costs nothing: what a fast GPU would get."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hoarfrost.features.cache import CacheWriter
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.decoding.isolated import close_idle
from hoarfrost.features.decoding.quarantine import Quarantine
from hoarfrost.features.devices import choose_device
from hoarfrost.features.extraction.buffers import n_processes
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.features.extraction.loop import EmbeddingLoop, Work
from hoarfrost.features.extraction.plan import ExtractOptions, ImageRecords
from hoarfrost.features.processors import usable_cpus
from tests.benchmarks import image_sets
from tests.benchmarks.measurement import Measurement
from tests.support.caches import HEADER
from tests.support.standin import StandIn

WAYS = ("threads", "processes")
ROUNDS = 3
FIRST = 512  # images before the clock starts: each process imports torch
BATCH = 256
DEVICE = "cuda" if choose_device("auto") == "cuda" else "simulated"  # unlike a CPU, it leaves the cores to decoding


class CostsNothing(StandIn):
    """Returns zeros at once."""

    def start(self, images: torch.Tensor) -> Callable[[], torch.Tensor]:
        embeddings = torch.zeros(len(images), HEADER.dim)
        return lambda: embeddings


class Run(NamedTuple):
    """Files a second, and the processor time that each took of this process, in seconds.

    The latter bounds the time for which an image holds the interpreter, of which there is one.
    """

    speed: float
    computed_s: float


def run(images: Path, decode: str, workers: int) -> Run:
    """Embed a set, after processes have started."""
    dataset = read_dataset(images)
    options = ExtractOptions(decode=decode, workers=workers)
    with (
        tempfile.TemporaryDirectory(dir=images.parent) as folder,
        CacheWriter(Path(folder) / "c.h5", HEADER, dataset.name) as writer,
        Quarantine(writer.path, workers) as quarantine,
    ):
        loop = EmbeddingLoop(
            writer, quarantine, CostsNothing, DEVICE, BATCH, options,  # type: ignore[arg-type]
            n_processes=n_processes(options, DEVICE, len(dataset)),
        )  # fmt: skip
        table = ImageRecords(len(dataset))

        def embed(todo: Sequence[int]) -> Run:
            started, computed = time.perf_counter(), time.process_time()
            loop.run(Work(dataset.images, dataset.paths, todo, table), StopSignals())
            seconds, computed = time.perf_counter() - started, time.process_time() - computed
            return Run(len(todo) / seconds, computed / len(todo))

        embed(range(FIRST))
        return embed(range(FIRST, len(dataset)))


def decoding_processes(folder: Path) -> list[Measurement]:
    """Compare both ways, alternately, with as many workers as CPUs; and what an image takes of the main process."""
    images = image_sets.write_images(folder / "images", 4_000, 256, suffix=".jpg", colour=True)
    n = usable_cpus()
    found = np.array([[run(images, way, n) for way in WAYS] for _ in range(ROUNDS)])  # (rounds, ways, figures)
    close_idle()
    ratio = float(np.median(found[:, 1, 0] / found[:, 0, 0]))
    threads, processes = np.median(found, axis=0) * [1, 1e6]
    return [
        Measurement(
            f"decoding JPEGs of 256 x 256 by {n} processes, against {n} threads, with a network that costs nothing",
            f"{processes[0]:.0f} against {threads[0]:.0f} files/s ({ratio:.2f} times); an image takes {processes[1]:.0f} "
            f"against {threads[1]:.0f} µs of the main process, which bounds the time that it holds the interpreter", "",
            {
                "threads": threads[0], "processes": processes[0], "ratio": ratio,
                "computed_us_threads": threads[1], "computed_us_processes": processes[1],
            },
        )
    ]  # fmt: skip


def by_number(folder: Path) -> Measurement:
    """Return the files/s of 4, 8, 16 ... workers, up to the number of CPUs, each way."""
    images = image_sets.write_images(folder / "decoded", 20_000, 256, suffix=".jpg", colour=True)
    numbers = sorted({min(4 << i, usable_cpus()) for i in range(6)})
    found = {f"{n} {way}": run(images, way, n).speed for n in numbers for way in WAYS}
    close_idle()
    text = "; ".join(f"{name} {speed:.0f} files/s" for name, speed in found.items())
    return Measurement("decoding for a network that costs nothing", text, "", found)


MEASUREMENTS = {"decoding_processes": decoding_processes}
