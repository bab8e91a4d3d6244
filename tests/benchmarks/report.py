"""How long a report takes to build, how large it is, and what memory building it takes."""

import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.heads.specs import parse_heads
from hoarfrost.training import TrainingConfig
from tests.benchmarks.extraction import peak_mb
from tests.benchmarks.measurement import Measurement
from tests.support.labelled import embeddings_of, write_labelled_cache

N_OF_SPLIT = {"train": 2_000, "val": 1_000, "test": 10_000}
HEADS = [f"mlp:{width},lr={rate}" for width in (8, 16, 32, 64, 128) for rate in ("1e-3", "1e-4")]
REPEATS = 3
N_PREDICTIONS, N_PATIENTS = 100_000, 40_000


def built(folder: Path) -> list[Measurement]:
    """Build the report of ten heads on 10,000 test images, each time in a process of its own; the median."""
    run = _trained(folder)
    command = ["report", "--run", str(run), "--no-map"]
    seconds = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hoarfrost", *command], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    peak = peak_mb("hoarfrost", *command) * 1.048576
    size = (run / "report.html").stat().st_size / 1e6
    return [
        Measurement(
            f"`report --no-map` of {len(HEADS)} heads and {N_OF_SPLIT['test']:,} test images",
            f"{np.median(seconds):.1f} s with the interpreter's start, {size:.2f} MB, peak memory {peak:,.0f} MB",
            "5 s, 3 MB, 1,000 MB",
            {"seconds": float(np.median(seconds)), "size_mb": size, "peak_mb": peak},
        )
    ]


def _trained(folder: Path) -> Path:
    """Train ten heads for a few epochs, on two classes that overlap, with two attributes."""
    rng = np.random.default_rng(0)
    splits = [split for split, n in N_OF_SPLIT.items() for _ in range(n)]
    labels = [str(label) for label in rng.choice(["benign", "malignant"], len(splits), p=[0.7, 0.3])]
    cache = write_labelled_cache(
        folder / "c.h5", labels, splits=splits, embeddings=embeddings_of(labels, distance=0.05),
        attributes={name: [str(v) for v in rng.choice(list("ABC"), len(splits))] for name in ("scanner", "site")},
    )  # fmt: skip
    config = TrainingConfig(epochs=5)
    run_experiment(cache, folder / "run", parse_heads(HEADS), ExperimentConfig(positive=["malignant"], training=config))
    return folder / "run"


def of_predictions(folder: Path) -> list[Measurement]:
    """Evaluate 100,000 predictions of 40,000 patients and write the report, in two processes; the median."""
    table, output = write_predictions(folder / "p.csv"), folder / "evaluated"
    commands = (
        ["evaluate", "--predictions", str(table), "--output", str(output), "--overwrite"],
        ["report", "--run", str(output)],
    )
    seconds, of_processor = [], []
    for _ in range(REPEATS):
        started, before = time.perf_counter(), _processor_seconds()
        for command in commands:
            subprocess.run([sys.executable, "-m", "hoarfrost", *command], check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
        of_processor.append(_processor_seconds() - before)
    peak = max(peak_mb("hoarfrost", *command) for command in commands) * 1.048576
    return [
        Measurement(
            f"`evaluate --predictions` and `report` of {N_PREDICTIONS:,} predictions of {N_PATIENTS:,} patients",
            f"{np.median(seconds):.1f} s with the interpreter's two starts ({np.median(of_processor):.1f} s of the "
            f"processor), peak memory {peak:,.0f} MB",
            "10 s, 1,000 MB",
            {"seconds": float(np.median(seconds)), "processor_s": float(np.median(of_processor)), "peak_mb": peak},
        )
    ]


def _processor_seconds() -> float:
    """Return the processor's time of all processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def write_predictions(path: Path) -> Path:
    """Write a CSV of probabilities of two classes that overlap, several of a patient."""
    rng = np.random.default_rng(0)
    labels = rng.binomial(1, 0.3, N_PREDICTIONS)
    p = 1 / (1 + np.exp(-rng.normal(1.5 * labels - 1.2)))
    rows = zip(labels.tolist(), p.tolist(), rng.integers(0, N_PATIENTS, N_PREDICTIONS).tolist(), strict=True)
    lines = [f"i{i},{label},{value:.6f},p{patient}" for i, (label, value, patient) in enumerate(rows)]
    path.write_text("\n".join(["id,label,probability,patient", *lines, ""]), encoding="utf-8")
    return path


MEASUREMENTS = {"built": built, "predictions": of_predictions}
