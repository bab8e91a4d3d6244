"""Looking at a cache, and checking every byte of it."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.images import LostImages, StoredImages
from hoarfrost.features.cache.keys import KeyIndex
from hoarfrost.features.cache.layout import DatasetTable, Keys, Shard
from hoarfrost.features.cache.opened import DamagedCacheError
from hoarfrost.features.cache.reading import CacheFile
from hoarfrost.features.cache.shards import shards_directory
from hoarfrost.features.cache.store import (
    damaged_part_paths,
    existing_header,
    part_paths,
    parts_directory,
    real_path,
    require_cache,
)
from hoarfrost.features.errors import CacheError
from hoarfrost.features.fingerprint import KEY_BYTES

Mask = npt.NDArray[np.bool_]

SHOWN_ROWS = 1000  # of damaged rows named one by one; a cache that is all damaged needs no million lines


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset of a cache; `duplicates` are images whose bytes stand under an earlier path too."""

    name: str
    source: str
    created: str
    images: int
    unreadable: int
    duplicates: int
    labels: dict[str, int]


@dataclass(frozen=True)
class CacheInfo:
    """What is in a cache. `unused` counts embeddings that no dataset refers to (any more); one file is no shard."""

    cache: str
    bytes: int
    images: int
    unused: int
    shards: int
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
    """What `cache verify` found; each problem names the file and the rows or dataset it concerns."""

    cache: str
    sound: bool
    images: int
    datasets: int
    parts: int
    problems: tuple[str, ...]


def describe(path: Path) -> CacheInfo:
    """Return what is in a cache.

    Raises
    ------
    CacheError
        If it is missing, no cache, or damaged.
    """
    return _undisturbed(real_path(path), _describe)


def _describe(path: Path, parts: list[Path]) -> CacheInfo:
    header = existing_header(path)
    if header is None:
        raise CacheError(
            f"{path}: there are only damaged parts of it. Remove {parts_directory(path)}, and extract again."
        )
    tables, n_images, n_shards = _tables_and_size(path)
    used = used_rows(tables, n_images)
    in_parts = [_n_images(part) for part in parts]
    return CacheInfo(
        cache=str(path),
        bytes=bytes_of(path),
        images=n_images,
        unused=int((~used).sum()),
        shards=n_shards,
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


def _tables_and_size(path: Path) -> tuple[list[DatasetTable], int, int]:
    if not path.exists():
        return [], 0, 0
    with CacheFile(path) as file:
        return [file.table(name) for name in file.table_names()], file.n_images, len(file.shards)


def _dataset_info(table: DatasetTable) -> DatasetInfo:
    rows = table.rows[table.rows >= 0]
    return DatasetInfo(
        name=table.name,
        source=table.source,
        created=table.created,
        images=len(table),
        unreadable=len(table) - len(rows),
        duplicates=len(rows) - len(np.unique(rows)),
        labels=dict(sorted(table.labels.counts().items())),
    )


def used_rows(tables: list[DatasetTable], n_images: int) -> Mask:
    """Return which embeddings a table refers to, (N,) bool."""
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


def bytes_of(path: Path) -> int:
    """Return the size of all of a cache's files."""
    total = 0
    for file in [path, *shards_directory(path).glob("*.h5"), *part_paths(path), *damaged_part_paths(path)]:
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
            with CacheFile(file_path, lenient=True) as file:
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
    keys = []
    for start, images, shard in zip(file.starts(), file.stored, file.shards or (None,), strict=False):
        if isinstance(images, LostImages):
            yield str(images.error)
            continue
        found, sound = images.salvage()
        keys.append(found[sound])
        yield from _damaged_rows(images, found, sound, start, tables)
        if sound.all():
            yield from images.damaged_sums()
            yield from images.unreadable_by_others()
            yield from _other_content(images, found, shard)
    index = KeyIndex(np.concatenate(keys) if keys else np.empty((0, KEY_BYTES), np.uint8))
    twice = int((index.firsts() != np.arange(len(index))).sum())
    if twice:
        yield f"{file.path}: {twice} keys stand there twice"
    for table in tables:
        bad = [table.paths[i] for i in np.flatnonzero(table.rows < 0) if not table.errors[i]]
        if bad:
            yield f"{file.path}: dataset {table.name!r}: {len(bad)} images have neither embedding nor error: {bad[0]}"


def _damaged_rows(
    images: StoredImages, keys: Keys, sound: Mask, start: int, tables: list[DatasetTable]
) -> Iterator[str]:
    """Yield the damaged rows of a file whose first row is `start`, with the images that have them."""
    damaged = np.flatnonzero(~sound).tolist()
    for row in damaged[:SHOWN_ROWS]:
        key = keys[row].tobytes().hex()[:12]
        yield (
            f"{images.path}: row {start + row} (key {key}…{_users(tables, start + row)}) does not match its checksum; "
            "`cache compact` drops it, and the next extract embeds it again"
        )
    if len(damaged) > SHOWN_ROWS:
        yield f"{images.path}: {len(damaged) - SHOWN_ROWS} more rows do not match their checksum"


def _other_content(images: StoredImages, keys: Keys, shard: Shard | None) -> Iterator[str]:
    """Yield the problem of a shard whose sound rows are not those of its index."""
    with suppress(DamagedCacheError):  # named already
        if shard is not None and hashlib.sha256(keys.tobytes() + images.row_sums.tobytes()).digest() != shard.content:
            yield f"{images.path}: it holds other images than the index says, though each is sound"


def _users(tables: list[DatasetTable], row: int) -> str:
    users = [f"{table.name}: {table.paths[i]}" for table in tables for i in np.flatnonzero(table.rows == row)[:3]]
    return f"; {', '.join(users)}" if users else ""
