"""A cache in shards: many files of images behind one small index that opens like one cache.

The index is an index of our own, not HDF5's virtual datasets. Measured on 1,000,000 embeddings in 16 shards
(`make bench`, scale.shards; docs/performance.md), virtual datasets were slower in every way, and they cannot keep what
the cache promises: where a source file is missing, HDF5 gives zeros in its place and no error; what a virtual dataset
points to may be any file on the machine, which a cache from elsewhere must not; and its chunks cannot be read straight
from their places against a checksum of ours.
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
    """A shard is not where the index says; a writer may just have replaced both."""


def shards_directory(cache: Path) -> Path:
    """Return the folder in which a cache's shards lie: beside the index, so that both move together."""
    return cache.with_name(cache.name + ".shards")


def listed_shards(index: OpenedFile) -> tuple[Shard, ...]:
    """Read the index's list.

    Raises
    ------
    DamagedCacheError
        If it is damaged, or names what cannot be a shard of ours.
    """
    with index.reading("/shards"):
        group = index.child(index.root, "shards", h5py.Group)
        names, numbers, contents = (index.dataset(group, name) for name in ("name", "n_images", "content"))
        n = names.shape[0]
        dtypes = (np.dtype(f"S{SHARD_NAME_BYTES}"), np.dtype(np.int64), np.dtype(np.uint8))
        found = [(data.shape, data.dtype) for data in (names, numbers, contents)]
        if found != list(zip(((n,), (n,), (n, KEY_BYTES)), dtypes, strict=True)):
            raise index.damaged("its list of shards is not of this format")
        columns = (
            [name.decode("ascii", "replace") for name in names[...].tolist()],
            numbers[...].tolist(),
            contents[...],
        )
    shards = tuple(Shard(name, n, content.tobytes()) for name, n, content in zip(*columns, strict=True))
    for shard in shards:
        if not _NAME.fullmatch(shard.name) or shard.n_images < 1:
            raise index.damaged(f"its list of shards names {shard.name!r}, of {shard.n_images} images")
    if len({shard.name for shard in shards}) < len(shards):
        raise index.damaged("its list of shards names one twice")
    return shards


def opened_shard(cache: Path, header: Header, shard: Shard, listed: Sequence[Shard]) -> tuple[OpenedFile, StoredImages]:
    """Open a shard, and check that it is the one that the index means.

    Raises
    ------
    DamagedCacheError
        Saying whether it is missing, swapped, foreign, another version of itself, or damaged.
    """
    path = shards_directory(cache) / shard.name
    if not path.is_file():
        raise MissingShardError(
            f"{path}: this shard of the cache {cache} is missing. Put it back (the file and its folder {path.parent.name} "
            f"belong together), or let `hoarfrost cache compact {cache}` drop its {shard.n_images:,} images; the next "
            "extract embeds them again."
        )
    file = OpenedFile(path, cache)
    try:
        if file.format != FORMAT:
            raise file.damaged("it is no shard but an index")
        with file.reading("its content"):
            content = file.text(file.root, "content") if "content" in file.root.attrs else ""
        images = StoredImages(file)
        problem = "; ".join(_differences(header, shard, listed, file.header, images.n_images, content))
        if problem:
            raise file.damaged(f"it is not the shard that {cache.name} lists: {problem}")
    except BaseException:
        file.close()
        raise
    return file, images


def _differences(
    header: Header, shard: Shard, listed: Sequence[Shard], found: Header, n_images: int, content: str
) -> Iterator[str]:
    if found.fingerprint.digest != header.fingerprint.digest:
        yield f"its embeddings were made in another way ({', '.join(found.fingerprint.differences(header.fingerprint))})"
    if found.dim != header.dim:
        yield f"its embeddings are of {found.dim} numbers, not {header.dim}"
    if content != shard.content.hex():
        twin = next((other.name for other in listed if other.content.hex() == content), None)
        yield "it holds other images" if twin is None else f"it holds what {twin} is to hold, so the two are swapped"
    elif n_images != shard.n_images:
        yield f"it has {n_images:,} images, not {shard.n_images:,}"
