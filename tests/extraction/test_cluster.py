"""A Ray cluster on loopback ends in what one machine ends in, bit for bit, whatever dies on the way."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from hoarfrost.features.cache import CacheFile, EmbeddingCache, verify
from hoarfrost.features.cache.store import part_paths
from tests.support.builders import encode, picture, write_npz
from tests.support.commands import ROOT, Hoarfrost
from tests.support.forks import Forks, forks_of

HAS_RAY = importlib.util.find_spec("ray") is not None
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not HAS_RAY, reason="Ray is not installed")]

N_IMAGES, N_DIFFERENT = 96, 84
PACE = "0.15/often"  # seconds a batch; each is committed
WAIT_S = 90  # for anything on a machine that has other work
PLAIN = ("--device", "cpu", "--precision", "float32", "--batch-size", "4", "--weights", "random:0", "--json")
ONE_WORKER = ("--max-workers", "1")  # each takes seconds to import torch

DRIVERS = """
from tests.support.clustered import in_fork as main  # first: it sets what Ray reads when it is imported
import hoarfrost.cli.images, hoarfrost.features.extraction.cluster.driver, hoarfrost.features.extraction.extract
import ray, tests.support.crashing, tests.support.standin
"""


class Ended(NamedTuple):
    """How a command ended, what it printed, and its summary if it has one."""

    status: int
    stderr: str
    summary: dict[str, Any]


class Nodes:
    """Two hosts of one CPU each beside a head that has no room for workers."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.clustered", "nodes", "1", "2"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.address = self._answer()
        assert self.address.startswith("127.0.0.1:")

    def tell(self, what: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        assert self._answer() == "done"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.communicate(timeout=WAIT_S)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    started = Nodes()
    yield started
    started.end()


def arguments_of(data: Path, cache: Path, *more: str) -> list[str]:
    return ["extract", str(data), "--cache", str(cache), *PLAIN, *more]


@dataclass(frozen=True)
class Drivers:
    """Runs extractions with the stand-in, one after the other, in forks of a process that has imported Ray and torch."""

    forks: Forks
    folder: Path

    def start(self, data: Path, cache: Path, *more: str, pace: str = PACE) -> int:
        """Start one; return its process id."""
        printed = [str(self.folder / name) for name in ("stdout", "stderr")]
        return self.forks.start(*printed, pace, *arguments_of(data, cache, *more))

    def ended(self) -> Ended:
        status = self.forks.wait()
        stdout, stderr = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        return Ended(status, stderr, json.loads(stdout) if stdout else {})

    def run(self, data: Path, cache: Path, *more: str, pace: str = PACE) -> Ended:
        self.start(data, cache, *more, pace=pace)
        return self.ended()


@pytest.fixture(scope="module")
def drivers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drivers]:
    with forks_of(DRIVERS) as forks:
        yield Drivers(forks, tmp_path_factory.mktemp("printed"))


def on(nodes: Nodes) -> tuple[str, ...]:
    return ("--engine", "ray", "--address", nodes.address, "--cpus-per-worker", "1")


def write_set(folder: Path, n: int) -> Path:
    """Write images of two classes, each eighth of the bytes of another one."""
    for i in range(n):
        path = folder / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(16, 12, seed=i - 7 if i % 8 == 7 else i)))
    return folder


def content(cache: Path) -> dict[str, Any]:
    """Return all that a cache holds: each image of its dataset, and each key's embedding."""
    assert verify(cache).sound, verify(cache).problems
    with EmbeddingCache(cache) as opened, CacheFile(cache) as file:
        table = opened.dataset()
        keys = [file.keys[row].tobytes() if row >= 0 else b"" for row in table.rows]
        embeddings = opened.embeddings()
        return {
            "columns": [table.paths, table.labels, table.errors, table.sizes.tolist(), table.mtimes_ns.tolist(), keys],
            "embeddings": {key.tobytes(): row.tobytes() for key, row in zip(file.keys, embeddings, strict=True)},
            "header": opened.header,
        }


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def workers() -> list[int]:
    """Return the process ids of workers that embed."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"ray::StandInWorker"):
                found.append(int(entry.name))
        except OSError:  # it has just ended
            continue
    return found


def committed(cache: Path) -> set[bytes]:
    found = set()
    for path in part_paths(cache):
        with CacheFile(path) as part:
            found |= {key.tobytes() for key in part.keys}
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set") / "images", N_IMAGES)


@pytest.fixture(scope="module")
def expected(images: Path, drivers: Drivers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return the cache that one machine makes of the images."""
    cache = tmp_path_factory.mktemp("expected") / "c.h5"
    done = drivers.run(images, cache, pace="0/often")
    assert done.summary["embedded"] == N_DIFFERENT
    assert (done.summary["engine"], done.summary["workers"]) == ("local", 1)
    return content(cache)


