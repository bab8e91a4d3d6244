"""What happens to a cache behind a writer's back is noticed before the writer changes the cache's file."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import hoarfrost.features.cache.parts
from hoarfrost.features.cache import CacheWriter, DatasetTable, EmbeddedFile, EmbeddingCache
from hoarfrost.features.cache.lock import lock_path
from hoarfrost.features.errors import CacheError
from tests.support.caches import HEADER, some_files, some_images, some_table, write_cache


def embedded(name: str, n: int) -> tuple[list[EmbeddedFile], np.ndarray, DatasetTable, np.ndarray]:
    keys, embeddings = some_images(n, seed=len(name))
    return some_files(keys, name), embeddings, some_table(n, name, name), keys


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_lock_that_is_deleted_during_a_run_stops_it_before_it_folds(tmp_path: Path, how: str) -> None:
    path = tmp_path / "c.h5"
    write_cache(path, 3, name="first")
    before = path.read_bytes()
    with CacheWriter(path, HEADER, "second") as writer:
        files, embeddings, table, keys = embedded("second", 3)
        writer.append(files, embeddings)
        lock_path(path).unlink()
        if how == "replaced":
            with CacheWriter(path, HEADER, "third") as other:  # a second writer: nothing holds it off now
                files, embeddings, of_third, keys_of_third = embedded("third", 2)
                other.append(files, embeddings)
                other.finish(of_third, keys_of_third)
            before = path.read_bytes()
        with pytest.raises(CacheError, match=r"c\.h5\.lock was removed or replaced during this run"):
            writer.finish(table, keys)
    assert path.read_bytes() == before
    with CacheWriter(path, HEADER, "second") as writer:  # the same command again
        writer.append(*embedded("second", 3)[:2])
        writer.finish(table, keys)
    with EmbeddingCache(path) as cache:
        assert set(cache.dataset_names()) == {"first", "second"} | ({"third"} if how == "replaced" else set())


@pytest.mark.parametrize("was_there", [True, False])
def test_cache_that_is_replaced_during_a_run_is_not_overwritten(tmp_path: Path, was_there: bool) -> None:
    path = tmp_path / "c.h5"
    write_cache(tmp_path / "other.h5", 4, name="other")
    if was_there:
        write_cache(path, 3, name="first")
    with CacheWriter(path, HEADER, "second") as writer:
        files, embeddings, table, keys = embedded("second", 3)
        writer.append(files, embeddings)
        shutil.copy(tmp_path / "other.h5", tmp_path / "moved.h5")
        os.replace(tmp_path / "moved.h5", path)
        with pytest.raises(
            CacheError, match=r"c\.h5 was replaced by another program during this run, and is left as it is"
        ):
            writer.finish(table, keys)
    assert path.read_bytes() == (tmp_path / "other.h5").read_bytes()


def test_temporary_files_of_a_cache_with_a_longer_name_stay(tmp_path: Path) -> None:
    names = ["images.h5.old.123.tmp", "images.h5.notes.tmp", "images.h5.old.trying.tmp", "images.h52.123.tmp"]
    for name in [*names, "images.h5.123.tmp", "images.h5.trying.tmp"]:
        (tmp_path / name).write_text("")
    write_cache(tmp_path / "images.h5", 2)
    assert sorted(path.name for path in tmp_path.glob("*.tmp")) == sorted(names)


def test_folder_of_parts_is_synced_when_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(hoarfrost.features.cache.parts, "sync_folder", synced.append)
    with CacheWriter(tmp_path / "c.h5", HEADER, "x") as writer:
        for n in (2, 3):
            writer.append(*embedded("x", n)[:2])
            writer.commit()
    assert synced == [tmp_path]
