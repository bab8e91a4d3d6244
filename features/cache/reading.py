"""Reading a cache: one file, or an index and its shards, read in the same way."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np

from hoarfrost.features.cache.images import Chunk, LostImages, StoredImages
from hoarfrost.features.cache.layout import (
    INDEX_FORMAT,
    VIEW_BYTES,
    Block,
    Checksums,
    Embeddings,
    Keys,
    Rows,
    Shard,
    SourceFile,
)
from hoarfrost.features.cache.opened import DamagedCacheError, OpenedFile
from hoarfrost.features.cache.shards import MissingShardError, listed_shards, open_shard, shards_directory
from hoarfrost.features.cache.tables import StoredTables
from hoarfrost.features.facts import Facts
from hoarfrost.features.fingerprint import KEY_BYTES

READ_THREADS = 2
FACTS_AT_ONCE = 1 << 16  # rows
OPEN_ATTEMPTS = 100  # while a writer folds again and again

Item = TypeVar("Item")
Images = TypeVar("Images")


class Piece(NamedTuple, Generic[Images]):
    """The images of one file of a cache: the row at which they start, and their shard, if the cache has shards."""

    start: int
    images: Images
    shard: Shard | None


class CacheFile:
    """A cache, or one of its parts, open for reading; a context manager.

    With `lenient`, a cache in shards opens even if some of them are missing or damaged: as `LostImages` in `pieces`. With
    `by_view`, rows have the keys of version 2 of the format even if the file has version 1.

    Raises
    ------
    CacheError
        On opening and reading, if a file is missing, not a cache, of a newer version, or damaged.
    """

    def __init__(self, path: Path, *, lenient: bool = False, by_view: bool = False) -> None:
        self.path = path
        self._by_view = by_view
        for attempts_left in reversed(range(OPEN_ATTEMPTS)):
            with ExitStack() as closing:
                try:
                    self._open(closing, lenient)
                except MissingShardError:
                    if not attempts_left or not self._is_replaced():
                        raise
                else:
                    self._closing = closing.pop_all()
                    break
        self.header = self._file.header
        self.n_images = sum(images.n_images for images in self._stored)
        self.tables = StoredTables(self._file, self.n_images)

    def _open(self, closing: ExitStack, lenient: bool) -> None:
        self._file = OpenedFile(self.path)
        closing.callback(self._file.root.close)
        by_view = self._by_view or bool(self._file.header.views)
        self._key_bytes = KEY_BYTES + (VIEW_BYTES if by_view else 0)
        self.shards: tuple[Shard, ...] = ()
        self._stored: list[StoredImages | LostImages] = []  # one for each shard, or the file's own
        if self._file.format != INDEX_FORMAT:
            self._stored.append(StoredImages(self._file, by_view=by_view))
            return
        self.shards = listed_shards(self._file)
        for shard in self.shards:
            try:
                file, images = open_shard(self.path, self._file.header, shard, self.shards, by_view)
            except DamagedCacheError as error:
                if not lenient or (isinstance(error, MissingShardError) and self._is_replaced()):
                    raise
                path = shards_directory(self.path) / shard.name
                self._stored.append(LostImages(path, shard.n_images, self._key_bytes, error))
                continue
            closing.callback(file.root.close)
            self._stored.append(images)

    def _is_replaced(self) -> bool:
        """Return whether a writer has replaced this file since it was opened."""
        mine = os.fstat(self._file.descriptor)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.close()

    @property
    def shard_bytes(self) -> int | None:
        """The most bytes that a shard may have, as last asked for; None for a cache that is one file."""
        return self._file.whole_number(self._file.root, "shard_bytes") if self._file.format == INDEX_FORMAT else None

    @cached_property
    def pieces(self) -> "list[Piece[StoredImages | LostImages]]":
        """The images of each shard, or the file's own, in order."""
        starts = accumulate((images.n_images for images in self._stored), initial=0)
        return [Piece(*piece) for piece in zip(starts, self._stored, self.shards or (None,), strict=False)]

    @cached_property
    def _sound(self) -> "list[Piece[StoredImages]]":
        return [Piece(start, images, shard) for start, images, shard in self.pieces if isinstance(images, StoredImages)]

    @cached_property
    def keys(self) -> Keys:
        """The keys of all rows, (N, K) uint8."""
        if len(self._sound) == 1:
            return self._sound[0].images.keys()
        keys = np.empty(
            (self.n_images, self._key_bytes), np.uint8
        )  # filled in place: joined, they would be there twice
        for start, images, _ in self._sound:
            keys[start : start + images.n_images] = images.keys()
        return keys

    @cached_property
    def row_sums(self) -> Checksums:
        """CRC-32 of each row's key and embedding, (N,) uint32."""
        return np.concatenate([np.empty(0, np.uint32), *(piece.images.row_sums for piece in self._sound)])

    @cached_property
    def _chunks(self) -> list[tuple[StoredImages, Chunk, int]]:
        """All chunks in order, each with the cache's row at which it starts."""
        return [(images, chunk, start + chunk.start) for start, images, _ in self._sound for chunk in images.chunks]

    def embeddings(self, rows: Rows | None = None) -> Embeddings:
        """Read embeddings, and check every chunk against its CRC-32.

        Parameters
        ----------
        rows : ndarray (n,) int64, optional
            Which rows, in any order, repeated or not; all by default.

        Returns
        -------
        ndarray (n, D) float32

        Raises
        ------
        DamagedCacheError
            If a wanted row's chunk does not match its checksum; it names the rows.
        """
        out = np.empty((self.n_images if rows is None else len(rows), self.header.dim), np.float32)
        if rows is None:
            _each(self._chunks, lambda item: item[0].read_chunk(item[1], out[item[2] : item[2] + item[1].n_rows]))
            return out
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self._edges)

        def read(number: int) -> None:
            images, chunk, start = self._chunks[number]
            places = order[bounds[number, 0] : bounds[number, 1]]
            scratch = np.empty((chunk.n_rows, self.header.dim), np.float32)
            images.read_chunk(chunk, scratch)
            out[places] = scratch[rows[places] - start]

        _each(np.flatnonzero(bounds[:, 1] > bounds[:, 0]).tolist(), read)
        return out

    def facts(self, rows: Rows) -> Facts:
        """Read the facts of rows' images; unknown ones where a file has none."""
        order = np.argsort(rows, kind="stable")
        ascending, found = rows[order], []
        for start, images, _ in self._sound:
            for first in range(0, images.n_images, FACTS_AT_ONCE):
                stop = min(first + FACTS_AT_ONCE, images.n_images)
                mine = slice(*np.searchsorted(ascending, [start + first, start + stop]).tolist())
                if mine.start < mine.stop:
                    some = images.facts(slice(first, stop))
                    places = ascending[mine] - start - first
                    found.append(Facts.unknown(len(places)) if some is None else some.take(places))
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return Facts.joined(found).take(back)

    @cached_property
    def _edges(self) -> Rows:
        """First row and end of each chunk, (C, 2)."""
        edges = [(start, start + chunk.n_rows) for _, chunk, start in self._chunks]
        return np.array(edges, np.int64).reshape(-1, 2)

    def blocks(self) -> Iterator[Block]:
        """Read all images a chunk at a time, in order; memory holds one."""
        for piece in self._sound:
            yield from piece.images.blocks()

    def sources(self) -> list[SourceFile]:
        """Return the images as files to be folded with others."""
        return [SourceFile(images.n_images, images.blocks, shard) for _, images, shard in self._sound]


def _each(items: Iterable[Item], read: Callable[[Item], None]) -> None:
    # Reading and CRC-32 release the interpreter's lock, so two threads check twice as fast.
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for _ in pool.map(read, items):
            pass
