"""The images of one file: keys and embeddings, every byte that is read checked."""

import hashlib
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.layout import (
    ENCODERS_OWN,
    Block,
    Checksums,
    Embeddings,
    Keys,
    Mask,
    row_bytes,
    row_keys,
    rows_per_chunk,
)
from hoarfrost.features.cache.opened import HDF5_ERRORS, DamagedCacheError, OpenedFile
from hoarfrost.features.errors import CacheError
from hoarfrost.features.facts import MAX_KINDS, NUMBERS, Facts, Kinds
from hoarfrost.features.files.local import read_at

_FIELDS = tuple(NUMBERS.names or ())
FLETCHER_BYTES = 4  # HDF5 appends the Fletcher-32 sum to each chunk


class Chunk(NamedTuple):
    """A chunk of embeddings: its number, its rows, and its offset in the file."""

    number: int
    start: int
    stop: int
    offset: int

    def __str__(self) -> str:
        return f"rows {self.start} to {self.stop - 1}"

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


class StoredImages:
    """The content of `/images` of an opened file; rows count from 0 in each file. Damage raises DamagedCacheError.

    With `by_view` keys are those of version 2, whatever version the file has.
    """

    def __init__(self, file: OpenedFile, *, by_view: bool = False) -> None:
        self._opened = file
        self._key_bytes = file.header.key_bytes
        self._suffix = ENCODERS_OWN if by_view and not file.header.views else b""
        self._file = file.root
        self.path: Path = file.path
        self.dim = file.header.dim
        self.n_images = self._check_images()

    def _check_images(self) -> int:
        with self._opened.reading("/images"):
            images = self._opened.child(self._file, "images", h5py.Group)
            names = ("key", "embedding", "row_crc32", "chunk_crc32")
            keys, embeddings, row_sums, chunk_sums = (self._opened.dataset(images, name) for name in names)
            n_images, chunk_rows = int(keys.shape[0]), embeddings.chunks[0]
            expected: list[tuple[Any, tuple[int, ...], Any]] = [
                (keys, (n_images, self._key_bytes), np.uint8),
                (embeddings, (n_images, self.dim), np.float32),
                (row_sums, (n_images,), np.uint32),
                (chunk_sums, (-(-n_images // chunk_rows),), np.uint32),
            ]
            for data, shape, dtype in expected:
                if data.shape != shape or data.dtype != dtype:
                    raise self._opened.damaged(
                        f"{data.name} is {data.dtype} {data.shape}, not {np.dtype(dtype)} {shape}"
                    )
            if embeddings.chunks[1] != self.dim or chunk_rows > rows_per_chunk(self.dim):
                raise self._opened.damaged(f"/images/embedding has chunks of {embeddings.chunks}")
            self._facts_fault: DamagedCacheError | None = None
            self.has_facts = "facts" in images and self._has_sound_facts(images, n_images)
            return n_images

    def _has_sound_facts(self, images: h5py.Group, n_images: int) -> bool:
        """Return whether facts have the structure of facts; embeddings are sound without them."""
        try:
            with self._opened.reading("/images/facts"):
                self._check_facts(images, n_images)
        except DamagedCacheError as error:
            self._facts_fault = error
            return False
        return True

    def _check_facts(self, images: h5py.Group, n_images: int) -> None:
        """Check that there are facts of each row, of the types that they are read as; a later version may have more."""
        facts, kinds = self._opened.dataset(images, "facts"), self._opened.child(images, "kinds", h5py.Group)
        fields = facts.dtype.fields or {}
        is_sound = facts.shape == (n_images,) and all(fields.get(name, [None])[0] == NUMBERS[name] for name in _FIELDS)
        if not is_sound or any(kind.kind not in "iuf" for kind, *_ in fields.values()):
            raise self._opened.damaged(f"{facts.name} is not a column of images' facts")
        for name in Kinds._fields:
            column = self._opened.dataset(kinds, name)
            if column.dtype.kind != "S" or column.ndim != 1 or len(column) > MAX_KINDS + 1:
                raise self._opened.damaged(f"{column.name} is not a column of kinds")

    def _values(self, name: str, rows: slice = slice(None)) -> npt.NDArray[Any]:
        with self._opened.reading(f"/images/{name}"):
            return np.asarray(self._file[f"images/{name}"][rows])

    def facts(self, rows: slice) -> Facts | None:
        """Read the facts of rows' images; None if the file has none."""
        if not self.has_facts:
            return None
        stored, kinds = self._values("facts", rows), self._kinds
        numbers = np.zeros(len(stored), NUMBERS)
        for name in _FIELDS:
            numbers[name] = stored[name]
        if len(numbers) and numbers["kind"].max() >= len(kinds):
            raise self._opened.damaged("/images/facts points to kinds that are not there")
        return Facts(numbers, kinds)

    @cached_property
    def _kinds(self) -> tuple[Kinds, ...]:
        columns = [self._values(f"kinds/{name}").tolist() for name in Kinds._fields]
        with self._opened.reading("/images/kinds"):
            return tuple(Kinds(*(cell.decode() for cell in cells)) for cells in zip(*columns, strict=True))

    def _sound_facts(self, rows: slice) -> Facts | None:
        """Read the facts of rows' images; None if they are damaged."""
        try:
            return self.facts(rows)
        except DamagedCacheError:
            return None

    def keys(self, rows: slice = slice(None)) -> Keys:
        """Read the keys of rows, (n, K) uint8; all by default."""
        return self._completed(self._values("key", rows))

    def _completed(self, keys: Keys) -> Keys:
        return row_keys(keys, self._suffix) if self._suffix else keys

    def content(self, keys: Keys) -> bytes:
        """Return `Shard.content`, from all keys as `salvage` returned them."""
        stored = np.ascontiguousarray(keys[:, : self._key_bytes])
        return hashlib.sha256(stored.tobytes() + self.row_sums.tobytes()).digest()

    @cached_property
    def row_sums(self) -> Checksums:
        """CRC-32 of each row's key and embedding, (N,) uint32."""
        return self._values("row_crc32")

    @cached_property
    def _chunk_sums(self) -> Checksums:
        return self._values("chunk_crc32")

    @cached_property
    def chunks(self) -> list[Chunk]:
        """The chunks of embeddings in order, from HDF5's own index, which has a checksum."""
        data, size = self._file["images/embedding"], self._opened.size
        stored = data.chunks[0] * row_bytes(self.dim) + FLETCHER_BYTES
        chunks: list[Chunk] = []
        with self._opened.reading("the index of /images/embedding"):
            found_chunks: list[Any] = []
            data.id.chunk_iter(found_chunks.append)  # one pass; asking for each by its number takes one for each
            for found in found_chunks:
                start = int(found.chunk_offset[0])
                stop = min(start + data.chunks[0], self.n_images)
                chunk = Chunk(start // data.chunks[0], start, stop, found.byte_offset)
                if found.filter_mask or found.size != stored or found.byte_offset + stored > size:
                    raise self._opened.damaged(f"{chunk} of /images/embedding are outside the file")
                chunks.append(chunk)
        return sorted(chunks)

    def blocks(self) -> Iterator[Block]:
        """Read all images a chunk at a time, in order; memory holds one."""
        for chunk in self.chunks:
            out = np.empty((chunk.n_rows, self.dim), np.float32)
            self.read_chunk(chunk, out)
            rows = slice(chunk.start, chunk.stop)
            yield Block(self.keys(rows), out, self._sound_facts(rows))

    def salvage(self) -> tuple[Keys, Mask]:
        """Read what can be trusted of a file that may be damaged.

        Returns
        -------
        keys : ndarray (N, K) uint8
            Zeros where they cannot be read.
        sound : ndarray (N,) bool
            Which rows' key and embedding match their checksum.
        """
        keys, sound = _unread(self.n_images, self._key_bytes)
        for chunk in self.chunks:
            rows = slice(chunk.start, chunk.stop)
            try:
                keys[rows] = self._file["images/key"][rows]
                sound[rows] = self._sound_rows(chunk, keys[rows])
            except HDF5_ERRORS:  # HDF5's checksum of the keys fails: none of these rows can be trusted
                continue
        return self._completed(keys), sound

    def _sound_rows(self, chunk: Chunk, keys: Keys) -> Mask:
        embeddings = self._raw_chunk(chunk)
        try:
            wanted = self.row_sums[chunk.start : chunk.stop]
        except DamagedCacheError:  # the sums themselves are damaged: the chunk's and HDF5's vouch for the rows
            return np.full(len(keys), zlib.crc32(embeddings.data) == self._chunk_sums[chunk.number])
        same: Mask = Block(keys, embeddings).checksums() == wanted
        return same

    def damaged_sums(self) -> Iterator[str]:
        """Yield the checksums that are damaged themselves, or do not match sound rows."""
        sums: Checksums | None = None
        for name in ("key", "row_crc32", "chunk_crc32"):
            try:
                sums = self._values(name)
            except DamagedCacheError as error:
                sums = None
                yield str(error)
        if self._facts_fault is not None:
            yield str(self._facts_fault)
        try:
            self.facts(slice(None))
        except DamagedCacheError as error:
            yield str(error)
        if sums is not None:  # those of the chunks, which were read last
            for chunk in self.chunks:
                if zlib.crc32(self._raw_chunk(chunk).data) != sums[chunk.number]:
                    yield f"{self.path}: {chunk} do not match the checksum of their chunk"

    def raw_blocks(self, keys: Keys) -> Iterator[Block]:
        """Read all embeddings a chunk at a time without checking them, for a caller that has called `salvage`.

        Facts that are damaged are left out.
        """
        for chunk in self.chunks:
            rows = slice(chunk.start, chunk.stop)
            yield Block(keys[rows], self._raw_chunk(chunk), self._sound_facts(rows))

    def unreadable_by_others(self) -> Iterator[str]:
        """Yield the rows that pass our checks but fail HDF5's own: other programs could not read them."""
        data = self._file["images/embedding"]
        for chunk in self.chunks:
            try:
                data[chunk.start : chunk.stop]
            except HDF5_ERRORS:
                yield f"{self.path}: {chunk} do not match HDF5's own checksum (Fletcher-32); other programs cannot read them"

    def read_chunk(self, chunk: Chunk, out: Embeddings) -> None:
        """Read a chunk's embeddings into `out` (its rows, D) float32, and check them against their CRC-32."""
        self._fill(chunk, out)
        if zlib.crc32(out.data) != self._chunk_sums[chunk.number]:
            raise DamagedCacheError(
                f"{self.path}: the embeddings of {chunk} do not match their checksum: "
                f"the file was altered or the disk failed. `hoarfrost cache verify {self._opened.cache}` names the images, "
                f"`hoarfrost cache compact {self._opened.cache}` drops them, and the next extract embeds them again."
            )

    def _raw_chunk(self, chunk: Chunk) -> Embeddings:
        out = np.empty((chunk.n_rows, self.dim), np.float32)
        self._fill(chunk, out)
        return out

    def _fill(self, chunk: Chunk, out: Embeddings) -> None:
        """Read straight into place: HDF5's own path copies each chunk twice, under one lock."""
        view = out.data.cast("B")
        if read_at(self._opened.descriptor, str(self._opened.path), view, chunk.offset) != len(view):
            raise self._opened.damaged(f"{chunk} are truncated")


class LostImages:
    """The images of a shard that cannot be opened: their number and the reason are all that is known of them."""

    def __init__(self, path: Path, n_images: int, key_bytes: int, error: CacheError) -> None:
        self.path, self.n_images, self.error = path, n_images, error
        self._key_bytes = key_bytes

    def salvage(self) -> tuple[Keys, Mask]:
        """Return zeros, and no row as sound."""
        return _unread(self.n_images, self._key_bytes)


def _unread(n_images: int, key_bytes: int) -> tuple[Keys, Mask]:
    """Return keys of zeros, and a mask by which no row is sound."""
    return np.zeros((n_images, key_bytes), np.uint8), np.zeros(n_images, bool)
