"""Whole processes, as users start them: small folders against plain loops, a busy machine, and the start of commands."""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np

from hoarfrost.features.processors import usable_cpus
from tests.benchmarks import image_sets, peers
from tests.benchmarks.extraction import BUSI, NATIVE, PRECISION, WEIGHTS, command_seconds, process_seconds
from tests.benchmarks.measurement import Measurement

SIZES = (100, 780, 3_000, 10_000)
LARGE = 780  # larger ones are measured once, against the faster loop
EPOCHS = 10  # of the way that runs the network in every epoch
REPEATS = 3
LOOPS = ("float32", "bfloat16") if NATIVE else ("float32",)
BUSY_IMAGES = 240


def small(folder: Path) -> list[Measurement]:
    """Time whole processes on folders of several sizes, alternately: `extract`, and plain loops of a DataLoader."""
    return [_small(folder, n) for n in SIZES] if BUSI.is_dir() else []


def _small(folder: Path, n_images: int) -> Measurement:
    images = copies(folder / f"images{n_images}", n_images)
    precisions = LOOPS if n_images <= LARGE else LOOPS[-1:]
    repeats = 1 if n_images > LARGE else REPEATS
    seconds: dict[str, list[float]] = {}
    for i in range(repeats):
        cache = folder / f"{n_images}-{i}.h5"
        seconds.setdefault(PRECISION, []).append(extract_seconds(images, cache))
        for precision in precisions:
            seconds.setdefault(f"a loop, {precision}", []).append(loop_seconds(images, folder, precision))
    found = {name: float(np.median(values)) for name, values in seconds.items()}
    ours, best = found.pop(PRECISION), min(found.values())
    loops = "; ".join(f"{name} {value:.1f} s" for name, value in found.items())
    return Measurement(
        f"{n_images:,} images of BUSI, whole processes: `extract`, and a DataLoader loop with `channels_last`",
        f"{PRECISION} {ours:.1f} s; {loops}; {ours / best:.2f} of the best loop's time",
        "10 s, at most 1" if n_images == LARGE else "at most 1",
        {"extract_s": ours, "ratio": ours / best, **found},
    )


def megapixels(folder: Path) -> list[Measurement]:
    """Time whole processes on JPEGs of several sizes: `extract`, and the faster plain loop. Large ones decode scaled."""
    results = []
    for name, (n_images, side) in {"4": (200, 2048), "1": (500, 1024), "0.2": (1_000, 448)}.items():
        place = folder / name
        images = image_sets.write_images(place / "set", n_images, side, suffix=".jpg", colour=False)
        ours = _fresh_seconds(images, place / "c.h5", PRECISION)
        loop = loop_seconds(images, place, LOOPS[-1])
        results.append(
            Measurement(
                f"{n_images:,} grey JPEGs of {side} x {side} ({name} megapixels), whole processes",
                f"`extract`, {PRECISION}, {n_images / ours:.1f} files/s; a loop, {LOOPS[-1]}, {n_images / loop:.1f}; "
                f"{ours / loop:.2f} of the loop's time",
                "at most 1",
                {"extract_s": ours, "loop_s": loop},
            )
        )
    return results


def loop_seconds(images: Path, folder: Path, precision: str) -> float:
    arguments = [str(images), str(folder / "found.npy"), precision, str(usable_cpus())]
    return process_seconds("tests.benchmarks.usual", *arguments)


def peers_too(folder: Path) -> list[Measurement]:
    """Time whole processes that embed BUSI's 780 images: ours, plain loops, and each other program that is installed."""
    if not BUSI.is_dir():
        return []
    images, few = copies(folder / "images", LARGE), copies(folder / "few", 16)
    ways: dict[str, Callable[[], float]] = {
        f"the network in each of {EPOCHS} epochs (one measured)": lambda: (
            EPOCHS * process_seconds("tests.benchmarks.usual", str(images))
        )
    }
    for name, python in peers.installed().items():
        place = folder / name
        place.mkdir()
        subprocess.run(peers.command(python, "prepare", name, str(few), str(place)), check=True, capture_output=True)
        for precision in LOOPS:
            command = peers.command(python, "embed", name, str(images), str(place), precision)
            ways[f"{name}, {precision}"] = partial(command_seconds, command)
    for precision in LOOPS:
        ways[f"a DataLoader loop with `channels_last`, {precision}"] = partial(loop_seconds, images, folder, precision)
    for precision in dict.fromkeys(("float32", PRECISION, "int8")):
        ways[f"`extract`, {precision}"] = partial(_fresh_seconds, images, folder / "c.h5", precision)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(2):
        for name, way in ways.items():
            seconds[name].append(way())
    found = {name: float(np.mean(values)) for name, values in seconds.items()}
    ours = found[f"`extract`, {PRECISION}"]
    return [
        Measurement(
            f"{LARGE} images of BUSI, whole processes: {name}",
            f"{value:.1f} s, {LARGE / value:.0f} images/s; {value / ours:.2f} times the seconds of `extract`, {PRECISION}",
            "10 s" if name == f"`extract`, {PRECISION}" else "",
            {"seconds": value},
        )
        for name, value in found.items()
    ]


