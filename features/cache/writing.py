"""Writing one cache file, whole or not at all."""

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.layout import (
    FORMAT,
    FORMAT_VERSION,
    INDEX_FORMAT,
    MAX_CELL_BYTES,
    SHARD_NAME_BYTES,
    Block,
    DatasetTable,
    Header,
    Shard,
    rows_per_chunk,
)
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.errors import CacheError
from hoarfrost.features.fingerprint import KEY_BYTES

if TYPE_CHECKING:
    from typing_extensions import Buffer

Result = TypeVar("Result")


def write_cache_file(
    path: Path,
    header: Header,
    n_images: int,
    blocks: Iterable[Block],
    tables: Iterable[DatasetTable],
    pending: Iterable[DatasetTable] = (),
    is_shard: bool = False,
) -> bytes:
    """Write one file whole: under a temporary name, synced, then renamed into place.

    Parameters
    ----------
    path : Path
        What is there is replaced at once, by the rename; before it, nothing has happened.
    header : Header
    n_images : int
        Number of images in all blocks together.
    blocks : iterable of Block
        Read one at a time, so memory holds one.
    tables : iterable of DatasetTable
    pending : iterable of DatasetTable
        What is known of the files of extractions that are not finished.
    is_shard : bool
        Note in the file itself what its content is.

    Returns
    -------
    bytes
        `Shard.content`, 32 bytes.

    Raises
    ------
    CacheError
        If the file cannot be written (a full disk, say); the temporary file is gone then.
    """

    def fill(file: h5py.File, disk: _Disk) -> bytes:
        _write_header(file, header, FORMAT)
        content = _write_images(file, n_images, header.dim, disk.checked(blocks))
        if is_shard:
            _write_text(file, "content", content.hex())
        _write_tables(file, tables, pending)
        return content

    return _written(path, fill)


def write_index(
    path: Path,
    header: Header,
    shards: Sequence[Shard],
    shard_bytes: int,
    tables: Iterable[DatasetTable],
    pending: Iterable[DatasetTable],
) -> None:
    """Write the index of a cache in shards, as whole as any file; from its rename on, these are the cache's shards.

    Raises
    ------
    CacheError
        As of `write_cache_file`.
    """

    def fill(file: h5py.File, _: _Disk) -> None:
        _write_header(file, header, INDEX_FORMAT)
        file.attrs["shard_bytes"] = shard_bytes
        group, n = file.create_group("shards"), len(shards)
        names = np.array([shard.name.encode() for shard in shards], f"S{SHARD_NAME_BYTES}")
        contents = np.frombuffer(b"".join(shard.content for shard in shards), np.uint8).reshape(n, KEY_BYTES)
        _checked_dataset(group, "name", (n,), names.dtype, (max(1, n),))[...] = names
        _checked_dataset(group, "n_images", (n,), np.int64, (max(1, n),))[...] = [shard.n_images for shard in shards]
        _checked_dataset(group, "content", (n, KEY_BYTES), np.uint8, (max(1, n), KEY_BYTES))[...] = contents
        _write_tables(file, tables, pending)

    _written(path, fill)


