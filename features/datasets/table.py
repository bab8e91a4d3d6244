"""What every source of images becomes: one table, and a way to read each image."""

import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hoarfrost.features.columns.texts import Texts, lists_to_texts
from hoarfrost.features.decoding.formats import FRAME_MARK, EncodedFrame
from hoarfrost.features.errors import ImageDecodeError, Unreadable
from hoarfrost.features.files import FileStamp, is_url, join, read, real_place, stamp_of
from hoarfrost.features.fingerprint import bytes_key

Content = bytes | EncodedFrame | npt.NDArray[np.uint8]
"""Encoded bytes of a file, one of its frames, or the pixels of an npz row, (H, W) or (H, W, 3)."""

ASKED_AT_ONCE, ASKED_IN_A_ROW = 16, 1024  # files for their stamps
SERVERS_ASKED_AT_ONCE = 32

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class Stamps(NamedTuple):
    """Sizes and modification times of all images' files, (n,) int64, -1 where they cannot be told; and which are missing."""

    sizes: npt.NDArray[np.int64]
    mtimes_ns: npt.NDArray[np.int64]
    missing: npt.NDArray[np.bool_]


class ImageSource(Protocol):
    """Where the images' contents are, by their place in the dataset."""

    @property
    def location(self) -> str:
        """The folder or file that paths are relative to, absolute and with links followed."""

    @property
    def is_remote(self) -> bool:
        """Whether any image comes over a network."""

    def stamp(self, index: int) -> FileStamp:
        """Return size and mtime of the file that holds the image; OSError where there is none."""

    def stamps(self, *, of_urls: bool) -> Stamps:
        """Return size and mtime of every image's file, and which files are not there at all; of URLs only if wanted."""

    def contents(self, indices: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        """Return for each wanted image (`indices` ascending) a function that reads it, called in a worker thread."""

    def subset(self, indices: Sequence[int]) -> "ImageSource":
        """Return a source of these images alone (ascending), counted from 0, which can be sent to another host."""


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
        lists_to_texts(self)

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
        """Return one image's."""
        return Place(int(self.numbers[index]), int(self.n_frames[index]))


@dataclass(frozen=True)
class FileImages:
    """Images that are files in a folder (or at URLs), or frames of them.

    `places` are missing where each is a file of its own; `listed` are the stamps that came with a URL's listing.
    """

    root: str
    files: Texts
    places: Places | None = None
    listed: Mapping[str, FileStamp] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", Texts.of(self.files))

    @property
    def location(self) -> str:
        """The folder, absolute and with links followed; or its URL."""
        return real_place(self.root)

    @property
    def is_remote(self) -> bool:
        """Whether any image is at a URL."""
        return is_url(self.root) or any(map(is_url, self.files))

    def stamp(self, index: int) -> FileStamp:
        """Return the file's size and mtime."""
        listed = self.listed.get(self.files[index])
        return listed if listed is not None else stamp_of(self._place(index))

    def stamps(self, *, of_urls: bool) -> Stamps:
        """Return the stamps of all files, many requested at a time, as networks are slow; of URLs only if wanted."""
        n = len(self.files)
        stamps = Stamps(np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.zeros(n, bool))
        at_once, in_a_row = (SERVERS_ASKED_AT_ONCE, 1) if self.is_remote else (ASKED_AT_ONCE, ASKED_IN_A_ROW)
        with ThreadPoolExecutor(at_once, "stamp") as pool:
            some = [slice(first, first + in_a_row) for first in range(0, n, in_a_row)]
            for _ in pool.map(partial(self._stamp_some, stamps, of_urls=of_urls), some):
                pass
        return stamps

    def _stamp_some(self, stamps: Stamps, some: slice, *, of_urls: bool) -> None:
        above = "" if is_url(self.root) else os.path.join(self.root, "")
        for index, file in enumerate(self.files[some], some.start):
            if not above or is_url(file):
                self._stamp_url(stamps, index, of_urls=of_urls)
                continue
            try:
                status = os.stat(above + file)
            except FileNotFoundError:
                stamps.missing[index] = True
            except OSError:
                continue  # reading it will say why
            else:
                stamps.sizes[index], stamps.mtimes_ns[index] = status.st_size, status.st_mtime_ns

    def _stamp_url(self, stamps: Stamps, index: int, *, of_urls: bool) -> None:
        """Record a file's stamp: as it was listed, or from its server if that is wanted."""
        if not of_urls and self.files[index] not in self.listed:
            return
        try:
            stamp = self.stamp(index)
        except (OSError, ImageDecodeError):
            return  # reading it will say why
        stamps.sizes[index], stamps.mtimes_ns[index] = stamp.size, stamp.mtime_ns

    def contents(self, indices: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        """Yield a reader for each file; consecutive frames of one file share what is read."""
        shared: _SharedFile | None = None
        for index in indices:
            path, place = self._place(index), self.places.of(index) if self.places is not None else THE_ONLY_ONE
            if place == THE_ONLY_ONE:
                yield index, partial(read, path)
                continue
            if shared is None or shared.path != path:
                shared = _SharedFile(path)
            yield index, partial(shared.frame, place)

    def subset(self, indices: Sequence[int]) -> "FileImages":
        """Return these images alone, by absolute paths: other processes have other working folders."""
        rows = np.asarray(indices, np.int64)
        places = None
        if self.places is not None:
            places = Places(self.places.numbers[rows], self.places.n_frames[rows])
        files = self.files.take(rows)
        listed = {file: self.listed[file] for file in files if file in self.listed} if self.listed else {}
        return FileImages(self.location, files, places, listed)

    def _place(self, index: int) -> str:
        return join(self.root, self.files[index])


def file_images(root: str, paths: Texts) -> FileImages:
    """Return the file of a path, and its frame if it names one: `scan.dcm#frame=3`, unless a file has that very name."""
    marked = paths.rows_with(b"", [FRAME_MARK[:2].encode()])
    named = [re.fullmatch(rf"(.+){re.escape(FRAME_MARK)}([1-9]\d{{0,8}})", path) for path in paths.take(marked)]
    frames = [
        (row, found)
        for row, found in zip(marked.tolist(), named, strict=True)
        if found and not _is_there(root, found[0])
    ]
    if not frames:
        return FileImages(root, paths)
    rows = np.array([row for row, _ in frames])
    files = paths.replaced(rows, Texts.of(found[1] for _, found in frames))
    places = Places(np.zeros(len(paths), np.int32), np.ones(len(paths), np.int32))
    places.numbers[rows] = [int(found[2]) for _, found in frames]
    places.n_frames[rows] = 0  # how many there are is found when the files are looked into
    return FileImages(root, files, places)


def _is_there(root: str, path: str) -> bool:
    """Return whether a file has this very name; at a URL none has, for there "#" begins what names a part."""
    place = join(root, path)
    return not is_url(place) and os.path.lexists(place)


class _SharedFile:
    """A file of several frames: read once, and kept for as long as someone may still ask for one of them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._reading = threading.Lock()
        self._read: tuple[bytes, bytes] | None = None
        self._stamp: FileStamp | None = None

    def frame(self, place: Place) -> EncodedFrame:
        """Return one frame, of the same bytes as the others."""
        with self._reading:
            if self._read is None:
                content = read(self.path)
                self._read, self._stamp = (content, bytes_key(content)), stamp_of(self.path)
            elif stamp_of(self.path) != self._stamp:
                raise ImageDecodeError(Unreadable.CHANGED)
            return EncodedFrame(*self._read, *place)


def composed(text: str) -> str:
    """Write umlauts in one way: a label that looks the same is the same, and can be typed after --positive."""
    return unicodedata.normalize("NFC", text)
