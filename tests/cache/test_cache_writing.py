"""Parts, resuming, the lock, full disks: what was committed stays, whatever happens."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hoarfrost.features.cache.writing
from hoarfrost.features.cache import CacheWriter, EmbeddingCache, PartWriter, compact, describe, lock_owner, verify
from hoarfrost.features.cache.store import part_paths, parts_directory
from hoarfrost.features.errors import CacheError, CacheLockedError, FingerprintMismatchError
from tests.support.caches import HEADER, some_files, some_images, some_table, unchanged_keys, write_cache
from tests.support.commands import RunPython

ROOT = Path(__file__).parents[2]


def test_committed_parts_survive_a_writer_that_never_finished(tmp_path: Path) -> None:
    keys, embeddings = some_images(10)
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        writer.append(some_files(keys[:6]), embeddings[:6])
        writer.commit()
        writer.append(some_files(keys[6:]), embeddings[6:])  # never committed
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        assert [key.tobytes() in writer for key in keys] == [True] * 6 + [False] * 4
        assert unchanged_keys(writer.known_files(), some_files(keys)) == {
            f"image{i}.png": keys[i].tobytes() for i in range(6)
        }


@pytest.mark.parametrize("batch_s", [0.1, 0.9, 2.0, 3.5])
def test_at_most_five_seconds_of_work_are_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_s: float
) -> None:
    clock = 0.0
    monkeypatch.setattr("hoarfrost.features.cache.parts.time.monotonic", lambda: clock)
    keys, embeddings = some_images(60)
    committed_at, n_parts = 0.0, 0
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        for i in range(60):
            clock += batch_s
            assert clock - committed_at <= 5  # what a kill right before the append would cost
            writer.append(some_files(keys[i : i + 1]), embeddings[i : i + 1])
            if len(part_paths(tmp_path / "c.h5")) > n_parts:
                committed_at, n_parts = clock, len(part_paths(tmp_path / "c.h5"))


def test_parts_are_folded_into_the_one_file(tmp_path: Path) -> None:
    keys, embeddings = some_images(10)
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        for i in range(0, 10, 2):
            writer.append(some_files(keys[i : i + 2], f"{i}-"), embeddings[i : i + 2])
            writer.commit()
        assert len(part_paths(tmp_path / "c.h5")) == 5
        writer.finish(some_table(10), keys)
    assert not part_paths(tmp_path / "c.h5")
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        np.testing.assert_array_equal(cache.arrays(cache.dataset())[0], embeddings)


def test_a_part_left_behind_by_a_crash_after_folding_is_not_taken_twice(tmp_path: Path) -> None:
    keys, embeddings = some_images(6)
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        writer.append(some_files(keys), embeddings)
        writer.commit()
        part = part_paths(tmp_path / "c.h5")[0]
        content = part.read_bytes()
        writer.finish(some_table(6), keys)
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(content)
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        writer.finish(some_table(6), keys)
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert cache.n_images == 6
    assert not part_paths(tmp_path / "c.h5")


def test_nothing_to_write_leaves_the_file_alone(tmp_path: Path) -> None:
    keys, _ = write_cache(tmp_path / "c.h5", 5)
    before = (tmp_path / "c.h5").stat()
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        assert not writer.finish(some_table(5), keys)
    assert (tmp_path / "c.h5").stat().st_mtime_ns == before.st_mtime_ns


def test_a_damaged_part_costs_that_part_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys, embeddings = some_images(6)
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        for i in range(0, 6, 2):
            writer.append(some_files(keys[i : i + 2], f"{i}-"), embeddings[i : i + 2])
            writer.commit()
    damaged = part_paths(tmp_path / "c.h5")[1]
    damaged.write_bytes(damaged.read_bytes()[:5000])
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        assert [key.tobytes() in writer for key in keys] == [True, True, False, False, True, True]
    assert damaged.name in caplog.text
    assert "embedded again" in caplog.text


def test_half_written_files_of_a_killed_writer_are_swept_and_never_read(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5", 5)
    parts_directory(tmp_path / "c.h5").mkdir(exist_ok=True)
    leftovers = [parts_directory(tmp_path / "c.h5") / "part-1.h5.77.tmp", tmp_path / "c.h5.77.tmp"]
    mine = tmp_path / "notes.tmp"
    for leftover in [*leftovers, mine]:
        leftover.write_bytes(b"half")
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert cache.n_images == 5
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo"):
        assert not any(leftover.exists() for leftover in leftovers)
    assert mine.exists()


def test_a_part_that_a_killed_worker_of_this_extraction_left_half_written_goes_with_the_parts(tmp_path: Path) -> None:
    keys, embeddings = some_images(4)
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        writer.append(some_files(keys), embeddings)
        writer.commit()
        (parts_directory(tmp_path / "c.h5") / "part-1.h5.77.tmp").write_bytes(b"half")
        writer.finish(some_table(4), keys)
        assert not parts_directory(tmp_path / "c.h5").exists()


def test_a_reader_keeps_its_state_while_a_writer_replaces_the_file(tmp_path: Path) -> None:
    _, embeddings = write_cache(tmp_path / "c.h5", 2000)
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        write_cache(tmp_path / "c.h5", 3000, seed=5, name="other")
        np.testing.assert_array_equal(cache.arrays(cache.dataset())[0], embeddings)
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert cache.n_images == 5000


def test_looking_while_a_writer_folds_finds_nothing_wrong(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_cache(path, 5)
    done = threading.Event()
    problems: list[str] = []

    def look() -> None:
        while not done.is_set():
            problems.extend(verify(path).problems)
            describe(path)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for seed in range(1, 15):
            keys, embeddings = some_images(4, seed)
            with CacheWriter(path, HEADER, "demo") as writer:
                for i in range(4):
                    writer.append(some_files(keys[i : i + 1]), embeddings[i : i + 1])
                    writer.commit()
                writer.finish(some_table(4), keys)
    finally:
        done.set()
        watcher.join()
    assert problems == []


def test_a_linked_cache_is_written_where_it_lies_under_one_lock(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    write_cache(tmp_path / "real" / "c.h5", 5)
    link = tmp_path / "link.h5"
    link.symlink_to(tmp_path / "real" / "c.h5")
    with CacheWriter(link, HEADER, "demo"), pytest.raises(CacheLockedError, match="being written by"):
        compact(tmp_path / "real" / "c.h5")
    write_cache(link, 7, seed=1, name="other")
    assert link.is_symlink()
    with EmbeddingCache(tmp_path / "real" / "c.h5") as cache:
        assert cache.n_images == 12


def test_an_unfinished_first_extraction_says_so_to_a_reader(tmp_path: Path) -> None:
    keys, embeddings = some_images(4)
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        writer.append(some_files(keys), embeddings)
        writer.commit()
    with pytest.raises(CacheError, match=r"first extraction is not finished.*again to continue"):
        EmbeddingCache(tmp_path / "c.h5")


# -- the lock ---------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from dataclasses import replace
from pathlib import Path
from hoarfrost.features.cache.lock import WriterLock
with WriterLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(path: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_writer_learns_at_once_which_process_is_writing(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5")
    process = holder(tmp_path / "c.h5")
    try:
        started = time.monotonic()
        wanted = rf"being written by process {process.pid} on {re.escape(os.uname().nodename)}"
        with pytest.raises(CacheLockedError, match=wanted), CacheWriter(tmp_path / "c.h5", HEADER, "demo"):
            pass
        assert time.monotonic() - started < 20  # it holds the lock for a minute
        with EmbeddingCache(tmp_path / "c.h5") as cache:  # readers never block
            assert cache.n_images == 20
    finally:
        process.kill()
        process.communicate()


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    process = holder(tmp_path / "c.h5")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (tmp_path / "c.h5.lock").exists()
    write_cache(tmp_path / "c.h5")


def test_two_writers_in_one_process_are_kept_apart_too(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo"):
        for _ in range(2):
            with pytest.raises(CacheLockedError, match=f"process {os.getpid()}"):
                CacheWriter(tmp_path / "c.h5", HEADER, "demo").__enter__()
    write_cache(tmp_path / "c.h5")


# -- full disks -------------------------------------------------------------------------------------------------------

FILLER = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from hoarfrost.features.cache import CacheWriter
from hoarfrost.features.errors import CacheError
from tests.support.caches import HEADER, some_files, some_images, some_table
path, limit = Path(sys.argv[1]), int(sys.argv[2])
keys, embeddings = some_images(3000)
try:
    with CacheWriter(path, HEADER, "demo") as writer:
        writer.append(some_files(keys[:1000]), embeddings[:1000])
        writer.commit()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        writer.append(some_files(keys[1000:], "late"), embeddings[1000:])
        writer.commit() if sys.argv[3] == "commit" else writer.finish(some_table(3000), keys)
except CacheError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.parametrize(("limit", "when"), [(100_000, "commit"), (4_500_000, "finish"), (0, "commit")])
def test_a_full_disk_is_a_clear_error_and_costs_nothing_committed(tmp_path: Path, limit: int, when: str) -> None:
    path = tmp_path / "c.h5"
    result = subprocess.run(
        [sys.executable, "-c", FILLER, str(path), str(limit), when], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 7, result.stderr
    assert "cannot be written" in result.stdout
    assert "committed before is safe" in result.stdout
    assert verify(path).sound
    keys, embeddings = some_images(3000)
    with CacheWriter(path, HEADER, "demo") as writer:  # there is room again
        missing = [i for i, key in enumerate(keys) if key.tobytes() not in writer]
        assert set(range(1000)).isdisjoint(missing)
        if missing:
            writer.append(some_files(keys[missing]), embeddings[missing])
        writer.finish(some_table(3000), keys)
    with EmbeddingCache(path) as cache:
        np.testing.assert_array_equal(cache.arrays(cache.dataset())[0], embeddings)


def test_a_disk_that_became_read_only_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, embeddings = some_images(3)
    writer = PartWriter(tmp_path / "c.h5", HEADER, "demo")
    writer.append(some_files(keys), embeddings)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(hoarfrost.features.cache.writing, "_Output", read_only)
    monkeypatch.setattr(Path, "unlink", read_only)
    with pytest.raises(CacheError, match=r"cannot be written: Read-only file system\. .* again to continue"):
        writer.commit()


@pytest.mark.slow
def test_memory_of_the_writer_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    script = """
import resource, sys
from dataclasses import replace
from pathlib import Path
from hoarfrost.features.cache import CacheWriter
from hoarfrost.features.cache import parts as w
from tests.support.caches import HEADER, some_files, some_images, some_table
import numpy as np
w.COMMIT_ROWS = 2048
n = int(sys.argv[2])
with CacheWriter(Path(sys.argv[1]), HEADER, "demo") as writer:
    for i in range(n // 2048):
        keys, embeddings = some_images(2048, seed=i)
        writer.append(some_files(keys, str(i)), embeddings)
    writer.finish(some_table(1), keys[:1])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    peaks = []
    for n in (8_192, 65_536):
        result = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / f"{n}.h5"), str(n)],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        peaks.append(int(result.stdout))
    assert peaks[1] - peaks[0] < 40, peaks  # MB; the embeddings themselves grew by 112


