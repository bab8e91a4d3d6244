"""The table of images that every source is read into, and a way to read each image."""

import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hoarfrost.features.columns.texts import Texts, lists_to_texts
from hoarfrost.features.decoding.formats import FRAME_MARK, EncodedFrame
from hoarfrost.features.decoding.region import Region
from hoarfrost.features.errors import ImageDecodeError, Unreadable
from hoarfrost.features.files import FileStamp, is_url, join, read, real_place, stamp_of
from hoarfrost.features.fingerprint import bytes_key

Content = bytes | EncodedFrame | npt.NDArray[np.uint8]
"""Encoded bytes of a file, one of its frames, or the pixels of an npz row, (H, W) or (H, W, 3)."""

STAMP_THREADS, STAMPS_PER_TASK = 16, 1024
REMOTE_STAMP_THREADS = 32

SPLIT_NAMES = {
    "train": "train", "training": "train", "train_set": "train", "training_set": "train", "trainset": "train",
    "val": "val", "valid": "val", "validation": "val", "val_set": "val", "valid_set": "val", "validation_set": "val",
    "valset": "val", "dev": "val",
    "test": "test", "testing": "test", "test_set": "test", "testing_set": "test", "testset": "test",
}  # fmt: skip


def split_of(name: str) -> str:
    """Return the split that a folder or a cell names; empty if it does not name one."""
    return SPLIT_NAMES.get(re.sub("[- ]+", "_", name.lower()), "")


class Stamps(NamedTuple):
    """Sizes and modification times of all images' files, (n,) int64, -1 if unknown; and which files are missing."""

    sizes: npt.NDArray[np.int64]
    mtimes_ns: npt.NDArray[np.int64]
    missing: npt.NDArray[np.bool_]


