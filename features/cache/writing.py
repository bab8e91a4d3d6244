"""Writing one cache file, whole or not at all."""

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.layout import (
    FORMAT,
    INDEX_FORMAT,
    MAX_CELL_BYTES,
    SECONDS,
    SHARD_NAME_BYTES,
    Block,
    DatasetTable,
    Header,
    Shard,
    rows_per_chunk,
)
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.errors import CacheError
from hoarfrost.features.facts import NUMBERS, Kinds
from hoarfrost.features.files.whole import sync_folder
from hoarfrost.features.fingerprint import KEY_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

CHUNK_NUMBERS = 1 << 16  # of a column of numbers
CHUNK_FACTS = 1 << 14  # less than HDF5's own 1 MiB for a chunk that is being filled


def write_cache_file(
    path: Path,
    header: Header,
    n_images: int,
    blocks: Iterable[Block],
    tables: Iterable[DatasetTable],
    pending: Iterable[DatasetTable] = (),
    is_shard: bool = False,
    release: Callable[[], None] = lambda: None,
) -> bytes:
    """Write one file whole: under a temporary name, synced, then renamed into place.

    Parameters
    ----------
    path : Path
        An existing file is replaced by the rename; until then it stays unchanged.
    n_images : int
        Number of images in all blocks together.
    blocks : iterable of Block
        Read one at a time, so memory holds one.
    pending : iterable of DatasetTable
        What is known of the files of extractions that are not finished.
    is_shard : bool
        Record `Shard.content` in the file itself.
    release : callable
        Closes the existing file, just before it is replaced: Windows replaces no open one.

    Returns
    -------
    bytes
        `Shard.content`, 32 bytes.

    Raises
    ------
    CacheError
        If the file cannot be written (a full disk, say); the temporary file is removed then.
    """
    with _new_file(path, release) as (file, output):
        _write_header(file, header, FORMAT)
        content = _write_images(file, n_images, header, output.checked(blocks))
        if is_shard:
            _write_attributes(file, content=content.hex())
        _write_tables(file, tables, pending)
    return content


def write_index(
    path: Path,
    header: Header,
    shards: Sequence[Shard],
    shard_bytes: int,
    tables: Iterable[DatasetTable],
    pending: Iterable[DatasetTable],
    release: Callable[[], None],
) -> None:
    """Write the index of a cache in shards, as `write_cache_file` writes; the rename makes these the cache's shards."""
    with _new_file(path, release) as (file, _):
        _write_header(file, header, INDEX_FORMAT)
        _write_attributes(file, shard_bytes=shard_bytes)
        group, n = file.create_group("shards"), len(shards)
        contents = np.frombuffer(b"".join(shard.content for shard in shards), np.uint8).reshape(n, KEY_BYTES)
        _write_array(group, "name", np.array([shard.name.encode() for shard in shards], f"S{SHARD_NAME_BYTES}"), n)
        _write_array(group, "n_images", np.array([shard.n_images for shard in shards], np.int64), n)
        _write_array(group, "content", contents, n)
        _write_tables(file, tables, pending)


