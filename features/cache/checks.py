"""`cache info` and `cache verify`: what is in a cache, and whether every byte of it is sound."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from hoarfrost.features.cache.images import LostImages, StoredImages
from hoarfrost.features.cache.keys import KeyIndex, count_by_view, find_images
from hoarfrost.features.cache.layout import DatasetTable, Header, Keys, Mask, Shard, image_keys, joined_keys
from hoarfrost.features.cache.opened import DamagedCacheError
from hoarfrost.features.cache.reading import CacheFile
from hoarfrost.features.cache.shards import shards_directory
from hoarfrost.features.cache.store import (
    DAMAGED_SUFFIX,
    existing_header,
    only_damaged_parts,
    part_paths,
    real_path,
    require_cache,
)
from hoarfrost.features.encoder.drift import Drift
from hoarfrost.features.errors import CacheError, EncoderError
from hoarfrost.features.fingerprint import KEY_BYTES

T = TypeVar("T")

SHOWN_ROWS = 1000  # damaged rows listed one by one; for a cache that is all damaged, a million lines help nobody


@dataclass(frozen=True)
class DatasetInfo:
    """One dataset of a cache; `duplicates` counts images with the same bytes as an earlier path.

    `lacking` counts, for each view that some readable images do not have, these images.
    """

    name: str
    source: str
    created: str
    images: int
    unreadable: int
    duplicates: int
    labels: dict[str, int]
    lacking: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CacheInfo:
    """What is in a cache; `images` counts embeddings, `views` those of each view; `own_view` is the encoder's own.

    `unused` counts embeddings of images that are in no dataset. `layers` is empty if embeddings are of the last layer alone.
    A cache that is one file has 0 shards.
    """

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
    weights_origin: str
    weights_sha256: str
    preprocessing: dict[str, object]
    precision: str
    drift: Drift | None
    compute: str
    layers: tuple[int, ...]
    own_view: str
    views: dict[str, int]
    datasets: tuple[DatasetInfo, ...]


@dataclass(frozen=True)
class VerifyReport:
    """What `cache verify` found; each problem names the file, and the rows or the dataset."""

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
        If it is missing, not a cache, or damaged.
    """
    return _unchanged_meanwhile(real_path(path), _describe)


def _describe(path: Path, parts: list[Path]) -> CacheInfo:
    header = existing_header(path)
    if header is None:
        raise only_damaged_parts(path)
    tables: list[DatasetTable] = []
    n_images = n_shards = 0
    keys = joined_keys([]) if header.views else None
    if path.exists():
        with CacheFile(path, by_view=bool(header.views)) as file:
            tables = [file.tables.read(name) for name in file.tables.names()]
            n_images, n_shards = file.n_images, len(file.shards)
            keys = file.keys if header.views else None
    made_by = header.fingerprint
    in_parts = [_n_images(part) for part in parts]
    return CacheInfo(
        cache=str(path),
        bytes=bytes_of(path),
        images=n_images,
        unused=int((~used_rows(tables, n_images, keys)).sum()),
        shards=n_shards,
        parts=len(parts),
        damaged_parts=in_parts.count(None) + len(part_paths(path, DAMAGED_SUFFIX)),
        images_in_parts=sum(n for n in in_parts if n is not None),
        fingerprint=made_by.digest,
        backbone=made_by.backbone,
        weights=header.weights,
        weights_origin=header.weights_origin,
        weights_sha256=made_by.weights_sha256,
        preprocessing=dict(made_by.preprocessing),
        precision=made_by.precision,
        drift=header.drift,
        compute=header.compute,
        layers=made_by.layers,
        own_view=header.own_view,
        views={header.own_view: n_images} if keys is None else count_by_view(header, keys),
        datasets=tuple(_dataset_info(table, header, keys) for table in tables),
    )


def _unchanged_meanwhile(path: Path, read: Callable[[Path, list[Path]], T]) -> T:
    """Return what `read` returns of a cache and its parts; read again if a writer has folded the parts meanwhile."""
    for _ in range(100):
        require_cache(path)
        parts = part_paths(path)
        try:
            result = read(path, parts)
        except CacheError:
            if all(os.path.lexists(part) for part in parts):
                raise
        else:
            if all(os.path.lexists(part) for part in parts):
                return result
    raise CacheError(f"{path} is being written, and changes faster than it can be read. Try again later.")


def _dataset_info(table: DatasetTable, header: Header, keys: Keys | None) -> DatasetInfo:
    rows = table.rows[table.rows >= 0]
    lacking: dict[str, int] = {}
    if keys is not None:
        index, own = KeyIndex(keys), image_keys(keys[rows])
        found = {view: find_images(index, header, own, (view,)) for view in header.view_names}
        lacking = {view: int((places < 0).sum()) for view, places in found.items() if (places < 0).any()}
    return DatasetInfo(
        name=table.name,
        source=table.source,
        created=table.created,
        images=len(table),
        unreadable=len(table) - len(rows),
        duplicates=len(rows) - len(np.unique(rows)),
        labels=dict(sorted(table.labels.counts().items())),
        lacking=lacking,
    )


def used_rows(tables: list[DatasetTable], n_images: int, keys: Keys | None) -> Mask:
    """Return which embeddings belong to an image in a table, (N,) bool; `keys` (N, K) are needed where there are views."""
    used = np.zeros(n_images, bool)
    for table in tables:
        used[table.rows[table.rows >= 0]] = True
    if keys is not None and used.any():
        images = image_keys(keys)
        used = KeyIndex(images[used]).find(images) >= 0
    return used


def _n_images(part: Path) -> int | None:
    """Return the number of a part's images; None if it is damaged."""
    try:
        with CacheFile(part) as file:
            return file.n_images
    except DamagedCacheError:
        return None


