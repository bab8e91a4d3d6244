"""Making a cache smaller: damaged and unused embeddings are dropped, parts are folded."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from hoarfrost.features.cache.checks import bytes_of, used_rows
from hoarfrost.features.cache.folding import write_cache
from hoarfrost.features.cache.images import LostImages, StoredImages
from hoarfrost.features.cache.keys import KeyIndex
from hoarfrost.features.cache.layout import Block, DatasetTable, Keys, Mask, Rows, SourceFile
from hoarfrost.features.cache.lock import WriterLock
from hoarfrost.features.cache.opened import DamagedCacheError
from hoarfrost.features.cache.reading import CacheFile
from hoarfrost.features.cache.store import (
    DAMAGED_SUFFIX,
    check_fingerprint,
    existing_header,
    only_damaged_parts,
    part_paths,
    real_path,
    remove_parts,
    require_cache,
)
from hoarfrost.features.columns.texts import Texts


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

    The embeddings of parts stay: they belong to an extraction that is not finished. Images whose
    embeddings were damaged stay in their datasets as unreadable, and the next extract embeds
    them again.

    Raises
    ------
    CacheError
        If the cache is missing, another process writes to it, or more than its rows is damaged.
    """
    path = real_path(path)
    require_cache(path)
    if path.exists():
        with CacheFile(path, lenient=True):  # a file that is not a cache gets no lock file beside it
            pass
    with WriterLock(path) as lock:
        before = bytes_of(path)
        compaction = _Compaction(path)
        if compaction.changes:
            lock.check()
            write_cache(
                path, compaction.header, compaction.sources, compaction.kept, compaction.tables("datasets"),
                compaction.tables("pending"), compaction.shard_bytes,
            )  # fmt: skip
            remove_parts(path, [*part_paths(path), *part_paths(path, DAMAGED_SUFFIX)])
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
    """What to keep of a cache's files; all of them are read before anything is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_folded = self.n_unused = self.n_damaged = 0
        self.lost_tables: list[str] = []
        self._rewrite = False
        self._read: dict[str, list[tuple[int, DatasetTable]]] = {"datasets": [], "pending": []}
        self.sources: list[SourceFile] = []
        self.shard_bytes: int | None = None
        self._keys: list[Keys] = []
        self._keep: list[Mask] = []
        found = existing_header(path, lenient=True)
        if found is None:
            raise only_damaged_parts(path)
        self.header = found
        for file_path in [path, *part_paths(path)] if path.exists() else part_paths(path):
            try:
                with CacheFile(file_path, lenient=True, by_view=bool(self.header.views)) as file:
                    self._add(file)
            except DamagedCacheError:
                if file_path == path:
                    raise
                self._rewrite = True
        if not self.sources:
            raise only_damaged_parts(path)
        keys, keep = np.concatenate(self._keys), np.concatenate(self._keep)
        chosen = np.flatnonzero(keep)
        self.kept = np.zeros(len(keys), bool)  # a part that a crash left behind repeats rows of the file
        self.kept[chosen] = KeyIndex(keys[chosen]).is_first()
        self.n_kept = int(self.kept.sum())
        place = KeyIndex(keys[self.kept]).find(keys)  # of each row's key among those that are written
        self._new_row = np.where(keep, place, -1)
        dropped = self.n_unused or self.n_damaged or self.lost_tables or part_paths(path, DAMAGED_SUFFIX)
        self.changes = self._rewrite or bool(dropped)

    def _add(self, file: CacheFile) -> None:
        is_main = file.path == self.path
        check_fingerprint(file.path, file.header, self.header)
        tables = self._tables_of(file, sum(source.n_images for source in self.sources))
        # Parts belong to an extraction that is not finished, and rows whose table is lost may belong to any image.
        in_use = np.ones(file.n_images, bool)
        salvaged = [piece.images.salvage() for piece in file.pieces]
        if is_main and not self.lost_tables:
            keys = np.concatenate([found for found, _ in salvaged]) if self.header.views and salvaged else None
            in_use = used_rows(tables, file.n_images, keys)
        self.n_folded += not is_main
        self._rewrite = self._rewrite or not is_main
        self.shard_bytes = file.shard_bytes or self.shard_bytes
        for number, (start, images, shard) in enumerate(file.pieces):
            keys, sound = salvaged[number]
            mine = in_use[start : start + images.n_images]
            self.n_damaged += int((~sound).sum())
            self.n_unused += int((sound & ~mine).sum())
            is_damaged = isinstance(images, StoredImages) and any(images.damaged_sums())
            self._rewrite = self._rewrite or is_damaged or isinstance(images, LostImages)
            blocks = partial(_raw_blocks, file.path, number, keys)
            self.sources.append(SourceFile(images.n_images, blocks, None if is_damaged else shard))
            self._keys.append(keys)
            self._keep.append(sound & mine)

    def _tables_of(self, file: CacheFile, start: int) -> list[DatasetTable]:
        """Read a file's tables; what a part records of its files is pending until their extraction ends."""
        found = []
        for group in ("datasets", "pending"):
            for name in file.tables.names(group):
                try:
                    table = file.tables.read(name, group)
                except DamagedCacheError:
                    self.lost_tables.append(name)
                    continue
                found.append(table)
                self._read[group if file.path == self.path else "pending"].append((start, table))
        return found

    def tables(self, group: str) -> list[DatasetTable]:
        """Return the tables of a group, pointing to the rows' new places."""
        merged: dict[str, DatasetTable] = {}
        for start, table in self._read[group]:
            rows: Rows = np.where(table.rows >= 0, self._new_row[start + table.rows], -1)
            lost = np.flatnonzero((rows < 0) & (table.rows >= 0))
            reasons = Texts.repeated("its embedding was damaged and dropped; extract again", len(lost))
            moved = replace(table, rows=rows, errors=table.errors.replaced(lost, reasons))
            earlier = merged.get(table.name)
            merged[table.name] = moved if earlier is None or earlier.root != table.root else _joined(earlier, moved)
        return list(merged.values())


def _raw_blocks(path: Path, number: int, keys: Keys) -> Iterator[Block]:
    """Read one of a cache's files unchecked, with the keys that are trusted; nothing if it is lost."""
    with CacheFile(path, lenient=True) as file:
        images = file.pieces[number].images
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