@contextmanager
def _new_file(path: Path, release: Callable[[], None]) -> "Iterator[tuple[h5py.File, _Output]]":
    """Open a file to be filled under a temporary name; sync and rename it afterwards, or remove it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with _Output(temporary) as output:
            # "v110": metadata with checksums of its own.
            with h5py.File(output, "w", libver=("v110", "v110")) as file:
                yield file, output
            output.sync()
        release()
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise CacheError(
            f"{path} cannot be written: {error.strerror or error}. What was committed before is safe. "
            "Free disk space or fix the folder, then run the same command again to continue."
        ) from error
    finally:
        with suppress(OSError):  # renamed, or the disk has become read-only
            temporary.unlink()


class _Output(io.FileIO):
    """The file that HDF5 writes to. It holds the error of a failed write back until `checked` or `sync`.

    HDF5 ends the whole process (a segmentation fault, with HDF5 2.0) when a write fails while a
    file is being closed, so HDF5 must not see that the disk is full.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+b")
        self._error: OSError | None = None

    def write(self, content: "Buffer") -> int:
        """Write all of it, or keep the error."""
        view = memoryview(content).cast("B")
        try:
            written = 0
            while written < len(view) and self._error is None:
                written += super().write(view[written:])
        except OSError as error:
            self._error = error
        return len(view)

    def readinto(self, buffer: "Buffer") -> int:
        """Read what is there, and zeros beyond the end."""
        view = memoryview(buffer).cast("B")
        found = super().readinto(view) or 0
        view[found:] = bytes(len(view) - found)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size, or keep the error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def checked(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield blocks; raise the error of a write that has failed."""
        for block in blocks:
            if self._error is not None:
                raise self._error
            yield block

    def sync(self) -> None:
        """Force everything to the disk; raise the error of a write that has failed."""
        if self._error is not None:
            raise self._error
        os.fsync(self.fileno())


def _write_header(file: h5py.File, header: Header, file_format: str) -> None:
    made_by = header.fingerprint
    _write_attributes(
        file,
        format=file_format,
        format_version=header.format_version,
        fingerprint=made_by.digest,
        backbone=made_by.backbone,
        weights=header.weights,
        weights_origin=header.weights_origin,
        weights_sha256=made_by.weights_sha256,
        preprocessing=json.dumps(dict(made_by.preprocessing), sort_keys=True),
        precision=made_by.precision,
        compute=header.compute,
        **({"weights_path": header.weights_path} if header.weights_path else {}),
        **({"drift": json.dumps(asdict(header.drift), sort_keys=True)} if header.drift else {}),
        dim=header.dim,
        **(_of_version_2(header) if header.views else {}),
        versions=json.dumps(library_versions(), sort_keys=True),
    )


def _of_version_2(header: Header) -> dict[str, str]:
    """Return the views with their codes in keys, and the columns of each layer, as JSON."""
    made_by = header.fingerprint
    columns = made_by.encoder.columns_of(made_by.layers) if made_by.layers else {}
    return {
        "views": json.dumps({view: header.code_of(view).hex() for view in header.views}),
        "layers": json.dumps({layer: [some.start, some.stop] for layer, some in columns.items()}),
    }


def library_versions() -> dict[str, str]:
    """Return the versions of what computes and stores embeddings, without importing it."""
    found = {}
    for package in ("hoarfrost", "torch", "torchvision", "pillow", "pydicom", "numpy", "h5py"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def hdf5_version() -> str:
    """Return the version of the HDF5 library, and of h5py."""
    return f"{h5py.version.hdf5_version}, h5py {h5py.__version__}"


def _write_attributes(target: h5py.Group, **values: str | int) -> None:
    """Write attributes in this order, which decides where they are in the file."""
    for name, value in values.items():
        if isinstance(value, int):
            target.attrs[name] = value
            continue
        # Fixed length, so that it is inside the checksummed header; variable-length text is in a heap without one.
        content = value.encode("utf-8", "surrogateescape")
        target.attrs.create(name, np.bytes_(content), dtype=h5py.string_dtype("utf-8", max(len(content), 1)))


def _write_images(file: h5py.File, n_images: int, header: Header, blocks: Iterable[Block]) -> bytes:
    """Write keys, embeddings and checksums; return `Shard.content`."""
    dim, key_bytes = header.dim, header.key_bytes
    images = file.create_group("images")
    chunk_rows = max(1, min(rows_per_chunk(dim), n_images))
    keys = _checked_dataset(images, "key", (n_images, key_bytes), np.uint8, (chunk_rows, key_bytes))
    embeddings = _checked_dataset(images, "embedding", (n_images, dim), np.float32, (chunk_rows, dim))
    row_sums = np.zeros(n_images, np.uint32)
    chunk_sums = np.zeros(-(-n_images // chunk_rows), np.uint32)
    content = hashlib.sha256()
    facts = _FactsWriter(images, n_images)
    start = 0
    for block in _rechunked(blocks, chunk_rows):
        stop = start + len(block.keys)
        content.update(np.ascontiguousarray(block.keys).data)
        keys[start:stop] = block.keys
        embeddings[start:stop] = block.embeddings
        row_sums[start:stop] = block.checksums()
        chunk_sums[start // chunk_rows] = zlib.crc32(np.ascontiguousarray(block.embeddings).data)
        facts.write(start, block)
        start = stop
    if start != n_images:
        raise CacheError(f"{start} images were passed, but {n_images} announced")
    facts.finish()
    _write_array(images, "row_crc32", row_sums)
    _write_array(images, "chunk_crc32", chunk_sums, len(chunk_sums))
    content.update(row_sums.data)
    return content.digest()


class _FactsWriter:
    """Writes the images' facts, if any are known, and the kinds that they point to."""

    def __init__(self, images: h5py.Group, n_images: int) -> None:
        self._images, self._n_images = images, n_images
        self._codes = {Kinds(): 0}
        self._data: h5py.Dataset | None = None

    def write(self, start: int, block: Block) -> None:
        """Write those of a block, whose first row is `start`."""
        if block.facts is not None and self._data is None and block.facts.known.any():
            chunks = (max(1, min(self._n_images, CHUNK_FACTS)),)
            self._data = _checked_dataset(self._images, "facts", (self._n_images,), NUMBERS, chunks)
            for first in range(0, start, CHUNK_FACTS):
                self._data[first : min(first + CHUNK_FACTS, start)] = np.zeros((), NUMBERS)
        if self._data is not None:
            n = len(block.keys)
            numbers = np.zeros(n, NUMBERS) if block.facts is None else block.facts.coded(self._codes)
            self._data[start : start + n] = numbers

    def finish(self) -> None:
        """Write the kinds."""
        if self._data is not None:
            kinds = self._images.create_group("kinds")
            for name, column in zip(Kinds._fields, zip(*self._codes, strict=True), strict=True):
                _write_column(kinds, name, Texts.of(column))


def _checked_dataset(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, chunks: tuple[int, ...], **filters: Any
) -> h5py.Dataset:
    room = tuple(max(1, size) for size in shape)  # HDF5 has no empty chunks
    return group.create_dataset(name, shape, dtype, maxshape=room, chunks=chunks, fletcher32=True, **filters)


def _write_array(group: h5py.Group, name: str, values: npt.NDArray[Any], chunk_rows: int = CHUNK_NUMBERS) -> None:
    chunks = (max(1, min(len(values), chunk_rows)), *values.shape[1:])
    _checked_dataset(group, name, values.shape, values.dtype, chunks)[...] = values


def _rechunked(blocks: Iterable[Block], chunk_rows: int) -> Iterator[Block]:
    """Split blocks of any size into whole chunks; the last may be shorter."""
    rest: Block | None = None
    for block in blocks:
        if rest is not None:
            block = rest.followed_by(block)
        whole = len(block.keys) - len(block.keys) % chunk_rows
        for start in range(0, whole, chunk_rows):
            yield block.take(slice(start, start + chunk_rows))
        rest = block.take(slice(whole, None)) if whole < len(block.keys) else None
    if rest is not None:
        yield rest


def _write_tables(file: h5py.File, tables: Iterable[DatasetTable], pending: Iterable[DatasetTable]) -> None:
    for group, group_tables in (("datasets", tables), ("pending", pending)):
        members = file.create_group(group)
        for table in group_tables:
            _write_table(members, table)


def _write_table(datasets: h5py.Group, table: DatasetTable) -> None:
    group = datasets.create_group(table.name)
    _write_attributes(
        group,
        source=table.source,
        root=table.root,
        classes=json.dumps(sorted(set(table.labels.values()))),
        created=table.created or datetime.now(UTC).isoformat(timespec="seconds"),
        **({SECONDS: f"{table.seconds_per_image:.6g}"} if table.seconds_per_image else {}),
    )
    for name, numbers in table.numbers().items():
        _write_array(group, name, np.asarray(numbers, np.int64))
    for name, column in table.texts().items():
        _write_column(group, name, column)
    attributes = group.create_group("attributes")
    for name, column in table.attributes.items():
        _write_column(attributes, name, column)


def _write_column(group: h5py.Group, name: str, texts: Texts) -> None:
    width = int(texts.lengths.max(initial=1))
    if width > MAX_CELL_BYTES:
        raise CacheError(f"a {name} of {width} bytes is too long for a cache (at most {MAX_CELL_BYTES} bytes)")
    chunk = max(1, min(len(texts), (1 << 20) // width))
    dtype = h5py.string_dtype("utf-8", width)
    filters = {"compression": "gzip", "compression_opts": 1, "shuffle": False}
    data = _checked_dataset(group, name, (len(texts),), dtype, (chunk,), **filters)
    for first in range(0, len(texts), chunk):
        data[first : first + chunk] = np.array(texts[first : first + chunk].encoded(), dtype)
