"""A dataset of a cache into one file for other programs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.cache.store import part_paths, real_path
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.exchange.content import require_room
from hoarfrost.features.exchange.formats import format_to_write
from hoarfrost.features.exchange.own import content_of


@dataclass(frozen=True)
class CacheExportSummary:
    """What was exported; `cache export --json` prints it. Unreadable images are in the file, without an embedding."""

    dataset: str
    images: int
    unreadable: int
    dim: int
    views: tuple[str, ...]
    format: str
    fingerprint: str
    output: str
    bytes: int


def export_dataset(
    cache: Path, output: Path, *, dataset: str | None = None, format_name: str | None = None, overwrite: bool = False
) -> CacheExportSummary:
    """Write a dataset's embeddings with ids, digests, labels, splits, patients, attributes and fingerprint into one file.

    Parameters
    ----------
    cache : Path
        The cache's HDF5 file.
    output : Path
        The file to write.
    dataset : str, optional
        Which of the cache's datasets; not needed if there is only one.
    format_name : str, optional
        "parquet", "npz" or "h5ad"; by default that of the output's suffix.
    overwrite : bool
        Whether an existing file is replaced.

    Raises
    ------
    HoarfrostError
        If the cache cannot be read, or the output cannot be written; an existing file is unchanged then.
    """
    how = format_to_write(output, format_name)
    assert how.write is not None
    if output.exists() and not overwrite:
        raise HoarfrostError(f"--output {output} exists. Name another file, or pass --overwrite to replace it.")
    with EmbeddingCache(cache) as opened:
        if output.resolve() in (real_path(cache), *part_paths(real_path(cache))):
            raise HoarfrostError(f"--output {output} is a file of the cache itself. Name another file.")
        table, header = opened.dataset(dataset), opened.header
        n_bytes = len(table) * header.dim * 4.0 * len(opened.views)
        require_room(str(cache), 2 * n_bytes, f"{len(table):,} embeddings of {header.dim} numbers")
        content = content_of(opened, table)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        how.write(output, content)
    except OSError as error:
        raise HoarfrostError(
            f"--output {output}: cannot be written: {error.strerror or error}. Free space, or name another."
        ) from error
    return CacheExportSummary(
        dataset=table.name, images=len(table), unreadable=int(np.sum(table.rows < 0)), dim=header.dim,
        views=header.view_names,
        format=how.name, fingerprint=header.fingerprint.digest, output=str(output), bytes=output.stat().st_size,
    )  # fmt: skip
