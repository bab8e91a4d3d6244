"""What a decoder's process may use, where the system has such limits; and its end with its parent."""

import ctypes
import math
import os
import signal
import sys
import threading
import time

try:
    import resource
except ImportError:  # Windows: there the parent's clock alone ends a decoder
    resource = None  # type: ignore[assignment]

BASE_BYTES = 8 << 30  # of address space: libraries and their threads reserve far more than they use
BYTES_A_PIXEL = 48  # of the largest image allowed: values, a mask and a rescaled copy as float64
MOST_FILES = 256
_PARENT_DEATH_SIGNAL = 1  # of Linux' prctl


def limit(seconds: float, max_pixels: int, n_bytes: int, *, in_use: int = 0) -> None:
    """Let the next image compute for so many seconds more, take memory for its pixels, and write no file.

    `in_use` is address space, in bytes, that the process needs besides.
    """
    if resource is None:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    room = BASE_BYTES + BYTES_A_PIXEL * max_pixels + 4 * n_bytes + in_use
    _lower(resource.RLIMIT_CPU, math.ceil(used.ru_utime + used.ru_stime + seconds))
    if sys.platform == "linux":  # elsewhere the system does not keep it
        _lower(resource.RLIMIT_AS, room)
    for name, value in (("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0), ("RLIMIT_NOFILE", MOST_FILES)):
        _lower(getattr(resource, name), value)


def address_space() -> int:
    """Return the bytes of address space that this process uses; 0 where the system does not limit it."""
    if sys.platform != "linux":
        return 0
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _lower(which: int, value: int) -> None:
    """Set what applies now; never beyond what was set from outside."""
    _, most = resource.getrlimit(which)
    value = min(value, sys.maxsize)
    resource.setrlimit(which, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def end_with_parent() -> None:
    """End this process when the one that started it ends, in the middle of an image too."""
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    elif sys.platform != "win32":  # Windows keeps the number of a parent that has ended; the closed pipe ends us
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
