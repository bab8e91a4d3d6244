"""What every source of images becomes: one table, and a way to read each image."""

import os
import re
import stat
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from features.errors import ImageDecodeError
from features.fingerprint import bytes_key
from features.formats import FRAME_MARK, Frame
from features.texts import Texts, keep_as_texts

Content = bytes | Frame | npt.NDArray[np.uint8]
"""Encoded bytes of a file, one of its frames, or the pixels of an npz row, (H, W) or (H, W, 3)."""

MAX_FILE_BYTES = 4 << 30  # no image is larger; a file that is would fill the memory before a decoder could say so

ASKED_AT_ONCE, ASKED_IN_A_ROW = 16, 1024  # files for their stamps

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class FileStamp:
    """Size in bytes and modification time in ns: while both stay, a file is taken as unchanged."""

    size: int
    mtime_ns: int


class Stamps(NamedTuple):
    """Sizes and modification times of all images' files, (n,) int64, -1 where they cannot be told; and which are missing."""

    sizes: npt.NDArray[np.int64]
    mtimes_ns: npt.NDArray[np.int64]
    missing: npt.NDArray[np.bool_]


class ImageSource(Protocol):
    """Where the images' contents are, by their place in the data set."""

    @property
    def location(self) -> str:
        """The folder or file that paths are relative to, absolute and with links followed."""

    def stamp(self, index: int) -> FileStamp:
        """Give size and mtime of the file that holds the image; OSError where there is none."""

    def stamps(self) -> Stamps:
        """Give size and mtime of every image's file, and which files are not there at all."""

    def contents(self, indices: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        """Give for each wanted image (`indices` ascending) a function that reads it, called in a worker thread."""


@dataclass(frozen=True)
class Dataset:
    """A named table of images; all columns have one entry an image.

    `splits` and `patients` are None where the source does not tell them; `attributes` are
    further columns (scanner, site, sex). `source` is the path as the user gave it. Columns may be
    given as lists; they are kept as `Texts`.
    """

    name: str
    source: str
    paths: Texts
    labels: Texts
    splits: Texts | None
    patients: Texts | None
    images: ImageSource
    attributes: dict[str, Texts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keep_as_texts(self)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that occur, sorted."""
        return tuple(sorted(set(self.labels.values())))

    def __len__(self) -> int:
        return len(self.paths)


class Place(NamedTuple):
    """Where in a file an image is: the only one in it (0, 1), or one of several, counted from 1."""

    number: int
    n_frames: int


THE_ONLY_ONE = Place(0, 1)


class Places(NamedTuple):
    """The place of each image in its file, two columns (n,) int32."""

    numbers: npt.NDArray[np.int32]
    n_frames: npt.NDArray[np.int32]

    def of(self, index: int) -> Place:
        """Give one image's."""
        return Place(int(self.numbers[index]), int(self.n_frames[index]))


@dataclass(frozen=True)
class FileImages:
    """Images that are files in a folder, or frames of them; `places` are missing where each is a file of its own."""

    root: str
    files: Texts
    places: Places | None = None

    def __post_init__(self) -> None:
        keep_as_texts(self)

    @property
    def location(self) -> str:
        """The folder, absolute and with links followed."""
        return os.path.realpath(self.root)

    def stamp(self, index: int) -> FileStamp:
        """Give the file's size and mtime."""
        return _stamp_of(os.stat(self._path(index)))

    def stamps(self) -> Stamps:
        """Ask the file system for each file, many at a time: a network disk takes its time for each answer."""
        n = len(self.files)
        stamps = Stamps(np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.zeros(n, bool))
        with ThreadPoolExecutor(ASKED_AT_ONCE, "stamp") as pool:
            for _ in pool.map(partial(self._stamp_some, stamps), range(0, n, ASKED_IN_A_ROW)):
                pass
        return stamps

    def _stamp_some(self, stamps: Stamps, first: int) -> None:
        above = os.path.join(self.root, "")
        for index, file in enumerate(self.files[first : first + ASKED_IN_A_ROW], first):
            try:
                status = os.stat(above + file)
            except FileNotFoundError:
                stamps.missing[index] = True
            except OSError:
                continue  # reading it will say why
            else:
                stamps.sizes[index], stamps.mtimes_ns[index] = status.st_size, status.st_mtime_ns

    def contents(self, indices: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        """Give a reader for each file; frames of one file that follow one another share what is read."""
        shared: _SharedFile | None = None
        for index in indices:
            path, place = self._path(index), self.places.of(index) if self.places is not None else THE_ONLY_ONE
            if place == THE_ONLY_ONE:
                yield index, partial(_read_file, path)
                continue
            if shared is None or shared.path != path:
                shared = _SharedFile(path)
            yield index, partial(shared.frame, place)

    def _path(self, index: int) -> str:
        return os.path.join(self.root, self.files[index])


def file_images(root: str, paths: Texts) -> FileImages:
    """Tell files from frames of them: `scan.dcm#frame=3`, unless a file has that very name."""
    marked = paths.rows_with(b"", [FRAME_MARK[:2].encode()])
    named = [re.fullmatch(rf"(.+){re.escape(FRAME_MARK)}([1-9]\d{{0,8}})", path) for path in paths.take(marked)]
    frames = [
        (row, found)
        for row, found in zip(marked.tolist(), named, strict=True)
        if found and not os.path.lexists(os.path.join(root, found[0]))
    ]
    if not frames:
        return FileImages(root, paths)
    rows = np.array([row for row, _ in frames])
    files = paths.replaced(rows, Texts.of(found[1] for _, found in frames))
    places = Places(np.zeros(len(paths), np.int32), np.ones(len(paths), np.int32))
    places.numbers[rows] = [int(found[2]) for _, found in frames]
    places.n_frames[rows] = 0  # how many there are is found when the files are looked into
    return FileImages(root, files, places)


class _SharedFile:
    """A file of several frames: read once, and kept for as long as someone may still ask for one of them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._reading = threading.Lock()
        self._read: tuple[bytes, bytes] | None = None
        self._stamp: FileStamp | None = None

    def frame(self, place: Place) -> Frame:
        """Give one frame, of the same bytes as the others."""
        with self._reading:
            if self._read is None:
                content = _read_file(self.path)
                self._read, self._stamp = (content, bytes_key(content)), _stamp_of(os.stat(self.path))
            elif _stamp_of(os.stat(self.path)) != self._stamp:
                raise ImageDecodeError("changed while it was read")
            return Frame(*self._read, *place)


def _stamp_of(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_size, status.st_mtime_ns)


def _read_file(path: str) -> bytes:
    try:
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # opening a pipe would wait for ever
        try:
            return _read_open_file(number)
        finally:
            os.close(number)
    except OSError as error:
        raise ImageDecodeError(error.strerror or str(error)) from error


def _read_open_file(number: int) -> bytes:
    before = os.fstat(number)
    if not stat.S_ISREG(before.st_mode) and not stat.S_ISDIR(before.st_mode):
        raise ImageDecodeError("not a file but a pipe, socket or device")
    if before.st_size > MAX_FILE_BYTES and stat.S_ISREG(before.st_mode):
        raise ImageDecodeError(f"too large a file: {before.st_size:,} bytes, of at most {MAX_FILE_BYTES:,}")
    with open(number, "rb", buffering=0, closefd=False) as file:
        content = file.readall()
    if _stamp_of(os.fstat(number)) != _stamp_of(before):
        raise ImageDecodeError("changed while it was read")
    return content


def composed(text: str) -> str:
    """Write umlauts in one way: a label that looks the same is the same, and can be typed after --positive."""
    return unicodedata.normalize("NFC", text)
