"""`info`, `verify` and `compact` count right; unchanged files are found; a second writer learns which process is writing."""

import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from hoarfrost.features.cache import (
    Block,
    CacheWriter,
    EmbeddedFile,
    EmbeddingCache,
    compact,
    describe,
    verify,
    write_cache_file,
)
from hoarfrost.features.cache.checks import DatasetInfo, bytes_of
from hoarfrost.features.cache.known import KnownFiles
from hoarfrost.features.cache.layout import FileTable
from hoarfrost.features.cache.lock import WriterLock, lock_path
from hoarfrost.features.cache.store import DAMAGED_SUFFIX, part_paths, parts_directory
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.errors import CacheError, CacheLockedError
from tests.cache.test_cache_damage import overwrite_row
from tests.support.caches import FINGERPRINT, HEADER, some_files, some_images, some_table, unchanged_keys, write_cache


def write_two_datasets(path: Path) -> np.ndarray:
    """Write five embeddings: the first has one of them twice and an unreadable image, the second another one."""
    keys, embeddings = some_images(5)
    with CacheWriter(path, HEADER, "first") as writer:
        writer.append(some_files(keys), embeddings)
        errors = ["", "", "", "truncated"]
        table = some_table(4, "first", errors=errors, labels=["b", "a", "b", "c"], rows=np.array([0, 0, 0, -1]))
        writer.finish(table, np.stack([keys[0], keys[1], keys[0], np.zeros(32, np.uint8)]))
    with CacheWriter(path, HEADER, "second") as writer:
        writer.finish(some_table(1, "second"), keys[2:3])
    return keys


def begin(path: Path, n: int, seed: int) -> None:
    """Leave a part of an extraction that did not end."""
    keys, embeddings = some_images(n, seed)
    with CacheWriter(path, HEADER, "third") as writer:
        writer.append(some_files(keys, f"third-{seed}-"), embeddings)
        writer.commit()


# -- describe -----------------------------------------------------------------------------------------------------------