def _written(path: Path, fill: "Callable[[h5py.File, _Disk], Result]") -> "Result":
    """Write a file with `fill`, whole or not at all."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with _Disk(temporary) as disk:
            # "v110": metadata with checksums of its own.
            with h5py.File(disk, "w", libver=("v110", "v110")) as file:
                result = fill(file, disk)
            disk.settle()
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise CacheError(
            f"{path} cannot be written: {error.strerror or error}. What was committed before is safe. "
            "Make room or mend the folder, and run the same command again: it goes on from there."
        ) from error
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return result


class _Disk(io.RawIOBase):
    """The file that HDF5 writes to; it keeps a failed write to itself until `settle`.

    HDF5 ends the whole process (a segmentation fault, with HDF5 2.0) when a write fails while a
    file is being closed, so a full disk must not reach it.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("w+b", buffering=0)
        self._error: OSError | None = None

    def write(self, content: "Buffer") -> int:
        """Write all of it, or note why not."""
        view = memoryview(content).cast("B")
        try:
            written = 0
            while written < len(view) and self._error is None:
                written += self._file.write(view[written:])
        except OSError as error:
            self._error = error
        return len(view)

    def readinto(self, buffer: "Buffer") -> int:
        """Read what lies there, and zeros beyond."""
        view = memoryview(buffer).cast("B")
        found = self._file.readinto(view) or 0
        view[found:] = bytes(len(view) - found)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size, or note why not."""
        try:
            return self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def checked(self, blocks: Iterable[Block]) -> Iterator[Block]:
        """Yield blocks until writing has failed."""
        for block in blocks:
            if self._error is not None:
                raise self._error
            yield block

    def settle(self) -> None:
        """Force everything to the disk; raise the error that was kept, if there was one."""
        if self._error is not None:
            raise self._error
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


def sync(path: Path) -> None:
    """Force a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_header(file: h5py.File, header: Header, file_format: str) -> None:
    fingerprint = header.fingerprint
    _write_text(file, "format", file_format)
    file.attrs["format_version"] = FORMAT_VERSION
    _write_text(file, "fingerprint", fingerprint.digest)
    _write_text(file, "backbone", fingerprint.backbone)
    _write_text(file, "weights", header.weights)
    _write_text(file, "weights_origin", header.weights_origin)
    _write_text(file, "weights_sha256", fingerprint.weights_sha256)
    _write_text(file, "preprocessing", json.dumps(dict(fingerprint.preprocessing), sort_keys=True))
    _write_text(file, "precision", fingerprint.precision)
    _write_text(file, "compute", header.compute)
    if header.weights_path:
        _write_text(file, "weights_path", header.weights_path)
    file.attrs["dim"] = header.dim
    _write_text(file, "versions", json.dumps(library_versions(), sort_keys=True))


