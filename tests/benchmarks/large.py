"""A cache of millions of embeddings, for what must not need as much memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hoarfrost.features.cache import Block, DatasetTable
from hoarfrost.features.cache.writing import write_cache_file
from tests.support.caches import HEADER

BLOCK_ROWS = 1 << 14


def write_large_cache(path: Path, n: int, *, distance: float = 0.02) -> Path:
    """Write `n` embeddings of two classes, drawn from a seed, a block at a time."""
    labels = np.random.default_rng(0).integers(0, 2, n)
    centre = np.random.default_rng(1).standard_normal(512, np.float32) * distance

    def blocks() -> Iterator[Block]:
        rng = np.random.default_rng(2)
        for start in range(0, n, BLOCK_ROWS):
            y = labels[start : start + BLOCK_ROWS]
            embeddings = rng.standard_normal((len(y), 512), np.float32) + y[:, None] * centre
            yield Block(rng.integers(0, 256, (len(y), 32), np.uint8), embeddings.astype(np.float32))

    table = DatasetTable(
        name="large",
        source="large",
        paths=[f"{row:07d}.png" for row in range(n)],
        rows=np.arange(n),
        labels=["ab"[label] for label in labels.tolist()],
        errors=[""] * n,
        sizes=np.ones(n, np.int64),
        mtimes_ns=np.ones(n, np.int64),
    )
    write_cache_file(path, HEADER, n, blocks(), [table])
    return path
