"""One writer a cache: a lock that the operating system takes back when its process dies."""

import contextlib
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from hoarfrost.features.errors import CacheError, CacheLockedError

_held_here: set[str] = set()


def lock_path(cache: Path) -> Path:
    """Return the file that a cache's writer locks."""
    return cache.with_name(cache.name + ".lock")


class WriterLock:
    """The right to write to a cache, held while the context lasts.

    A POSIX record lock on `FILE.lock`: NFS and cluster file systems pass it between hosts, and it
    ends with its process, however that dies. The file itself stays behind; it says who had the lock last.

    Raises
    ------
    CacheLockedError
        On entering, at once, if another process (or this one) holds it; it names who.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.path = lock_path(cache)
        self._identity = ""
        self.owner = ""

    def __enter__(self) -> Self:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise CacheError(f"{self.path}: the cache's folder cannot be written: {error.strerror}.") from error
        status = os.fstat(descriptor)
        self._identity = f"{status.st_dev}:{status.st_ino}"
        # Record locks do not hold between two openings by one process.
        if self._identity in _held_here:
            raise self._refusal(descriptor)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise self._refusal(descriptor) from error
        except OSError as error:
            os.close(descriptor)
            raise CacheError(
                f"{self.path}: this file system offers no locks ({error.strerror}), so a second writer could not be "
                "kept out. Put the cache on a local disk, or mount the file system with locking."
            ) from error
        _held_here.add(self._identity)
        self._descriptor = descriptor
        self._sign()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _held_here.discard(self._identity)
        os.close(self._descriptor)

    def _sign(self) -> None:
        owner = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self.owner = json.dumps(owner)
        # For the other's error message, and for workers on other hosts; a full disk must not stop the writer here.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, self.owner.encode(), 0)
            os.fsync(self._descriptor)  # a network file system shows others what is synced, or closed

    def _refusal(self, descriptor: int) -> CacheLockedError:
        try:
            owner = json.loads(os.pread(descriptor, 4096, 0))
            who = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        except (ValueError, KeyError, TypeError):
            who = "another process"
        # Closing any descriptor of the file would drop this process's own record lock on it.
        if self._identity not in _held_here:
            os.close(descriptor)
        return CacheLockedError(
            f"{self.cache} is being written by {who}. Wait for it to end, or name another --cache. Reading is not affected."
        )


def lock_owner(cache: Path) -> str:
    """Read who has, or had last, the lock on a cache; empty if nobody ever had.

    Never to be called in the process that holds it: closing any descriptor of the file would drop its lock.
    """
    try:
        return lock_path(cache).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
