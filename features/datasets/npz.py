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
from hoarfrost.features.files import FileStamp, stamp_of
from hoarfrost.features.files.local import read_at

CHECK_SECONDS = 1.0  # that rows wait at most for their checksum
_BLOCK_BYTES = 1 << 20
_ENCRYPTED = 1  # of a zip member's flags
_LENGTHS_AT = (
    26  # in a zip member's local header: the lengths of its name and extra field, after which its content begins
)


@dataclass(frozen=True)
class NpzImages:
    """Images that are rows of `train_images`, `val_images` and `test_images` in one npz file.

    `counts` are the numbers of rows by split; the images are those at `rows` (ascending) of all of them.
    """

    path: str
    counts: dict[str, int]
    rows: Sequence[int]
    is_remote = False

    @property
    def location(self) -> str:
        """The npz file, absolute and with links followed."""
        return os.path.realpath(self.path)

    def stamp(self, index: int) -> FileStamp:  # noqa: ARG002 - the protocol's
        """Return size and mtime of the npz file: its rows change together."""
        return stamp_of(self.path)

    def stamps(self, *, of_urls: bool) -> Stamps:  # noqa: ARG002 - the protocol's
        """Return the npz file's for all rows. None is missing: their number is the one in the file's header."""
        n, stamp = len(self.rows), stamp_of(self.path)
        return Stamps(np.full(n, stamp.size), np.full(n, stamp.mtime_ns), np.zeros(n, bool))

    def contents(self, indices: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        """Stream the wanted rows. Compressed rows are decompressed once and never held whole; others are read singly."""
        wanted = {self.rows[index]: index for index in indices}
        start = 0
        for split, count in self.counts.items():
            rows = {row - start for row in wanted if start <= row < start + count}
            try:
                for row, read in _npz_rows(self.path, f"{split}_images", rows) if rows else ():
                    yield wanted[start + row], read
            except Exception as error:  # as in `read_npz`
                raise DatasetError(f"{self.path}: {split}_images is damaged: {error}. Copy the file again.") from error
            start += count

    def region(self, index: int) -> None:
        """Return None: images are whole."""

    def subset(self, indices: Sequence[int]) -> "NpzImages":
        """Return only these rows."""
        return NpzImages(self.location, self.counts, tuple(self.rows[index] for index in indices))


def read_npz(path: Path, name: str, *, labelled: bool = True) -> Dataset:
    """Read the table of an npz file, with labels if `labelled`. No pixels are read."""
    try:
        counts, labels = _npz_splits(path, labelled=labelled)
    except DatasetError:
        raise
    # Damaged archives and arrays raise nearly anything: BadZipFile, zlib.error, KeyError, RuntimeError (encrypted)...
    except Exception as error:
        raise DatasetError(f"{path}: not a readable npz file: {error}. Copy it again, or create it again.") from error
    if not counts or (labelled and "train" not in counts):
        raise DatasetError(
            f"{path}: the array 'train_images' is missing. MedMNIST's layout has train_images, train_labels …"
        )
    paths = Texts.of(f"{path.name}/{split}/{row}" for split, count in counts.items() for row in range(count))
    images = NpzImages(str(path), counts, range(len(paths)))
    empty = Texts.repeated("", len(paths))
    if not labelled:
        return Dataset(name, str(path), paths, empty, None, None, images)
    splits = Texts.joined(Texts.repeated(split, count) for split, count in counts.items())
    if len({of_split.shape[1] for of_split in labels.values()}) > 1:
        raise DatasetError(f"{path}: the splits' labels have different numbers of columns. Create the file again.")
    columns = [Texts.of(column.tolist()) for column in np.concatenate(list(labels.values())).T]  # one, or one per label
    if len(columns) == 1:
        return Dataset(name, str(path), paths, columns[0], splits, None, images)
    attributes = {f"label {i}": column for i, column in enumerate(columns)}
    return Dataset(name, str(path), paths, empty, splits, None, images, attributes)


def _npz_splits(path: Path, *, labelled: bool) -> tuple[dict[str, int], dict[str, npt.NDArray[np.str_]]]:
    """Count each split's images; if `labelled`, read its labels and check that their number matches."""
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
                    raise DatasetError(f"{path}: the array '{split}_labels' is missing, but {split}_images is present.")
                with archive.open(f"{split}_images.npy") as member:
                    counts[split] = _npz_header(path, split, member)[0]
                if labelled:
                    labels[split] = _npz_labels(path, f"{split}_labels", archive)
                    if counts[split] != (n_labels := len(labels[split])):
                        raise DatasetError(f"{path}: {counts[split]} {split}_images but {n_labels} {split}_labels.")
    return counts, labels


def _npz_labels(path: Path, key: str, archive: zipfile.ZipFile) -> npt.NDArray[np.str_]:
    """Read labels as texts, (n, C): one column, or one of 0 and 1 per label as in ChestMNIST."""
    with archive.open(f"{key}.npy") as member:
        labels = np.lib.format.read_array(member, allow_pickle=False)
    labels = labels[:, None] if labels.ndim == 1 else labels
    if labels.ndim != 2 or labels.shape[1] == 0:
        raise DatasetError(
            f"{path}: {key} has the shape {labels.shape}; expected (n,), (n, 1), or (n, C) of 0 and 1, one column per label."
        )
    if labels.dtype.kind not in "iubU":
        raise DatasetError(f"{path}: {key} is {labels.dtype}; expected whole numbers or text.")
    if labels.shape[1] > 1 and not np.isin(labels, (0, 1)).all():
        raise DatasetError(f"{path}: {key} has {labels.shape[1]} columns, so it must contain only 0 and 1.")
    texts = np.array([[str(label) for label in row] for row in labels.tolist()])
    if any(not text.isprintable() for text in texts.ravel().tolist()):
        raise DatasetError(f"{path}: {key} contains text that cannot be printed.")
    return texts.reshape(labels.shape)


def _npz_header(path: Path, split: str, member: IO[bytes]) -> tuple[int, ...]:
    """Read an npy header's shape, and leave `member` at the first pixel."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran_order, dtype = read(member)
    is_image = len(shape) in {3, 4} and shape[3:] in {(), (1,), (3,)} and 0 not in shape[1:3]
    if dtype != np.uint8 or fortran_order or not is_image:
        found = f"{dtype} of shape {shape}{' in Fortran order' if fortran_order else ''}"
        expected = "uint8 of shape (n, H, W) or (n, H, W, 3), in C order"
        raise DatasetError(f"{path}: {split}_images is {found}; expected {expected}.")
    return tuple(shape)


def _npz_rows(path: str, key: str, rows: set[int]) -> Iterator[tuple[int, Callable[[], npt.NDArray[np.uint8]]]]:
    """Yield each wanted row, ascending, and a function that reads it."""
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
                yield row, partial(np.frombuffer(content, np.uint8).reshape, row_shape)


def _stored_rows(
    path: str, info: zipfile.ZipInfo, header_bytes: int, shape: tuple[int, ...], n_rows: int, rows: set[int]
) -> Iterator[tuple[int, Callable[[], npt.NDArray[np.uint8]]]]:
    """Yield uncompressed rows, each of which any thread can read from the file.

    By `pread`, not mapped: the process is killed if a mapped file is cut short. The member's checksum covers all of its
    rows, so it is compared only if the last one is wanted, in a separate thread. The first row waits for the result up to
    `CHECK_SECONDS`, in which a gigabyte is checked; the result for a larger member is awaited after its last row.
    """
    n_bytes = math.prod(shape)
    if header_bytes + n_rows * n_bytes > info.file_size:
        n_present = info.file_size - header_bytes
        raise ValueError(f"its header states {n_rows * n_bytes:,} bytes, but it has {n_present:,}")
    file = _OpenFile(path)
    name_bytes, extra_bytes = struct.unpack("<HH", file.read(4, info.header_offset + _LENGTHS_AT))
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
        block = file.read(min(_BLOCK_BYTES, info.file_size - offset), start + offset)
        checksum = zlib.crc32(block, checksum)
    if checksum != info.CRC:
        raise ValueError("its checksum is wrong")


class _OpenFile:
    """A file that stays open while any of its readers exists."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)

    def read(self, n_bytes: int, start: int) -> bytes:
        """Read so many bytes, or those that there are; any thread may."""
        content = bytearray(n_bytes)
        return bytes(content[: read_at(self.number, self.path, memoryview(content), start)])

    def pixels(self, start: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """Read one image."""
        content = self.read(math.prod(shape), start)
        if len(content) < math.prod(shape):
            raise ImageDecodeError(Unreadable.NPZ_CUT_SHORT)
        return np.frombuffer(content, np.uint8).reshape(shape)
