"""The images of one file: keys and embeddings, every byte that is read checked."""

import os
import zlib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.layout import Block, Embeddings, Keys, row_bytes, rows_per_chunk
from hoarfrost.features.cache.opened import HDF5_ERRORS, DamagedCacheError, OpenedFile
from hoarfrost.features.errors import CacheError
from hoarfrost.features.fingerprint import KEY_BYTES

FLETCHER_BYTES = 4  # HDF5 appends the Fletcher-32 sum to each chunk


class Chunk(NamedTuple):
    """A chunk of embeddings: its number, the rows it holds, and where in the file it lies."""

    number: int
    start: int
    stop: int
    offset: int


class StoredImages:
    """What `/images` of an opened file holds; rows count from 0 in each file.

    Raises
    ------
    DamagedCacheError
        On making and reading it.
    """

    def __init__(self, file: OpenedFile) -> None:
        self._opened = file
        self._file = file.root
        self.path: Path = file.path
        self.dim = file.header.dim
        self.n_images = self._check_images()

    def _check_images(self) -> int:
        with self._opened.reading("/images"):
            images = self._opened.child(self._file, "images", h5py.Group)
            keys = self._opened.dataset(images, "key")
            embeddings = self._opened.dataset(images, "embedding")
            n_images = int(keys.shape[0])
            expected: dict[str, tuple[Any, tuple[int, ...], Any]] = {
                "key": (keys, (n_images, KEY_BYTES), np.uint8),
                "embedding": (embeddings, (n_images, self.dim), np.float32),
                "row_crc32": (self._opened.dataset(images, "row_crc32"), (n_images,), np.uint32),
                "chunk_crc32": (
                    self._opened.dataset(images, "chunk_crc32"), (-(-n_images // embeddings.chunks[0]),), np.uint32,
                ),
            }  # fmt: skip
            for name, (data, shape, dtype) in expected.items():
                if data.shape != shape or data.dtype != dtype:
                    raise self._opened.damaged(
                        f"/images/{name} is {data.dtype} {data.shape}, not {np.dtype(dtype)} {shape}"
                    )
            if embeddings.chunks[1] != self.dim or embeddings.chunks[0] > rows_per_chunk(self.dim):
                raise self._opened.damaged(f"/images/embedding has chunks of {embeddings.chunks}")
            return n_images

    def keys(self, rows: slice = slice(None)) -> Keys:
        """Read keys, (n, 32) uint8; all by default."""
        with self._opened.reading("/images/key"):
            keys: Keys = self._file["images/key"][rows]
            return keys

    @cached_property
    def row_sums(self) -> npt.NDArray[np.uint32]:
        """CRC-32 of each row's key and embedding, (N,) uint32."""
        with self._opened.reading("/images/row_crc32"):
            sums: npt.NDArray[np.uint32] = self._file["images/row_crc32"][...]
            return sums

    @cached_property
    def chunks(self) -> list[Chunk]:
        """Where each chunk of embeddings lies: HDF5's own index, which carries a checksum."""
        data = self._file["images/embedding"]
        size = self._opened.size
        chunks: list[Chunk] = []
        with self._opened.reading("the index of /images/embedding"):
            found_chunks: list[Any] = []
            data.id.chunk_iter(found_chunks.append)  # one pass; asking for each by its number takes one for each
            for found in found_chunks:
                start = int(found.chunk_offset[0])
                stop = min(start + data.chunks[0], self.n_images)
                stored = data.chunks[0] * row_bytes(self.dim) + FLETCHER_BYTES
                if found.filter_mask or found.size != stored or found.byte_offset + stored > size:
                    raise self._opened.damaged(
                        f"the rows {start} to {stop - 1} of /images/embedding lie outside the file"
                    )
                chunks.append(Chunk(start // data.chunks[0], start, stop, found.byte_offset))
        return sorted(chunks)

    @cached_property
    def _chunk_sums(self) -> npt.NDArray[np.uint32]:
        with self._opened.reading("/images/chunk_crc32"):
            sums: npt.NDArray[np.uint32] = self._file["images/chunk_crc32"][...]
            return sums

    def blocks(self) -> Iterator[Block]:
        """Read all images a chunk at a time, in order; memory holds one."""
        for chunk in self.chunks:
            out = np.empty((chunk.stop - chunk.start, self.dim), np.float32)
            self.read_chunk(chunk, out)
            yield Block(self.keys(slice(chunk.start, chunk.stop)), out)

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
        for chunk in self.chunks:
            rows = slice(chunk.start, chunk.stop)
            try:
                keys[rows] = self._file["images/key"][rows]
                sound[rows] = self._sound_rows(chunk, keys[rows])
            except HDF5_ERRORS:  # HDF5's checksum of the keys fails: none of these rows can be told
                continue
        return keys, sound

    def _sound_rows(self, chunk: Chunk, keys: Keys) -> npt.NDArray[np.bool_]:
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
        """Yield the checksums that are damaged themselves, or do not match sound rows."""
        for read in (self.keys, lambda: self.row_sums):
            try:
                read()
            except DamagedCacheError as error:
                yield str(error)
        try:
            sums = self._chunk_sums
        except DamagedCacheError as error:
            yield str(error)
            return
        for chunk in self.chunks:
            if zlib.crc32(self._raw_chunk(chunk).data) != sums[chunk.number]:
                yield f"{self.path}: rows {chunk.start} to {chunk.stop - 1} do not match the checksum of their chunk"

    def raw_blocks(self, keys: Keys) -> Iterator[Block]:
        """Read all embeddings a chunk at a time without checking them; for who has asked `salvage`."""
        for chunk in self.chunks:
            yield Block(keys[chunk.start : chunk.stop], self._raw_chunk(chunk))

    def unreadable_by_others(self) -> Iterator[str]:
        """Yield the rows that fail HDF5's own checks but pass ours: other programs could not read them."""
        data = self._file["images/embedding"]
        for chunk in self.chunks:
            try:
                data[chunk.start : chunk.stop]
            except HDF5_ERRORS:
                yield f"{self.path}: rows {chunk.start} to {chunk.stop - 1}: HDF5's own checksum (Fletcher-32) does not match"

    def read_chunk(self, chunk: Chunk, out: Embeddings) -> None:
        """Read a chunk's embeddings against their CRC-32 into `out` (its rows, D) float32."""
        self._fill(chunk, out)
        if zlib.crc32(out.data) != self._chunk_sums[chunk.number]:
            raise DamagedCacheError(
                f"{self.path}: the embeddings of rows {chunk.start} to {chunk.stop - 1} do not match their checksum: "
                f"the file was altered or the disk failed. `hoarfrost cache verify {self._opened.cache}` names the images, "
                f"`hoarfrost cache compact {self._opened.cache}` drops them, and the next extract embeds them again."
            )

    def _raw_chunk(self, chunk: Chunk) -> Embeddings:
        out = np.empty((chunk.stop - chunk.start, self.dim), np.float32)
        self._fill(chunk, out)
        return out

    def _fill(self, chunk: Chunk, out: Embeddings) -> None:
        """Read straight into place: HDF5's own path copies each chunk twice, under one lock."""
        view = out.data.cast("B")
        if os.preadv(self._opened.number, [view], chunk.offset) != len(view):
            raise self._opened.damaged(f"the rows {chunk.start} to {chunk.stop - 1} are cut off")


class LostImages:
    """The images of a shard that cannot be opened: so many rows of which nothing is known but why."""

    def __init__(self, path: Path, n_images: int, error: CacheError) -> None:
        self.path, self.n_images, self.error = path, n_images, error

    def salvage(self) -> tuple[Keys, npt.NDArray[np.bool_]]:
        """Return zeros, and no row as sound."""
        return np.zeros((self.n_images, KEY_BYTES), np.uint8), np.zeros(self.n_images, bool)