def test_a_folder_of_parts_that_cannot_be_created_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "c.h5.parts").write_bytes(b"")
    keys, embeddings = some_images(3)
    writer = PartWriter(tmp_path / "c.h5", HEADER, "demo")
    writer.append(some_files(keys), embeddings)
    with pytest.raises(CacheError, match=r"c.h5.parts: the folder of parts cannot be created: File exists"):
        writer.commit()


def test_a_folder_that_cannot_be_created_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match="folder cannot be created"):
        CacheWriter(tmp_path / "file" / "c.h5", HEADER, "demo").__enter__()


# -- parts that others write --------------------------------------------------------------------------------------------


def test_parts_of_workers_are_taken_in_and_each_key_is_folded_once(tmp_path: Path) -> None:
    keys, embeddings = some_images(12)
    path = tmp_path / "c.h5"
    with CacheWriter(path, HEADER, "demo") as writer:
        writer.append(some_files(keys[:2]), embeddings[:2])
        writer.finish(some_table(2), keys[:2])
    with CacheWriter(path, HEADER, "demo") as writer:
        workers = [PartWriter(path, HEADER, "demo", known=writer.known) for _ in range(2)]
        assert keys[1].tobytes() in workers[0]
        for worker, rows in zip(workers, (slice(1, 8), slice(6, 12)), strict=True):  # 6 and 7 stand in both, 1 is known
            worker.append(some_files(keys[rows]), embeddings[rows])
            worker.commit()
        assert writer.add_parts([part.path.name for worker in workers for part in worker.parts]) == ({"224": 13}, 10)
        assert writer.add_parts() == ({"224": 0}, 0)
        writer.finish(some_table(12), keys)
    assert verify(path).sound
    assert not part_paths(path)
    with EmbeddingCache(path) as cache:
        assert cache.n_images == 12
        np.testing.assert_array_equal(cache.arrays(cache.dataset())[0], embeddings)


