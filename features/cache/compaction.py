"""Making a cache smaller: what is damaged or not used is dropped, parts are folded."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.checks import bytes_of, used_rows
from hoarfrost.features.cache.folding import write_cache
from hoarfrost.features.cache.images import StoredImages
from hoarfrost.features.cache.keys import KeyIndex
from hoarfrost.features.cache.layout import SHARD_BYTES, Block, DatasetTable, Header, Keys, Rows, SourceFile
from hoarfrost.features.cache.lock import WriterLock
from hoarfrost.features.cache.opened import DamagedCacheError
from hoarfrost.features.cache.reading import CacheFile
from hoarfrost.features.cache.store import (
    check_fingerprint,
    damaged_part_paths,
    part_paths,
    parts_directory,
    real_path,
    remove_if_empty,
    require_cache,
)
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.errors import CacheError

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class CompactSummary:
    """What `cache compact` did, in images and bytes."""

    cache: str
    images: int
    folded_parts: int
    dropped_unused: int
    dropped_damaged: int
    dropped_datasets: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def compact(path: Path) -> CompactSummary:
    """Fold parts, and drop the embeddings that are damaged or that no dataset uses.

    What parts hold stays: it belongs to an extraction that is not finished. Images whose
    embeddings were damaged stay in their datasets as unreadable, and the next extract embeds
    them again.

    Raises
    ------
    CacheError
        If there is no cache, another process writes to it, or it is damaged beyond its rows.
    """
    path = real_path(path)
    require_cache(path)
    if path.exists():
        with CacheFile(path, lenient=True):  # what is no cache gets no lock beside it either
            pass
    with WriterLock(path):
        before = bytes_of(path)
        compaction = _Compaction(path)
        if compaction.changes:
            write_cache(
                path, compaction.header, compaction.sources, compaction.kept, compaction.tables("datasets"),
                compaction.tables("pending"), compaction.shard_bytes,
            )  # fmt: skip
            for part in [*part_paths(path), *damaged_part_paths(path)]:
                part.unlink()
            remove_if_empty(parts_directory(path))
        return CompactSummary(
            cache=str(path),
            images=compaction.n_kept,
            folded_parts=compaction.n_folded,
            dropped_unused=compaction.n_unused,
            dropped_damaged=compaction.n_damaged,
            dropped_datasets=tuple(compaction.lost_tables),
            bytes_before=before,
            bytes_after=bytes_of(path),
        )


class _Compaction:
    """What to keep of a cache's files; looks at all of them before anything is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_folded = self.n_unused = self.n_damaged = 0
        self.lost_tables: list[str] = []
        self._rewrite = False
        self._read: dict[str, list[tuple[int, DatasetTable]]] = {"datasets": [], "pending": []}
        self.sources: list[SourceFile] = []
        self.shard_bytes = SHARD_BYTES
        self._keys: list[Keys] = []
        self._keep: list[Mask] = []
        for file_path in [path, *part_paths(path)] if path.exists() else part_paths(path):
            try:
                with CacheFile(file_path, lenient=True) as file:
                    self._add(file)
            except DamagedCacheError:
                if file_path == path:
                    raise
                self._rewrite = True
        if not self.sources:
            raise CacheError(
                f"{path}: there are only damaged parts of it. Remove {parts_directory(path)}, and extract again."
            )
        keys, keep = np.concatenate(self._keys), np.concatenate(self._keep)
        chosen = np.flatnonzero(keep)
        self.kept = np.zeros(len(keys), bool)  # a part that a crash left behind repeats rows of the file
        self.kept[chosen] = KeyIndex(keys[chosen]).firsts() == np.arange(len(chosen))
        self.n_kept = int(self.kept.sum())
        place = KeyIndex(keys[self.kept]).find(keys)  # of each row's key among those that are written
        self._new_row = np.where(keep, place, -1)

    @property
    def changes(self) -> bool:
        """Whether the file would differ from what it is."""
        return self._rewrite or bool(
            self.n_unused or self.n_damaged or self.lost_tables or damaged_part_paths(self.path)
        )

    def _add(self, file: CacheFile) -> None:
        is_main = file.path == self.path
        if not self.sources:
            self.header: Header = file.header
        check_fingerprint(file.path, file.header, self.header.fingerprint, self.header.weights)
        tables = self._tables_of(file, sum(source.n_images for source in self.sources))
        # What parts hold belongs to an extraction that is not finished, and rows whose table is lost may be anyone's.
        in_use = used_rows(tables, file.n_images) if is_main and not self.lost_tables else np.ones(file.n_images, bool)
        self.n_folded += not is_main
        self._rewrite = self._rewrite or not is_main or bool(file.lost)
        self.shard_bytes = file.shard_bytes or self.shard_bytes
        numbered = enumerate(zip(file.starts(), file.stored, file.shards or (None,), strict=False))
        for number, (start, images, shard) in numbered:
            keys, sound = images.salvage()
            mine = in_use[start : start + images.n_images]
            self.n_damaged += int((~sound).sum())
            self.n_unused += int((sound & ~mine).sum())
            is_damaged = isinstance(images, StoredImages) and any(True for _ in images.damaged_sums())
            self._rewrite = self._rewrite or is_damaged
            blocks = partial(_raw_blocks, file.path, number, keys)
            self.sources.append(SourceFile(images.n_images, blocks, None if is_damaged else shard))
            self._keys.append(keys)
            self._keep.append(sound & mine)

    def _tables_of(self, file: CacheFile, start: int) -> list[DatasetTable]:
        """Read a file's tables; what a part says of its files is pending until their extraction ends."""
        found = []
        for members in ("datasets", "pending"):
            for name in file.table_names(members):
                try:
                    table = file.table(name, members)
                except DamagedCacheError:
                    self.lost_tables.append(name)
                    continue
                found.append(table)
                self._read[members if file.path == self.path else "pending"].append((start, table))
        return found

    def tables(self, members: str) -> list[DatasetTable]:
        """Return the datasets, or what is pending of them, pointing to the rows' new places."""
        merged: dict[str, DatasetTable] = {}
        for start, table in self._read[members]:
            rows: Rows = np.where(table.rows >= 0, self._new_row[start + table.rows], -1)
            lost = np.flatnonzero((rows < 0) & (table.rows >= 0))
            reasons = Texts.repeated("its embedding was damaged and dropped; extract again", len(lost))
            moved = replace(table, rows=rows, errors=table.errors.replaced(lost, reasons))
            earlier = merged.get(table.name)
            merged[table.name] = moved if earlier is None or earlier.root != table.root else _joined(earlier, moved)
        return list(merged.values())


def _raw_blocks(path: Path, number: int, keys: Keys) -> Iterator[Block]:
    """Read one of a cache's files as it is, with the keys that are trusted; nothing where it is lost."""
    with CacheFile(path, lenient=True) as file:
        images = file.stored[number]
        if isinstance(images, StoredImages):
            yield from images.raw_blocks(keys)


def _joined(first: DatasetTable, second: DatasetTable) -> DatasetTable:
    """Return the pending files of two parts as one table."""
    return replace(
        first,
        paths=Texts.joined([first.paths, second.paths]),
        labels=Texts.joined([first.labels, second.labels]),
        errors=Texts.joined([first.errors, second.errors]),
        rows=np.concatenate([first.rows, second.rows]),
        sizes=np.concatenate([first.sizes, second.sizes]),
        mtimes_ns=np.concatenate([first.mtimes_ns, second.mtimes_ns]),
    )
