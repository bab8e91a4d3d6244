"""A Ray cluster on loopback: what it costs on one machine, what more workers bring, what the driver's memory does."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hoarfrost.features.processors import usable_cpus
from tests.benchmarks import image_sets
from tests.benchmarks.measurement import Measurement

ROOT = Path(__file__).parents[2]
WEIGHTS = "random:0"
OVERHEAD_IMAGES = 5_000
SCALED_IMAGES = 3_200
DATA_IMAGES = 2_000
MEMORY_IMAGES = (5_000, 50_000)
SECONDS_A_BATCH = 0.5  # of eight images: what a worker does besides takes a core of this machine, which has two


@contextmanager
def nodes(n_cpus: int, n_hosts: int = 1) -> Iterator[tuple[str, float]]:
    """Start a head without room for workers, and hosts; give the address, and the seconds that the start took."""
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.clustered", "nodes", str(n_cpus), str(n_hosts)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    yield address, time.monotonic() - started
    process.communicate()


def extract(module: list[str], data: Path, cache: Path, *more: str) -> dict[str, Any]:
    """Extract in a process of its own; give its summary, with the seconds of the whole process."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *module, "extract", str(data), "--cache", str(cache), "--weights", WEIGHTS, "--json", *more],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {**json.loads(done.stdout), "process_s": time.monotonic() - started, "said": done.stderr}


def overhead(folder: Path) -> list[Measurement]:
    """Compare one worker that has the whole machine with the local engine, by turns."""
    if find_spec("ray") is None:
        return []
    images = image_sets.write_images(folder / "images", OVERHEAD_IMAGES, 256, suffix=".png", colour=True)
    local = [extract(["hoarfrost"], images, folder / "local 0.h5")]
    with nodes(usable_cpus()) as (address, _):
        joined = extract(["hoarfrost"], images, folder / "joined.h5", "--engine", "ray", "--address", address)
    local.append(extract(["hoarfrost"], images, folder / "local 1.h5"))
    alone = extract(["hoarfrost"], images, folder / "alone.h5", "--engine", "ray")
    local_s = sum(each["seconds"] for each in local) / 2
    share, with_start = local_s / joined["seconds"], local_s / alone["seconds"]
    return [
        Measurement(
            f"`--engine ray` on this machine alone, {OVERHEAD_IMAGES:,} images, against the local engine "
            f"({OVERHEAD_IMAGES / local_s:.1f} images/s)",
            f"{OVERHEAD_IMAGES / joined['seconds']:.1f} images/s on a Ray that runs ({share:.2f}), worker's start included; "
            f"{OVERHEAD_IMAGES / alone['seconds']:.1f} with the start of Ray ({with_start:.2f})",
            "0.85, the start not counted",
            {"local_s": local_s, "joined_s": joined["seconds"], "alone_s": alone["seconds"], "share": share},
        )
    ]  # fmt: skip


def ray_data(folder: Path) -> list[Measurement]:
    """Compare the engine's actors with Ray Data, used as its guide to batch inference has it."""
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        return []
    images = image_sets.write_images(folder / "images", DATA_IMAGES, 256, suffix=".png", colour=True)
    with nodes(usable_cpus()) as (address, _):
        actors_s = extract(
            ["hoarfrost"], images, folder / "c.h5", "--engine", "ray", "--address", address, "--precision", "float32"
        )["seconds"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.ray_data", str(images), str(folder / "parquet")],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    data_s = float(done.stdout.split()[-1])
    return [
        Measurement(
            f"Ray's actors against Ray Data (`map_batches` into Parquet), {DATA_IMAGES:,} images, workers' start included",
            f"{actors_s:.1f} s against {data_s:.1f} s ({data_s / actors_s:.2f} times as fast)", "",
            {"actors_s": actors_s, "data_s": data_s, "ratio": data_s / actors_s},
        )
    ]  # fmt: skip


def scaling(folder: Path) -> list[Measurement]:
    """Let workers sleep in place of computing: what keeps eight of them from being eight times as fast is the driver's."""
    if find_spec("ray") is None:
        return []
    images = image_sets.write_npz(folder / "images.npz", SCALED_IMAGES)
    seconds = {}
    with nodes(8) as (address, _):
        for n_workers in (1, 8):
            done = extract(
                ["tests.support.clustered", str(SECONDS_A_BATCH)], images, folder / f"{n_workers}.h5", "--engine", "ray",
                "--address", address, "--cpus-per-worker", "1", "--max-workers", str(n_workers), "--batch-size", "8",
                "--workers", "1", "--device", "cpu", "--precision", "float32",
            )  # fmt: skip
            seconds[n_workers] = SCALED_IMAGES / float(done["said"].splitlines()[-2].split()[0])
    ratio = seconds[1] / seconds[8]
    return [
        Measurement(
            f"8 workers against one, by a backbone that sleeps {SECONDS_A_BATCH} s a batch of 8, once all are ready",
            f"{seconds[8]:.1f} s against {seconds[1]:.1f} s ({ratio:.2f} times)", "7 times",
            {"one_s": seconds[1], "eight_s": seconds[8], "ratio": ratio},
        )
    ]  # fmt: skip


def memory(folder: Path) -> list[Measurement]:
    """Take the driver's peak memory for few images and for many, by workers that compute next to nothing."""
    if find_spec("ray") is None:
        return []
    peaks, n_bytes = [], []
    with nodes(1) as (address, _):
        for n in MEMORY_IMAGES:
            images = image_sets.write_npz(folder / f"{n}.npz", n)
            done = extract(
                ["tests.benchmarks.peak", "tests.support.clustered", "0"], images, folder / f"{n}.h5",
                "--engine", "ray", "--address", address, "--device", "cpu", "--precision", "float32",
            )  # fmt: skip
            peaks.append(float(done["said"].splitlines()[-1].split()[1]))
            n_bytes.append(int(done["said"].splitlines()[-2].split()[0]))
    few, many = MEMORY_IMAGES
    grown_kb = (peaks[1] - peaks[0]) * 1e3 / (many - few)
    return [
        Measurement(
            f"memory of Ray's driver, {many:,} images against {few:,}",
            f"{peaks[1] - peaks[0]:+.0f} MB ({grown_kb:.2f} kB an image, its row in the table); {n_bytes[1] / many:.0f} "
            "bytes an image come from the workers, where an embedding has 2,048",
            "no embedding", {"few_mb": peaks[0], "many_mb": peaks[1], "bytes_an_image": n_bytes[1] / many},
        )
    ]  # fmt: skip


MEASUREMENTS = {"overhead": overhead, "ray_data": ray_data, "scaling": scaling, "memory": memory}
