"""Where files are: on a disk, or at a URL. What reads an image does not ask which."""

import io
import os
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from hoarfrost.features.files.local import read_path, stamp_of_path
from hoarfrost.features.files.remote import (
    RemoteEntry,
    checked_url,
    is_url,
    join_url,
    list_url,
    read_url,
    stamp_of_url,
)
from hoarfrost.features.files.stamps import FileStamp

__all__ = [
    "FileStamp",
    "RemoteEntry",
    "checked_url",
    "is_url",
    "join",
    "list_url",
    "opened_file",
    "read",
    "real_place",
    "stamp_of",
    "suffix_of",
]


def join(root: str, file: str) -> str:
    """Return the place of a file: below its folder, or where its own URL says."""
    if is_url(file):
        return file
    return join_url(root, file) if is_url(root) else os.path.join(root, file)


def suffix_of(file: str) -> str:
    """Return a file's suffix in lower case, with its dot; what follows a URL's path is no part of it."""
    return os.path.splitext(urlsplit(file).path if is_url(file) else file)[1].lower()


def real_place(root: str) -> str:
    """Return a folder's path, absolute and with links followed; a URL as it is."""
    return root if is_url(root) else os.path.realpath(root)


def stamp_of(place: str) -> FileStamp:
    """Return a file's size and time of change; OSError where there is none."""
    return stamp_of_url(place) if is_url(place) else stamp_of_path(place)


def read(place: str) -> bytes:
    """Read a whole file.

    Raises
    ------
    ImageDecodeError
        If it cannot be read, or is no file.
    RemoteError
        If its server cannot be reached, or wants other credentials.
    """
    return read_url(place) if is_url(place) else read_path(place)


def opened_file(place: str) -> BinaryIO:
    """Open a file to look into it; one at a URL is read whole, for not every server gives parts."""
    return io.BytesIO(read_url(place)) if is_url(place) else Path(place).open("rb")
