"""What several files of tests share: one Hypothesis profile, synthetic caches, the command line in this process."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.browser import Browser, find_chromium
from tests.support.commands import ROOT, Hoarfrost, NumberOfThreads, Output, RunPython

if TYPE_CHECKING:
    from hoarfrost.runs import Run

AXE = "axe-core@4.14.1"

# No deadline: machines differ. Derandomised: the same examples everywhere, so a failure can be repeated.
settings.register_profile("hoarfrost", deadline=None, derandomize=True)
settings.load_profile("hoarfrost")

IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ

# Processes that test side by side share the CPUs: threads of two that contend for one take twice as long as one thread.
if IS_WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Many tests kill processes, and these leave temporary files: they get a folder that is removed at the end.
if not IS_WORKER:
    os.environ["PYTEST_DEBUG_TEMPROOT"] = tempfile.gettempdir()
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix="hoarfrost-tests-")

# Only a power failure tells it from none, and tests of files waited for the disk as long as they computed.
os.fsync = lambda _: None

# What compiling brings is measured anew for the tests, and the user's own measurements stay as they are.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()


def pytest_unconfigure() -> None:
    """Remove the temporary files of this run."""
    if not IS_WORKER:
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files whose slow tests may take longest first: a long file at the end keeps one process waiting."""
    seconds: Counter[Path] = Counter()
    for item in items:
        if item.get_closest_marker("slow"):
            limit = item.get_closest_marker("timeout")
            seconds[item.path] += limit.args[0] if limit else 300
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture
def hoarfrost(capsys: pytest.CaptureFixture[str]) -> Hoarfrost:
    """Run a command in this process: torch is loaded once, and patches hold."""
    from hoarfrost.cli import main

    def run(*arguments: object) -> Output:
        capsys.readouterr()
        status = 0
        try:
            main([str(argument) for argument in arguments], prog_name="hoarfrost")
        except SystemExit as ended:
            status = int(ended.code or 0)
        return Output(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def run_python() -> RunPython:
    """Run Python in a process of its own, from the repository's root."""

    def run(*arguments: object, **environment: str) -> Output:
        command = [sys.executable, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
        )
        return Output(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def n_threads() -> Iterator[NumberOfThreads]:
    """Set torch's number of threads, for one test."""
    import torch

    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> "Callable[[str], Run]":
    """Return a run of one of the kinds in `tests.support.reported`, trained and reported when it is first asked for."""
    from tests.support.reported import KINDS

    return cache(lambda kind: KINDS[kind](tmp_path_factory.mktemp(kind)))


@pytest.fixture(scope="session")
def busi_cache() -> Path:
    """Return a cache of BUSI by untrained weights, embedded once for the test processes of a run: to read, or to copy."""
    import fcntl

    from hoarfrost.features.extraction.extract import extract
    from hoarfrost.features.extraction.plan import ExtractOptions
    from tests.support.builders import SHARED_DATA

    cache = Path(os.environ["TMPDIR"]) / "busi" / "embeddings.h5"
    cache.parent.mkdir(exist_ok=True)
    with (cache.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not cache.exists():
            extract(SHARED_DATA / "busi", cache, options=ExtractOptions(weights="random:0"))
    return cache


@pytest.fixture
def free_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let extractions in this process use a backbone that costs nothing, and read weights once."""
    import hoarfrost.features.encoder.backbone
    from tests.support.standin import StandIn, cached_weights

    monkeypatch.setattr(hoarfrost.features.encoder.backbone, "Backbone", StandIn)
    monkeypatch.setattr(hoarfrost.features.encoder.backbone, "load_weights", cached_weights)


@pytest.fixture
def few_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare heads with two references in place of five: these take most of a small training."""
    from hoarfrost.training.references import REFERENCES, fit_references

    monkeypatch.setattr(fit_references, "__kwdefaults__", {"kinds": REFERENCES[:2]})


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with Browser(program, tmp_path_factory.mktemp("browser") / "profile") as started:
        yield started


@pytest.fixture(scope="module")
def axe() -> str:
    """Return the source of axe-core, fetched from npm once a machine."""
    folder = Path(os.environ["PYTEST_DEBUG_TEMPROOT"]) / f"hoarfrost-{AXE}"
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.is_file():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("there is no npm here to fetch axe-core: apt-get install npm")
        made = tempfile.mkdtemp(dir=folder.parent)  # renamed once it is whole: other processes run tests too
        command = [npm, "install", "--no-audit", "--no-fund", "--no-save", "--prefix", made, AXE]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        except subprocess.TimeoutExpired:
            pytest.skip("npm did not answer in two minutes, so there is no axe-core here")
        if done.returncode:
            pytest.skip(f"npm gives no axe-core here: {done.stderr.strip()[-200:]}")
        with suppress(OSError):  # another process was first
            os.rename(made, folder)
    return script.read_text(encoding="utf-8")
