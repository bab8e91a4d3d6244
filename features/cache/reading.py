"""Reading one cache file: nothing is believed that was not checked."""

import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from features.cache.layout import (
    CHUNK_ROWS,
    DIM,
    FORMAT,
    FORMAT_VERSION,
    MAX_CELL_BYTES,
    MAX_TEXT_BYTES,
    ROW_BYTES,
    Block,
    DatasetTable,
    Embeddings,
    Header,
    Keys,
    Rows,
)
from features.errors import CacheError
from features.fingerprint import KEY_BYTES, Fingerprint

FLETCHER_BYTES = 4  # HDF5 appends the Fletcher-32 sum to each chunk
ALLOWED_FILTERS = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32})
MAX_DEFLATE_RATIO = 1100  # zlib cannot pack tighter; what declares more declares what is not there
READ_THREADS = 2
_HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)  # what h5py raises on damaged files

Member = TypeVar("Member", bound=h5py.Group)
Item = TypeVar("Item")


class DamagedCacheError(CacheError):
    """Bytes of the file are not what was written."""


class _Chunk(NamedTuple):
    """A chunk of embeddings: its number, the rows it holds, and where in the file it lies."""

    number: int
    start: int
    stop: int
    offset: int


class CacheFile:
    """One file of the format, open for reading; a context manager.

    It may come from elsewhere: links out of it, foreign filters and declared sizes that the file
    does not have are refused, and every byte that is read is checked.

    Raises
    ------
    CacheError
        On opening and reading: the file is missing, no cache, of a newer version, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CacheError(f"{path}: no such cache. Make one with `hoarfrost extract DATA --cache {path}`.")
        try:
            self._file = h5py.File(path, "r", locking=False)  # readers never block, nor are blocked
        except _HDF5_ERRORS as error:
            raise self._not_opened(error) from error
        try:
            self.header = self._read_header()
            self.n_images = self._check_images()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def _size(self) -> int:
        # Of the open file: another may have been renamed into its place.
        return os.fstat(self._file.id.get_vfd_handle()).st_size

    def _not_opened(self, error: Exception) -> CacheError:
        try:
            with self.path.open("rb") as file:
                begins = file.read(8)
        except OSError as unreadable:
            return CacheError(f"{self.path}: the cache cannot be read: {unreadable.strerror}.")
        if begins != b"\x89HDF\r\n\x1a\n":
            return DamagedCacheError(
                f"{self.path} is no hoarfrost cache (not an HDF5 file). Check the path given with --cache."
            )
        return self._damaged(f"it is truncated, or its HDF5 structure is broken ({error})")

    def _damaged(self, what: str) -> DamagedCacheError:
        return DamagedCacheError(
            f"{self.path}: the cache is damaged: {what}. `hoarfrost cache verify {self.path}` names what is lost, "
            "`hoarfrost cache compact` keeps what is sound; or remove the file and extract again."
        )

    @contextmanager
    def _reading(self, what: str) -> Iterator[None]:
        """Turn what h5py raises on damaged files into an error that says where."""
        try:
            yield
        except CacheError:
            raise
        except _HDF5_ERRORS as error:
            raise self._damaged(f"{what} cannot be read ({error})") from error

    # -- header ---------------------------------------------------------------------------------------------------

    def _read_header(self) -> Header:
        with self._reading("its root attributes"):
            if "format" not in self._file.attrs or self._text(self._file, "format") != FORMAT:
                raise DamagedCacheError(
                    f"{self.path} is an HDF5 file but no hoarfrost cache (no attribute format = {FORMAT!r}). "
                    "Check the path given with --cache."
                )
            found = self._number(self._file, "format_version")
            if found > FORMAT_VERSION:
                raise CacheError(
                    f"{self.path} was written by a newer hoarfrost (cache format {found}; this one reads up to "
                    f"{FORMAT_VERSION}). Upgrade hoarfrost, or name another --cache."
                )
            preprocessing = json.loads(self._text(self._file, "preprocessing"))
            if not isinstance(preprocessing, dict):
                raise self._damaged("its preprocessing is not a JSON object")
            backbone, sha256, precision = (
                self._text(self._file, name) for name in ("backbone", "weights_sha256", "precision")
            )
            fingerprint = Fingerprint(backbone, sha256, preprocessing, precision)
            if fingerprint.digest != self._text(self._file, "fingerprint"):
                raise self._damaged("its fingerprint is not that of the parts it names")
            return Header(
                fingerprint,
                weights=self._text(self._file, "weights"),
                weights_origin=self._text(self._file, "weights_origin"),
                compute=self._text(self._file, "compute"),
                weights_path=self._text(self._file, "weights_path") if "weights_path" in self._file.attrs else "",
            )

    def _text(self, owner: "h5py.Group", name: str) -> str:
        attribute = h5py.h5a.open(owner.id, name.encode())
        # Fixed-length text only: variable-length text could point anywhere and declare any size.
        if attribute.dtype.kind != "S" or attribute.shape != () or attribute.get_storage_size() > MAX_TEXT_BYTES:
            raise self._damaged(f"the attribute {name!r} is not a short text")
        value = np.empty((), attribute.dtype)
        attribute.read(value)
        return bytes(value[()]).decode("utf-8", "surrogateescape")

    def _number(self, owner: "h5py.Group", name: str) -> int:
        attribute = h5py.h5a.open(owner.id, name.encode())
        if attribute.dtype.kind not in "iu" or attribute.shape != ():
            raise self._damaged(f"the attribute {name!r} is not a whole number")
        value = np.empty((), attribute.dtype)
        attribute.read(value)
        return int(value)

    # -- structure ------------------------------------------------------------------------------------------------

    def _child(self, group: h5py.Group, name: str, kind: "type[Member]") -> "Member":
        """Get a member that lies in this very file: a hard link, never a soft or external one."""
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise self._damaged(f"{group.name}/{name} is a link, not data")
        child = group[name]
        if not isinstance(child, kind):
            raise self._damaged(f"{group.name}/{name} is not a {kind.__name__.lower()}")
        return child

    def _dataset(self, group: h5py.Group, name: str) -> Any:
        """Get a data set whose declared size is covered by bytes that are there."""
        data = self._child(group, name, h5py.Dataset)
        plan = data.id.get_create_plist()
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        if data.is_virtual or data.external or data.chunks is None or not ALLOWED_FILTERS.issuperset(filters):
            raise self._damaged(f"{data.name} is not stored as this format stores it")
        if h5py.h5z.FILTER_FLETCHER32 not in filters:
            raise self._damaged(f"{data.name} has no checksums")
        ratio = MAX_DEFLATE_RATIO if h5py.h5z.FILTER_DEFLATE in filters else 1
        stored = min(data.id.get_storage_size(), self._size)
        n_chunks = -(-data.shape[0] // data.chunks[0]) if data.shape else 0
        chunk_bytes = int(np.prod(data.chunks)) * data.dtype.itemsize
        if data.id.get_num_chunks() != n_chunks or data.nbytes > stored * ratio or chunk_bytes > (1 << 24):
            raise self._damaged(f"{data.name} declares {data.nbytes} bytes, {stored} are there")
        return data

    def _check_images(self) -> int:
        with self._reading("/images"):
            images = self._child(self._file, "images", h5py.Group)
            keys = self._dataset(images, "key")
            embeddings = self._dataset(images, "embedding")
            n_images = int(keys.shape[0])
            expected: dict[str, tuple[Any, tuple[int, ...], Any]] = {
                "key": (keys, (n_images, KEY_BYTES), np.uint8),
                "embedding": (embeddings, (n_images, DIM), np.float32),
                "row_crc32": (self._dataset(images, "row_crc32"), (n_images,), np.uint32),
                "chunk_crc32": (
                    self._dataset(images, "chunk_crc32"), (-(-n_images // embeddings.chunks[0]),), np.uint32,
                ),
            }  # fmt: skip
            for name, (data, shape, dtype) in expected.items():
                if data.shape != shape or data.dtype != dtype:
                    raise self._damaged(f"/images/{name} is {data.dtype} {data.shape}, not {np.dtype(dtype)} {shape}")
            if embeddings.chunks[1] != DIM or embeddings.chunks[0] > CHUNK_ROWS:
                raise self._damaged(f"/images/embedding has chunks of {embeddings.chunks}")
            return n_images

    # -- images ---------------------------------------------------------------------------------------------------

    @cached_property
    def keys(self) -> Keys:
        """All keys, (N, 32) uint8."""
        with self._reading("/images/key"):
            keys: Keys = self._file["images/key"][...]
            return keys

    @cached_property
    def row_sums(self) -> npt.NDArray[np.uint32]:
        """CRC-32 of each row's key and embedding, (N,) uint32."""
        with self._reading("/images/row_crc32"):
            sums: npt.NDArray[np.uint32] = self._file["images/row_crc32"][...]
            return sums

    @cached_property
    def _chunks(self) -> list[_Chunk]:
        """Where each chunk of embeddings lies: HDF5's own index, which carries a checksum."""
        data = self._file["images/embedding"]
        size = self._size
        chunks: list[_Chunk] = []
        with self._reading("the index of /images/embedding"):
            for number in range(data.id.get_num_chunks()):
                found = data.id.get_chunk_info(number)
                start = int(found.chunk_offset[0])
                stop = min(start + data.chunks[0], self.n_images)
                stored = data.chunks[0] * ROW_BYTES + FLETCHER_BYTES
                if found.filter_mask or found.size != stored or found.byte_offset + stored > size:
                    raise self._damaged(f"the rows {start} to {stop - 1} of /images/embedding lie outside the file")
                chunks.append(_Chunk(start // data.chunks[0], start, stop, found.byte_offset))
        return sorted(chunks)

    @cached_property
    def _chunk_sums(self) -> npt.NDArray[np.uint32]:
        with self._reading("/images/chunk_crc32"):
            sums: npt.NDArray[np.uint32] = self._file["images/chunk_crc32"][...]
            return sums

    def embeddings(self, rows: Rows | None = None) -> Embeddings:
        """Read embeddings, every chunk against its CRC-32.

        Parameters
        ----------
        rows : ndarray (n,) int64, optional
            Which rows, in any order, repeated or not; all by default.

        Returns
        -------
        ndarray (n, 512) float32

        Raises
        ------
        DamagedCacheError
            If a wanted row's chunk fails its checksum; it names the rows.
        """
        if rows is None:
            out = np.empty((self.n_images, DIM), np.float32)
            self._each_chunk(self._chunks, lambda chunk: self._read_chunk(chunk, out[chunk.start : chunk.stop]))
            return out
        out = np.empty((len(rows), DIM), np.float32)
        order = np.argsort(rows, kind="stable")
        edges = np.array([[c.start, c.stop] for c in self._chunks], np.int64).reshape(-1, 2)
        bounds = np.searchsorted(rows[order], edges)
        wanted = [(c, order[low:high]) for c, (low, high) in zip(self._chunks, bounds, strict=True) if high > low]

        def read(item: tuple[_Chunk, Rows]) -> None:
            chunk, places = item
            scratch = np.empty((chunk.stop - chunk.start, DIM), np.float32)
            self._read_chunk(chunk, scratch)
            out[places] = scratch[rows[places] - chunk.start]

        self._each_chunk(wanted, read)
        return out

    def blocks(self) -> Iterator[Block]:
        """Read all images a chunk at a time, in order; memory holds one."""
        for chunk in self._chunks:
            out = np.empty((chunk.stop - chunk.start, DIM), np.float32)
            self._read_chunk(chunk, out)
            yield Block(self.keys[chunk.start : chunk.stop], out)

    def salvage(self) -> tuple[Keys, npt.NDArray[np.bool_]]:
        """Read what can be trusted of a file that may be damaged.

        Returns
        -------
        keys : ndarray (N, 32) uint8
            Zeros where they cannot be read.
        sound : ndarray (N,) bool
            Which rows' key and embedding match their checksum.
        """
        keys = np.zeros((self.n_images, KEY_BYTES), np.uint8)
        sound = np.zeros(self.n_images, bool)
        for chunk in self._chunks:
            rows = slice(chunk.start, chunk.stop)
            try:
                keys[rows] = self._file["images/key"][rows]
                sound[rows] = self._sound_rows(chunk, keys[rows])
            except _HDF5_ERRORS:  # HDF5's checksum of the keys fails: none of these rows can be told
                continue
        return keys, sound

    def _sound_rows(self, chunk: _Chunk, keys: Keys) -> npt.NDArray[np.bool_]:
        embeddings = self._raw_chunk(chunk)
        try:
            wanted = self.row_sums[chunk.start : chunk.stop]
        except DamagedCacheError:  # the sums themselves are damaged: the chunk's and HDF5's vouch for the rows
            return np.full(len(keys), zlib.crc32(embeddings.data) == self._chunk_sums[chunk.number])
        pairs = zip(keys, embeddings, strict=True)
        sums = np.array([zlib.crc32(embedding, zlib.crc32(key)) for key, embedding in pairs], np.uint32)
        same: npt.NDArray[np.bool_] = sums == wanted
        return same

    def damaged_sums(self) -> Iterator[str]:
        """Name the checksums that are damaged themselves, or are not those of sound rows."""
        for name in ("keys", "row_sums", "_chunk_sums"):
            try:
                getattr(self, name)
            except DamagedCacheError as error:
                yield str(error)
                if name == "_chunk_sums":
                    return
        for chunk in self._chunks:
            if zlib.crc32(self._raw_chunk(chunk).data) != self._chunk_sums[chunk.number]:
                yield f"{self.path}: rows {chunk.start} to {chunk.stop - 1} do not match the checksum of their chunk"

    def raw_blocks(self, keys: Keys) -> Iterator[Block]:
        """Read all embeddings a chunk at a time without checking them; for who has asked `salvage`."""
        for chunk in self._chunks:
            yield Block(keys[chunk.start : chunk.stop], self._raw_chunk(chunk))

    def unreadable_by_others(self) -> Iterator[str]:
        """Name the rows that HDF5's own checks refuse though ours pass: other programs could not read them."""
        data = self._file["images/embedding"]
        for chunk in self._chunks:
            try:
                data[chunk.start : chunk.stop]
            except _HDF5_ERRORS:
                yield f"{self.path}: rows {chunk.start} to {chunk.stop - 1}: HDF5's own checksum (Fletcher-32) does not match"

    def _each_chunk(self, items: "list[Item]", read: "Callable[[Item], None]") -> None:
        # Reading and CRC-32 release the interpreter's lock, so two threads check twice as fast.
        with ThreadPoolExecutor(READ_THREADS) as pool:
            for _ in pool.map(read, items):
                pass

    def _read_chunk(self, chunk: _Chunk, out: Embeddings) -> None:
        self._fill(chunk, out)
        if zlib.crc32(out.data) != self._chunk_sums[chunk.number]:
            raise DamagedCacheError(
                f"{self.path}: the embeddings of rows {chunk.start} to {chunk.stop - 1} do not match their checksum: "
                f"the file was altered or the disk failed. `hoarfrost cache verify {self.path}` names the images, "
                f"`hoarfrost cache compact {self.path}` drops them, and the next extract embeds them again."
            )

    def _raw_chunk(self, chunk: _Chunk) -> Embeddings:
        out = np.empty((chunk.stop - chunk.start, DIM), np.float32)
        self._fill(chunk, out)
        return out

    def _fill(self, chunk: _Chunk, out: Embeddings) -> None:
        """Read straight into place: HDF5's own path copies each chunk twice, under one lock."""
        view = out.data.cast("B")
        if os.preadv(self._file.id.get_vfd_handle(), [view], chunk.offset) != len(view):
            raise self._damaged(f"the rows {chunk.start} to {chunk.stop - 1} are cut off")

    # -- data sets ------------------------------------------------------------------------------------------------

    def table_names(self, members: str = "datasets") -> list[str]:
        """Give the names of the data sets in the file, or of the "pending" ones."""
        with self._reading(f"/{members}"):
            return sorted(self._child(self._file, members, h5py.Group))

    def table(self, name: str, members: str = "datasets") -> DatasetTable:
        """Read one data set's table, or what is "pending" of it.

        Raises
        ------
        CacheError
            If it is damaged, or points to embeddings that are not there.
        """
        with self._reading(f"the data set {name!r}"):
            group = self._child(self._child(self._file, members, h5py.Group), name, h5py.Group)
            attributes = self._child(group, "attributes", h5py.Group)
            table = DatasetTable(
                name=name,
                source=self._text(group, "source"),
                root=self._text(group, "root"),
                created=self._text(group, "created"),
                paths=self._column(group, "path"),
                rows=self._numbers(group, "row"),
                labels=self._column(group, "label"),
                errors=self._column(group, "error"),
                sizes=self._numbers(group, "size"),
                mtimes_ns=self._numbers(group, "mtime_ns"),
                splits=self._column(group, "split") if "split" in group else None,
                patients=self._column(group, "patient") if "patient" in group else None,
                attributes={column: self._column(attributes, column) for column in attributes},
            )
            self._check_table(table)
            return table

    def _check_table(self, table: DatasetTable) -> None:
        optional = [column for column in (table.splits, table.patients) if column is not None]
        columns = [table.labels, table.errors, *optional, *table.attributes.values()]
        lengths = {len(column) for column in columns} | {len(table.rows), len(table.sizes), len(table.mtimes_ns)}
        if lengths != {len(table.paths)}:
            raise self._damaged(f"the columns of the data set {table.name!r} differ in length")
        if len(table.rows) and not (table.rows.min() >= -1 and table.rows.max() < self.n_images):
            raise self._damaged(f"the data set {table.name!r} points to embeddings that are not there")

    def _numbers(self, group: h5py.Group, name: str) -> Rows:
        data = self._dataset(group, name)
        if data.dtype != np.int64 or data.ndim != 1:
            raise self._damaged(f"{data.name} is not a column of whole numbers")
        return np.asarray(data[...], np.int64)

    def _column(self, group: h5py.Group, name: str) -> list[str]:
        data = self._dataset(group, name)
        if data.dtype.kind != "S" or data.ndim != 1 or data.dtype.itemsize > MAX_CELL_BYTES:
            raise self._damaged(f"{data.name} is not a column of texts")
        text = lru_cache(1024)(lambda cell: cell.decode("utf-8", "surrogateescape"))  # equal labels are kept once
        parts = (data[first : first + CHUNK_ROWS] for first in range(0, len(data), CHUNK_ROWS))
        return [text(cell) for part in parts for cell in part.tolist()]
