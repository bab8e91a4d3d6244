"""Looking at a cache, checking every byte of it, and making it smaller."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from features.cache.keys import KeyIndex
from features.cache.layout import Block, DatasetTable, Header, Keys, Rows
from features.cache.lock import WriterLock
from features.cache.reading import CacheFile, DamagedCacheError
from features.cache.store import (
    DAMAGED_SUFFIX,
    damaged_part_paths,
    part_paths,
    parts_directory,
    remove_if_empty,
    require_cache,
)
from features.cache.writing import write_cache_file
from features.errors import CacheError

SHOWN_ROWS = 1000  # of damaged rows named one by one; a cache that is all damaged needs no million lines


@dataclass(frozen=True)
class DatasetInfo:
    """One data set of a cache; `duplicates` are images whose bytes stand under an earlier path too."""

    name: str
    source: str
    created: str
    images: int
    unreadable: int
    duplicates: int
    labels: dict[str, int]


@dataclass(frozen=True)
class CacheInfo:
    """What is in a cache. `unused` counts embeddings that no data set refers to (any more)."""

    cache: str
    bytes: int
    images: int
    unused: int
    parts: int
    images_in_parts: int
    fingerprint: str
    backbone: str
    weights: str
    weights_sha256: str
    preprocessing: dict[str, object]
    precision: str
    compute: str
    datasets: tuple[DatasetInfo, ...]


@dataclass(frozen=True)
class VerifyReport:
    """What `cache verify` found; each problem names the file and the rows or data set it concerns."""

    cache: str
    sound: bool
    images: int
    datasets: int
    parts: int
    problems: tuple[str, ...]


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


def describe(path: Path) -> CacheInfo:
    """Say what is in a cache.

    Raises
    ------
    CacheError
        If it is missing, no cache, or damaged.
    """
    require_cache(path)
    parts = part_paths(path)
    with CacheFile(path if path.exists() else parts[0]) as file:
        tables = [file.table(name) for name in file.table_names()] if path.exists() else []
        n_images = file.n_images if path.exists() else 0
        used = _used_rows(tables, n_images)
        fingerprint = file.header.fingerprint
        return CacheInfo(
            cache=str(path),
            bytes=_bytes(path),
            images=n_images,
            unused=int((~used).sum()),
            parts=len(parts),
            images_in_parts=sum(_n_images(part) for part in parts),
            fingerprint=fingerprint.digest,
            backbone=fingerprint.backbone,
            weights=file.header.weights,
            weights_sha256=fingerprint.weights_sha256,
            preprocessing=dict(fingerprint.preprocessing),
            precision=fingerprint.precision,
            compute=file.header.compute,
            datasets=tuple(map(_dataset_info, tables)),
        )


def _dataset_info(table: DatasetTable) -> DatasetInfo:
    rows = table.rows[table.rows >= 0]
    return DatasetInfo(
        name=table.name,
        source=table.source,
        created=table.created,
        images=len(table),
        unreadable=len(table) - len(rows),
        duplicates=len(rows) - len(np.unique(rows)),
        labels=dict(sorted(Counter(table.labels).items())),
    )


def _used_rows(tables: list[DatasetTable], n_images: int) -> npt.NDArray[np.bool_]:
    used = np.zeros(n_images, bool)
    for table in tables:
        used[table.rows[table.rows >= 0]] = True
    return used


def _n_images(part: Path) -> int:
    with CacheFile(part) as file:
        return file.n_images


def _bytes(path: Path) -> int:
    files = [path, *part_paths(path), *damaged_part_paths(path)]
    return sum(file.stat().st_size for file in files if file.exists())


# -- verify -----------------------------------------------------------------------------------------------------------


def verify(path: Path) -> VerifyReport:
    """Read everything in a cache and check it: structure, checksums, references.

    Raises
    ------
    CacheError
        Only if there is nothing of that name; what is damaged is reported, not raised.
    """
    require_cache(path)
    files = [path] if path.exists() else []
    parts = part_paths(path)
    problems: list[str] = []
    n_images, n_datasets = 0, 0
    fingerprints: dict[str, Path] = {}
    for file_path in [*files, *parts]:
        try:
            with CacheFile(file_path) as file:
                fingerprints.setdefault(file.header.fingerprint.digest, file_path)
                n_images += file.n_images
                n_datasets += len(file.table_names()) if file_path == path else 0
                problems += _problems(file)
        except CacheError as error:
            problems.append(str(error))
    if len(fingerprints) > 1:
        where = ", ".join(str(file_path) for file_path in fingerprints.values())
        problems.append(f"{path}: embeddings of {len(fingerprints)} fingerprints are mixed ({where})")
    return VerifyReport(str(path), not problems, n_images, n_datasets, len(parts), tuple(problems))


def _problems(file: CacheFile) -> Iterator[str]:
    tables: list[DatasetTable] = []
    for name in file.table_names():
        try:
            tables.append(file.table(name))
        except CacheError as error:
            yield str(error)
    try:
        keys = file.keys
    except CacheError as error:
        yield str(error)
        return
    damaged = file.damaged_rows()
    for row in damaged[:SHOWN_ROWS]:
        key = keys[row].tobytes().hex()[:12]
        yield (
            f"{file.path}: row {row} (key {key}…{_users(tables, row)}) does not match its checksum; "
            "`cache compact` drops it, and the next extract embeds it again"
        )
    if len(damaged) > SHOWN_ROWS:
        yield f"{file.path}: {len(damaged) - SHOWN_ROWS} more rows do not match their checksum"
    if not damaged:
        yield from file.unreadable_by_others()
    twice = len(keys) - len(np.unique(keys, axis=0))
    if twice:
        yield f"{file.path}: {twice} keys stand there twice"
    for table in tables:
        bad = [table.paths[i] for i in np.flatnonzero(table.rows < 0) if not table.errors[i]]
        if bad:
            yield f"{file.path}: data set {table.name!r}: {len(bad)} images have neither embedding nor error: {bad[0]}"


def _users(tables: list[DatasetTable], row: int) -> str:
    users = [f"{table.name}: {table.paths[i]}" for table in tables for i in np.flatnonzero(table.rows == row)[:3]]
    return f"; {', '.join(users)}" if users else ""


# -- compact ----------------------------------------------------------------------------------------------------------


def compact(path: Path) -> CompactSummary:
    """Fold parts, and drop the embeddings that are damaged or that no data set uses.

    What parts hold stays: it belongs to an extraction that is not finished. Images whose
    embeddings were damaged stay in their data sets as unreadable, and the next extract embeds
    them again.

    Raises
    ------
    CacheError
        If there is no cache, another process writes to it, or it is damaged beyond its rows.
    """
    require_cache(path)
    with WriterLock(path):
        before = _bytes(path)
        compaction = _Compaction(path)
        if compaction.changes:
            write_cache_file(path, compaction.header, compaction.n_kept, compaction.blocks(), compaction.tables())
            for part in [*compaction.parts, *damaged_part_paths(path)]:
                part.unlink()
            remove_if_empty(parts_directory(path))
        return CompactSummary(
            cache=str(path),
            images=compaction.n_kept,
            folded_parts=len(compaction.parts),
            dropped_unused=compaction.n_unused,
            dropped_damaged=compaction.n_damaged,
            dropped_datasets=tuple(compaction.lost_tables),
            bytes_before=before,
            bytes_after=_bytes(path),
        )


class _Compaction:
    """What to keep of a cache's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.parts = [part for part in part_paths(path) if _opens(part)]
        self.files = [path, *self.parts] if path.exists() else self.parts
        self.lost_tables: list[str] = []
        self._tables: list[DatasetTable] = []
        self.keep: list[npt.NDArray[np.bool_]] = []  # for each file, which of its rows
        self.n_unused = self.n_damaged = 0
        keys: list[Keys] = []
        for file_path in self.files:
            with CacheFile(file_path) as file:
                self.header: Header = file.header
                sound = np.ones(file.n_images, bool)
                sound[file.damaged_rows()] = False
                self._read_tables(file)
                used = _used_rows(self._tables, file.n_images) if file_path == path else np.ones(file.n_images, bool)
                self.n_damaged += int((~sound).sum())
                self.n_unused += int((sound & ~used).sum())
                self.keep.append(sound & used)
                keys.append(file.keys)
        all_keys, kept = np.concatenate(keys), np.concatenate(self.keep)
        index = KeyIndex(all_keys[kept])
        first = np.zeros(len(all_keys), bool)  # a part that a crash left behind repeats rows of the file
        first[np.flatnonzero(kept)] = index.find(all_keys[kept]) == np.arange(int(kept.sum()))
        self.keep = np.split(first, np.cumsum([len(k) for k in keys])[:-1])
        self.n_kept = int(first.sum())
        self._new_row = np.where(first, np.cumsum(first) - 1, -1)

    @property
    def changes(self) -> bool:
        """Whether the file would differ from what it is."""
        return bool(self.n_unused or self.n_damaged or self.parts or self.lost_tables or damaged_part_paths(self.path))

    def _read_tables(self, file: CacheFile) -> None:
        for name in file.table_names() if file.path == self.path else ():
            try:
                self._tables.append(file.table(name))
            except DamagedCacheError:
                self.lost_tables.append(name)

    def blocks(self) -> Iterator[Block]:
        """Give the rows to keep, in order."""
        for file_path, keep in zip(self.files, self.keep, strict=True):
            start = 0
            with CacheFile(file_path) as file:
                for block in file.unchecked_blocks():
                    kept = keep[start : start + len(block.keys)]
                    start += len(block.keys)
                    yield Block(block.keys[kept], block.embeddings[kept])

    def tables(self) -> Iterator[DatasetTable]:
        """Give the data sets, pointing to the rows' new places."""
        for table in self._tables:
            rows: Rows = np.where(table.rows >= 0, self._new_row[table.rows], -1)
            lost = (rows < 0) & (table.rows >= 0)
            reason = "its embedding was damaged and dropped; extract again"
            errors = [reason if is_lost else error for is_lost, error in zip(lost, table.errors, strict=True)]
            yield replace(table, rows=rows, errors=errors)


def _opens(part: Path) -> bool:
    """Tell whether a part is sound enough to be read row by row; one that is not is dropped."""
    try:
        with CacheFile(part) as file:
            file.damaged_rows()
    except DamagedCacheError:
        part.replace(part.with_suffix(DAMAGED_SUFFIX))
        return False
    return True
