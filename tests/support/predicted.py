"""A trained run on small pictures, to predict with, and what `predict` wrote."""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.training import TrainingConfig
from tests.support.builders import encode, picture, write_csv
from tests.support.standin import StandIn

Row = dict[str, str]


class Trained(NamedTuple):
    """Images on the disk, their cache and a run on it."""

    images: Path
    cache: Path
    run: Path


def read_csv(path: Path) -> list[Row]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def write_set(folder: Path, *, n: int = 120) -> Path:
    """Write small pictures of two classes that a head can tell apart, two of each patient, a third for validation."""
    rows = [["path", "label", "patient", "split"]]
    for i in range(n):
        label = "benign" if i // 2 % 2 else "malignant"
        image = picture(seed=i).point(lambda value, dark=label == "benign", i=i: value // (3 if dark and i % 11 else 1))
        path = folder / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image))
        rows.append([path.name, label, f"p{i // 2}", ("train", "val", "train", "val", "test", "train")[i // 4 % 6]])
    write_csv(folder / "labels.csv", rows)
    return folder


def train_on_pictures(folder: Path) -> Trained:
    """Train two heads with two seeds on images embedded by a backbone that costs nothing."""
    with pytest.MonkeyPatch.context() as patch:
        import hoarfrost.features.encoder.backbone
        from tests.support.standin import cached_weights

        patch.setattr(hoarfrost.features.encoder.backbone, "Backbone", StandIn)
        patch.setattr(hoarfrost.features.encoder.backbone, "load_weights", cached_weights)
        write_set(folder / "images")
        extract(folder / "images", folder / "c.h5", options=ExtractOptions(weights="random:0", precision="float32"))
    config = TrainingConfig(epochs=4, seeds=2)
    run_experiment(folder / "c.h5", folder / "run", parse_heads(["linear", "mlp:8"]), ExperimentConfig(training=config))
    return Trained(folder / "images", folder / "c.h5", folder / "run")


def flat(trained: Trained, folder: Path, numbers: Sequence[int]) -> Path:
    """Copy some of the images into a folder without labels."""
    folder.mkdir(parents=True)
    for number in numbers:
        shutil.copy(trained.images / f"{number}.png", folder)
    return folder