def test_description_counts_datasets_embeddings_and_parts(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_two_datasets(path)
    for seed, n in ((7, 3), (8, 2)):
        begin(path, n, seed)
    found = describe(path)
    assert (found.cache, found.bytes, found.bytes > 0) == (str(path), bytes_of(path), True)
    assert (found.images, found.unused, found.shards) == (5, 2, 0)
    assert (found.parts, found.damaged_parts, found.images_in_parts) == (2, 0, 5)
    assert (found.fingerprint, found.backbone) == (FINGERPRINT.digest, "resnet18")
    assert (found.weights, found.weights_sha256) == ("random:0", "ab" * 32)
    assert (found.precision, found.compute) == ("float32", HEADER.compute)
    assert found.preprocessing == dict(FINGERPRINT.preprocessing)
    with EmbeddingCache(path) as cache:
        created = {name: cache.dataset(name).created for name in ("first", "second")}
    assert all(created.values())
    assert found.datasets == (
        DatasetInfo("first", "tests", created["first"], 4, 1, 1, {"a": 1, "b": 2, "c": 1}),
        DatasetInfo("second", "tests", created["second"], 1, 0, 0, {"malignant": 1}),
    )


def test_description_of_an_unfinished_extraction_has_parts_alone(tmp_path: Path) -> None:
    begin(tmp_path / "c.h5", 3, 7)
    found = describe(tmp_path / "c.h5")
    assert (found.images, found.unused, found.shards, found.datasets) == (0, 0, 0, ())
    assert (found.parts, found.images_in_parts) == (1, 3)


def test_damaged_parts_are_counted_before_and_after_they_are_renamed(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_two_datasets(path)
    begin(path, 3, 7)
    (part,) = parts_directory(path).glob("part-*.h5")
    part.with_name("part-99999999.h5").write_bytes(b"rubbish")
    found = describe(path)
    assert (found.parts, found.damaged_parts, found.images_in_parts) == (2, 1, 3)
    part.with_name("part-99999999.h5").rename(part.with_name("part-99999999.h5.damaged"))
    assert len(part_paths(path, DAMAGED_SUFFIX)) == 1
    found = describe(path)
    assert (found.parts, found.damaged_parts, found.images_in_parts) == (1, 1, 3)


# -- verify -------------------------------------------------------------------------------------------------------------


def test_verification_counts_what_it_checked(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_two_datasets(path)
    begin(path, 3, 7)
    found = verify(path)
    assert (found.cache, found.sound, found.problems) == (str(path), True, ())
    assert (found.images, found.datasets, found.parts) == (8, 2, 1)


def test_damaged_row_is_named_with_the_images_that_it_is_of(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_two_datasets(path)
    overwrite_row(path, 0)
    (problem,) = (text for text in verify(path).problems if ": row 0 " in text)
    assert "first: image0.png, first: image2.png)" in problem


def test_damaged_row_that_no_image_uses_is_named_without(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    keys = write_two_datasets(path)
    overwrite_row(path, 4)
    (problem,) = (text for text in verify(path).problems if ": row 4 " in text)
    assert f"(key {keys[4].tobytes().hex()[:12]}…) does not match its checksum" in problem


def test_damaged_row_of_many_images_is_named_with_three_of_them(tmp_path: Path) -> None:
    keys, embeddings = some_images(2)
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        writer.append(some_files(keys), embeddings)
        writer.finish(some_table(5), keys[[0, 1, 0, 0, 0]])
    overwrite_row(tmp_path / "c.h5", 0)
    (problem,) = (text for text in verify(tmp_path / "c.h5").problems if ": row 0 " in text)
    assert "; demo: image0.png, demo: image2.png, demo: image3.png) does not" in problem


def test_key_that_appears_twice_is_counted(tmp_path: Path) -> None:
    keys, embeddings = some_images(5)
    keys[3] = keys[4] = keys[0]
    write_cache_file(tmp_path / "c.h5", HEADER, 5, [Block(keys, embeddings)], [])
    assert verify(tmp_path / "c.h5").problems == (f"{tmp_path / 'c.h5'}: 2 keys appear more than once",)


def test_fingerprints_that_are_mixed_are_named_with_their_files(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_cache(path)
    begin(path, 3, 7)
    (part,) = parts_directory(path).glob("part-*.h5")
    keys, embeddings = some_images(3, 7)
    other = replace(HEADER, fingerprint=replace(FINGERPRINT, precision="bfloat16"))
    write_cache_file(part, other, 3, [Block(keys, embeddings)], [])
    (problem,) = (text for text in verify(path).problems if "mixed" in text)
    assert problem == f"{path}: embeddings of 2 fingerprints are mixed ({path}, {part})"


@pytest.mark.parametrize(
    ("column", "change", "said"),
    [
        ("size", lambda values: values.astype(np.int32), "/datasets/demo/size is not a column of whole numbers"),
        ("size", lambda values: values.reshape(-1, 1), "/datasets/demo/size is not a column of whole numbers"),
        ("label", lambda values: np.arange(len(values)), "/datasets/demo/label is not a column of texts"),
        ("row", lambda values: values - 2, "the dataset 'demo' points to embeddings that are not there"),
        ("row", lambda values: values + 1, "the dataset 'demo' points to embeddings that are not there"),
        ("row", lambda values: values[:-1], "the columns of the dataset 'demo' differ in length"),
        ("size", lambda values: values[:-1], "the columns of the dataset 'demo' differ in length"),
        ("mtime_ns", lambda values: values[:-1], "the columns of the dataset 'demo' differ in length"),
        ("label", lambda values: values[:-1], "the columns of the dataset 'demo' differ in length"),
    ],
)
def test_impossible_table_is_damage_to_each_reader(
    tmp_path: Path, column: str, change: Callable[[np.ndarray], np.ndarray], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "c.h5"
    write_cache(path)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        group = file["datasets/demo"]
        values = change(group[column][...])
        del group[column]
        group.create_dataset(column, data=values, chunks=values.shape, fletcher32=True)
    said = f"{path}: the cache is damaged: {said}."
    with EmbeddingCache(path) as cache, pytest.raises(CacheError) as error:
        cache.dataset()
    assert str(error.value).startswith(said)
    with CacheWriter(path, HEADER, "demo") as writer:
        assert not writer.known_files()
    assert caplog.records[0].getMessage().startswith(said)
    assert caplog.records[0].getMessage().endswith("The table is written again, and its files are read again.")


# -- compact ------------------------------------------------------------------------------------------------------------


def test_compaction_counts_what_it_folds_and_drops(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    keys = write_two_datasets(path)
    for seed, n in ((7, 3), (8, 2)):
        begin(path, n, seed)
    overwrite_row(path, 0)
    before = bytes_of(path)
    found = compact(path)
    assert (found.cache, found.images, found.folded_parts) == (str(path), 2 + 5, 2)
    assert (found.dropped_unused, found.dropped_damaged, found.dropped_datasets) == (2, 1, ())
    assert (found.bytes_before, found.bytes_after) == (before, bytes_of(path))
    with EmbeddingCache(path) as cache:
        table = cache.dataset("first")
        assert table.rows[[0, 2, 3]].tolist() == [-1, -1, -1]
        assert cache.keys(table.rows[1:2]).tobytes() == keys[1].tobytes()
        assert cache.keys(cache.dataset("second").rows).tobytes() == keys[2].tobytes()
        dropped = "its embedding was damaged and dropped; extract again"
        assert list(table.errors) == [dropped, "", dropped, "truncated"]
    assert verify(path).sound


# -- known files --------------------------------------------------------------------------------------------------------


def known() -> KnownFiles:
    """Return three known files; both tables have the second one."""
    keys = np.arange(96, dtype=np.uint8).reshape(3, 32)
    earlier = FileTable(Texts.of(["a", "b"]), np.array([10, 20]), np.array([1, 2]), np.array([0, 1]))
    later = FileTable(Texts.of(["b", "c"]), np.array([21, 30]), np.array([2, 3]), np.array([2, 1]))
    return KnownFiles([earlier, later], keys)


def test_known_file_is_what_the_last_table_says_of_it() -> None:
    keys = np.arange(96, dtype=np.uint8).reshape(3, 32)
    files = [EmbeddedFile(name, 10 * i + (i == 2), i, b"") for i, name in enumerate("abcd", 1)]
    assert unchanged_keys(known(), files) == dict(zip("abc", (keys[i].tobytes() for i in (0, 2, 1)), strict=True))
    assert known()


def test_files_of_a_cache_and_of_its_parts_are_known_by_their_own_keys(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    everything: list[EmbeddedFile] = []
    for seed, n in ((1, 4), (2, 3), (3, 2)):
        keys, embeddings = some_images(n, seed)
        with CacheWriter(path, HEADER, "demo", root="/data") as writer:
            files = some_files(keys, f"{seed}-")
            writer.append(files, embeddings)
            writer.commit()
        everything += files
    with CacheWriter(path, HEADER, "demo", root="/data") as writer:
        assert unchanged_keys(writer.known_files(), everything) == {file.path: file.key for file in everything}


def test_file_is_unchanged_where_both_size_and_time_are_as_they_were() -> None:
    paths = Texts.of(["d", "a", "b", "b", "c", "c"])
    sizes, times = np.array([1, 10, 21, 20, 30, 31]), np.array([1, 1, 2, 2, 4, 3])
    rows, keys = known().unchanged(paths, sizes, times)
    assert rows.tolist() == [1, 2]
    assert keys.tolist() == np.arange(96, dtype=np.uint8).reshape(3, 32)[[0, 2]].tolist()


def test_single_file_that_is_known_is_found() -> None:
    keys = np.ones((1, 32), np.uint8)
    files = KnownFiles([FileTable(Texts.of(["a"]), np.array([10]), np.array([1]), np.array([0]))], keys)
    assert unchanged_keys(files, [EmbeddedFile("a", 10, 1, b"")]) == {"a": keys[0].tobytes()}


def test_without_known_files_nothing_is_unchanged() -> None:
    nothing = KnownFiles.nothing()
    assert not nothing
    rows, keys = nothing.unchanged(Texts.of(["a", "b"]), np.zeros(2, np.int64), np.zeros(2, np.int64))
    assert (rows.tolist(), keys.shape, keys.dtype) == ([], (0, 32), np.uint8)


# -- who has the lock ---------------------------------------------------------------------------------------------------


def test_second_writer_learns_which_process_is_writing(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    with WriterLock(path) as lock:
        owner = json.loads(lock.owner)
        assert (owner["pid"], owner["host"]) == (os.getpid(), socket.gethostname())
        who = f"process {os.getpid()} on {socket.gethostname()} since {owner['since']}"
        for _ in range(2):  # a refusal leaves the lock with its holder
            with pytest.raises(CacheLockedError) as refused, WriterLock(path):
                raise AssertionError("a second writer got in")
            assert str(refused.value).startswith(f"{path} is being written by {who}. Wait for it to end")
    with WriterLock(path):
        pass


@pytest.mark.parametrize("content", ["", "no JSON", "[]", '{"pid": 1}'])
def test_lock_without_an_owner_is_held_by_another_process(tmp_path: Path, content: str) -> None:
    path = tmp_path / "c.h5"
    with WriterLock(path):
        with lock_path(path).open("r+") as file:
            file.truncate(0)
            file.write(content)
        with (
            pytest.raises(CacheLockedError, match=r"c\.h5 is being written by another process\. Wait"),
            WriterLock(path),
        ):
            raise AssertionError("a second writer got in")


def test_folder_that_takes_no_lock_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"c\.h5\.lock: the cache's folder cannot be written: Not a directory"):
        WriterLock(tmp_path / "file" / "c.h5").__enter__()


def test_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", none)
    with pytest.raises(CacheError, match=r"this file system does not support locks \(No locks available\)"):
        WriterLock(tmp_path / "c.h5").__enter__()


# -- what is not there --------------------------------------------------------------------------------------------------


def test_missing_cache_is_named_with_the_command_that_creates_it(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    for look in (describe, verify, compact):
        with pytest.raises(CacheError) as error:
            look(path)
        assert str(error.value) == f"No cache at {path}. Create it with: hoarfrost extract DATA --cache {path}"


def test_nothing_to_do_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_cache(path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    found = compact(path)
    assert (found.folded_parts, found.dropped_unused, found.dropped_damaged) == (0, 0, 0)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
