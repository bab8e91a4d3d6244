"""Stage one: the forward pass, decoding, the roof that both leave, what `extract` reaches, and the ways of others."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.devices import choose_batch_size, choose_device
from hoarfrost.features.encoder.backbone import Backbone, choose_compute, load_weights
from hoarfrost.features.encoder.backbone.compiling import seconds_per_image, try_to_compile
from hoarfrost.features.encoder.backbone.int8 import calibrated_precision
from hoarfrost.features.encoder.precision import choose_precision
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.loop import sample_images
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.features.processors import usable_cpus
from tests.benchmarks import image_sets, usual
from tests.benchmarks.measurement import Measurement

BUSI = Path(__file__).parents[3] / "shared" / "data" / "busi"
WEIGHTS = "random:0"  # speed does not depend on them
COMPARED_IMAGES = 320  # of each set, for the ways of others
DECODED_IMAGES = 1_000
COLD_STARTS = 3
SUSTAINED_S = 8.0

DEVICE = choose_device("auto")
PRECISION = choose_precision("auto", DEVICE)
NATIVE = PRECISION == "bfloat16"

SETS: dict[str, Callable[[Path], Path]] = {
    "BUSI": lambda _: BUSI,
    "2,000 JPEGs of 512 x 512": lambda folder: image_sets.write_images(folder, 2_000, 512, suffix=".jpg", colour=True),
    "200 grey JPEGs of 2048 x 2048": lambda folder: image_sets.write_images(
        folder, 200, 2048, suffix=".jpg", colour=False
    ),
    "500 JPEGs of 1024 x 1024": lambda folder: image_sets.write_images(folder, 500, 1024, suffix=".jpg", colour=True),
    "5,000 PNGs of 256 x 256": lambda folder: image_sets.write_images(folder, 5_000, 256, suffix=".png", colour=True),
    "an npz of 10,000 grey 28 x 28": lambda folder: image_sets.write_npz(folder / "images.npz", 10_000),
}


def roof(folder: Path) -> list[Measurement]:
    """Measure each set: the two limits, what `extract` reaches of them, and the ways of others."""
    results = []
    for name, make in SETS.items():
        if name == "BUSI" and not BUSI.is_dir():
            continue
        place = folder / name.replace(" ", "-")
        place.mkdir()
        results.append(measure_set(name, make(place), place))
    return results


def measure_set(name: str, data: Path, folder: Path) -> Measurement:
    """Measure the two limits of a set of images, what `extract` reaches of them, and the ways of others."""
    backbone = make_backbone(PRECISION)
    choose_compute(backbone, len(read_dataset(data)))  # as `extract` will compute; it finds the speeds measured here
    # Before and after, as the machine's speed drifts; means, as the extraction too meets its slow moments.
    forward_before = sustained(backbone)
    decoding = decoded_per_second(data)
    options = ExtractOptions(weights=WEIGHTS, device=DEVICE, precision=PRECISION)
    summary = extract(data, folder / "cache.h5", options=options)
    reached = summary.forward_images / summary.seconds
    forward = (forward_before + sustained(backbone)) / 2
    top = roof_of(forward, decoding)
    usual_way = 1 / usual.usual(data, COMPARED_IMAGES)
    competent_way = 1 / usual.competent(data, usable_cpus(), NATIVE, COMPARED_IMAGES)
    path = "" if backbone.compute == "eager" else f" ({backbone.compute})"
    return Measurement(
        f"{name}: F {forward:.0f}{path}, D {decoding:.0f}, roof {top:.1f} images/s",
        f"extract {reached:.1f} images/s, {reached / top:.2f} of the roof; {reached / usual_way:.1f} times the usual way "
        f"({usual_way:.1f}), {reached / competent_way:.1f} times the competent way ({competent_way:.1f})",
        _demanded(name),
        {
            "forward": forward, "decoding": decoding, "roof": top, "extract": reached, "share": reached / top,
            "usual": usual_way, "competent": competent_way,
        },
    )  # fmt: skip


def roof_of(forward: float, decoding: float) -> float:
    """Return the images a second that both limits leave: on a CPU they share the cores."""
    return min(forward, decoding) if DEVICE == "cuda" else 1 / (1 / forward + 1 / decoding)


def _demanded(name: str) -> str:
    if DEVICE == "cuda":
        return "0.85 of F" if "npz" in name else "0.9 of the roof"
    if not NATIVE:
        return (
            "1.5 times the usual way"
            if "2048" in name or name == "BUSI"
            else "0.95 of the roof; 1.5 times the usual way"
        )
    if "2048" in name:
        return "4 times the usual way"
    return "6 times the usual way, 2.2 the competent way" + ("" if name == "BUSI" else "; 0.95 of the roof")


def make_backbone(precision: str) -> Backbone:
    return Backbone(
        load_weights(WEIGHTS), device=DEVICE, precision=precision, batch_size=choose_batch_size(None, DEVICE)
    )


def sustained(backbone: Backbone) -> float:
    """Time the forward pass over many batches of noise, as long as it takes; images a second."""
    shape = (backbone.batch_size, 3, backbone.encoder.size, backbone.encoder.size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    backbone.embed(images)
    started, n_batches = time.perf_counter(), 0
    while time.perf_counter() - started < SUSTAINED_S:
        backbone.embed(images)
        n_batches += 1
    return n_batches * len(images) / (time.perf_counter() - started)


def decoded_per_second(data: Path) -> float:
    """Read, decode and resize in as many threads as there are CPUs, and nothing else."""
    dataset = read_dataset(data)
    indices = np.linspace(0, len(dataset) - 1, min(len(dataset), DECODED_IMAGES)).astype(int).tolist()
    readers = [read for _, read in dataset.images.contents(indices)]
    with ThreadPoolExecutor(usable_cpus(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        started = time.perf_counter()
        for _ in pool.map(lambda read: load_image(read()), readers):
            pass
        return len(readers) / (time.perf_counter() - started)


def compiling(_: Path) -> list[Measurement]:
    """Time the forward pass as it is, and compiled."""
    backbone = make_backbone(PRECISION)
    eager = 1 / seconds_per_image(backbone)
    started = time.perf_counter()
    if not try_to_compile(backbone):
        return []
    compile_s = time.perf_counter() - started
    compiled = 1 / seconds_per_image(backbone)
    backbone.uncompile()
    eager = (eager + 1 / seconds_per_image(backbone)) / 2
    repaid = (
        f"repaid after {compile_s / (1 / eager - 1 / compiled):,.0f} images" if compiled > eager else "never repaid"
    )
    return [
        Measurement(
            f"compiled by torch ({PRECISION}), against as it is",
            f"{compiled:.1f} against {eager:.1f} images/s; compiling took {compile_s:.1f} s, {repaid}", "",
            {"compiled": compiled, "eager": eager, "compile_s": compile_s},
        )
    ]  # fmt: skip


def int8(_: Path) -> list[Measurement]:
    """Time the forward pass in 8-bit integers, by turns with the default; compare the embeddings of BUSI."""
    if DEVICE != "cpu" or not BUSI.is_dir():
        return []
    images = sample_images(read_dataset(BUSI))
    other = make_backbone(PRECISION)
    quantised = make_backbone(calibrated_precision(load_weights(WEIGHTS), images[::2]))
    speeds = np.array([[1 / seconds_per_image(backbone) for backbone in (quantised, other)] for _ in range(3)])
    fast, slow = np.median(speeds, axis=0).tolist()
    cosine = torch.nn.functional.cosine_similarity(quantised.embed(images), other.embed(images)).min().item()
    return [
        Measurement(
            f"`--precision int8`, against {PRECISION}",
            f"{fast:.1f} against {slow:.1f} images/s ({fast / slow:.2f} times); least cosine on {len(images)} of BUSI "
            f"{cosine:.4f}",
            "1.2 times, 0.99",
            {"int8": fast, "other": slow, "ratio": fast / slow, "cosine": cosine},
        )
    ]  # fmt: skip


def cold(folder: Path) -> list[Measurement]:
    """Time whole processes on BUSI: `extract`, and one epoch of the usual way."""
    if not BUSI.is_dir():
        return []
    ours, others = [], []
    for i in range(COLD_STARTS):
        command = ["extract", str(BUSI), "--cache", str(folder / f"{i}.h5"), "--weights", WEIGHTS]
        ours.append(process_seconds("hoarfrost", *command))
        others.append(process_seconds("tests.benchmarks.usual", str(BUSI)))
    extract_s, usual_s = float(np.median(ours)), float(np.median(others))
    return [
        Measurement(
            "BUSI from a cold start, `extract` against one epoch of the usual way",
            f"{extract_s:.1f} s against {usual_s:.1f} s ({extract_s / usual_s:.2f})", "under 0.5",
            {"extract_s": extract_s, "usual_s": usual_s, "ratio": extract_s / usual_s},
        )
    ]  # fmt: skip


def process_seconds(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> float:
    """Run a module as a script in a process of its own; return how long that took."""
    return command_seconds([sys.executable, "-m", module, *arguments], environment)


def command_seconds(command: list[str], environment: Mapping[str, str] | None = None) -> float:
    """Run a command; return how long that took."""
    started = time.monotonic()
    subprocess.run(command, capture_output=True, check=True, env={**os.environ, **(environment or {})})
    return time.monotonic() - started


def memory(folder: Path) -> list[Measurement]:
    """Take the peak memory of an extraction of 2,000 images, and what 50,000 add to it.

    Their growth is taken with the tests' backbone, which computes next to nothing: the loop, the table and the cache
    are what could grow, and 50,000 real forward passes take most of an hour on a CPU.
    """
    few, many = (image_sets.write_images(folder / str(n), n, 32, suffix=".png", colour=True) for n in (2_000, 50_000))
    real = peak_mb("hoarfrost", "extract", str(few), "--cache", str(folder / "real.h5"), "--weights", WEIGHTS)
    grown = [
        peak_mb(
            "tests.support.standin",
            "0",
            "extract",
            str(images),
            "--cache",
            str(folder / f"{i}.h5"),
            "--weights",
            WEIGHTS,
        )
        for i, images in enumerate((few, many))
    ]
    ratio = (real + grown[1] - grown[0]) / real
    return [
        Measurement(
            "peak memory of `extract`, 2,000 images; 50,000 against 2,000, by a backbone that computes nothing",
            f"{real:.0f} MB; {grown[1] - grown[0]:+.0f} MB ({ratio:.3f})",
            "under 1,500 MB, within 5%", {"real_mb": real, "few_mb": grown[0], "many_mb": grown[1], "ratio": ratio},
        )
    ]  # fmt: skip


def peak_mb(module: str, *arguments: str) -> float:
    """Run a module as a script in a process of its own; give the memory that it took at most."""
    command = [sys.executable, "-m", "tests.benchmarks.peak", module, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stderr.splitlines()[-1].split()[1])


MEASUREMENTS = {"roof": roof, "compiling": compiling, "int8": int8, "cold": cold, "memory": memory}
