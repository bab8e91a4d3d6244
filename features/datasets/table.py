"""What every source of images becomes: one table, and a way to read each image."""

import os
import re
import threading
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from features.errors import ImageDecodeError
from features.files import FileStamp, is_missing, is_url, join, read, real_place, stamp_of
from features.fingerprint import bytes_key
from features.formats import FRAME_MARK, Frame

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Content = bytes | Frame | npt.NDArray[np.uint8]
    """Encoded bytes of a file, one of its frames, or the pixels of an npz row, (H, W) or (H, W, 3)."""

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class ImageSource(Protocol):
    """Where the images' contents are, by their place in the data set."""

    @property
    def location(self) -> str:
        """The folder or file that paths are relative to, absolute and with links followed."""

    @property
    def is_remote(self) -> bool:
        """Whether any image comes over a network."""

    def stamp(self, index: int) -> FileStamp:
        """Give size and mtime of the file that holds the image; OSError where there is none."""

    def is_missing(self, index: int) -> bool:
        """Tell whether the file that is to hold the image is not there at all."""

    def contents(self, indices: Sequence[int]) -> "Iterator[tuple[int, Callable[[], Content]]]":
        """Give for each wanted image (`indices` ascending) a function that reads it, called in a worker thread."""


@dataclass(frozen=True)
class Dataset:
    """A named table of images; all columns have one entry an image.

    `splits` and `patients` are None where the source does not tell them; `attributes` are
    further columns (scanner, site, sex). `source` is the path as the user gave it.
    """

    name: str
    source: str
    paths: list[str]
    labels: list[str]
    splits: list[str] | None
    patients: list[str] | None
    images: ImageSource
    attributes: dict[str, list[str]] = field(default_factory=dict)

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that occur, sorted."""
        return tuple(sorted(set(self.labels)))

    def __len__(self) -> int:
        return len(self.paths)


class Place(NamedTuple):
    """Where in a file an image is: the only one in it (0, 1), or one of several, counted from 1."""

    number: int
    n_frames: int


THE_ONLY_ONE = Place(0, 1)


@dataclass(frozen=True)
class FileImages:
    """Images that are files in a folder (or at URLs), or frames of them.

    `places` are missing where each is a file of its own; `listed` are the stamps that came with a URL's listing.
    """

    root: str
    files: list[str]
    places: list[Place] | None = None
    listed: Mapping[str, FileStamp] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """The folder, absolute and with links followed; or its URL."""
        return real_place(self.root)

    @property
    def is_remote(self) -> bool:
        """Whether any image is at a URL."""
        return is_url(self.root) or any(map(is_url, self.files))

    def stamp(self, index: int) -> FileStamp:
        """Give the file's size and mtime."""
        listed = self.listed.get(self.files[index])
        return listed if listed is not None else stamp_of(self._place(index))

    def is_missing(self, index: int) -> bool:
        """Tell whether there is no such file; of one at a URL only reading it will tell."""
        return is_missing(self._place(index))

    def contents(self, indices: Sequence[int]) -> "Iterator[tuple[int, Callable[[], Content]]]":
        """Give a reader for each file; frames of one file that follow one another share what is read."""
        shared: _SharedFile | None = None
        for index in indices:
            path, place = self._place(index), self.places[index] if self.places is not None else THE_ONLY_ONE
            if place == THE_ONLY_ONE:
                yield index, partial(read, path)
                continue
            if shared is None or shared.path != path:
                shared = _SharedFile(path)
            yield index, partial(shared.frame, place)

    def _place(self, index: int) -> str:
        return join(self.root, self.files[index])


def file_images(root: str, paths: list[str]) -> FileImages:
    """Tell files from frames of them: `scan.dcm#frame=3`, unless a file has that very name."""
    named = {
        path: re.fullmatch(rf"(.+){re.escape(FRAME_MARK)}([1-9]\d{{0,8}})", path)
        for path in paths
        if FRAME_MARK in path
    }
    frames = {path: found for path, found in named.items() if found and not _is_there(root, path)}
    if not frames:
        return FileImages(root, paths)
    files = [frames[path][1] if path in frames else path for path in paths]
    # How many frames there are is found when the files are looked into.
    places = [Place(int(frames[path][2]), 0) if path in frames else THE_ONLY_ONE for path in paths]
    return FileImages(root, files, places)


def _is_there(root: str, path: str) -> bool:
    """Tell whether a file has this very name; at a URL none has, for there "#" begins what names a part."""
    place = join(root, path)
    return not is_url(place) and os.path.lexists(place)


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
                content = read(self.path)
                self._read, self._stamp = (content, bytes_key(content)), stamp_of(self.path)
            elif stamp_of(self.path) != self._stamp:
                raise ImageDecodeError("changed while it was read")
            return Frame(*self._read, *place)


def composed(text: str) -> str:
    """Write umlauts in one way: a label that looks the same is the same, and can be typed after --positive."""
    return unicodedata.normalize("NFC", text)
