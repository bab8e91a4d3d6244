"""Kill commands at random moments, 1,000 times, and count what was lost or stayed: `python -m tests.support.soak [N]`.

With `every` in place of N, the commands of `POINTS` are killed before and after every change that they make to the disk;
with `every/3` at each third of these moments, as the tests do.

Every command runs on a small set in a forked process, killed after a random time or at a random change to the disk, again
and again over the same files. After each kill no process of the command may go on, the next command must find all that was
committed, and in the end nothing that a killed process left may be there.
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
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

import hoarfrost.experiment.results
import hoarfrost.features.cache.parts
import hoarfrost.features.encoder.backbone
from hoarfrost.report.templates import template_environment
from hoarfrost.runs import read_run
from hoarfrost.training.references import REFERENCES, fit_references
from tests.support.killed import arm
from tests.support.standin import StandIn, cached_weights

Kill = Callable[[int], object]  # called in the parent with the child's number, in the child with 0

N_IMAGES = 24
MAPS, MODEL, CARD = "maps", "model.pt2", "model_card.md"
POINTS = ("demo", "extract", "train", "report", "predict", "compact")  # killed at their changes by the tests
SERVE = "serve"  # ends only when it is killed
LONGEST_FAREWELL = 5.0  # seconds in which the helpers of a killed process end
KILLS_BETWEEN_CHECKS = 20
SERVED_SECONDS = 5.0


def commands(root: Path) -> dict[str, list[str]]:
    """Return each command that writes, by name, in the order of a project."""
    run, cache = str(root / "run"), str(root / "cache.h5")
    return {
        "demo": ["demo", str(root / "demo"), "--images", "30"],
        "extract": ["extract", str(root / "images"), "--cache", cache, "--weights", "random:0"],
        "train": ["train", "--cache", cache, "--run", run, "--head", "linear,members=1", "--epochs", "2", "--overwrite",
                  "--device", "cpu", "--allow-leakage", "--near-duplicates", "ignore"],
        "report": ["report", "--run", run],
        "predict": ["predict", str(root / "images"), "--run", run, "--output", str(root / "new.csv")],
        "explain": ["explain", str(root / "images" / "a" / "0.png"), "--run", run, "--output", str(root / MAPS)],
        "export": ["export", "--run", run, "--output", str(root / MODEL), "--format", "torch"],
        "serve": ["serve", "--run", run, "--port", "0"],
        "heads": ["heads", run],
        "verify": ["cache", "verify", cache],
        "compact": ["cache", "compact", cache],
    }  # fmt: skip


def write_images(root: Path) -> None:
    """Write small images of two classes."""
    from tests.support.builders import write_images as write

    write(root / "images", [f"{'ab'[i % 2]}/{i}.png" for i in range(N_IMAGES)])


def in_child(command: list[str], log: Path, kill: Kill, found: Counter[str] | None = None) -> int:
    """Run a command in a forked process that `kill` prepares; return its status as `os.waitpid` does.

    Processes that go on after a kill are counted.
    """
    for made in (MAPS, MODEL, CARD):  # commands that refuse to replace them
        _remove(log.parent / made)
    child = os.fork()
    if child:
        timer = kill(child)
        status = os.waitpid(child, 0)[1]
        if isinstance(timer, threading.Timer):
            timer.cancel()
        if os.WIFSIGNALED(status) and found is not None:
            found += Counter(f"LEFT process {name}" for name in survivors(child))
        return status
    status = 70
    try:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        at_the_end = kill(0)
        from hoarfrost.cli import main

        try:
            main(command, prog_name="hoarfrost", standalone_mode=True)
        except SystemExit as stopped:
            status = int(stopped.code or 0)
        if callable(at_the_end):
            at_the_end()
    finally:
        os._exit(status)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def survivors(session: int) -> list[str]:
    """Return the processes that a killed command started and that go on without it."""
    until = time.monotonic() + LONGEST_FAREWELL
    while time.monotonic() < until:
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                name, facts = path.read_text().rpartition(")")[::2]
                state, _, _, of_session = facts.split()[:4]
                if int(of_session) == session and state != "Z":
                    found.append(name)
        if not found:
            return []
        time.sleep(0.1)
    return found


def at_a_change(n: int, after: bool) -> Kill:
    """Kill at the n-th change to the disk."""

    def kill(child: int) -> None:
        if not child:
            arm(n, after=after)

    return kill


def after_seconds(seconds: float) -> Kill:
    """Kill after a time."""

    def kill(child: int) -> object:
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
    prepare(root, todo, log)
    most = {name: measured(name, command, log) for name, command in todo.items()}
    while found["kills"] < n_kills:
        name = random_.choice(list(todo))
        if random_.random() < 0.3:
            content = (root / "images" / "a" / "0.png").read_bytes() + bytes(random_.randrange(1, 99))
            (root / "images" / "a" / f"new{random_.randrange(200)}.png").write_bytes(content)
        seconds, n_changes = most[name]
        if random_.random() < 0.4 or not n_changes:
            way = after_seconds(random_.uniform(0.0, seconds))
        else:
            way = at_a_change(random_.randint(1, n_changes), random_.random() < 0.5)
        status = in_child(todo[name], log, way, found)
        if not os.WIFSIGNALED(status):
            found["ended before"] += 1
            continue
        found["kills"] += 1
        found[f"kills of {name}"] += 1
        if not (root / "run").exists() and not list(root.glob(".run.*.old")):
            found["LOST run"] += 1
        if found["kills"] % KILLS_BETWEEN_CHECKS == 0:
            found += check(root, todo, log)
            print(json.dumps(found), file=sys.stderr, flush=True)
    found += check(root, todo, log)
    return found


def prepare(root: Path, todo: dict[str, list[str]], log: Path) -> None:
    """Run each command once, and load here what it loaded: the forks of all kills have it then."""
    listed = log.with_name("modules")

    def listing(child: int) -> object:
        return None if child else after_all(lambda: "\n".join(sys.modules), listed)

    for name, command in todo.items():
        if name == SERVE:
            importlib.import_module("hoarfrost.inference.serve.app")
            continue
        if os.waitstatus_to_exitcode(in_child(command, log, listing)):
            raise SystemExit(f"{name} fails without any kill: {log.read_text()}")
        for module in listed.read_text().split():
            with suppress(ImportError):
                importlib.import_module(module)
    read_run(root / "run")
    for template in template_environment().list_templates(extensions=["j2"]):
        template_environment().get_template(template)


def measured(name: str, command: list[str], log: Path) -> tuple[float, int]:
    """Return how long a command runs unharmed, in seconds, and how many changes it makes to the disk."""
    if name == SERVE:
        return SERVED_SECONDS, 0
    counted, started = log.with_name("changes"), time.monotonic()

    def counting(child: int) -> object:
        return None if child else after_all(arm(0, after=False), counted)

    if os.waitstatus_to_exitcode(in_child(command, log, counting)):
        raise SystemExit(f"{name} fails without any kill: {log.read_text()}")
    return time.monotonic() - started, int(counted.read_text())


def after_all(count: Callable[[], object], path: Path) -> Callable[[], object]:
    """Return what writes a count, or a list, to a file."""
    return lambda: path.write_text(str(count()))


def points(root: Path, step: int) -> Counter[str]:
    """Kill commands at every `step`-th change, and run each again; return the numbers of kills, and of what stayed.

    Each change is two moments, before it and after it: an odd step comes to both in turn.
    """
    found: Counter[str] = Counter()
    write_images(root)
    todo, log = {name: command for name, command in commands(root).items() if name in POINTS}, root / "log.txt"
    prepare(root, todo, log)
    for name, command in todo.items():
        for moment in range(0, 2000, step):
            n, after = moment // 2 + 1, bool(moment % 2)
            content = (root / "images" / "a" / "0.png").read_bytes() + f"{name} {moment}".encode()
            (root / "images" / "a" / "new.png").write_bytes(content)  # which no cache has
            if not os.WIFSIGNALED(in_child(command, log, at_a_change(n, after))):
                break
            found[f"kills of {name}"] += 1
            found += check(root, {name: command}, log, f"{name}, {'after' if after else 'before'} change {n}")
    return found


def check(root: Path, todo: dict[str, list[str]], log: Path, where: str = "") -> Counter[str]:
    """Run commands once more, unharmed."""
    found: Counter[str] = Counter()
    for name, command in todo.items():
        if name == SERVE:
            continue
        found["commands after kills"] += 1
        if os.waitstatus_to_exitcode(in_child(command, log, unharmed)):
            found[f"FAILED {where or name}"] += 1
            print(name, log.read_text()[-2000:], file=sys.stderr)
    for left in leavings(root):
        found[f"LEFT {where} {left}"] += 1
    return found


def main() -> None:
    """Soak in a folder of its own, and print the counts as JSON."""
    hoarfrost.features.cache.parts.COMMIT_SECONDS = 0.0
    torch.set_num_threads(1)
    # Which references a head is compared with changes no step on the disk, and they take most of a training.
    hoarfrost.experiment.results.fit_references = partial(fit_references, kinds=REFERENCES[:1])
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="hoarfrost-soak-"))
    try:
        given, _, step = (sys.argv[1] if sys.argv[1:] else "1000").partition("/")
        if given == "every":
            # Nor does the network, and these commands, unlike those that `soak` runs, need no maps of it.
            hoarfrost.features.encoder.backbone.Backbone = StandIn  # type: ignore[assignment,misc]
            hoarfrost.features.encoder.backbone.load_weights = cached_weights  # type: ignore[assignment]
            found = points(folder, int(step or 1))
        else:
            found = soak(folder, int(given))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(dict(sorted(found.items())) | {"seconds": round(time.monotonic() - started)}, indent=2))
    sys.exit(any(name.startswith(("LOST", "FAILED", "LEFT")) for name in found))


if __name__ == "__main__":
    main()