# -- the same -----------------------------------------------------------------------------------------------------------


def test_two_hosts_make_the_cache_that_one_machine_makes(tmp_path: Path, nodes: Nodes, hoarfrost: Hoarfrost) -> None:
    images = write_set(tmp_path / "images", 40)
    (images / "a" / "bad.png").write_bytes(b"no image")
    write_npz(tmp_path / "set.npz", {"train": 20, "val": 4})
    for data in (images, tmp_path / "set.npz"):
        caches = [tmp_path / f"{data.stem} {engine}.h5" for engine in ("local", "ray")]
        local = hoarfrost(*arguments_of(data, caches[0]))
        ray = on_hosts(nodes, data, caches[1])
        assert local.status == ray.status == 0, ray.stderr
        summary = json.loads(local.stdout)
        same = ("images", "embedded", "reused", "failed", "fingerprint", "errors", "failed_by_kind", "notes", "device")
        assert {name: ray.summary[name] for name in same} == {name: summary[name] for name in same}
        assert ray.summary["engine"] == "ray"
        assert ray.summary["workers"] >= 1
        assert content(caches[1]) == content(caches[0])
        assert "2 workers on 2 hosts" in ray.stderr
    assert on_hosts(nodes, images, tmp_path / "images ray.h5").summary["forward_images"] == 0


def on_hosts(nodes: Nodes, data: Path, cache: Path) -> Ended:
    """Extract with the real backbone."""
    command = [sys.executable, "-m", "pipeline", *arguments_of(data, cache, *on(nodes))]
    return ended(command)


def ended(command: list[str]) -> Ended:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3 * WAIT_S)
    return Ended(done.returncode, done.stderr, json.loads(done.stdout) if done.stdout else {})


def test_what_is_cached_under_another_name_is_not_embedded_again(
    tmp_path: Path, nodes: Nodes, drivers: Drivers
) -> None:
    first, second = write_set(tmp_path / "first", 40), write_set(tmp_path / "second", 60)
    assert drivers.run(first, tmp_path / "c.h5", *on(nodes)).summary["embedded"] == 35
    done = drivers.run(second, tmp_path / "c.h5", *on(nodes))
    assert done.summary["embedded"] == 18  # 53 different, of which 35 are known
    # The same bytes at the same time with two workers are computed by both, and stored once.
    assert 18 <= done.summary["forward_images"] <= 20


def test_nothing_but_digests_comes_to_the_driver(images: Path, tmp_path: Path, nodes: Nodes, drivers: Drivers) -> None:
    done = drivers.run(images, tmp_path / "c.h5", *on(nodes), pace="0/often")
    n_bytes = int(done.stderr.splitlines()[-1].split()[0])
    assert 32 * N_IMAGES < n_bytes < 400 * N_IMAGES, done.stderr  # an embedding alone has 2,048


# -- what dies ----------------------------------------------------------------------------------------------------------


def test_a_worker_killed_in_the_middle_changes_nothing(
    images: Path, tmp_path: Path, nodes: Nodes, drivers: Drivers, expected: dict[str, Any]
) -> None:
    cache = tmp_path / "c.h5"
    drivers.start(images, cache, *on(nodes))
    wait_until(lambda: len(part_paths(cache)) > 3)
    os.kill(workers()[0], signal.SIGKILL)
    done = drivers.ended()
    assert done.status == 0, done.stderr
    assert "is lost" in done.stderr
    assert done.summary["embedded"] == N_DIFFERENT
    assert content(cache) == expected
    assert [path.name for path in tmp_path.iterdir() if "trying" in path.name or "parts" in path.name] == []


def test_a_host_removed_in_the_middle_changes_nothing(
    images: Path, tmp_path: Path, nodes: Nodes, drivers: Drivers, expected: dict[str, Any]
) -> None:
    cache = tmp_path / "c.h5"
    nodes.tell("add")
    drivers.start(images, cache, *on(nodes))
    wait_until(lambda: len(part_paths(cache)) > 3)
    nodes.tell("remove")
    done = drivers.ended()
    assert done.status == 0, done.stderr
    assert content(cache) == expected


