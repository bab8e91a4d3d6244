"""CacheWriter: adds embeddings in parts that a crash cannot harm, and folds them into the one file."""

import logging
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from hoarfrost.features.cache.folding import remove_unlisted_shards, write_cache
from hoarfrost.features.cache.keys import KeyIndex
from hoarfrost.features.cache.known import KnownFiles
from hoarfrost.features.cache.layout import SHARD_BYTES, Block, DatasetTable, FileTable, Header, Keys, Rows, SourceFile
from hoarfrost.features.cache.lock import WriterLock
from hoarfrost.features.cache.parts import Part, PartWriter
from hoarfrost.features.cache.reading import CacheFile, DamagedCacheError
from hoarfrost.features.cache.store import (
    DAMAGED_SUFFIX,
    check_fingerprint,
    part_paths,
    parts_directory,
    remove_if_empty,
)
from hoarfrost.features.errors import CacheError
from hoarfrost.features.fingerprint import KEY_BYTES

logger = logging.getLogger(__name__)


class AddedParts(NamedTuple):
    """How many embeddings were in the parts taken in, and of how many images that the cache did not know before."""

    n_embeddings: int
    n_new: int


class CacheWriter(PartWriter):
    """The only writer of a cache; a context manager that holds its lock.

    Embeddings go to memory by `append`, to parts on disk by `commit` (by itself every few
    seconds), and into the one file by `finish`.

    Parameters
    ----------
    path : Path
        The cache's HDF5 file; it and its folder are made where they are missing.
    header : Header
        What the new embeddings are made by.
    dataset : str
        The dataset that the images belong to.
    root : str
        Where its files are, resolved: what is known of files elsewhere tells nothing of these.
    shard_bytes : int, optional
        The most that a file of the cache may have: beyond it, the cache is in shards. By default what it was for a
        cache that is in shards already, else `SHARD_BYTES`.

    Raises
    ------
    CacheLockedError
        If another process is writing.
    FingerprintMismatchError
        If the cache's embeddings were made in another way.
    CacheError
        If the cache is damaged, or cannot be written.
    """

    def __init__(
        self, path: Path, header: Header, dataset: str, *, root: str = "", shard_bytes: int | None = None
    ) -> None:
        super().__init__(path, header, dataset, root=root)
        self._shard_bytes = shard_bytes
        self._index: KeyIndex | None = None
        self._indexing = threading.Lock()

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"{self.path.parent}: the cache's folder cannot be made: {error.strerror}.") from error
        with ExitStack() as stack:
            self.lock = stack.enter_context(WriterLock(self.path))
            self._main = stack.enter_context(CacheFile(self.path)) if self.path.exists() else None
            self._sweep()
            if self._main is not None:
                check_fingerprint(self.path, self._main.header, self.header.fingerprint, self.header.weights)
                self.begin(self.header.compute or self._main.header.compute)
            self._parts = list(self._sound_parts())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def _sweep(self) -> None:
        """Remove what a killed writer left half-written or half-done; the lock says that none is at work."""
        for folder, prefix in ((self.path.parent, f"{self.path.name}."), (parts_directory(self.path), "part-")):
            for leftover in folder.glob("*.tmp") if folder.is_dir() else ():
                if leftover.name.startswith(prefix):
                    leftover.unlink(missing_ok=True)
        # Shards without an index or parts beside them are no writer's leavings: someone has lost the index.
        if self._main is not None or part_paths(self.path):
            remove_unlisted_shards(self.path, self._main.shards if self._main is not None else [])

    def _sound_parts(self) -> Iterator[Part]:
        """Read each part whole once, so that damage shows before anything relies on it."""
        for path in part_paths(self.path):
            try:
                with CacheFile(path) as part:
                    for _ in part.blocks():
                        pass
                    header, keys, known = part.header, part.keys, self._known_in(part)
            except DamagedCacheError as error:
                logger.warning("%s It is set aside; its images are embedded again.", error)
                os.replace(path, path.with_suffix(DAMAGED_SUFFIX))
                continue
            check_fingerprint(self.path, header, self.header.fingerprint, self.header.weights)
            yield Part(path, keys, known, header.compute)

    def _stored_keys(self) -> Keys:
        """All keys on the disk, (N, 32): those of the file, then those of the parts in order."""
        if self._main is not None and not self._parts:
            return self._main.keys
        main = [self._main.keys] if self._main is not None else []
        return np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *main, *(part.keys for part in self._parts)])

    @property
    def compute(self) -> str | None:
        """The compute path of the interrupted extraction that this one resumes; None if it resumes none."""
        if self._parts:
            return next((part.compute for part in self._parts if part.compute), None)  # none where all were copied
        return self._main.header.compute if self._main is not None and self._main.table_names("pending") else None

    def known_files(self) -> KnownFiles:
        """Return the known files of the dataset, by path; unreadable ones are not among them, and are tried again."""
        tables = self._known_in(self._main) if self._main is not None else []
        n_rows = self._main.n_images if self._main is not None else 0
        for part in self._parts:
            tables += [table._replace(rows=table.rows + n_rows) for table in part.known]
            n_rows += len(part.keys)
        return KnownFiles(tables, self._stored_keys())

    def _known_in(self, file: CacheFile) -> list[FileTable]:
        known = []
        for members in ("datasets", "pending"):
            if self.dataset not in file.table_names(members):
                continue
            try:
                root, table = file.files(self.dataset, members)
            except DamagedCacheError as error:
                logger.warning("%s It is written anew; its files are read again.", error)
                continue
            if root == self.root:
                known.append(table)
        return known

    def _current_index(self) -> KeyIndex:
        """Find among all that is on the disk; sorting costs time and memory, so it is done where it is needed."""
        with self._indexing:  # reading threads ask too
            n_main = self._main.n_images if self._main is not None else 0
            if self._index is None or len(self._index) < n_main + sum(len(part.keys) for part in self._parts):
                self._index = KeyIndex(self._stored_keys())
            return self._index

    def _own_table(self, file: CacheFile) -> DatasetTable | None:
        """Read this dataset's table; a damaged one is as good as none, for it is written anew."""
        try:
            return file.table(self.dataset) if self.dataset in file.table_names() else None
        except DamagedCacheError:
            return None

    def find(self, keys: Keys) -> Rows:
        """Return the row of each key (n, 32) uint8 among all that is on the disk, (n,) int64; -1 for missing ones."""
        return self._current_index().find(keys)

    @property
    def known(self) -> KeyIndex:
        """The keys that were in the cache when this was asked for first."""
        return self._index if self._index is not None else self._current_index()

    def add_parts(self, names: Iterable[str] = ()) -> AddedParts:
        """Add the parts that others have written for this extraction.

        Parameters
        ----------
        names : iterable of str
            Those that are known of. On a network file system, a part of another host may be listed late, and opened by
            its name at once.

        Raises
        ------
        CacheError
            If one is damaged, or was made in another way.
        """
        known, directory = self.known, parts_directory(self.path)
        found = {*part_paths(self.path), *(directory / name for name in names)} - {part.path for part in self._parts}
        taken = []
        for path in sorted(found):
            with CacheFile(path) as file:
                check_fingerprint(self.path, file.header, self.header.fingerprint, self.header.weights)
                taken.append(Part(path, file.keys, [], file.header.compute))
        self._parts += taken
        keys = np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *(part.keys for part in taken)])
        is_first = KeyIndex(keys).find(keys) == np.arange(len(keys))
        return AddedParts(len(keys), int((is_first & (known.find(keys) < 0)).sum()))

    def finish(self, table: DatasetTable, keys: Keys) -> bool:
        """Commit, fold all parts into the one file, and put the dataset's table there.

        Parameters
        ----------
        table : DatasetTable
            Its `rows` say which images are readable (>= 0); where they point is found here.
        keys : ndarray (n, 32) uint8
            Each image's key; anything for unreadable ones.

        Returns
        -------
        bool
            False if there was nothing to write, and the file stays as it is, mtime and all.
        """
        self.commit()
        index = self._current_index()
        first = index.firsts() == np.arange(len(index))  # a part that a crash left behind is in the file already
        new_row = np.append(np.cumsum(first) - 1, -1)  # the last is for keys that are not there: -1
        rows = np.where(table.rows >= 0, new_row[self.find(keys)], -1)
        if ((rows < 0) & (table.rows >= 0)).any():
            raise CacheError(
                f"{self.path}: {((rows < 0) & (table.rows >= 0)).sum()} images have no embedding; not finished."
            )
        table = replace(table, rows=rows, root=self.root)
        earlier = self._own_table(self._main) if self._main is not None else None
        if not self._parts and table.same_as(earlier) and table.name not in self._pending_names():
            return False
        if earlier is not None and earlier.root != table.root:
            logger.warning("the dataset %r was recorded from %s before; it is replaced", table.name, earlier.source)
        others = [name for name in self._pending_names() if name != table.name]
        pending = [self._main.table(name, "pending") for name in others if self._main is not None]
        self._write(first, [*self._tables(but=table.name), table], pending)
        return True

    def fold(self) -> bool:
        """Commit, and fold all parts into the one file, for embeddings that are to be in no dataset.

        Returns
        -------
        bool
            False if there was nothing to write.
        """
        self.commit()
        if not self._parts:
            return False
        index = self._current_index()
        first = index.firsts() == np.arange(len(index))
        pending = [self._main.table(name, "pending") for name in self._pending_names() if self._main is not None]
        self._write(first, self._tables(), pending)
        return True

    def _write(
        self,
        first: "np.ndarray[tuple[int], np.dtype[np.bool_]]",
        tables: list[DatasetTable],
        pending: list[DatasetTable],
    ) -> None:
        write_cache(self.path, self.header, self._sources(), first, tables, pending, self._most_bytes())
        for part in self._parts:
            part.path.unlink()
        remove_if_empty(parts_directory(self.path))
        self._parts = []

    def _pending_names(self) -> list[str]:
        return self._main.table_names("pending") if self._main is not None else []

    def _tables(self, *, but: str | None = None) -> list[DatasetTable]:
        """Read the datasets that there are, but for one."""
        names = self._main.table_names() if self._main is not None else []
        return [self._main.table(name) for name in names if self._main is not None and name != but]

    def _most_bytes(self) -> int:
        earlier = self._main.shard_bytes if self._main is not None else None
        return self._shard_bytes or earlier or SHARD_BYTES

    def _sources(self) -> list[SourceFile]:
        main = self._main.sources() if self._main is not None else []
        return [*main, *(SourceFile(len(part.keys), partial(_blocks_of_part, part.path)) for part in self._parts)]


def _blocks_of_part(path: Path) -> Iterator[Block]:
    """Read a part; opened only then: there may be more parts than a process may open files."""
    with CacheFile(path) as file:
        yield from file.blocks()
