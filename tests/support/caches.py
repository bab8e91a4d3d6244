"""Synthetic caches for tests: embeddings from a seed, no backbone."""

from pathlib import Path

import numpy as np

from hoarfrost.features.cache import CacheWriter, DatasetTable, EmbeddedFile, Header, KnownFiles
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.facts import FileHeader, ImageFacts, Kinds
from hoarfrost.features.fingerprint import Fingerprint, preprocessing

FINGERPRINT = Fingerprint("resnet18", "ab" * 32, preprocessing(RESNET18), "float32")
HEADER = Header(FINGERPRINT, RESNET18.dim, weights="random:0", weights_origin="tests")


def some_images(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return keys (n, 32) uint8 and embeddings (n, 512) float32."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 32), np.uint8), rng.standard_normal((n, 512), np.float32)


def some_files(keys: np.ndarray, prefix: str = "image") -> list[EmbeddedFile]:
    return [EmbeddedFile(f"{prefix}{i}.png", 100 + i, 1_000_000 + i, key.tobytes()) for i, key in enumerate(keys)]


def some_facts(n: int, seed: int = 0) -> list[ImageFacts]:
    """Return facts of n images of two makers."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n):
        kinds = Kinds("DICOM, JPEG Lossless", "MONOCHROME2", "US", f"Maker {'AB'[i % 2]}", "Größe 7", "no")
        moments = [float(x) for x in rng.normal(100, 10, 4).astype(np.float32)]
        found.append(ImageFacts(FileHeader(600 + i, 400 + seed, 12, kinds), 1, (*moments,)))
    return found


def with_facts(files: list[EmbeddedFile], facts: list[ImageFacts | None]) -> list[EmbeddedFile]:
    return [file._replace(facts=one) for file, one in zip(files, facts, strict=True)]


def unchanged_keys(known: KnownFiles, files: list[EmbeddedFile]) -> dict[str, bytes]:
    """Return the keys of the files that are known with their size and time, by path."""
    sizes, times = (np.array([file[i] for file in files], np.int64) for i in (1, 2))
    rows, keys = known.unchanged(Texts.of(file.path for file in files), sizes, times)
    return {files[row].path: key.tobytes() for row, key in zip(rows.tolist(), keys, strict=True)}


def some_table(n: int, name: str = "demo", prefix: str = "image", **columns: object) -> DatasetTable:
    values: dict[str, object] = {
        "name": name,
        "source": "tests",
        "paths": [f"{prefix}{i}.png" for i in range(n)],
        "rows": np.zeros(n, np.int64),
        "labels": ["benign" if i % 2 else "malignant" for i in range(n)],
        "errors": [""] * n,
        "sizes": np.arange(n, dtype=np.int64) + 100,
        "mtimes_ns": np.arange(n, dtype=np.int64) + 1_000_000,
    }
    return DatasetTable(**{**values, **columns})  # type: ignore[arg-type]


def rows_per_tiny_shard(shard_bytes: int, _: int, _key_bytes: int = 32) -> int:
    """Take the place of `rows_per_shard`: five rows in 50,000 bytes, where a real shard has a thousand or more."""
    return shard_bytes // 10_000


def write_cache(path: Path, n: int = 20, seed: int = 0, name: str = "demo") -> tuple[np.ndarray, np.ndarray]:
    """Write a finished cache of one dataset; return its keys and embeddings."""
    keys, embeddings = some_images(n, seed)
    with CacheWriter(path, HEADER, name) as writer:
        writer.append(some_files(keys), embeddings)
        writer.finish(some_table(n, name), keys)
    return keys, embeddings
