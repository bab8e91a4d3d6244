"""Caches of several views: extractions of small images, and what is in them by image and view."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hoarfrost.features.cache import CacheFile, CacheWriter, EmbeddingCache, Header
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions, ExtractSummary
from tests.support.caches import HEADER, some_files, some_images, some_table

MANY = "224,224:flip,224:crop,224:affine=1,448,448:pad,224:tiles=2,224:rot90"
MANY_LOOKS = 11


def extracted(data: Path, cache: Path, views: str = "", **options: object) -> ExtractSummary:
    """Extract on this CPU with random weights."""
    plain = {"weights": "random:0", "device": "cpu", "precision": "float32", "batch_size": 4, "views": views}
    return extract(data, cache, options=ExtractOptions(**{**plain, **options}))  # type: ignore[arg-type]


def by_key(cache: Path) -> dict[bytes, bytes]:
    """Return each row's embedding, by the key of version 2, whatever version the cache has."""
    with CacheFile(cache, by_view=True) as file:
        return {key.tobytes(): row.tobytes() for key, row in zip(file.keys, file.embeddings(), strict=True)}


def by_path(cache: Path, view: str, dataset: str | None = None) -> dict[str, bytes]:
    """Return the embeddings of a view by path, those that there are."""
    with EmbeddingCache(cache) as opened:
        table = opened.dataset(dataset)
        readable = np.flatnonzero(table.rows >= 0)
        rows = opened.rows_of(opened.keys(table.rows[readable]), view)
        there = rows >= 0
        embeddings = opened.embeddings(rows[there])
        paths = [table.paths[i] for i in readable[there].tolist()]
        return {path: row.tobytes() for path, row in zip(paths, embeddings, strict=True)}


def header_of(views: Sequence[str]) -> Header:
    """Return the header of a synthetic cache of some views."""
    return HEADER.of_views(views)


def write_viewed(
    path: Path, views: Sequence[str], n: int = 20, seed: int = 0, **options: object
) -> dict[str, np.ndarray]:
    """Write a cache of n images in some views, view after view; return the embeddings of each view."""
    keys, found, header = some_images(n, seed)[0], {}, header_of(views)
    with CacheWriter(path, header, "demo", **options) as writer:  # type: ignore[arg-type]
        for number, view in enumerate(views):
            embeddings = some_images(n, 1000 * (number + 1) + seed)[1]
            code = header.code_of(view)
            files = [file._replace(key=file.key + code) for file in some_files(keys, f"{seed}-")]
            writer.append(files, embeddings)
            found[view] = embeddings
        writer.finish(some_table(n, prefix=f"{seed}-"), keys)
    return found
