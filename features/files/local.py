"""Files on this machine's disks."""

import os
import stat
from dataclasses import dataclass

from hoarfrost.features.errors import ImageDecodeError, Unreadable, reason_of

MAX_FILE_BYTES = 4 << 30  # no image is larger; a larger file would fill the memory before a decoder could refuse it


@dataclass(frozen=True)
class FileStamp:
    """Size in bytes and modification time in ns: while both stay the same, a file counts as unchanged."""

    size: int
    mtime_ns: int


def stamp_of_path(path: str) -> FileStamp:
    """Return a file's size and modification time. Raise OSError if it is missing."""
    return _stamp_of(os.stat(path))


def read_path(path: str) -> bytes:
    """Read a whole file. Raise ImageDecodeError if it cannot be read, changes meanwhile, or is not a file."""
    try:
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # opening a pipe would block
        try:
            return _read_open_file(number)
        finally:
            os.close(number)
    except OSError as error:
        raise ImageDecodeError(reason_of(error).kind) from error


def read_at(number: int, path: str, view: memoryview, offset: int) -> int:
    """Fill a buffer from an open file; return how many bytes there were. Any thread may read anywhere at once.

    Windows has no such read, and another position of the same file would confuse who has opened it: there it is opened again.
    """
    if hasattr(os, "preadv"):
        return os.preadv(number, [view], offset)
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        return file.readinto(view)


def _read_open_file(number: int) -> bytes:
    before = os.fstat(number)
    if not stat.S_ISREG(before.st_mode) and not stat.S_ISDIR(before.st_mode):
        raise ImageDecodeError(Unreadable.NOT_A_FILE)
    if before.st_size > MAX_FILE_BYTES and stat.S_ISREG(before.st_mode):
        raise ImageDecodeError(Unreadable.FILE_TOO_LARGE, f"{before.st_size:,} bytes, of at most {MAX_FILE_BYTES:,}")
    with open(number, "rb", buffering=0, closefd=False) as file:
        content = file.readall()
    if _stamp_of(os.fstat(number)) != _stamp_of(before):
        raise ImageDecodeError(Unreadable.CHANGED)
    return content


def _stamp_of(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_size, status.st_mtime_ns)
