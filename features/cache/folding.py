"""Folding a cache's files together: into one file, or into shards behind an index.

A full shard is never written again: a fold costs what is new, and the last shard if that had room.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path

from hoarfrost.features.cache.layout import (
    SHARD_BYTES,
    Block,
    DatasetTable,
    Header,
    Mask,
    Shard,
    SourceFile,
    rows_per_shard,
)
from hoarfrost.features.cache.shards import shards_directory
from hoarfrost.features.cache.store import remove_if_empty
from hoarfrost.features.cache.writing import write_cache_file, write_index
from hoarfrost.features.errors import CacheError


def write_cache(
    path: Path,
    header: Header,
    sources: Sequence[SourceFile],
    keep: Mask,
    tables: Sequence[DatasetTable],
    pending: Sequence[DatasetTable],
    shard_bytes: int | None,
    release: Callable[[], None] = lambda: None,
) -> None:
    """Write a cache from images that are on the disk: one file with its tables if it is small enough, or else shards.

    Until the file, or the index, is renamed into place, the cache does not change. Shards that are then unused are
    removed.

    Parameters
    ----------
    sources : sequence of SourceFile
        The cache's own, in order, then its parts.
    keep : ndarray (N,) bool
        Which images of the sources, one after another, are kept.
    shard_bytes : int or None
        The most bytes that a file may have; `SHARD_BYTES` by default.
    release : callable
        As for `write_cache_file`.

    Raises
    ------
    CacheError
        If a file cannot be written; the cache has not changed then.
    """
    shard_bytes = shard_bytes or SHARD_BYTES
    n_rows = rows_per_shard(shard_bytes, header.dim, header.key_bytes)
    pieces = list(_pieces(sources, keep, n_rows))
    n_images = sum(piece.n_images for piece in pieces)
    is_small = n_images <= n_rows and n_images * shard_bytes // n_rows + _table_bytes(tables, pending) <= shard_bytes
    if is_small and not any(piece.shard for piece in pieces):
        blocks = chain.from_iterable(piece.blocks() for piece in pieces)
        write_cache_file(path, header, n_images, blocks, tables, pending, release=release)
        remove_unlisted_shards(path, [])
        return
    directory = shards_directory(path)
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise CacheError(f"{directory}: the folder of shards cannot be created: {error.strerror}.") from error
    shards = _all_shards(directory, header, pieces, n_rows)
    write_index(path, header, shards, shard_bytes, tables, pending, release)
    remove_unlisted_shards(path, shards)


def _all_shards(directory: Path, header: Header, pieces: Sequence[SourceFile], n_rows: int) -> list[Shard]:
    """Return the cache's shards in order, and write the new ones; on a full disk these are removed again."""
    shards: list[Shard] = []
    try:
        for piece in pieces:
            for shard in [piece.shard] if piece.shard else _written_shards(directory, header, piece, n_rows):
                shards.append(shard)  # noqa: PERF402 - one at a time: on an error, all that were written are in the list
    except CacheError:
        for shard in {*shards} - {piece.shard for piece in pieces}:  # no index lists them yet
            (directory / shard.name).unlink(missing_ok=True)
        remove_if_empty(directory)
        raise
    return shards


def _table_bytes(*groups: Sequence[DatasetTable]) -> int:
    """Return the most bytes that tables take, without what gzip adds to texts that it cannot compress."""
    tables = [*chain.from_iterable(groups)]
    columns = (column for table in tables for column in (*table.texts().values(), *table.attributes.values()))
    return sum(int(column.lengths.sum()) for column in columns) + sum(24 * len(table) for table in tables)


def _pieces(sources: Sequence[SourceFile], keep: Mask, n_rows: int) -> Iterator[SourceFile]:
    """Yield the shards that stay, and the images to write between them, in order."""
    last_shard = max((number for number, source in enumerate(sources) if source.shard is not None), default=-1)
    parts: list[tuple[bool, SourceFile, Mask]] = []
    start = 0
    for number, source in enumerate(sources):
        end = start + source.n_images
        grows = number == last_shard and source.n_images < n_rows and bool(keep[end:].any())
        kept = keep[start:end]
        parts.append((source.shard is not None and not grows and bool(kept.all()), source, kept))
        start = end
    for stays, group in groupby(parts, key=itemgetter(0)):
        some = [(source, kept) for _, source, kept in group]
        n_images = sum(int(kept.sum()) for _, kept in some)
        if stays:
            yield from (source for source, _ in some)
        elif n_images:
            yield SourceFile(n_images, partial(_kept_blocks, some))


def _kept_blocks(some: list[tuple[SourceFile, Mask]]) -> Iterator[Block]:
    for source, kept in some:
        start = 0
        for block in source.blocks():
            mine = kept[start : start + len(block.keys)]
            start += len(block.keys)
            yield block if mine.all() else block.take(mine)


def _written_shards(directory: Path, header: Header, piece: SourceFile, n_rows: int) -> Iterator[Shard]:
    """Write images into shards of at most `n_rows`."""
    for number, blocks in groupby(_cut(piece.blocks(), n_rows), key=itemgetter(0)):
        n_images = min(n_rows, piece.n_images - number * n_rows)
        name = f"shard-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.h5"
        content = write_cache_file(directory / name, header, n_images, (block for _, block in blocks), [], [], True)
        yield Shard(name, n_images, content)


def _cut(blocks: Iterable[Block], n_rows: int) -> Iterator[tuple[int, Block]]:
    """Yield blocks, cut where a shard of `n_rows` is full, each with the number of its shard."""
    n_before = 0
    for block in blocks:
        while len(block.keys):
            room = n_rows - n_before % n_rows
            yield n_before // n_rows, block.take(slice(room))
            n_before += min(room, len(block.keys))
            block = block.take(slice(room, None))


def remove_unlisted_shards(cache: Path, listed: Iterable[Shard]) -> None:
    """Remove the shards that no index lists: replaced ones, or those of a killed writer. The caller holds the lock."""
    names, directory = {shard.name for shard in listed}, shards_directory(cache)
    for file in directory.glob("shard-*") if directory.is_dir() else ():
        if file.name not in names:
            file.unlink(missing_ok=True)
    remove_if_empty(directory)
