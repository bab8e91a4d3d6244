"""Kill commands at random moments, 1,000 times, and count what was lost or stayed: `python -m tests.support.soak [N]`.

With names of commands in place of N, each is killed before and after every change that it makes to the disk.

Every command runs on a small set in a forked process, killed after a random time or at a random change to the disk, again
and again over the same files. After each kill, the next command must find all that was committed, and in the end nothing
that a killed process left may be there. The backbone is a stand-in.
"""

import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

import hoarfrost.features.cache.parts
from tests.support.killed import arm
from tests.support.standin import stand_in_module

Kill = Callable[[int], threading.Timer | None]  # called in the parent with the child's number, in the child with 0

N_IMAGES = 24
MOST_SECONDS = 2.0
MOST_CHANGES = 60


def commands(root: Path) -> dict[str, list[str]]:
    """Return each command that writes, by name, in the order of a project."""
    run, cache = str(root / "run"), str(root / "cache.h5")
    return {
        "demo": ["demo", str(root / "demo"), "--images", "30"],
        "extract": ["extract", str(root / "images"), "--cache", cache, "--weights", "random:0"],
        "train": ["train", "--cache", cache, "--run", run, "--head", "linear,members=1", "--epochs", "2", "--overwrite",
                  "--device", "cpu", "--allow-leakage"],
        "report": ["report", "--run", run],
        "predict": ["predict", str(root / "images"), "--run", run, "--output", str(root / "new.csv")],
        "heads": ["heads", run],
        "verify": ["cache", "verify", cache],
        "compact": ["cache", "compact", cache],
    }  # fmt: skip


def write_images(root: Path) -> None:
    """Write small images of two classes."""
    from tests.support.builders import write_images as write

    write(root / "images", [f"{'ab'[i % 2]}/{i}.png" for i in range(N_IMAGES)])


def in_child(command: list[str], log: Path, kill: Kill) -> int:
    """Run a command in a forked process that `kill` prepares; return its status as `os.waitpid` does."""
    child = os.fork()
    if child:
        timer = kill(child)
        status = os.waitpid(child, 0)[1]
        if timer is not None:
            timer.cancel()
        return status
    status = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        kill(0)
        from hoarfrost.cli import main

        try:
            main(command, prog_name="hoarfrost", standalone_mode=True)
        except SystemExit as stopped:
            status = int(stopped.code or 0)
    finally:
        os._exit(status)


def at_a_change(n: int, after: bool) -> Kill:
    """Kill at the n-th change to the disk."""
    return lambda child: None if child else arm(n, after=after)


def after_seconds(seconds: float) -> Kill:
    """Kill after a time."""

    def kill(child: int) -> threading.Timer | None:
        if not child:
            return None
        timer = threading.Timer(seconds, os.kill, (child, signal.SIGKILL))
        timer.daemon = True
        timer.start()
        return timer

    return kill


def unharmed(_: int) -> None:
    """Kill nothing."""


def leavings(root: Path) -> list[str]:
    """Return what killed processes left."""
    marks = (".tmp", ".old", ".trying", ".parts")
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name.endswith(marks))


def soak(root: Path, n_kills: int, seed: int = 0) -> Counter[str]:
    """Kill so often, and return the numbers of kills, of commands that failed afterwards, and of what stayed."""
    random_, found = random.Random(seed), Counter[str]()
    write_images(root)
    todo, log = commands(root), root / "log.txt"
    for name, command in todo.items():
        if os.waitstatus_to_exitcode(in_child(command, log, unharmed)):
            raise SystemExit(f"{name} fails without any kill: {log.read_text()}")
    while found["kills"] < n_kills:
        name = random_.choice(list(todo))
        if random_.random() < 0.3:
            content = (root / "images" / "a" / "0.png").read_bytes() + bytes(random_.randrange(1, 99))
            (root / "images" / "a" / f"new{random_.randrange(200)}.png").write_bytes(content)
        way = at_a_change(random_.randrange(1, MOST_CHANGES), random_.random() < 0.5)
        if random_.random() < 0.4:
            way = after_seconds(random_.uniform(0.0, MOST_SECONDS))
        status = in_child(todo[name], log, way)
        if not os.WIFSIGNALED(status):
            found["ended before"] += 1
            continue
        found["kills"] += 1
        found[f"kills of {name}"] += 1
        if not (root / "run").exists() and not list(root.glob(".run.*.old")):
            found["LOST run"] += 1
        if found["kills"] % 10 == 0:
            found += check(root, todo, log)
    found += check(root, todo, log)
    return found


def points(root: Path, names: list[str]) -> Counter[str]:
    """Kill commands at every change, and run each again; return the numbers of kills, and of what failed or stayed."""
    found: Counter[str] = Counter()
    write_images(root)
    todo, log = commands(root), root / "log.txt"
    check(root, todo, log)
    for name in names:
        for after in (False, True):
            for n in range(1, 1000):
                (root / "images" / "a" / "new.png").write_bytes(
                    (root / "images" / "a" / "0.png").read_bytes() + b"%d" % n
                )
                if not os.WIFSIGNALED(in_child(todo[name], log, at_a_change(n, after))):
                    break
                found[f"kills of {name}"] += 1
                found += check(root, {name: todo[name]}, log, f"{name}, {'after' if after else 'before'} change {n}")
    return found


def check(root: Path, todo: dict[str, list[str]], log: Path, where: str = "") -> Counter[str]:
    """Run commands once more, unharmed."""
    found: Counter[str] = Counter()
    for name, command in todo.items():
        found["commands after kills"] += 1
        if os.waitstatus_to_exitcode(in_child(command, log, unharmed)):
            found[f"FAILED {where or name}"] += 1
            print(name, log.read_text()[-2000:], file=sys.stderr)
    for left in leavings(root):
        found[f"LEFT {where} {left}"] += 1
    return found


def main() -> None:
    """Soak in a folder of its own, and print the counts as JSON."""
    sys.modules["hoarfrost.features.encoder.backbone"] = stand_in_module()
    hoarfrost.features.cache.parts.COMMIT_SECONDS = 0.0
    for name in ("experiment.experiment", "features.extraction.extract", "features.extraction.loop", "report.outputs"):
        importlib.import_module(f"hoarfrost.{name}")  # once, before the forks
    torch.set_num_threads(1)
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="hoarfrost-soak-"))
    try:
        given = sys.argv[1:] or ["1000"]
        found = soak(folder, int(given[0])) if given[0].isdigit() else points(folder, given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(dict(sorted(found.items())) | {"seconds": round(time.monotonic() - started)}, indent=2))
    sys.exit(any(name.startswith(("LOST", "FAILED", "LEFT")) for name in found))


if __name__ == "__main__":
    main()
