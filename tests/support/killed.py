"""A process that is killed before, or after, the n-th change that it makes to the disk."""

import os
import signal
from collections.abc import Callable
from typing import Any

import hoarfrost.features.files.whole as whole

CHANGES = ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "fsync", "ftruncate")


def arm(n: int, *, after: bool) -> Callable[[], int]:
    """Kill this process at its n-th change; without such a change it runs to its end. Return what counts its changes."""
    n_seen = 0

    def seen() -> None:
        nonlocal n_seen
        n_seen += 1
        if n_seen == n:
            os.kill(os.getpid(), signal.SIGKILL)

    def killing(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **options: Any) -> Any:
            if not after:
                seen()
            result = change(*arguments, **options)
            if after:  # a change that failed, such as `mkdir` of a folder that is there, is none
                seen()
            return result

        return changed

    for name in CHANGES:
        setattr(os, name, killing(getattr(os, name)))
    whole.exchange = killing(whole.exchange)
    return lambda: n_seen


def run_killed(work: Callable[[], object], n: int, *, after: bool) -> bool:
    """Run in a forked process that is killed at its n-th change; return whether it was."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            arm(n, after=after)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)
