"""CacheWriter: adds embeddings in parts that a crash cannot harm, and folds them into the cache's file."""

import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from hoarfrost.features.cache.folding import remove_unlisted_shards, write_cache
from hoarfrost.features.cache.keys import KeyIndex, count_by_view, find_images
from hoarfrost.features.cache.known import KnownFiles
from hoarfrost.features.cache.layout import (
    DatasetTable,
    FileTable,
    Header,
    Keys,
    Mask,
    Rows,
    SourceFile,
    image_keys,
    joined_keys,
    row_keys,
)
from hoarfrost.features.cache.lock import WriterLock
from hoarfrost.features.cache.opened import DamagedCacheError
from hoarfrost.features.cache.parts import Part, PartWriter
from hoarfrost.features.cache.reading import CacheFile
from hoarfrost.features.cache.store import (
    DAMAGED_SUFFIX,
    check_fingerprint,
    existing_header,
    part_paths,
    parts_directory,
    remove_if_empty,
    remove_parts,
)
from hoarfrost.features.errors import CacheError
from hoarfrost.features.files.whole import file_identity

logger = logging.getLogger(__name__)


class AddedParts(NamedTuple):
    """The number of embeddings in the added parts, by view, and of images that got one that the cache did not have."""

    n_embeddings: Mapping[str, int]
    n_new: int