def test_a_driver_killed_and_started_again_loses_nothing_and_computes_nothing_twice(
    images: Path, tmp_path: Path, nodes: Nodes, drivers: Drivers, expected: dict[str, Any]
) -> None:
    cache = tmp_path / "c.h5"
    process = drivers.start(images, cache, *on(nodes))
    wait_until(lambda: len(part_paths(cache)) > 3)
    os.kill(process, signal.SIGKILL)
    assert drivers.ended().status == -signal.SIGKILL
    wait_until(lambda: not workers())
    before = committed(cache)
    done = drivers.run(images, cache, *on(nodes))
    assert done.status == 0, done.stderr
    assert content(cache) == expected
    assert before <= expected["embeddings"].keys()
    assert done.summary["embedded"] == N_DIFFERENT - len(before)
    assert done.summary["forward_images"] <= N_IMAGES - len(before)


def test_a_decoder_that_ends_its_process_costs_one_image(tmp_path: Path, nodes: Nodes, drivers: Drivers) -> None:
    images = write_set(tmp_path / "images", 40)
    (images / "a" / "crash.png").write_bytes(encode(picture(13, 13)))
    for _ in range(2):
        done = drivers.run(images, tmp_path / "c.h5", *on(nodes), *ONE_WORKER)
        assert done.status == 0, done.stderr
        assert done.summary["errors"] == [
            ["a/crash.png", "its decoder crashed: SIGSEGV (in quarantine: c.h5.quarantine)"]
        ]
    assert done.summary["reused"] == 40
    assert "is lost" not in done.stderr
    assert verify(tmp_path / "c.h5").sound
    assert not list(tmp_path.glob("*trying*"))


def test_a_signal_commits_and_says_how_to_continue(
    images: Path, tmp_path: Path, nodes: Nodes, drivers: Drivers, expected: dict[str, Any]
) -> None:
    cache = tmp_path / "c.h5"
    for stop in (signal.SIGTERM, signal.SIGINT):
        n_parts = len(part_paths(cache))
        process = drivers.start(images, cache, *on(nodes), *ONE_WORKER)
        wait_until(lambda n_parts=n_parts: len(part_paths(cache)) > n_parts + 3)  # type: ignore[misc]
        os.kill(process, stop)
        done = drivers.ended()
        assert done.status == 1, done.stderr
        assert "Stopping; saving the current batch." in done.stderr
        assert re.search(
            rf"Interrupted; \d+ of {N_IMAGES} images saved\. Run the same command again to continue\.", done.stderr
        )
    n_committed = len(committed(cache))
    done = drivers.run(images, cache, *on(nodes), *ONE_WORKER)
    assert done.summary["embedded"] == N_DIFFERENT - n_committed
    assert content(cache) == expected


# -- what is unreadable -------------------------------------------------------------------------------------------------


def test_unreadable_images_end_it_as_on_one_machine(tmp_path: Path, nodes: Nodes, drivers: Drivers) -> None:
    images = write_set(tmp_path / "images", 30)
    for name in ("x", "y", "z"):
        (images / "a" / f"{name}.png").write_bytes(b"no image")
    for option, said in (
        (("--max-bad", "0.05"), "of 33 images are unreadable so far, more than --max-bad 0.05 allows"),
        (("--on-error", "fail"), "no image format recognised"),
    ):
        done = drivers.run(images, tmp_path / "c.h5", *on(nodes), *ONE_WORKER, *option)
        assert done.status == 1
        assert said in done.stderr
    done = drivers.run(images, tmp_path / "c.h5", *on(nodes), *ONE_WORKER, "--max-bad", "0.5")
    assert (done.summary["failed"], done.summary["images"]) == (3, 33)
    assert drivers.run(images, tmp_path / "l.h5", "--max-bad", "0.5").summary["errors"] == done.summary["errors"]


# -- memory -------------------------------------------------------------------------------------------------------------


def test_memory_of_the_driver_does_not_grow_as_embeddings_do(tmp_path: Path, nodes: Nodes) -> None:
    peaks = []
    for n in (4_000, 24_000):
        write_npz(tmp_path / f"{n}.npz", {"train": n}, compressed=False)
        more = (*on(nodes), *ONE_WORKER, "--batch-size", "64")
        modules = ("tests.benchmarks.peak", "tests.support.clustered", "0")
        done = ended(
            [sys.executable, "-m", *modules, *arguments_of(tmp_path / f"{n}.npz", tmp_path / f"{n}.h5", *more)]
        )
        assert done.summary["embedded"] == n, done.stderr
        peaks.append(float(done.stderr.splitlines()[-1].split()[1]))
    assert peaks[1] - peaks[0] < 25, peaks  # MB: 16, and 34 where the driver kept the embeddings
