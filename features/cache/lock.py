"""One writer per cache: a lock that the operating system releases when its process dies."""

import contextlib
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from hoarfrost.features.errors import CacheError, CacheLockedError
from hoarfrost.features.files.locks import lock_file

_held_here: set[str] = set()


def lock_path(cache: Path) -> Path:
    """Return the path of the file that a cache's writer locks."""
    return cache.with_name(cache.name + ".lock")


class WriterLock:
    """The right to write to a cache, held while the context lasts.

    A lock on the file `FILE.lock`: NFS and cluster file systems pass it between hosts, and it
    ends with its process, even if that is killed. The file itself stays; it names the last process that held the lock.

    Raises
    ------
    CacheLockedError
        On entering, at once, if another process (or this one) holds it; it names the process.
    """

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.path = lock_path(cache)
        self._identity = ""
        self.owner = ""

    def __enter__(self) -> Self:
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CacheError(f"{self.path}: the cache's folder cannot be written: {error.strerror}.") from error
        status = os.fstat(descriptor)
        self._identity = f"{status.st_dev}:{status.st_ino}"
        # Record locks do not hold between two openings by one process.
        if self._identity in _held_here:
            raise self._locked_error(descriptor)
        try:
            lock_file(descriptor)
        except (BlockingIOError, PermissionError) as error:
            raise self._locked_error(descriptor) from error
        except OSError as error:
            os.close(descriptor)
            raise CacheError(
                f"{self.path}: this file system does not support locks ({error.strerror}), so a second process could write "
                "to the cache at the same time. Use a cache on a local disk, or mount the file system with locking."
            ) from error
        _held_here.add(self._identity)
        self._descriptor = descriptor
        self._write_owner()
        return self

    def __exit__(self, *exception: object) -> None:
        _held_here.discard(self._identity)
        os.close(self._descriptor)

    def check(self) -> None:
        """Raise CacheError if the lock's file was removed or replaced: then another process may be writing, too."""
        try:
            is_ours = os.path.samestat(os.stat(self.path), os.fstat(self._descriptor))
        except OSError:
            is_ours = False
        if not is_ours:
            raise CacheError(
                f"{self.path} was removed or replaced during this run, so another process may be writing to the cache. "
                "Nothing was changed in it, and what was committed is safe. Run the same command again to continue."
            )

    def _write_owner(self) -> None:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        self.owner = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
        # For the error message of a second writer, and for workers on other hosts; a full disk must not stop the writer here.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.lseek(self._descriptor, 0, os.SEEK_SET)
            os.write(self._descriptor, self.owner.encode())
            os.fsync(self._descriptor)  # a network file system shows others what is synced, or closed

    def _locked_error(self, descriptor: int) -> CacheLockedError:
        try:
            os.lseek(descriptor, 0, os.SEEK_SET)
            owner = json.loads(os.read(descriptor, 4096))
            who = f"process {owner['pid']} on {owner['host']} since {owner['since']}"
        except (ValueError, KeyError, TypeError):
            who = "another process"
        # Closing any descriptor of the file would release this process's own record lock on it.
        if self._identity not in _held_here:
            os.close(descriptor)
        return CacheLockedError(
            f"{self.cache} is being written by {who}. Wait for it to end, or choose another --cache. Reading is not affected."
        )


def lock_owner(cache: Path) -> str:
    """Read which process has, or last had, the lock on a cache; empty if it was never locked.

    Never call this in the process that holds the lock: closing any descriptor of the file would release it.
    """
    try:
        return lock_path(cache).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