class ImageSource(Protocol):
    """Access to the images' contents, by their row in the dataset."""

    @property
    def location(self) -> str:
        """The folder or file that paths are relative to, absolute and with links followed."""

    @property
    def is_remote(self) -> bool:
        """Whether any image comes over a network."""

    def stamp(self, index: int) -> FileStamp:
        """Return size and mtime of the image's file. Raise OSError if it is missing."""

    def stamps(self, *, of_urls: bool) -> Stamps:
        """Return size and mtime of every image's file, and which files are missing; for URLs only if `of_urls`."""

    def contents(self, indices: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        """Yield for each image (`indices` ascending) a function that reads it, to be run in a worker thread."""

    def region(self, index: int) -> Region | None:
        """Return where the image's region is, if views show it. Raise ImageDecodeError if that is not known."""

    def subset(self, indices: Sequence[int]) -> "ImageSource":
        """Return a source of only these images (ascending), renumbered from 0, which can be sent to another host."""


@dataclass(frozen=True)
class Dataset:
    """A named table of images; all columns have one entry per image.

    `splits` and `patients` are None if the source does not have them; `attributes` are further columns (scanner, site,
    sex). `source` is the path as the user wrote it. Columns passed as lists become `Texts`.
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

    def take(self, rows: npt.NDArray[np.int64]) -> "Dataset":
        """Return a dataset of some rows (ascending)."""
        return replace(
            self,
            paths=self.paths.take(rows),
            labels=self.labels.take(rows),
            splits=self.splits.take(rows) if self.splits is not None else None,
            patients=self.patients.take(rows) if self.patients is not None else None,
            images=self.images.subset(rows.tolist()),
            attributes={name: texts.take(rows) for name, texts in self.attributes.items()},
        )


class Place(NamedTuple):
    """The position of an image in its file: the only one (0, 1), or one of several, numbered from 1."""

    number: int
    n_frames: int


ONLY_FRAME = Place(0, 1)


class Places(NamedTuple):
    """The place of each image in its file, two columns (n,) int32."""

    numbers: npt.NDArray[np.int32]
    n_frames: npt.NDArray[np.int32]

    def of(self, index: int) -> Place:
        """Return the place of one image."""
        return Place(int(self.numbers[index]), int(self.n_frames[index]))


@dataclass(frozen=True)
class FileImages:
    """Images that are files in a folder (or at URLs), or frames of them.

    `places` is None if each image is a file of its own; `listed` are the stamps that came with a URL's listing.
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
        return self.listed.get(self.files[index]) or stamp_of(self._place(index))

    def stamps(self, *, of_urls: bool) -> Stamps:
        """Return the stamps of all files, requested in parallel, as networks are slow; for URLs only if `of_urls`."""
        n = len(self.files)
        stamps = Stamps(np.full(n, -1, np.int64), np.full(n, -1, np.int64), np.zeros(n, bool))
        n_threads, n_rows = (REMOTE_STAMP_THREADS, 1) if self.is_remote else (STAMP_THREADS, STAMPS_PER_TASK)
        with ThreadPoolExecutor(n_threads, "stamp") as pool:
            blocks = [slice(first, first + n_rows) for first in range(0, n, n_rows)]
            list(pool.map(partial(self._stamp_block, stamps, of_urls=of_urls), blocks))
        return stamps

    def _stamp_block(self, stamps: Stamps, block: slice, *, of_urls: bool) -> None:
        folder = "" if is_url(self.root) else os.path.join(self.root, "")
        for index, file in enumerate(self.files[block], block.start):
            if not folder or is_url(file):
                self._stamp_url(stamps, index, of_urls=of_urls)
                continue
            try:
                status = os.stat(folder + file)
            except FileNotFoundError:
                stamps.missing[index] = True
            except OSError:
                continue  # reading it will report the reason
            else:
                stamps.sizes[index], stamps.mtimes_ns[index] = status.st_size, status.st_mtime_ns

    def _stamp_url(self, stamps: Stamps, index: int, *, of_urls: bool) -> None:
        """Record a URL's stamp as it was listed, or as its server reports it if `of_urls`."""
        if not of_urls and self.files[index] not in self.listed:
            return
        try:
            stamp = self.stamp(index)
        except (OSError, ImageDecodeError):
            return  # reading it will report the reason
        stamps.sizes[index], stamps.mtimes_ns[index] = stamp.size, stamp.mtime_ns

    def contents(self, indices: Sequence[int]) -> Iterator[tuple[int, Callable[[], Content]]]:
        """Yield a reader for each file; consecutive frames of one file share what is read."""
        shared: _SharedFile | None = None
        for index in indices:
            path, place = self._place(index), self.places.of(index) if self.places is not None else ONLY_FRAME
            if place == ONLY_FRAME:
                yield index, partial(read, path)
                continue
            if shared is None or shared.path != path:
                shared = _SharedFile(path)
            yield index, partial(shared.frame, place)

    def region(self, index: int) -> None:
        """Return None: images are whole."""

    def subset(self, indices: Sequence[int]) -> "FileImages":
        """Return only these images, by absolute paths: other processes have other working folders."""
        rows = np.asarray(indices, np.int64)
        places = None if self.places is None else Places(*(column[rows] for column in self.places))
        files = self.files.take(rows)
        listed = {file: self.listed[file] for file in files if file in self.listed} if self.listed else {}
        return FileImages(self.location, files, places, listed)

    def _place(self, index: int) -> str:
        return join(self.root, self.files[index])


def file_images(root: str, paths: Texts) -> FileImages:
    """Return the images at some paths; one may name a frame, as in `scan.dcm#frame=3`, unless a file has that name."""
    marked = paths.rows_with(b"", [FRAME_MARK[:2].encode()])
    frames = {
        row: (found[1], int(found[2]))
        for row, path in zip(marked.tolist(), paths.take(marked), strict=True)
        if (found := re.fullmatch(rf"(.+){re.escape(FRAME_MARK)}([1-9]\d{{0,8}})", path)) and not _exists(root, path)
    }
    if not frames:
        return FileImages(root, paths)
    rows = np.array(list(frames))
    files = paths.replaced(rows, Texts.of(file for file, _ in frames.values()))
    places = Places(np.zeros(len(paths), np.int32), np.ones(len(paths), np.int32))
    places.numbers[rows] = [number for _, number in frames.values()]
    places.n_frames[rows] = 0  # counted when the files are opened
    return FileImages(root, files, places)


def _exists(root: str, path: str) -> bool:
    """Return whether a file has this name. At a URL none has, because a URL's path ends at "#"."""
    place = join(root, path)
    return not is_url(place) and os.path.lexists(place)


class _SharedFile:
    """A file of several frames: read once, and kept while any of its readers exists."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._read: tuple[bytes, bytes] | None = None
        self._stamp: FileStamp | None = None

    def frame(self, place: Place) -> EncodedFrame:
        """Return one frame, from the same bytes as the others."""
        with self._lock:
            if self._read is None:
                content = read(self.path)
                self._read, self._stamp = (content, bytes_key(content)), stamp_of(self.path)
            elif stamp_of(self.path) != self._stamp:
                raise ImageDecodeError(Unreadable.CHANGED)
            return EncodedFrame(*self._read, *place)


def to_nfc(text: str) -> str:
    """Return a text with composed umlauts: labels that look the same are equal, and can be typed after --positive."""
    return unicodedata.normalize("NFC", text)
