"""`hoarfrost` as on a system without POSIX: its modules and functions are blocked, and Windows' lock is a stand-in.

Run as `python -m tests.support.other_system COMMAND…`; without a command, everything is imported.
"""

import builtins
import fcntl
import importlib
import os
import pkgutil
import sys
from types import ModuleType
from typing import Any

BLOCKED = ("fcntl", "resource", "pwd", "grp", "termios", "pty")
MISSING = ("preadv", "pread", "pwrite", "killpg", "sched_getaffinity", "O_NONBLOCK", "O_CLOEXEC")


def block() -> None:
    """Block for this package what Windows lacks; libraries have versions of their own there."""
    stand_in = ModuleType("msvcrt")
    stand_in.LK_NBLCK = 2  # type: ignore[attr-defined]
    stand_in.locking = lambda number, _, n_bytes: fcntl.lockf(  # type: ignore[attr-defined]
        number, fcntl.LOCK_EX | fcntl.LOCK_NB, n_bytes, os.lseek(number, 0, os.SEEK_CUR)
    )
    import_of_all = builtins.__import__

    def blocking(name: str, globals: Any = None, *others: Any, **more: Any) -> Any:
        if (globals or {}).get("__name__", "").startswith("hoarfrost"):
            if name.partition(".")[0] in BLOCKED:
                raise ImportError(f"{name} is blocked")
            if name == "msvcrt":
                return stand_in
        return import_of_all(name, globals, *others, **more)

    builtins.__import__ = blocking


def lack() -> None:
    """Remove functions that `os` has on POSIX alone; libraries that took them at their import are not this package's."""
    import torch  # noqa: F401

    for name in MISSING:
        if hasattr(os, name):
            delattr(os, name)


def import_everything() -> int:
    """Import each module of the package; return their number."""
    import hoarfrost
    from hoarfrost import features

    names = []
    for package in (hoarfrost, features):
        names += [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    n_imported = 0
    for name in dict.fromkeys(names):
        if name == "hoarfrost.__main__":
            continue
        try:
            importlib.import_module(name)
        except ImportError as error:
            if any(blocked in str(error) for blocked in (*BLOCKED, "msvcrt")):
                raise
            continue  # an extra that is not installed
        n_imported += 1
    return n_imported


if __name__ == "__main__":
    block()
    if len(sys.argv) == 1:
        print(import_everything())
    else:
        lack()
        from hoarfrost.cli import main

        main(prog_name="hoarfrost")
