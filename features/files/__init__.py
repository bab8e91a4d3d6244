"""Files on a disk or at a URL, for callers that need not know which."""

import io
import os
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from hoarfrost.features.files.local import FileStamp, read_path, stamp_of_path
from hoarfrost.features.files.remote import RemoteEntry, checked_url, is_url, join_url, list_url, read_url, stamp_of_url

__all__ = [
    "FileStamp", "RemoteEntry", "checked_url", "is_url", "join", "list_url", "opened_file", "read", "real_place", "stamp_of",
    "suffix_of",
]  # fmt: skip


def join(root: str, file: str) -> str:
    """Return the path or URL of a file below a folder; a file that is a URL is returned unchanged."""
    if is_url(file):
        return file
    return join_url(root, file) if is_url(root) else os.path.join(root, file)


def suffix_of(file: str) -> str:
    """Return a file's suffix in lower case, with its dot, and without a URL's query."""
    return os.path.splitext(urlsplit(file).path if is_url(file) else file)[1].lower()


def real_place(root: str) -> str:
    """Return a folder's absolute path, with links followed; a URL is returned unchanged."""
    return root if is_url(root) else os.path.realpath(root)


def stamp_of(place: str) -> FileStamp:
    """Return a file's size and modification time. Raise OSError if it is missing."""
    return stamp_of_url(place) if is_url(place) else stamp_of_path(place)


def read(place: str) -> bytes:
    """Read a whole file.

    Raises
    ------
    ImageDecodeError
        If it cannot be read, or is not a file.
    RemoteError
        If its server cannot be reached, or requires other credentials.
    """
    return read_url(place) if is_url(place) else read_path(place)


def opened_file(place: str) -> BinaryIO:
    """Open a file. One at a URL is read whole, because not every server sends parts."""
    return io.BytesIO(read_url(place)) if is_url(place) else Path(place).open("rb")