class CacheWriter(PartWriter):
    """The only writer of a cache; a context manager that holds its lock.

    `append` and `commit` write parts, and `finish` folds them into the cache's file.

    Parameters
    ----------
    path : Path
        The cache's HDF5 file; it and its folder are created if they are missing.
    header, dataset, root
        As for `PartWriter`.
    shard_bytes : int, optional
        The most bytes that a file of the cache may have; a larger cache is split into shards. By default the limit of
        the existing shards, or else 64 GB.

    Raises
    ------
    CacheLockedError
        If another process is writing.
    FingerprintMismatchError
        If the cache's embeddings were made with other settings.
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
            raise CacheError(f"{self.path.parent}: the cache's folder cannot be created: {error.strerror}.") from error
        with ExitStack() as stack:
            self.lock = stack.enter_context(WriterLock(self.path))
            self._identity = file_identity(self.path)
            if (there := existing_header(self.path)) is not None:
                self.header = self.header.with_views(there.views)  # so that none is lost
            self._main = stack.enter_context(CacheFile(self.path, by_view=self.by_view)) if self.path.exists() else None
            self._remove_leftovers()
            if self._main is not None:
                check_fingerprint(self.path, self._main.header, self.header)
                self.set_compute(self.header.compute or self._main.header.compute)
            self.parts = list(self._sound_parts())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _remove_leftovers(self) -> None:
        """Remove what a killed writer left; the lock shows that no other writer is running."""
        self._remove_half_written(self.path.parent, parts_directory(self.path))
        remove_if_empty(parts_directory(self.path))
        # Shards without an index and without parts do not come from a killed writer: someone has lost the index.
        if self._main is not None or part_paths(self.path):
            remove_unlisted_shards(self.path, self._main.shards if self._main is not None else [])

    def _remove_half_written(self, *folders: Path) -> None:
        own = re.compile(rf"({re.escape(self.path.name)}|part-.*)\.(\d+|trying(-[^.]*)?)\.tmp")  # not of FILE.old
        for folder in folders:
            for leftover in folder.glob("*.tmp") if folder.is_dir() else ():
                if own.fullmatch(leftover.name):
                    leftover.unlink(missing_ok=True)

    def _sound_parts(self) -> Iterator[Part]:
        """Read each part whole once, so that damage shows before anything relies on it."""
        for path in part_paths(self.path):
            try:
                with CacheFile(path, by_view=self.by_view) as part:
                    for _ in part.blocks():
                        pass
                    header, keys, known = part.header, part.keys, self._known_in(part)
            except DamagedCacheError as error:
                logger.warning(
                    "%s This part is renamed to *%s, and its images are embedded again.", error, DAMAGED_SUFFIX
                )
                with suppress(FileNotFoundError):  # deleted since it was listed
                    os.replace(path, path.with_suffix(DAMAGED_SUFFIX))
                continue
            check_fingerprint(self.path, header, self.header)
            yield Part(path, keys, known, header.compute, self.by_view)

    def _stored_keys(self) -> Keys:
        """Return all keys on the disk, (N, 32): those of the file, then those of the parts in order."""
        if self._main is not None and not self.parts:
            return self._main.keys  # not copied
        main = [self._main.keys] if self._main is not None else []
        return joined_keys([*main, *(part.keys for part in self.parts)])

    @property
    def compute(self) -> str | None:
        """The compute path of the interrupted extraction that this one resumes; None if this is a new extraction."""
        if self.parts:
            return next((part.compute for part in self.parts if part.compute), None)  # empty if all were copied
        return self._main.header.compute if self._main is not None and self._main.tables.names("pending") else None

    def known_files(self) -> KnownFiles:
        """Return the known files of the dataset, by path; unreadable files are not included, and are tried again."""
        tables = self._known_in(self._main) if self._main is not None else []
        n_rows = self._main.n_images if self._main is not None else 0
        for part in self.parts:
            tables += [table._replace(rows=table.rows + n_rows) for table in part.known]
            n_rows += len(part.keys)
        return KnownFiles(tables, self._stored_keys())

    def _known_in(self, file: CacheFile) -> list[FileTable]:
        known = []
        for group in ("datasets", "pending"):
            if self.dataset not in file.tables.names(group):
                continue
            try:
                root, table = file.tables.files(self.dataset, group)
            except DamagedCacheError as error:
                logger.warning("%s The table is written again, and its files are read again.", error)
                continue
            if root == self.root:
                known.append(table)
        return known

    def _current_index(self) -> KeyIndex:
        """Return an index of all keys on the disk. Sorting costs time and memory, so it is done only when needed."""
        with self._indexing:  # reading threads ask too
            n_main = self._main.n_images if self._main is not None else 0
            if self._index is None or len(self._index) < n_main + sum(len(part.keys) for part in self.parts):
                self._index = KeyIndex(self._stored_keys())
            return self._index

    def find(self, keys: Keys) -> Rows:
        """Return each image's row, by the images' keys (n, 32) uint8, among all on the disk, (n,) int64; -1 if it is missing.

        It is the row of the first view that the image has.
        """
        return find_images(self._current_index(), self.header, keys, self.header.view_names)

    def has_views(self, keys: Keys, views: Iterable[str]) -> Mask:
        """Return which images, by their keys (n, 32) uint8, have an embedding of each of some views, (n,) bool."""
        index, found = self._current_index(), np.ones(len(keys), bool)
        for view in views if self.by_view else ():
            found &= index.find(row_keys(keys, self.header.code_of(view))) >= 0
        return found

    @property
    def known(self) -> KeyIndex:
        """The keys that were in the cache when this was first read."""
        return self._index if self._index is not None else self._current_index()

    def add_parts(self, names: Iterable[str] = ()) -> AddedParts:
        """Add the parts that others have written for this extraction, including those of `names`.

        On a network file system, a part of another host may be listed late, but can be opened by its name at once.

        Raises
        ------
        CacheError
            If a part is damaged, or was made with other settings.
        """
        known, directory = self.known, parts_directory(self.path)
        found = {*part_paths(self.path), *(directory / name for name in names)} - {part.path for part in self.parts}
        added = []
        for path in sorted(found):
            with CacheFile(path, by_view=self.by_view) as file:
                check_fingerprint(self.path, file.header, self.header)
                added.append(Part(path, file.keys, [], file.header.compute, self.by_view))
        self.parts += added
        keys = joined_keys(part.keys for part in added)
        is_new = KeyIndex(keys).is_first() & (known.find(keys) < 0)
        n_new = int(KeyIndex(image_keys(keys[is_new])).is_first().sum())
        return AddedParts(count_by_view(self.header, keys), n_new)

    def finish(self, table: DatasetTable, keys: Keys) -> bool:
        """Commit, fold all parts into the cache's file, and write the dataset's table there.

        Parameters
        ----------
        table : DatasetTable
            Its `rows` mark the readable images (>= 0); their place in the file is found here.
        keys : ndarray (n, 32) uint8
            Each image's key; any bytes for unreadable images.

        Returns
        -------
        bool
            False if there was nothing to write: the file is not touched, and keeps its mtime.
        """
        self.commit()
        first = self._current_index().is_first()  # a part that a crash left behind is in the file already
        new_row = np.append(np.cumsum(first) - 1, -1)  # the last is for keys that are not there: -1
        rows = np.where(table.rows >= 0, new_row[self.find(keys)], -1)
        n_missing = int(((rows < 0) & (table.rows >= 0)).sum())
        if n_missing:
            raise CacheError(f"{self.path}: {n_missing} readable images do not have an embedding; nothing was written.")
        table = replace(table, rows=rows, root=self.root)
        earlier = self._earlier_table()
        is_pending = self._main is not None and table.name in self._main.tables.names("pending")
        if not self.parts and table.same_as(earlier) and not is_pending:
            return False
        if earlier is not None and earlier.root != table.root:
            logger.warning(
                "The dataset %r was extracted from %s before; its table is replaced.", table.name, earlier.source
            )
        self._write(first, [*self._tables("datasets", but=table.name), table], self._tables("pending", but=table.name))
        return True

    def fold(self) -> bool:
        """Commit, and fold all parts into the cache's file, for embeddings that are to be in no dataset.

        Returns
        -------
        bool
            False if there was nothing to write.
        """
        self.commit()
        if not self.parts:
            return False
        self._write(self._current_index().is_first(), self._tables("datasets"), self._tables("pending"))
        return True

    def _write(self, first: Mask, tables: list[DatasetTable], pending: list[DatasetTable]) -> None:
        main, shard_bytes = ([], None) if self._main is None else (self._main.sources(), self._main.shard_bytes)
        sources = [*main, *(SourceFile(len(part.keys), part.blocks) for part in self.parts)]
        opened = self._main

        def release() -> None:
            if os.name == "nt" and opened is not None:  # see `write_cache_file`
                opened.__exit__()

        self.lock.check()
        if file_identity(self.path) != self._identity:
            raise CacheError(
                f"{self.path} was replaced by another program during this run, and is left as it is. What was committed is "
                f"in {parts_directory(self.path)}: run the same command again to add it."
            )
        write_cache(self.path, self.header, sources, first, tables, pending, self._shard_bytes or shard_bytes, release)
        self._identity = file_identity(self.path)
        if os.name == "nt":
            self._main = self._stack.enter_context(CacheFile(self.path, by_view=self.by_view))
        self._remove_half_written(parts_directory(self.path))  # of workers that were killed
        remove_parts(self.path, [part.path for part in self.parts])
        self.parts = []

    def _tables(self, group: str, *, but: str | None = None) -> list[DatasetTable]:
        """Read the cache's tables in a group, except one."""
        if self._main is None:
            return []
        return [self._main.tables.read(name, group) for name in self._main.tables.names(group) if name != but]

    def _earlier_table(self) -> DatasetTable | None:
        """Read this dataset's table; None if it is missing or damaged, for then it is written again."""
        if self._main is None or self.dataset not in self._main.tables.names():
            return None
        try:
            return self._main.tables.read(self.dataset)
        except DamagedCacheError:
            return None
