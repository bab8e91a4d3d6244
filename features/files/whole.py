"""Files and folders that are written completely or not at all; what a killed process left is put right by the next one."""

import ctypes
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from hoarfrost.features.files.locks import held, unless_held

_EXCHANGE = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
_AT_FDCWD = -100


def check_writable(folder: Path) -> None:
    """Write a temporary file into a folder. Raise OSError if that fails: better before the work than after it."""
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[BinaryIO]:
    """Open a file to write it atomically: a reader sees the earlier file or the new one, never half of it.

    One that is not `durable` may be lost in a power cut.
    """
    put_right(path)
    staging = _staging(path)
    try:
        with ExitStack() as stack:
            file = stack.enter_context(staging.open("wb"))
            while not stack.enter_context(held(staging)):
                file = stack.enter_context(staging.open("wb"))
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            file.close()  # Windows renames no open file
            staging.replace(path)
        if durable:
            sync_folder(path.parent)
    finally:
        staging.unlink(missing_ok=True)


@contextmanager
def whole_folder(place: Path) -> Iterator[Path]:
    """Yield a folder to fill, which replaces `place` once it is complete; a link to a folder stays a link.

    The two are exchanged atomically where the system can do that. Elsewhere `place` is missing for a moment: if the
    process is killed then, `put_right` brings the earlier folder back.
    """
    place = place.resolve()
    put_right(place)
    staging = _staging(place)
    try:
        with ExitStack() as stack:
            staging.mkdir(parents=True)
            while not stack.enter_context(held(staging)):
                staging.mkdir()
            yield staging
            _sync_tree(staging)
            _put_in_place(staging, place)
            sync_folder(place.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # the earlier folder, or what was not completed


def file_identity(path: Path) -> tuple[int, ...]:
    """Return what differs once a file is replaced or written; empty if there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def put_right(place: Path) -> None:
    """Bring back a folder that a killed process had moved aside, and remove what it left of a file or folder."""
    own = re.compile(rf"\.{re.escape(place.name)}\.(\d+|[0-9a-f]{{32}})\.(old|tmp)")
    with suppress(OSError):  # a missing folder, or one that is only read
        with os.scandir(place.parent) as entries:
            found = [Path(entry.path) for entry in entries if own.fullmatch(entry.name)]
        for leftover in sorted(found, key=lambda path: path.suffix):  # .old first
            with unless_held(leftover) as is_left:
                if is_left and leftover.suffix == ".old" and not place.exists():
                    leftover.rename(place)
                elif is_left and leftover.is_dir():
                    shutil.rmtree(leftover, ignore_errors=True)
                elif is_left:
                    leftover.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk; Windows does that itself, and opens no folder."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _staging(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")  # processes in two containers may share a number


def _sync_tree(directory: Path) -> None:
    for path in [*directory.rglob("*"), directory]:
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("r+b") as file:
                os.fsync(file.fileno())


def _put_in_place(staging: Path, place: Path) -> None:
    if not place.exists():
        staging.rename(place)
    elif not exchange(staging, place):
        retired = staging.with_suffix(".old")
        with held(place):
            try:
                place.rename(retired)
                staging.rename(place)
            except BaseException:  # Ctrl-C too: the earlier folder must not be lost between the two renames
                if retired.exists() and not place.exists():
                    retired.rename(place)
                raise
            shutil.rmtree(retired, ignore_errors=True)


def exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two files or folders atomically; return False where the system cannot."""
    names = os.fsencode(first), os.fsencode(second)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return bool(library.renamex_np(*names, _EXCHANGE) == 0)
        return bool(library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _EXCHANGE) == 0)
    except (AttributeError, OSError, TypeError):  # no such function; Windows has no library of that name
        return False
