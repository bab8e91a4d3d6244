"""A cache in shards: many files of images behind one small index that opens like one cache.

The index is our own, not HDF5's virtual datasets. Measured on 1,000,000 embeddings in 16 shards (`make bench`,
scale.shards; docs/performance.md), virtual datasets were slower in every way, and they break what the cache promises:
for a missing source file HDF5 returns zeros and no error; a virtual dataset may point to any file on the machine, which
a cache from elsewhere must not; and its chunks cannot be read straight from the disk and checked against our checksum.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from hoarfrost.features.cache.images import StoredImages
from hoarfrost.features.cache.layout import FORMAT, SHARD_NAME_BYTES, Header, Shard
from hoarfrost.features.cache.opened import DamagedCacheError, OpenedFile
from hoarfrost.features.fingerprint import KEY_BYTES

_NAME = re.compile(r"shard-[0-9]{1,20}-[0-9a-f]{8}\.h5")


class MissingShardError(DamagedCacheError):
    """A shard that the index lists is missing; a writer may just have replaced both."""


def shards_directory(cache: Path) -> Path:
    """Return the folder of a cache's shards: beside the index, so that both move together."""
    return cache.with_name(cache.name + ".shards")


def listed_shards(index: OpenedFile) -> tuple[Shard, ...]:
    """Read the index's list of shards.

    Raises
    ------
    DamagedCacheError
        If it is damaged, or has a name that no shard can have.
    """
    with index.reading("/shards"):
        group = index.child(index.root, "shards", h5py.Group)
        columns = [index.dataset(group, name) for name in ("name", "n_images", "content")]
        n = columns[0].shape[0]
        shapes, dtypes = [(n,), (n,), (n, KEY_BYTES)], [f"S{SHARD_NAME_BYTES}", np.int64, np.uint8]
        if [data.shape for data in columns] != shapes or [data.dtype for data in columns] != dtypes:
            raise index.damaged("its list of shards does not have this format")
        names, numbers, contents = (data[...] for data in columns)
    rows = zip(names.tolist(), numbers.tolist(), contents, strict=True)
    shards = tuple(Shard(name.decode("ascii", "replace"), n, content.tobytes()) for name, n, content in rows)
    for shard in shards:
        if not _NAME.fullmatch(shard.name) or shard.n_images < 1:
            raise index.damaged(f"its list of shards has {shard.name!r} with {shard.n_images} images")
    if len({shard.name for shard in shards}) < len(shards):
        raise index.damaged("its list of shards has a shard twice")
    return shards


def open_shard(
    cache: Path, header: Header, shard: Shard, listed: Sequence[Shard], by_view: bool
) -> tuple[OpenedFile, StoredImages]:
    """Open a shard, and check that it is the one that the index lists; `by_view` as in `StoredImages`.

    Raises
    ------
    DamagedCacheError
        If it is missing, swapped, of another cache, another version of itself, or damaged; the message states which.
    """
    path = shards_directory(cache) / shard.name
    if not path.is_file():
        raise MissingShardError(
            f"{path}: this shard of the cache {cache} is missing. Copy it back (the cache and its folder {path.parent.name} "
            f"belong together). Or drop its {shard.n_images:,} images with `hoarfrost cache compact {cache}`; the next "
            "extract embeds them again."
        )
    file = OpenedFile(path, cache)
    try:
        if file.format != FORMAT:
            raise file.damaged("it is an index, not a shard")
        with file.reading("its content"):
            content = file.text(file.root, "content") if "content" in file.root.attrs else ""
        images = StoredImages(file, by_view=by_view)
        problem = "; ".join(_differences(header, shard, listed, file.header, images.n_images, content))
        if problem:
            raise file.damaged(f"it is not the shard that {cache.name} lists: {problem}")
    except BaseException:
        file.root.close()
        raise
    return file, images


def _differences(
    header: Header, shard: Shard, listed: Sequence[Shard], found: Header, n_images: int, content: str
) -> Iterator[str]:
    if found.fingerprint.digest != header.fingerprint.digest:
        yield f"its embeddings were made with other settings ({', '.join(found.fingerprint.differences(header.fingerprint))})"
    if found.dim != header.dim:
        yield f"its embeddings have {found.dim} numbers, not {header.dim}"
    if content != shard.content.hex():
        twin = next((other.name for other in listed if other.content.hex() == content), None)
        yield "it holds other images" if twin is None else f"it holds the images of {twin}, so the two are swapped"
    elif n_images != shard.n_images:
        yield f"it has {n_images:,} images, not {shard.n_images:,}"
