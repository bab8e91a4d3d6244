"""Runs for tests of the report, each trained as a user's would be: on the demo set, and on synthetic caches."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hoarfrost.demo import write_demo
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Run, read_run
from hoarfrost.training import TrainingConfig
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache

HOSTILE = "<img src=x onerror=alert(1)>"
BREAKOUT = '"]}</script></style><script>alert(2)</script>'
THREE = {"benign": 120, "malignant": 90, "normal": 90}


def reported(directory: Path) -> Run:
    """Write the report of a run, and read the run back."""
    write_report(directory)
    return read_run(directory)


def demo_run(folder: Path) -> Run:
    """Report a small demo set, with all that `train` can be asked for."""
    write_demo(folder / "demo", n_images=80)
    extract(folder / "demo", folder / "demo.h5", options=ExtractOptions(weights="random:0", precision="float32"))
    heads = ["linear", "mlp:64", "mlp:16,dropout=0.2"]
    config = TrainingConfig(epochs=12, seeds=2)
    asked = ExperimentConfig(
        training=config, positive=["malignant"], n_folds=3, with_learning_curve=True, prevalence=0.1
    )
    command = ["hoarfrost", "train", "--prevalence", "0.1"]
    run_experiment(folder / "demo.h5", folder / "run", parse_heads(heads), asked, command=command)
    write_report(folder / "run", with_explanations=True)
    return read_run(folder / "run")


def synthetic_run(folder: Path, counts: Mapping[str, int] = THREE, **options: Any) -> Run:
    """Report three heads on synthetic embeddings of these classes, two images a patient and a column of scanners."""
    labels = [label for label in mixed(dict(counts)) for _ in range(2)]
    cache = write_labelled_cache(
        folder / "cache.h5", labels, embeddings=embeddings_of(labels, distance=0.07),
        patients=[f"p{i // 2}" for i in range(len(labels))],
        attributes={"scanner": [HOSTILE if i // 2 % 3 else BREAKOUT for i in range(len(labels))]},
    )  # fmt: skip
    heads = parse_heads(["linear", "mlp:8", "mlp:8x2"])
    run_experiment(cache, folder / "run", heads, ExperimentConfig(training=TrainingConfig(epochs=8), **options))
    return reported(folder / "run")


def multilabel_run(folder: Path) -> Run:
    """Report heads that find three labels of which an image may have several, a tenth of them unknown."""
    n, names = 300, ("effusion", HOSTILE, "nodule")
    rng = np.random.default_rng(0)
    y = (rng.random((n, 3)) < [0.5, 0.4, 0.3]).astype(np.int64)
    x = rng.standard_normal((n, 512)).astype(np.float32)
    x[:, :60] += 0.6 * np.tile(y, 20)
    y[rng.random((n, 3)) < 0.1] = -1
    text = {1: "1", 0: "0", -1: ""}
    attributes = {name: [text[value] for value in y[:, i].tolist()] for i, name in enumerate(names)}
    cache = write_labelled_cache(folder / "cache.h5", [""] * n, embeddings=x, attributes=attributes)
    heads = parse_heads(["linear", "mlp:8"])
    run_experiment(cache, folder / "run", heads, ExperimentConfig(label_columns=(), training=TrainingConfig(epochs=8)))
    return reported(folder / "run")


KINDS: dict[str, Callable[[Path], Run]] = {
    "demo": demo_run,
    "classes": synthetic_run,
    "patients": lambda folder: synthetic_run(
        folder, {HOSTILE: 150, BREAKOUT: 100}, positive=[BREAKOUT], per_patient="mean"
    ),
    "labels": multilabel_run,
}
"""Kinds of runs that differ in what a report tells of them, and how to make one in a folder."""
