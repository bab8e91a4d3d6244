"""One npz file in MedMNIST's layout."""

import math
import os
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.table import Content, Dataset, Stamps
from hoarfrost.features.errors import DatasetError, ImageDecodeError, Unreadable
from hoarfrost.features.files import FileStamp

CHECK_SECONDS = 1.0  # that rows wait for their checksum at most
_BLOCK_BYTES = 1 << 20
_ENCRYPTED = 1  # of a zip member's flags
_LENGTHS_AT = 26  # in a zip member's local header: those of its name and of its extra field, which end it


@dataclass(frozen=True)
class NpzImages:
    """Images that are rows of `train_images`, `val_images` and `test_images` in one npz file."""

    path: str
    counts: dict[str, int]

    @property
    def location(self) -> str:
        """The npz file, absolute and with links followed."""
        return os.path.realpath(self.path)

    @property
    def is_remote(self) -> bool:
        """A row never is."""
        return False

    def stamp(self, index: int) -> FileStamp:  # noqa: ARG002 - the protocol's
        """Return size and mtime of the npz file: its rows change together."""
        status = os.stat(self.path)
        return FileStamp(status.st_size, status.st_mtime_ns)

    def stamps(self, *, of_urls: bool) -> Stamps:  # noqa: ARG002 - the protocol's
        """Return the npz file's for all rows; none can be missing, for their number is that of the file's header."""
        n, stamp = sum(self.counts.values()), self.stamp(0)
        return Stamps(np.full(n, stamp.size), np.full(n, stamp.mtime_ns), np.zeros(n, bool))

    def contents(self, indices: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        """Stream the wanted rows: what is compressed is decompressed once, never held whole; the rest is read row by row."""
        wanted = set(indices)
        start = 0
        for split, count in self.counts.items():
            rows = {index - start for index in wanted if start <= index < start + count}
            try:
                for row, read in _npz_rows(self.path, f"{split}_images", rows) if rows else ():
                    yield start + row, read
            except Exception as error:  # as in _read_npz
                raise DatasetError(f"{self.path}: {split}_images is damaged: {error}. Copy the file again.") from error
            start += count

    def subset(self, indices: Sequence[int]) -> "NpzRows":
        """Return these rows alone."""
        return NpzRows(NpzImages(self.location, self.counts), tuple(indices))


@dataclass(frozen=True)
class NpzRows:
    """Some of an npz file's images: those at `rows` (ascending) of all that it has."""

    images: NpzImages
    rows: tuple[int, ...]

    @property
    def location(self) -> str:
        """The npz file, absolute and with links followed."""
        return self.images.location

    def stamp(self, index: int) -> FileStamp:
        """Return size and mtime of the npz file."""
        return self.images.stamp(self.rows[index])

    @property
    def is_remote(self) -> bool:
        """A row never is."""
        return False

    def stamps(self, *, of_urls: bool) -> Stamps:
        """Return size and mtime of the npz file, for each row."""
        stamps, rows = self.images.stamps(of_urls=of_urls), np.array(self.rows, np.int64)
        return Stamps(stamps.sizes[rows], stamps.mtimes_ns[rows], stamps.missing[rows])

    def contents(self, indices: Sequence[int]) -> "Iterator[tuple[int, Callable[[], Content]]]":
        """Stream the wanted rows, as the file's images do."""
        places = {self.rows[index]: index for index in indices}
        for row, read in self.images.contents(list(places)):
            yield places[row], read

    def subset(self, indices: Sequence[int]) -> "NpzRows":
        """Return some of these rows."""
        return NpzRows(self.images, tuple(self.rows[index] for index in indices))


def _identity(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    return pixels


def read_npz(path: Path, name: str, *, labelled: bool = True) -> Dataset:
    """Read the table of an npz file, labels only if it is to be labelled; the pixels stay where they are."""
    try:
        counts, labels = _npz_splits(path, labelled=labelled)
    except DatasetError:
        raise
    # Damaged archives and arrays surface as nearly anything: BadZipFile, zlib.error, KeyError, RuntimeError (encrypted)...
    except Exception as error:
        raise DatasetError(f"{path}: not a readable npz file: {error}. Copy it again, or write it anew.") from error
    if not counts or (labelled and "train" not in counts):
        raise DatasetError(
            f"{path}: no array 'train_images'; expected MedMNIST's train_images, train_labels, val_images…."
        )
    paths = Texts.of(f"{path.name}/{split}/{row}" for split, count in counts.items() for row in range(count))
    images = NpzImages(str(path), counts)
    if not labelled:
        return Dataset(name, str(path), paths, Texts.repeated("", len(paths)), None, None, images)
    splits = Texts.joined(Texts.repeated(split, count) for split, count in counts.items())
    if len({of_split.shape[1] for of_split in labels.values()}) > 1:
        raise DatasetError(f"{path}: the splits' labels have different numbers of columns. Write the file anew.")
    columns = [Texts.of(column.tolist()) for column in np.concatenate(list(labels.values())).T]  # one, or one a label
    if len(columns) == 1:
        return Dataset(name, str(path), paths, columns[0], splits, None, images)
    attributes = {f"label {i}": column for i, column in enumerate(columns)}
    return Dataset(name, str(path), paths, Texts.repeated("", len(paths)), splits, None, images, attributes)


def _npz_splits(path: Path, *, labelled: bool) -> tuple[dict[str, int], dict[str, npt.NDArray[np.str_]]]:
    """Count each split's images; read its labels if they are wanted, and check that they match."""
    counts: dict[str, int] = {}
    labels: dict[str, npt.NDArray[np.str_]] = {}
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise DatasetError(f"{path}: not an npz file (a zip archive of arrays), or truncated. Copy it again.")
        with zipfile.ZipFile(file) as archive:
            arrays = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
            for split in ("train", "val", "test"):
                if f"{split}_images" not in arrays:
                    continue
                if labelled and f"{split}_labels" not in arrays:
                    raise DatasetError(f"{path}: {split}_images has no {split}_labels beside it.")
                with archive.open(f"{split}_images.npy") as member:
                    counts[split] = _npz_header(path, split, member)[0]
                if not labelled:
                    continue
                labels[split] = _npz_labels(path, f"{split}_labels", archive)
                if counts[split] != len(labels[split]):
                    raise DatasetError(
                        f"{path}: {counts[split]} {split}_images but {len(labels[split])} {split}_labels."
                    )
    return counts, labels


def _npz_labels(path: Path, key: str, archive: zipfile.ZipFile) -> npt.NDArray[np.str_]:
    """Read labels as texts, (n, C): one column, or one of 0 and 1 for each label as in ChestMNIST."""
    with archive.open(f"{key}.npy") as member:
        labels = np.lib.format.read_array(member, allow_pickle=False)
    labels = labels[:, None] if labels.ndim == 1 else labels
    if labels.ndim != 2 or labels.shape[1] == 0:
        raise DatasetError(
            f"{path}: {key} has the shape {labels.shape}; expected (n,) or (n, 1), or (n, C) of 0 and 1, a column a label."
        )
    if labels.dtype.kind not in "iubU":
        raise DatasetError(f"{path}: {key} is {labels.dtype}; expected whole numbers or text.")
    if labels.shape[1] > 1 and not np.isin(labels, (0, 1)).all():
        raise DatasetError(f"{path}: {key} has {labels.shape[1]} columns, and not only 0 and 1 in them.")
    texts = np.array([[str(label) for label in row] for row in labels.tolist()])
    if any(not text.isprintable() for text in texts.ravel().tolist()):
        raise DatasetError(f"{path}: {key} holds text that cannot be printed.")
    return texts.reshape(labels.shape)


def _npz_header(path: Path, split: str, member: IO[bytes]) -> tuple[int, ...]:
    """Read an npy header and leave `member` at the first pixel."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(member)
    is_image = len(shape) in {3, 4} and shape[3:] in {(), (1,), (3,)} and 0 not in shape[1:3]
    if dtype != np.uint8 or fortran_order or not is_image:
        order = " in Fortran order" if fortran_order else ""
        raise DatasetError(
            f"{path}: {split}_images is {dtype} of shape {shape}{order}; "
            "expected uint8 (n, H, W) or (n, H, W, 3), in C order."
        )
    return tuple(shape)


def _npz_rows(path: str, key: str, rows: set[int]) -> Iterator[tuple[int, Callable[[], npt.NDArray[np.uint8]]]]:
    """Yield a function that reads it for each wanted row, in order."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as member:
        shape = _npz_header(Path(path), key.removesuffix("_images"), member)
        row_shape = shape[1:3] if shape[3:] == (1,) else shape[1:]
        n_bytes = int(np.prod(row_shape))
        info = archive.getinfo(f"{key}.npy")
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & _ENCRYPTED:
            yield from _stored_rows(path, info, member.tell(), row_shape, shape[0], rows)
            return
        for row in range(max(rows) + 1):
            content = member.read(n_bytes)
            if row in rows:
                yield row, partial(_identity, np.frombuffer(content, np.uint8).reshape(row_shape))


def _stored_rows(
    path: str, info: zipfile.ZipInfo, header_bytes: int, shape: tuple[int, ...], n_rows: int, rows: set[int]
) -> Iterator[tuple[int, Callable[[], npt.NDArray[np.uint8]]]]:
    """Read rows that are not compressed from their places in the file, in whichever thread wants them.

    By `pread`, not mapped: where a mapped file is cut short, the process is killed. The member's checksum covers all of
    its rows, so it is compared where the last one is wanted, in a thread of its own: up to `CHECK_SECONDS` before any
    row is given, for as long as a gigabyte takes; that of larger ones while theirs are given, and at their end.
    """
    n_bytes = math.prod(shape)
    if header_bytes + n_rows * n_bytes > info.file_size:
        raise ValueError(
            f"its header promises {n_rows * n_bytes:,} bytes, of which {info.file_size - header_bytes:,} are there"
        )
    file = _OpenFile(path)
    name_bytes, extra_bytes = struct.unpack("<HH", os.pread(file.number, 4, info.header_offset + _LENGTHS_AT))
    start = info.header_offset + _LENGTHS_AT + 4 + name_bytes + extra_bytes
    is_abandoned = threading.Event()
    with ThreadPoolExecutor(1, "checksum") as pool:
        try:
            check = pool.submit(_check, file, info, start, is_abandoned) if n_rows - 1 in rows else None
            if check is not None and wait([check], CHECK_SECONDS).done:
                check.result()
            for row in sorted(rows):
                yield row, partial(file.pixels, start + header_bytes + row * n_bytes, shape)
            if check is not None:
                check.result()
        finally:
            is_abandoned.set()


def _check(file: "_OpenFile", info: zipfile.ZipInfo, start: int, is_abandoned: threading.Event) -> None:
    """Compare a stored member's checksum."""
    checksum = 0
    for offset in range(0, info.file_size, _BLOCK_BYTES):
        if is_abandoned.is_set():
            return
        block = os.pread(file.number, min(_BLOCK_BYTES, info.file_size - offset), start + offset)
        checksum = zlib.crc32(block, checksum)
    if checksum != info.CRC:
        raise ValueError("its checksum is wrong")


class _OpenFile:
    """A file that is open as long as someone may read from it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    def pixels(self, start: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Read one image."""
        content = os.pread(self.number, math.prod(shape), start)
        if len(content) < math.prod(shape):
            raise ImageDecodeError(Unreadable.NPZ_CUT_SHORT)
        return np.frombuffer(content, np.uint8).reshape(shape)