def bytes_of(path: Path) -> int:
    """Return the size of all of a cache's files."""
    total = 0
    for file in [path, *shards_directory(path).glob("*.h5"), *part_paths(path), *part_paths(path, DAMAGED_SUFFIX)]:
        with suppress(FileNotFoundError):
            total += file.stat().st_size
    return total


# -- verify -----------------------------------------------------------------------------------------------------------


def verify(path: Path) -> VerifyReport:
    """Read everything in a cache and check it: structure, checksums, references.

    Raises
    ------
    CacheError
        Only if the cache is missing; damage is reported, not raised.
    """
    return _unchanged_meanwhile(real_path(path), _verify)


def _verify(path: Path, parts: list[Path]) -> VerifyReport:
    problems: list[str] = []
    n_images, n_datasets = 0, 0
    fingerprints: dict[str, Path] = {}
    for file_path in [path, *parts] if path.exists() else parts:
        try:
            with CacheFile(file_path, lenient=True) as file:
                fingerprints.setdefault(file.header.fingerprint.digest, file_path)
                n_images += file.n_images
                n_datasets += len(file.tables.names()) if file_path == path else 0
                problems += _problems(file)
        except CacheError as error:
            problems.append(str(error))
    if len(fingerprints) > 1:
        where = ", ".join(str(file_path) for file_path in fingerprints.values())
        problems.append(f"{path}: embeddings of {len(fingerprints)} fingerprints are mixed ({where})")
    return VerifyReport(str(path), not problems, n_images, n_datasets, len(parts), tuple(problems))


def _problems(file: CacheFile) -> Iterator[str]:
    tables: list[DatasetTable] = []
    for group in ("datasets", "pending"):
        for name in file.tables.names(group):
            try:
                tables.append(file.tables.read(name, group))
            except CacheError as error:
                yield str(error)
    salvaged = [piece.images.salvage() for piece in file.pieces]
    listed = _Listed(file.header, tables, joined_keys(found for found, _ in salvaged))
    for (start, images, shard), (found, sound) in zip(file.pieces, salvaged, strict=True):
        if isinstance(images, LostImages):
            yield str(images.error)
            continue
        yield from _damaged_rows(images, found, sound, start, listed)
        if sound.all():
            yield from images.damaged_sums()
            yield from images.unreadable_by_others()
            yield from _other_content(images, found, shard)
    yield from _strange(file)
    n_repeated = int((~KeyIndex(joined_keys(found[sound] for found, sound in salvaged)).is_first()).sum())
    if n_repeated:
        yield f"{file.path}: {n_repeated} keys appear more than once"
    for table in tables:
        bad = [table.paths[i] for i in np.flatnonzero(table.rows < 0) if not table.errors[i]]
        if bad:
            yield f"{file.path}: dataset {table.name!r}: {len(bad)} images have neither an embedding nor an error: {bad[0]}"


def _strange(file: CacheFile) -> Iterator[str]:
    """Yield what no extraction writes, although every checksum is right."""
    made_by = file.header.fingerprint
    with suppress(EncoderError):  # of a version that knows other encoders
        expected = made_by.encoder.dim_of(made_by.layers)
        if file.header.dim != expected:
            yield f"{file.path}: embeddings of {file.header.dim} numbers, but {made_by.backbone} has {expected}"
    n_strange = 0
    with suppress(CacheError):  # reported already
        n_strange = sum(int((~np.isfinite(block.embeddings)).any(axis=1).sum()) for block in file.blocks())
    if n_strange:
        yield f"{file.path}: {n_strange} embeddings contain NaN or infinity"


class _Listed:
    """The images that tables list, to be found by a row of any of their views."""

    def __init__(self, header: Header, tables: list[DatasetTable], keys: Keys) -> None:
        self._views = {header.code_of(view): view for view in header.views}
        has_views = bool(self._views) and len(keys) > 0
        self._tables = [(table, image_keys(keys)[table.rows] if has_views else None) for table in tables]

    def text(self, row: int, key: bytes) -> str:
        """Return a row's key, its view where rows have one, and its image's first places in each table."""
        own = np.frombuffer(key[:KEY_BYTES], np.uint8)
        paths: list[str] = []
        for table, keys in self._tables:
            at = table.rows == row
            if keys is not None and own.any():  # zeros are keys that cannot be read
                at |= (keys == own).all(axis=1) & (table.rows >= 0)
            paths += [f"{table.name}: {table.paths[i]}" for i in np.flatnonzero(at)[:3]]
        view = self._views.get(key[KEY_BYTES:], "")
        return "; ".join(filter(None, [f"key {key.hex()[:12]}…", view and f"view {view}", ", ".join(paths)]))


def _damaged_rows(images: StoredImages, keys: Keys, sound: Mask, start: int, listed: _Listed) -> Iterator[str]:
    """Yield the damaged rows of a file whose first row is `start`, with their images."""
    damaged = np.flatnonzero(~sound).tolist()
    for row in damaged[:SHOWN_ROWS]:
        yield (
            f"{images.path}: row {start + row} ({listed.text(start + row, keys[row].tobytes())}) does not match its "
            "checksum; `hoarfrost cache compact` drops it, and the next extract embeds it again"
        )
    if len(damaged) > SHOWN_ROWS:
        yield f"{images.path}: {len(damaged) - SHOWN_ROWS} more rows do not match their checksums"


def _other_content(images: StoredImages, keys: Keys, shard: Shard | None) -> Iterator[str]:
    """Yield the problem of a shard whose rows are sound, but not those that the index lists."""
    with suppress(DamagedCacheError):  # reported already
        if shard is not None and images.content(keys) != shard.content:
            yield f"{images.path}: it holds other images than the index lists, although each of them is sound"
