"""Shards under crashes, beside readers and between writers."""

import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import hoarfrost.features.cache.folding
from hoarfrost.features.cache import CacheWriter, EmbeddingCache, Header, compact, describe, verify
from hoarfrost.features.cache.store import part_paths
from hoarfrost.features.errors import CacheError, CacheLockedError, FingerprintMismatchError
from tests.cache.test_cache_shards import add, content, identities, sizes
from tests.cache.test_cache_writing import holder
from tests.support.caches import HEADER, rows_per_tiny_shard, some_images
from tests.support.forks import forks_of


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoarfrost.features.cache.folding, "rows_per_shard", rows_per_tiny_shard)


DIES = """
import os, signal
from pathlib import Path
import hoarfrost.features.cache.folding
from tests.support.caches import rows_per_tiny_shard
from tests.cache.test_cache_shards import add
hoarfrost.features.cache.folding.rows_per_shard = rows_per_tiny_shard

def main(path, n_left):
    def dying(function):
        def step(*arguments, **options):
            nonlocal n_left
            if n_left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            n_left -= 1
            return function(*arguments, **options)
        return step

    for name in ("replace", "unlink", "fsync", "rmdir", "mkdir"):
        setattr(os, name, dying(getattr(os, name)))
    add(Path(path), 11, 1, name="new")
"""


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("n_before", [0, 4, 12])
def test_a_kill_at_any_step_of_a_fold_leaves_the_old_state_or_the_new_one(tmp_path: Path, n_before: int) -> None:
    start = tmp_path / "start"
    start.mkdir()
    before = add(start / "c.h5", n_before, 0, name="old") if n_before else None
    after = some_images(11, 1)[1]
    n_killed, outcomes = 0, set()
    with forks_of(DIES) as forks:
        for step in range(200):
            folder = tmp_path / f"step{step}"
            shutil.copytree(start, folder)
            path = folder / "c.h5"
            forks.start(str(path), step)
            if not (status := forks.wait()):
                break
            assert status == -signal.SIGKILL
            n_killed += 1
            if path.exists():
                assert verify(path).sound, (step, verify(path).problems)
                with EmbeddingCache(path) as cache:
                    outcomes.add(is_new := "new" in cache.dataset_names())
                    assert not is_new or (cache.arrays(cache.dataset("new"))[0] == after).all()
                if before is not None:
                    np.testing.assert_array_equal(content(path, "old"), before)
            add(path, 11, 1, name="new")  # the next writer continues, and clears up
            np.testing.assert_array_equal(content(path, "new"), after)
            if before is not None:
                np.testing.assert_array_equal(content(path, "old"), before)
            with EmbeddingCache(path) as cache:
                assert cache.n_images == n_before + 11
            assert sum(sizes(path)) == n_before + 11, "shards that no index lists are gone"
            assert not [*folder.rglob("*.tmp"), *part_paths(path)]
            shutil.rmtree(folder)
    assert n_killed > 12
    assert outcomes == ({True, False} if n_before else {True})


@pytest.mark.usefixtures("tiny")
def test_a_reader_keeps_its_state_while_a_writer_folds(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    embeddings = add(path, 12, 0, name="a")
    with EmbeddingCache(path) as cache:
        add(path, 9, 1, name="b")  # the last shard is another file now
        np.testing.assert_array_equal(cache.arrays(cache.dataset("a"))[0], embeddings)
    with EmbeddingCache(path) as cache:
        assert cache.n_images == 21


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_a_reader_that_opens_a_cache_while_it_is_folded_sees_one_state_of_it(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    embeddings = add(path, 7, 0, name="a")
    done, failures, n_looks = threading.Event(), [], 0

    def look() -> None:
        nonlocal n_looks
        while not done.is_set():
            try:
                np.testing.assert_array_equal(content(path, "a"), embeddings)
                failures.extend(verify(path).problems)
                describe(path)
            except Exception as error:
                failures.append(str(error))
            n_looks += 1

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for seed in range(1, 25):
            add(path, 3, seed, name="b")
    finally:
        done.set()
        watcher.join()
    assert not failures
    assert n_looks > 1


@pytest.mark.usefixtures("tiny")
def test_a_second_writer_is_refused_and_another_fingerprint_too(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    add(path, 12)
    other = Header(type(HEADER.fingerprint)("resnet18", "ef" * 32, {}, "float32"), HEADER.dim, "imagenet")
    with pytest.raises(FingerprintMismatchError, match="weights"), CacheWriter(path, other, "demo"):
        pass
    process = holder(path)
    try:
        with pytest.raises(CacheLockedError, match="being written by process"):
            compact(path)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("failing", ["write_cache_file", "write_index"])
@pytest.mark.usefixtures("tiny")
def test_a_full_disk_in_a_fold_leaves_the_cache_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    path = tmp_path / "c.h5"
    embeddings = add(path, 12, 0, name="a")
    before = identities(path)
    write, n_left = getattr(hoarfrost.features.cache.folding, failing), 1 if failing == "write_cache_file" else 0

    def full(*arguments: object) -> object:
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            raise CacheError("cannot be written: No space left on device")
        return write(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(hoarfrost.features.cache.folding, failing, full)
        with pytest.raises(CacheError, match="No space left"):
            add(path, 9, 1, name="b")
    np.testing.assert_array_equal(content(path, "a"), embeddings)
    if failing == "write_cache_file":
        assert identities(path) == before, "what was written in vain makes room again"
    more = add(path, 9, 1, name="b")
    np.testing.assert_array_equal(content(path, "b"), more)
    assert sizes(path) == [5, 5, 5, 5, 1]