def _fresh_seconds(images: Path, cache: Path, precision: str) -> float:
    cache.unlink(missing_ok=True)
    return extract_seconds(images, cache, more=("--precision", precision))


def copies(folder: Path, n_images: int) -> Path:
    """Write a folder of so many images of BUSI; beyond its own, they differ by a byte after their end."""
    paths = sorted(path for path in BUSI.rglob("*.png"))
    for i in range(n_images):
        path = paths[i * (len(paths) - 1) // (n_images - 1) if n_images < len(paths) else i % len(paths)]  # few: of all
        place = folder / path.parent.name / f"{i:05d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(path.read_bytes() + bytes([i // len(paths)]) * (i >= len(paths)))
    return folder


def busy(folder: Path) -> list[Measurement]:
    """Time `extract` beside a process that uses one core, with torch's threads passive (our default) and spinning."""
    if not BUSI.is_dir():
        return []
    images = copies(folder / "images", BUSY_IMAGES)
    found: dict[tuple[str, bool], float] = {}
    for is_busy, policy in itertools.product((False, True), ("PASSIVE", "ACTIVE")):
        with one_core_busy(wanted=is_busy):
            seconds = extract_seconds(images, folder / f"{policy}{is_busy}.h5", {"OMP_WAIT_POLICY": policy})
        found[policy, is_busy] = BUSY_IMAGES / seconds
    passive, active = ([found[policy, is_busy] for is_busy in (True, False)] for policy in ("PASSIVE", "ACTIVE"))
    return [
        Measurement(
            f"`extract` of {BUSY_IMAGES} images, whole process, beside a process that uses one core (idle)",
            f"{passive[0]:.1f} ({passive[1]:.1f}) images/s; with OMP_WAIT_POLICY=ACTIVE {active[0]:.1f} ({active[1]:.1f})",
            "", {"passive": passive[0], "passive_idle": passive[1], "active": active[0], "active_idle": active[1]},
        )
    ]  # fmt: skip


@contextmanager
def one_core_busy(*, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def starts(folder: Path) -> list[Measurement]:
    """Time commands that have next to nothing to do: 2 images, one linear head, a cached dataset."""
    if not BUSI.is_dir():
        return []
    two, cache, run = copies(folder / "two", 2), folder / "c.h5", folder / "run"
    many = copies(folder / "many", 780)
    process_seconds("hoarfrost", "extract", str(many), "--cache", str(cache), "--weights", WEIGHTS, "--name", "many")
    head = ["--head", "linear", "--no-cross-fit", "--epochs", "1", "--overwrite"]
    commands: dict[str, list[str]] = {
        "extract of 2 images": ["extract", str(two), "--cache", str(folder / "two.h5"), "--weights", WEIGHTS],
        "train of 1 epoch, 780 images, with five references": [
            "train",
            "--cache",
            str(cache),
            "--dataset",
            "many",
            "--run",
            str(run),
            *head,
        ],
        "predict from the cache": ["predict", str(many), "--run", str(run), "--output", str(folder / "p.csv")],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(REPEATS):
        for name, arguments in commands.items():
            (folder / "two.h5").unlink(missing_ok=True)
            seconds[name].append(process_seconds("hoarfrost", *arguments))
    found = {name: float(np.median(values)) for name, values in seconds.items()}
    text = ", ".join(f"{name} {value:.1f} s" for name, value in found.items())
    return [Measurement("whole processes that have little to do", text, "2.4, 3.0, 1.6 s", found)]


def extract_seconds(
    images: Path, cache: Path, environment: Mapping[str, str] | None = None, more: Sequence[str] = ()
) -> float:
    arguments = ["extract", str(images), "--cache", str(cache), "--weights", WEIGHTS, *more]
    seconds = process_seconds("hoarfrost", *arguments, environment=environment)
    shutil.rmtree(f"{cache}.parts", ignore_errors=True)
    return seconds


MEASUREMENTS = {"small": small, "peers": peers_too, "megapixels": megapixels, "busy": busy, "starts": starts}