def library_versions() -> dict[str, str]:
    """Return the versions of what computes and stores embeddings, without importing it."""
    found = {}
    for package in ("hoarfrost", "torch", "torchvision", "pillow", "pydicom", "numpy", "h5py"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def hdf5_version() -> str:
    """Return the version of the HDF5 library, and of h5py."""
    return f"{h5py.version.hdf5_version}, h5py {h5py.__version__}"


def _write_text(target: h5py.Group, name: str, text: str) -> None:
    # Fixed length, so that it lies inside the checksummed header; variable-length text lies in a heap without one.
    content = text.encode("utf-8", "surrogateescape")
    target.attrs.create(name, np.bytes_(content), dtype=h5py.string_dtype("utf-8", max(len(content), 1)))


def _write_images(file: h5py.File, n_images: int, dim: int, blocks: Iterable[Block]) -> bytes:
    """Write keys, embeddings and checksums; give what tells this content."""
    images = file.create_group("images")
    chunk_rows = max(1, min(rows_per_chunk(dim), n_images))
    keys = _checked_dataset(images, "key", (n_images, KEY_BYTES), np.uint8, (chunk_rows, KEY_BYTES))
    embeddings = _checked_dataset(images, "embedding", (n_images, dim), np.float32, (chunk_rows, dim))
    row_sums = np.zeros(n_images, np.uint32)
    chunk_sums = np.zeros(-(-n_images // chunk_rows), np.uint32)
    content = hashlib.sha256()
    start = 0
    for block in _rechunked(blocks, chunk_rows):
        stop = start + len(block.keys)
        content.update(np.ascontiguousarray(block.keys).data)
        keys[start:stop] = block.keys
        embeddings[start:stop] = block.embeddings
        row_sums[start:stop] = row_checksums(block)
        chunk_sums[start // chunk_rows] = zlib.crc32(np.ascontiguousarray(block.embeddings).data)
        start = stop
    if start != n_images:
        raise CacheError(f"{start} images given where {n_images} were announced")
    _checked_dataset(images, "row_crc32", (n_images,), np.uint32, (max(1, min(n_images, 1 << 16)),))[...] = row_sums
    _checked_dataset(images, "chunk_crc32", chunk_sums.shape, np.uint32, (max(1, len(chunk_sums)),))[...] = chunk_sums
    content.update(row_sums.data)
    return content.digest()


def _checked_dataset(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, chunks: tuple[int, ...], **filters: Any
) -> h5py.Dataset:
    room = tuple(max(1, size) for size in shape)  # HDF5 has no chunks of nothing
    return group.create_dataset(name, shape, dtype, maxshape=room, chunks=chunks, fletcher32=True, **filters)


def _rechunked(blocks: Iterable[Block], chunk_rows: int) -> Iterator[Block]:
    """Split blocks of any size into whole chunks; the last may be shorter."""
    rest: Block | None = None
    for block in blocks:
        keys, embeddings = block
        if rest is not None:
            keys, embeddings = np.concatenate([rest.keys, keys]), np.concatenate([rest.embeddings, embeddings])
        whole = len(keys) - len(keys) % chunk_rows
        for start in range(0, whole, chunk_rows):
            yield Block(keys[start : start + chunk_rows], embeddings[start : start + chunk_rows])
        rest = Block(keys[whole:], embeddings[whole:]) if whole < len(keys) else None
    if rest is not None:
        yield rest


def row_checksums(block: Block) -> npt.NDArray[np.uint32]:
    """CRC-32 of each image's key and embedding together: a row in another's place is detected, too."""
    pairs = zip(np.ascontiguousarray(block.keys), np.ascontiguousarray(block.embeddings), strict=True)
    return np.fromiter((zlib.crc32(row, zlib.crc32(key)) for key, row in pairs), np.uint32, len(block.keys))


def _write_tables(file: h5py.File, tables: Iterable[DatasetTable], pending: Iterable[DatasetTable]) -> None:
    for group, group_tables in (("datasets", tables), ("pending", pending)):
        members = file.create_group(group)
        for table in group_tables:
            _write_table(members, table)


def _write_table(datasets: h5py.Group, table: DatasetTable) -> None:
    group = datasets.create_group(table.name)
    _write_text(group, "source", table.source)
    _write_text(group, "root", table.root)
    _write_text(group, "classes", json.dumps(sorted(set(table.labels.values()))))
    _write_text(group, "created", table.created or datetime.now(UTC).isoformat(timespec="seconds"))
    for name, numbers in (("row", table.rows), ("size", table.sizes), ("mtime_ns", table.mtimes_ns)):
        _checked_dataset(group, name, numbers.shape, np.int64, (max(1, min(len(numbers), 1 << 16)),))[...] = numbers
    _write_column(group, "path", table.paths)
    _write_column(group, "label", table.labels)
    _write_column(group, "error", table.errors)
    if table.splits is not None:
        _write_column(group, "split", table.splits)
    if table.patients is not None:
        _write_column(group, "patient", table.patients)
    attributes = group.create_group("attributes")
    for name, column in table.attributes.items():
        _write_column(attributes, name, column)


def _write_column(group: h5py.Group, name: str, texts: Texts) -> None:
    width = int(texts.lengths.max(initial=1))
    if width > MAX_CELL_BYTES:
        raise CacheError(f"a {name} of {width} bytes is more than a cache holds ({MAX_CELL_BYTES})")
    chunk = max(1, min(len(texts), (1 << 20) // width))
    dtype = h5py.string_dtype("utf-8", width)
    filters = {"compression": "gzip", "compression_opts": 1, "shuffle": False}
    data = _checked_dataset(group, name, (len(texts),), dtype, (chunk,), **filters)
    for first in range(0, len(texts), chunk):
        data[first : first + chunk] = np.array(texts[first : first + chunk].encoded(), dtype)
