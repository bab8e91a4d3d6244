"""Looking at a cache, checking every byte of it, and making it smaller."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from features.cache.keys import KeyIndex
from features.cache.layout import Block, DatasetTable, Header, Keys, Rows
from features.cache.lock import WriterLock
from features.cache.reading import CacheFile, DamagedCacheError
from features.cache.store import (
    begun_header,
    check_fingerprint,
    damaged_part_paths,
    part_paths,
    parts_directory,
    real_path,
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
    damaged_parts: int
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
    return _undisturbed(real_path(path), _describe)


def _describe(path: Path, parts: list[Path]) -> CacheInfo:
    header = begun_header(path)
    if header is None:
        raise CacheError(
            f"{path}: there are only damaged parts of it. Remove {parts_directory(path)}, and extract again."
        )
    tables, n_images = _tables_and_size(path)
    used = _used_rows(tables, n_images)
    in_parts = [_n_images(part) for part in parts]
    return CacheInfo(
        cache=str(path),
        bytes=_bytes(path),
        images=n_images,
        unused=int((~used).sum()),
        parts=len(parts),
        damaged_parts=in_parts.count(None) + len(damaged_part_paths(path)),
        images_in_parts=sum(n for n in in_parts if n is not None),
        fingerprint=header.fingerprint.digest,
        backbone=header.fingerprint.backbone,
        weights=header.weights,
        weights_sha256=header.fingerprint.weights_sha256,
        preprocessing=dict(header.fingerprint.preprocessing),
        precision=header.fingerprint.precision,
        compute=header.compute,
        datasets=tuple(map(_dataset_info, tables)),
    )


T = TypeVar("T")


def _undisturbed(path: Path, look: Callable[[Path, list[Path]], T]) -> T:
    """Look at a cache's files again where a writer folded its parts meanwhile."""
    for _ in range(100):
        require_cache(path)
        parts = part_paths(path)
        try:
            result = look(path, parts)
        except CacheError:
            if all(part.exists() for part in parts):
                raise
        else:
            if all(part.exists() for part in parts):
                return result
    raise CacheError(f"{path} is being written, and changes faster than it can be looked at. Try again later.")


def _tables_and_size(path: Path) -> tuple[list[DatasetTable], int]:
    if not path.exists():
        return [], 0
    with CacheFile(path) as file:
        return [file.table(name) for name in file.table_names()], file.n_images


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


def _n_images(part: Path) -> int | None:
    """Count a part's images; None where it is damaged."""
    try:
        with CacheFile(part) as file:
            return file.n_images
    except DamagedCacheError:
        return None


def _bytes(path: Path) -> int:
    total = 0
    for file in [path, *part_paths(path), *damaged_part_paths(path)]:
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


# -- verify -----------------------------------------------------------------------------------------------------------


def verify(path: Path) -> VerifyReport:
    """Read everything in a cache and check it: structure, checksums, references.

    Raises
    ------
    CacheError
        Only if there is nothing of that name; what is damaged is reported, not raised.
    """
    return _undisturbed(real_path(path), _verify)


def _verify(path: Path, parts: list[Path]) -> VerifyReport:
    problems: list[str] = []
    n_images, n_datasets = 0, 0
    fingerprints: dict[str, Path] = {}
    for file_path in [path, *parts] if path.exists() else parts:
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
    for members in ("datasets", "pending"):
        for name in file.table_names(members):
            try:
                tables.append(file.table(name, members))
            except CacheError as error:
                yield str(error)
    keys, sound = file.salvage()
    damaged = np.flatnonzero(~sound).tolist()
    for row in damaged[:SHOWN_ROWS]:
        key = keys[row].tobytes().hex()[:12]
        yield (
            f"{file.path}: row {row} (key {key}…{_users(tables, row)}) does not match its checksum; "
            "`cache compact` drops it, and the next extract embeds it again"
        )
    if len(damaged) > SHOWN_ROWS:
        yield f"{file.path}: {len(damaged) - SHOWN_ROWS} more rows do not match their checksum"
    if not damaged:
        yield from file.damaged_sums()
        yield from file.unreadable_by_others()
    twice = int(sound.sum()) - len(np.unique(keys[sound], axis=0))
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
    path = real_path(path)
    require_cache(path)
    with WriterLock(path):
        before = _bytes(path)
        compaction = _Compaction(path)
        if compaction.changes:
            write_cache_file(
                path, compaction.header, compaction.n_kept, compaction.blocks(), compaction.tables("datasets"),
                compaction.tables("pending"),
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
            bytes_after=_bytes(path),
        )


