"""Reading a cache: one file, or an index and its shards, which read alike."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.images import Chunk, LostImages, StoredImages
from hoarfrost.features.cache.layout import (
    INDEX_FORMAT,
    Block,
    DatasetTable,
    Embeddings,
    FileTable,
    Keys,
    Rows,
    Shard,
    SourceFile,
)
from hoarfrost.features.cache.opened import DamagedCacheError, OpenedFile
from hoarfrost.features.cache.shards import MissingShardError, listed_shards, opened_shard, shards_directory
from hoarfrost.features.cache.tables import StoredTables
from hoarfrost.features.fingerprint import KEY_BYTES

__all__ = ["CacheFile", "DamagedCacheError"]

READ_THREADS = 2
OPEN_ATTEMPTS = 100  # while a writer folds again and again

Item = TypeVar("Item")


class CacheFile:
    """A cache, or one of its parts, open for reading; a context manager.

    Parameters
    ----------
    path : Path
    lenient : bool
        Open a cache in shards though some of them are missing or damaged; `lost` says which.

    Raises
    ------
    CacheError
        On opening and reading: a file is missing, no cache, of a newer version, or damaged.
    """

    def __init__(self, path: Path, *, lenient: bool = False) -> None:
        self.path = path
        for attempt in range(OPEN_ATTEMPTS):
            self._closing = ExitStack()
            try:
                self._open(lenient)
            except MissingShardError:
                is_replaced = self._is_replaced()
                self._closing.close()
                if attempt == OPEN_ATTEMPTS - 1 or not is_replaced:
                    raise
            except BaseException:
                self._closing.close()
                raise
            else:
                break
        self.header = self._file.header
        self.n_images = sum(part.n_images for part in self.stored)
        self._tables = StoredTables(self._file, self.n_images)

    def _open(self, lenient: bool) -> None:
        self._file = OpenedFile(self.path)
        self._closing.callback(self._file.close)
        self.shards: tuple[Shard, ...] = ()
        self.stored: list[StoredImages | LostImages] = []  # one for each shard, or the file's own
        if self._file.format != INDEX_FORMAT:
            self.stored.append(StoredImages(self._file))
            return
        self.shards = listed_shards(self._file)
        for shard in self.shards:
            try:
                file, images = opened_shard(self.path, self._file.header, shard, self.shards)
            except DamagedCacheError as error:
                if not lenient or (isinstance(error, MissingShardError) and self._is_replaced()):
                    raise
                self.stored.append(LostImages(shards_directory(self.path) / shard.name, shard.n_images, error))
                continue
            self._closing.callback(file.close)
            self.stored.append(images)

    def _is_replaced(self) -> bool:
        """Return whether a writer has put another file into this one's place since it was opened."""
        mine = os.fstat(self._file.number)
        try:
            there = os.stat(self.path)
        except FileNotFoundError:
            return False
        return (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.close()

    @property
    def shard_bytes(self) -> int | None:
        """The most that a shard may have, as it was asked for last; None for a cache that is one file."""
        return self._file.whole_number(self._file.root, "shard_bytes") if self._file.format == INDEX_FORMAT else None

    # -- images ---------------------------------------------------------------------------------------------------

    @property
    def lost(self) -> list[LostImages]:
        """The shards that cannot be opened."""
        return [part for part in self.stored if isinstance(part, LostImages)]

    @property
    def sound(self) -> list[StoredImages]:
        """The shards, or the file's own images, that could be opened."""
        return [part for part in self.stored if isinstance(part, StoredImages)]

    def starts(self) -> list[int]:
        """Return the first row of each of `stored`, and the end of the last."""
        return [0, *accumulate(part.n_images for part in self.stored)]

    @cached_property
    def keys(self) -> Keys:
        """All keys, (N, 32) uint8."""
        if len(self.sound) == 1:
            return self.sound[0].keys()
        keys = np.empty((self.n_images, KEY_BYTES), np.uint8)
        for start, images in zip(self.starts(), self.sound, strict=False):
            keys[start : start + images.n_images] = images.keys()
        return keys

    @cached_property
    def row_sums(self) -> npt.NDArray[np.uint32]:
        """CRC-32 of each row's key and embedding, (N,) uint32."""
        return np.concatenate([np.empty(0, np.uint32), *(images.row_sums for images in self.sound)])

    def _chunks(self) -> Iterator[tuple[StoredImages, Chunk, int]]:
        """Yield all chunks in order, each with the row that its own rows are counted from."""
        for start, images in zip(self.starts(), self.sound, strict=False):
            yield from ((images, chunk, start) for chunk in images.chunks)

    def embeddings(self, rows: Rows | None = None) -> Embeddings:
        """Read embeddings, every chunk against its CRC-32.

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
            If a wanted row's chunk fails its checksum; it names the rows.
        """
        if rows is None:
            out = np.empty((self.n_images, self.header.dim), np.float32)
            _each(
                self._chunks(),
                lambda item: item[0].read_chunk(item[1], out[item[2] + item[1].start : item[2] + item[1].stop]),
            )
            return out
        out = np.empty((len(rows), self.header.dim), np.float32)
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self._edges)
        wanted = np.flatnonzero(bounds[:, 1] > bounds[:, 0]).tolist()

        def read(number: int) -> None:
            images, chunk, start = self._all_chunks[number]
            places = order[bounds[number, 0] : bounds[number, 1]]
            scratch = np.empty((chunk.stop - chunk.start, self.header.dim), np.float32)
            images.read_chunk(chunk, scratch)
            out[places] = scratch[rows[places] - (start + chunk.start)]

        _each(wanted, read)
        return out

    @cached_property
    def _all_chunks(self) -> list[tuple[StoredImages, Chunk, int]]:
        return list(self._chunks())

    @cached_property
    def _edges(self) -> Rows:
        """First row and end of each chunk, (C, 2)."""
        edges = [(start + chunk.start, start + chunk.stop) for _, chunk, start in self._all_chunks]
        return np.array(edges, np.int64).reshape(-1, 2)

    def blocks(self) -> Iterator[Block]:
        """Read all images a chunk at a time, in order; memory holds one."""
        for images in self.sound:
            yield from images.blocks()

    def sources(self) -> list[SourceFile]:
        """Return the images as sources of a fold."""
        shards = self.shards or (None,)
        return [SourceFile(part.n_images, part.blocks, shard) for part, shard in zip(self.sound, shards, strict=True)]

    # -- datasets ------------------------------------------------------------------------------------------------

    def table_names(self, members: str = "datasets") -> list[str]:
        """Return the names of the datasets in the file, or of the "pending" ones."""
        return self._tables.names(members)

    def table(self, name: str, members: str = "datasets") -> DatasetTable:
        """Read one dataset's table, or what is "pending" of it.

        Raises
        ------
        CacheError
            If it is damaged, or points to embeddings that are not there.
        """
        return self._tables.table(name, members)

    def files(self, name: str, members: str = "datasets") -> tuple[str, FileTable]:
        """Read where a table's files were (its `root`), and what tells unchanged ones; errors as of `table`."""
        return self._tables.files(name, members)


def _each(items: Iterable[Item], read: Callable[[Item], None]) -> None:
    # Reading and CRC-32 release the interpreter's lock, so two threads check twice as fast.
    with ThreadPoolExecutor(READ_THREADS) as pool:
        for _ in pool.map(read, items):
            pass
