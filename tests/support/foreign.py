"""Embeddings as other programs write them, of a small cohort that heads can learn."""

from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from hoarfrost.features.cache import EmbeddingCache
from tests.support.builders import write_csv

DIM = 12


class Cohort(NamedTuple):
    """A CSV, its paths, and their embeddings (n, D)."""

    csv: Path
    paths: list[str]
    embeddings: np.ndarray


def some_embeddings(n: int, dim: int = DIM, seed: int = 0) -> np.ndarray:
    """Return embeddings (n, D) float32 of two classes that alternate."""
    found = np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)
    found[:, 0] += 4 * (np.arange(n) % 2)
    return found


def cohort(folder: Path, n: int = 80, dim: int = DIM, seed: int = 0, suffix: str = ".png") -> Cohort:
    """Write a CSV of images that are not there; two images of each patient."""
    paths = [f"scan{i}{suffix}" for i in range(n)]
    rows = [["path", "label", "patient", "site", "slide"]]
    rows += [
        [path, "malignant" if i % 2 else "benign", f"p{i}", "AB"[i % 3 == 0], f"S-{i}"] for i, path in enumerate(paths)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(folder / "cohort.csv", rows)
    return Cohort(folder / "cohort.csv", paths, some_embeddings(n, dim, seed))


def write_npz(path: Path, made: Cohort, **arrays: Any) -> Path:
    np.savez(path, **{"embeddings": made.embeddings, "paths": np.array(made.paths), **arrays})
    return path


def write_slides(folder: Path, bags: dict[str, np.ndarray]) -> Path:
    """Write slides as CLAM does: the features and coordinates of each one's patches."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, features in bags.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"] = features
            file["coords"] = np.zeros((features.shape[-2] if features.ndim > 1 else 1, 2), np.int32)
    return folder


def read_back(cache: Path, name: str | None = None) -> dict[str, np.ndarray]:
    """Return the embeddings of a cache's dataset, by path."""
    with EmbeddingCache(cache) as opened:
        table = opened.dataset(name)
        rows = opened.embeddings(table.rows[table.rows >= 0])
        return dict(
            zip([path for path, row in zip(table.paths, table.rows, strict=True) if row >= 0], rows, strict=True)
        )