class _Source(NamedTuple):
    """One file to compact: its trusted keys, which rows are kept, and where the first of them goes."""

    path: Path
    keys: Keys
    keep: npt.NDArray[np.bool_]


class _Compaction:
    """What to keep of a cache's files; looks at all of them before anything is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.n_folded = self.n_unused = self.n_damaged = 0
        self.lost_tables: list[str] = []
        self._rewrite = False
        self._read: dict[str, list[tuple[int, DatasetTable]]] = {"datasets": [], "pending": []}
        self._sources: list[_Source] = []
        for file_path in [path, *part_paths(path)] if path.exists() else part_paths(path):
            try:
                with CacheFile(file_path) as file:
                    self._add(file)
            except DamagedCacheError:
                if file_path == path:
                    raise
                self._rewrite = True
        if not self._sources:
            raise CacheError(
                f"{path}: there are only damaged parts of it. Remove {parts_directory(path)}, and extract again."
            )
        keys = np.concatenate([source.keys for source in self._sources])
        kept = np.flatnonzero(np.concatenate([source.keep for source in self._sources]))
        first = np.zeros(len(keys), bool)  # a part that a crash left behind repeats rows of the file
        first[kept] = KeyIndex(keys[kept]).find(keys[kept]) == np.arange(len(kept))
        self.n_kept = int(first.sum())
        place = KeyIndex(keys[first]).find(keys)  # of each row's key among those that are written
        self._new_row = np.where(np.isin(np.arange(len(keys)), kept), place, -1)
        self._first = first

    @property
    def changes(self) -> bool:
        """Whether the file would differ from what it is."""
        return self._rewrite or bool(
            self.n_unused or self.n_damaged or self.lost_tables or damaged_part_paths(self.path)
        )

    def _add(self, file: CacheFile) -> None:
        is_main = file.path == self.path
        if not self._sources:
            self.header: Header = file.header
        check_fingerprint(file.path, file.header, self.header.fingerprint, self.header.weights)
        keys, sound = file.salvage()
        start = sum(len(source.keys) for source in self._sources)
        tables = self._tables_of(file, start)
        # What parts hold belongs to an extraction that is not finished, and rows whose table is lost may be anyone's.
        in_use = _used_rows(tables, file.n_images) if is_main and not self.lost_tables else np.ones(file.n_images, bool)
        self.n_folded += not is_main
        self.n_damaged += int((~sound).sum())
        self.n_unused += int((sound & ~in_use).sum())
        self._rewrite = self._rewrite or not is_main or any(True for _ in file.damaged_sums())
        self._sources.append(_Source(file.path, keys, sound & in_use))

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

    def blocks(self) -> Iterator[Block]:
        """Give the rows to keep, in order."""
        start = 0
        for source in self._sources:
            with CacheFile(source.path) as file:
                for block in file.raw_blocks(source.keys):
                    kept = self._first[start : start + len(block.keys)]
                    start += len(block.keys)
                    yield Block(block.keys[kept], block.embeddings[kept])

    def tables(self, members: str) -> Iterator[DatasetTable]:
        """Give the data sets, or what is pending of them, pointing to the rows' new places."""
        merged: dict[str, DatasetTable] = {}
        for start, table in self._read[members]:
            rows: Rows = np.where(table.rows >= 0, self._new_row[start + table.rows], -1)
            lost = (rows < 0) & (table.rows >= 0)
            reason = "its embedding was damaged and dropped; extract again"
            errors = [reason if is_lost else error for is_lost, error in zip(lost, table.errors, strict=True)]
            moved = replace(table, rows=rows, errors=errors)
            earlier = merged.get(table.name)
            merged[table.name] = moved if earlier is None or earlier.root != table.root else _joined(earlier, moved)
        yield from merged.values()


def _joined(first: DatasetTable, second: DatasetTable) -> DatasetTable:
    """Put the pending files of two parts into one table."""
    return replace(
        first,
        paths=first.paths + second.paths,
        labels=first.labels + second.labels,
        errors=first.errors + second.errors,
        rows=np.concatenate([first.rows, second.rows]),
        sizes=np.concatenate([first.sizes, second.sizes]),
        mtimes_ns=np.concatenate([first.mtimes_ns, second.mtimes_ns]),
    )
