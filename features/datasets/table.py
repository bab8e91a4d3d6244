"""What every source of images becomes: one table, and a way to read each image."""

import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Protocol

from features.errors import ImageDecodeError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Content = bytes | npt.NDArray[np.uint8]
    """Encoded bytes of a file, or the pixels of an npz row, (H, W) or (H, W, 3)."""

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


class ImageSource(Protocol):
    """Where the images' contents are, by their place in the data set."""

    @property
    def location(self) -> str:
        """The folder or file that paths are relative to, absolute and with links followed."""

    def stamp(self, index: int) -> FileStamp:
        """Give size and mtime of the file that holds the image; OSError where there is none."""

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


@dataclass(frozen=True)
class FileImages:
    """Images that are one file each, in a folder."""

    root: str
    paths: list[str]

    @property
    def location(self) -> str:
        """The folder, absolute and with links followed."""
        return os.path.realpath(self.root)

    def stamp(self, index: int) -> FileStamp:
        """Give the file's size and mtime."""
        status = os.stat(os.path.join(self.root, self.paths[index]))
        return FileStamp(status.st_size, status.st_mtime_ns)

    def contents(self, indices: Sequence[int]) -> "Iterator[tuple[int, Callable[[], Content]]]":
        """Give a reader for each file."""
        for index in indices:
            yield index, partial(_read_file, os.path.join(self.root, self.paths[index]))


def _read_file(path: str) -> bytes:
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # opening a pipe would wait for ever
            raise ImageDecodeError("not a file but a pipe, socket or device")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ImageDecodeError(error.strerror or str(error)) from error


def composed(text: str) -> str:
    """Write umlauts in one way: a label that looks the same is the same, and can be typed after --positive."""
    return unicodedata.normalize("NFC", text)
