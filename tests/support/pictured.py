"""Caches of images that are there as files, with synthetic embeddings: what a report can show, without a backbone."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.cache import CacheWriter, DatasetTable, EmbeddedFile
from hoarfrost.features.datasets import Dataset, open_images
from hoarfrost.features.datasets.table import FileImages
from hoarfrost.features.fingerprint import image_key
from hoarfrost.heads.specs import parse_heads
from hoarfrost.runs import Run
from hoarfrost.training import TrainingConfig
from tests.support.builders import write_images
from tests.support.caches import HEADER
from tests.support.labelled import embeddings_of

LABELS = ("benign", "malignant")
SPLITS = ("train", "train", "train", "val", "test")
N_IMAGES = 80


def image_dataset(root: Path, *, labels: Sequence[str] = LABELS, n: int = N_IMAGES, **columns: Any) -> Dataset:
    """Write small pictures, the labels in turn, and give their table."""
    of = [labels[i % len(labels)] for i in range(n)]
    paths = [f"{labels.index(label)}/{i}.png" for i, label in enumerate(of)]
    write_images(root, paths)
    splits = [SPLITS[i // len(labels) % len(SPLITS)] for i in range(n)]
    values: dict[str, Any] = {"paths": paths, "labels": of, "splits": splits, "patients": None, **columns}
    return Dataset(name="phantoms", source=str(root), images=FileImages(str(root), values["paths"]), **values)


def write_pictured_cache(path: Path, dataset: Dataset, *, distance: float = 0.05) -> Path:
    """Write a cache that knows a dataset's images by their contents, so near to one another that heads err."""
    location = dataset.images.location
    contents = open_images(location, dataset.paths).contents(range(len(dataset)))
    keys = [image_key(read()) for _, read in contents]
    with CacheWriter(path, HEADER, dataset.name, root=location) as writer:
        files = [EmbeddedFile(name, 1, 1, key) for name, key in zip(dataset.paths, keys, strict=True)]
        writer.append(files, embeddings_of(dataset.labels, distance=distance))
        ones = np.ones(len(dataset), np.int64)
        table = DatasetTable(
            dataset.name, dataset.source, dataset.paths, ones * 0, dataset.labels, [""] * len(dataset), ones, ones,
            dataset.splits, dataset.patients, dataset.attributes, root=location,
        )  # fmt: skip
        writer.finish(table, np.frombuffer(b"".join(keys), np.uint8).reshape(len(dataset), -1))
    return path


def trained(cache: Path, directory: Path, *, heads: Sequence[str] = ("linear",), **options: Any) -> Run:
    """Train for a moment."""
    config = TrainingConfig(epochs=options.pop("epochs", 2))
    return run_experiment(cache, directory, parse_heads(list(heads)), ExperimentConfig(training=config, **options))


def pictured_run(folder: Path, **columns: Any) -> Run:
    """Write pictures, their cache and a run of it, below one folder."""
    cache = write_pictured_cache(folder / "c.h5", image_dataset(folder / "images", **columns))
    return trained(cache, folder / "run")


def without_images(folder: Path) -> None:
    """Take the pictures away."""
    shutil.rmtree(folder / "images")
