"""Putting a cache's files together: into one file, or into shards behind an index.

A full shard is never written again: a fold costs what is new, and the last shard where that had room.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.layout import Block, DatasetTable, Header, Shard, SourceFile, rows_per_shard
from hoarfrost.features.cache.shards import shards_directory
from hoarfrost.features.cache.store import remove_if_empty
from hoarfrost.features.cache.writing import write_cache_file, write_index
from hoarfrost.features.errors import CacheError

Kept = npt.NDArray[np.bool_]


class _Stretch(NamedTuple):
    """Images that follow one another in the cache: a shard that stays as it is, or blocks to write."""

    n_images: int
    blocks: Callable[[], Iterator[Block]]
    shard: Shard | None = None


def write_cache(
    path: Path,
    header: Header,
    sources: Sequence[SourceFile],
    keep: Kept,
    tables: Sequence[DatasetTable],
    pending: Sequence[DatasetTable],
    shard_bytes: int,
) -> None:
    """Write a cache anew, of images that are on the disk; one small enough is one file, with its tables.

    Until the index, or the one file, is renamed into place, the cache is what it was; what is then in no use any more
    is removed.

    Parameters
    ----------
    path : Path
    header : Header
    sources : sequence of SourceFile
        The cache's own, in order, then its parts.
    keep : ndarray (N,) bool
        Which images of the sources, one after another, are kept.
    tables, pending : sequences of DatasetTable
    shard_bytes : int
        The most that a file may have.

    Raises
    ------
    CacheError
        If a file cannot be written; the cache is what it was then.
    """
    n_rows = rows_per_shard(shard_bytes, header.dim)
    stretches = list(_stretches(sources, keep, n_rows))
    n_images = sum(stretch.n_images for stretch in stretches)
    is_small = n_images <= n_rows and n_images * shard_bytes // n_rows + _table_bytes(tables, pending) <= shard_bytes
    if is_small and not any(stretch.shard for stretch in stretches):
        blocks = chain.from_iterable(stretch.blocks() for stretch in stretches)
        write_cache_file(path, header, n_images, blocks, tables, pending)
        remove_unlisted_shards(path, [])
        return
    directory = shards_directory(path)
    try:
        directory.mkdir(exist_ok=True)
    except OSError as error:
        raise CacheError(f"{directory}: the folder of shards cannot be made: {error.strerror}.") from error
    shards = list(_settled(directory, header, stretches, n_rows))
    write_index(path, header, shards, shard_bytes, tables, pending)
    remove_unlisted_shards(path, shards)


def _settled(directory: Path, header: Header, stretches: Sequence[_Stretch], n_rows: int) -> Iterator[Shard]:
    """Yield the cache's shards in order, those written that are not there yet; on a full disk they make room again."""
    written: list[Path] = []
    try:
        for stretch in stretches:
            if stretch.shard is not None:
                yield stretch.shard
                continue
            for shard in _written_shards(directory, header, stretch, n_rows):
                written.append(directory / shard.name)
                yield shard
    except CacheError:
        for shard_path in written:  # no index lists them yet
            shard_path.unlink(missing_ok=True)
        remove_if_empty(directory)
        raise


def _table_bytes(*groups: Sequence[DatasetTable]) -> int:
    """Return the most bytes that tables take, without what gzip adds to texts that it cannot compress."""
    texts = (int(column.lengths.sum()) for tables in groups for table in tables for column in table.columns())
    return sum(texts) + sum(24 * len(table) for tables in groups for table in tables)


def _stretches(sources: Sequence[SourceFile], keep: Kept, n_rows: int) -> Iterator[_Stretch]:
    """Split the rows into shards that stay and stretches to write; neighbouring stretches are joined."""
    ends = np.cumsum([source.n_images for source in sources])
    kept = [keep[end - source.n_images : end] for source, end in zip(sources, ends.tolist(), strict=True)]
    to_write: list[tuple[SourceFile, Kept]] = []
    for number, (source, mine) in enumerate(zip(sources, kept, strict=True)):
        has_room = source.n_images < n_rows and _is_last_shard(sources, number)
        grows = has_room and any(later.any() for later in kept[number + 1 :])
        if source.shard is None or grows or not mine.all():
            to_write.append((source, mine))
            continue
        yield from _to_write(to_write)
        to_write = []
        yield _Stretch(source.n_images, lambda: iter(()), source.shard)
    yield from _to_write(to_write)


def _is_last_shard(sources: Sequence[SourceFile], number: int) -> bool:
    return not any(source.shard is not None for source in sources[number + 1 :])


def _to_write(some: list[tuple[SourceFile, Kept]]) -> Iterator[_Stretch]:
    n_images = sum(int(kept.sum()) for _, kept in some)
    if n_images:
        yield _Stretch(n_images, lambda: _kept_blocks(some))


def _kept_blocks(some: list[tuple[SourceFile, Kept]]) -> Iterator[Block]:
    for source, kept in some:
        start = 0
        for block in source.blocks():
            mine = kept[start : start + len(block.keys)]
            start += len(block.keys)
            yield block if mine.all() else Block(block.keys[mine], block.embeddings[mine])


def _written_shards(directory: Path, header: Header, stretch: _Stretch, n_rows: int) -> Iterator[Shard]:
    """Write images into shards of at most so many."""
    blocks = _Cut(stretch.blocks())
    for start in range(0, stretch.n_images, n_rows):
        n_images = min(n_rows, stretch.n_images - start)
        name = f"shard-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.h5"
        content = write_cache_file(directory / name, header, n_images, blocks.next_rows(n_images), [], [], True)
        yield Shard(name, n_images, content)


class _Cut:
    """Cuts a stream of blocks at given numbers of rows."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self._blocks = blocks
        self._rest: Block | None = None

    def next_rows(self, n: int) -> Iterator[Block]:
        """Yield the next `n` rows."""
        while n:
            block = self._rest if self._rest is not None else next(self._blocks)
            taken = Block(block.keys[:n], block.embeddings[:n])
            self._rest = Block(block.keys[n:], block.embeddings[n:]) if len(block.keys) > n else None
            n -= len(taken.keys)
            yield taken


def remove_unlisted_shards(cache: Path, listed: Iterable[Shard]) -> None:
    """Remove what no index lists: shards that were replaced, or that a killed writer left; only who holds the lock may."""
    names, directory = {shard.name for shard in listed}, shards_directory(cache)
    for file in directory.glob("shard-*") if directory.is_dir() else ():
        if file.name not in names:
            file.unlink(missing_ok=True)
    remove_if_empty(directory)