def test_a_part_of_another_fingerprint_is_not_taken_in(tmp_path: Path) -> None:
    keys, embeddings = some_images(2)
    other = replace(HEADER, fingerprint=replace(HEADER.fingerprint, precision="bfloat16"))
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        worker = PartWriter(tmp_path / "c.h5", other, "demo")
        worker.append(some_files(keys), embeddings)
        worker.commit()
        with pytest.raises(FingerprintMismatchError, match="precision: float32 here, bfloat16 there"):
            writer.add_parts()


def test_a_worker_recognises_what_another_has_committed(tmp_path: Path) -> None:
    keys, embeddings = some_images(6)
    first, second = (PartWriter(tmp_path / "c.h5", HEADER, "demo") for _ in range(2))
    for start in (0, 2):
        first.append(some_files(keys[start : start + 2]), embeddings[start : start + 2])
        first.commit()
    second.append(some_files(keys[4:]), embeddings[4:])
    second.commit()
    assert keys[0].tobytes() not in second
    for _ in range(2):
        assert second.read_other_parts() == [part.path.name for part in first.parts]
        assert all(key.tobytes() in second for key in keys)


def test_who_holds_the_lock_is_synced_so_that_workers_on_other_hosts_see_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.pread(number, 4096, 0).decode()))
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        assert synced == [writer.lock.owner]


def test_a_worker_reads_who_holds_the_lock(tmp_path: Path, run_python: RunPython) -> None:
    assert lock_owner(tmp_path / "c.h5") == ""
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        code = "import pathlib, sys, hoarfrost.features.cache as c; print(c.lock_owner(pathlib.Path(sys.argv[1])))"
        assert run_python("-c", code, writer.path).stdout.strip() == writer.lock.owner
        assert json.loads(writer.lock.owner)["pid"] == os.getpid()
