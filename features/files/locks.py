"""Locks that the operating system releases when their process ends, on POSIX systems and on Windows."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCKED_BYTE = 1 << 30  # beyond any content: Windows lets nobody else read what is locked
STALE_SECONDS = 3600.0  # where folders have no locks: what is older than this was abandoned


def lock_file(descriptor: int) -> None:
    """Lock an open file for this process; NFS and cluster file systems pass the lock between hosts.

    On POSIX systems it is a record lock: closing any other descriptor of the file releases it.

    Raises
    ------
    BlockingIOError, PermissionError
        If another process has it.
    OSError
        If the file system does not support locks.
    """
    if fcntl is not None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import msvcrt

    os.lseek(descriptor, LOCKED_BYTE, os.SEEK_SET)
    msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)


@contextmanager
def held(path: Path) -> Iterator[bool]:
    """Hold a file or folder against `unless_held` of other processes; yield whether it is still at its path.

    A process that sweeps may have removed it before it was held.
    """
    with _opened(path) as descriptor:
        if descriptor is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor is None or _is_at(path, descriptor)


@contextmanager
def unless_held(path: Path) -> Iterator[bool]:
    """Yield whether no process holds what is at a path; meanwhile nobody else can hold it.

    Where a file system has no such locks, whether it was last changed an hour ago.
    """
    with _opened(path) as descriptor:
        if descriptor is None:
            yield _is_stale(path)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = _is_at(path, descriptor)
        except BlockingIOError:
            is_free = False
        except OSError:
            is_free = _is_stale(path)
        yield is_free


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """Open a file or folder to lock it; None on Windows, which neither opens folders nor renames what is open."""
    if fcntl is None:
        yield None
        return
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_stale(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except OSError:
        return False
