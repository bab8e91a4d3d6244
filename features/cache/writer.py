"""CacheWriter: adds embeddings in parts that a crash cannot harm, and folds them into the one file."""

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from features.cache.keys import KeyIndex
from features.cache.layout import Block, DatasetTable, Keys
from features.cache.lock import WriterLock
from features.cache.parts import KnownFile, Part, PartWriter
from features.cache.reading import CacheFile, DamagedCacheError
from features.cache.store import (
    DAMAGED_SUFFIX,
    check_fingerprint,
    part_paths,
    parts_directory,
    remove_if_empty,
)
from features.cache.writing import write_cache_file
from features.errors import CacheError
from features.fingerprint import KEY_BYTES

logger = logging.getLogger(__name__)


class TakenIn(NamedTuple):
    """How many embeddings were in the parts taken in, and of how many images that the cache did not know before."""

    n_embeddings: int
    n_new: int


class CacheWriter(PartWriter):
    """The only writer of a cache; a context manager that holds its lock.

    Embeddings go to memory by `append`, to parts on disk by `commit` (by itself every few
    seconds), and into the one file by `finish`. Others may write parts for it, which it takes in.

    Parameters
    ----------
    path : Path
        The cache's HDF5 file; it and its folder are made where they are missing.
    header : Header
        What the new embeddings are made by.
    dataset : str
        The data set that the images belong to.
    root : str
        Where its files are, resolved: what is known of files elsewhere tells nothing of these.

    Raises
    ------
    CacheLockedError
        If another process is writing.
    FingerprintMismatchError
        If the cache's embeddings were made in another way.
    CacheError
        If the cache is damaged, or cannot be written.
    """

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CacheError(f"{self.path.parent}: the cache's folder cannot be made: {error.strerror}.") from error
        with ExitStack() as stack:
            self.lock = stack.enter_context(WriterLock(self.path))
            self._sweep()
            self._main = stack.enter_context(CacheFile(self.path)) if self.path.exists() else None
            if self._main is not None:
                check_fingerprint(self.path, self._main.header, self.header.fingerprint, self.header.weights)
                self.begin(self.header.compute or self._main.header.compute)
            self._parts = list(self._sound_parts())
            self._known = KeyIndex(self._stored_keys())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def _sweep(self) -> None:
        """Remove what a killed writer left half-written; the lock says that none is at work."""
        for folder, prefix in ((self.path.parent, f"{self.path.name}."), (parts_directory(self.path), "part-")):
            for leftover in folder.glob("*.tmp") if folder.is_dir() else ():
                if leftover.name.startswith(prefix):
                    leftover.unlink(missing_ok=True)

    def _sound_parts(self) -> Iterator[Part]:
        """Read each part whole once, so that damage shows before anything relies on it."""
        for path in part_paths(self.path):
            try:
                with CacheFile(path) as part:
                    part.embeddings()
                    header, keys, known = part.header, part.keys, self._known_in(part)
            except DamagedCacheError as error:
                logger.warning("%s It is set aside; its images are embedded again.", error)
                os.replace(path, path.with_suffix(DAMAGED_SUFFIX))
                continue
            check_fingerprint(self.path, header, self.header.fingerprint, self.header.weights)
            yield Part(path, keys, known, header.compute)

    def _stored_keys(self) -> Keys:
        """All keys on the disk, (N, 32): those of the file, then those of the parts in order."""
        main = [self._main.keys] if self._main is not None else []
        return np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *main, *(part.keys for part in self._parts)])

    @property
    def compute(self) -> str | None:
        """The compute path of the interrupted extraction that this one resumes; None if it resumes none."""
        if self._parts:
            return self._parts[0].compute
        return self._main.header.compute if self._main is not None and self._main.table_names("pending") else None

    @property
    def known(self) -> KeyIndex:
        """The keys that were in the cache when this writer opened it."""
        return self._known

    def known_files(self) -> dict[str, KnownFile]:
        """Give what is known of the data set's files, by path; unreadable ones are not, and are tried again."""
        known = self._known_in(self._main) if self._main is not None else {}
        for part in self._parts:
            known.update(part.known)
        return known

    def _known_in(self, file: CacheFile) -> dict[str, KnownFile]:
        known: dict[str, KnownFile] = {}
        for members in ("datasets", "pending"):
            table = self._own_table(file, members)
            if table is None or table.root != self.root:
                continue
            columns = zip(table.paths, table.rows.tolist(), table.sizes.tolist(), table.mtimes_ns.tolist(), strict=True)
            for path, row, size, mtime_ns in columns:
                if row >= 0:
                    known[path] = KnownFile(size, mtime_ns, file.keys[row].tobytes())
        return known

    def _own_table(self, file: CacheFile, members: str = "datasets") -> DatasetTable | None:
        """Read this data set's table; a damaged one is as good as none, for it is written anew."""
        if self.dataset not in file.table_names(members):
            return None
        try:
            return file.table(self.dataset, members)
        except DamagedCacheError as error:
            logger.warning("%s It is written anew; its files are read again.", error)
            return None

    def take_in(self, names: Iterable[str] = ()) -> TakenIn:
        """Take in the parts that others have written for this extraction.

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
        directory = parts_directory(self.path)
        found = {*part_paths(self.path), *(directory / name for name in names)} - {part.path for part in self._parts}
        taken = []
        for path in sorted(found):
            with CacheFile(path) as file:
                check_fingerprint(self.path, file.header, self.header.fingerprint, self.header.weights)
                taken.append(Part(path, file.keys, {}, file.header.compute))
        self._parts += taken
        keys = np.concatenate([np.empty((0, KEY_BYTES), np.uint8), *(part.keys for part in taken)])
        is_first = KeyIndex(keys).find(keys) == np.arange(len(keys))
        return TakenIn(len(keys), int((is_first & (self._known.find(keys) < 0)).sum()))

    def finish(self, table: DatasetTable, keys: Keys) -> bool:
        """Commit, fold all parts into the one file, and put the data set's table there.

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
        stored = self._stored_keys()
        index = KeyIndex(stored)
        first = index.find(stored) == np.arange(len(stored))  # a part that a crash left behind is in the file already
        new_row = np.append(np.cumsum(first) - 1, -1)  # the last is for keys that are not there: -1
        rows = np.where(table.rows >= 0, new_row[index.find(keys)], -1)
        if ((rows < 0) & (table.rows >= 0)).any():
            raise CacheError(
                f"{self.path}: {((rows < 0) & (table.rows >= 0)).sum()} images have no embedding; not finished."
            )
        table = replace(table, rows=rows, root=self.root)
        earlier = self._own_table(self._main) if self._main is not None else None
        if not self._parts and table.same_as(earlier) and table.name not in self._pending_names():
            return False
        if earlier is not None and earlier.root != table.root:
            logger.warning("the data set %r was recorded from %s before; it is replaced", table.name, earlier.source)
        others = [name for name in self._pending_names() if name != table.name]
        pending = [self._main.table(name, "pending") for name in others if self._main is not None]
        write_cache_file(
            self.path, self.header, int(first.sum()), self._blocks(first), self._tables_with(table), pending
        )
        for part in self._parts:
            part.path.unlink()
        remove_if_empty(parts_directory(self.path))
        self._parts = []
        return True

    def _pending_names(self) -> list[str]:
        return self._main.table_names("pending") if self._main is not None else []

    def _tables_with(self, table: DatasetTable) -> list[DatasetTable]:
        others = [name for name in self._main.table_names() if name != table.name] if self._main is not None else []
        return [*(self._main.table(name) for name in others if self._main is not None), table]

    def _blocks(self, keep: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> Iterator[Block]:
        start = 0
        for block in self._stored_blocks():
            kept = keep[start : start + len(block.keys)]
            start += len(block.keys)
            yield block if kept.all() else Block(block.keys[kept], block.embeddings[kept])

    def _stored_blocks(self) -> Iterator[Block]:
        if self._main is not None:
            yield from self._main.blocks()
        for part in self._parts:  # opened one at a time: there may be more parts than a process may open files
            with CacheFile(part.path) as file:
                yield from file.blocks()
