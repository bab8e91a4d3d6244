"""A cache that outgrows one file: shards behind an index, with every promise of the one file."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hoarfrost.features.cache.folding
from hoarfrost.features.cache import CacheWriter, EmbeddingCache, compact, describe, verify
from hoarfrost.features.cache.layout import CHUNK_ROWS, rows_per_shard
from hoarfrost.features.cache.shards import shards_directory
from hoarfrost.features.cache.store import part_paths
from hoarfrost.training import StreamedRows
from tests.support.caches import HEADER, rows_per_tiny_shard, some_files, some_images, some_table, write_cache
from tests.support.commands import Hoarfrost

FIVE = 50_000  # bytes, in which `tiny` puts five rows


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoarfrost.features.cache.folding, "rows_per_shard", rows_per_tiny_shard)


def add(path: Path, n: int, seed: int = 0, *, name: str = "demo", shard_bytes: int | None = FIVE) -> np.ndarray:
    """Extract a dataset of `n` images into a cache; return the embeddings."""
    keys, embeddings = some_images(n, seed)
    with CacheWriter(path, HEADER, name, shard_bytes=shard_bytes) as writer:
        writer.append(some_files(keys, f"{seed}-"), embeddings)
        writer.finish(some_table(n, name, f"{seed}-"), keys)
    return embeddings


def shards(path: Path) -> list[Path]:
    return sorted(shards_directory(path).glob("*"))


def sizes(path: Path) -> list[int]:
    found = []
    for shard in shards(path):
        with h5py.File(shard) as file:
            found.append(len(file["images/key"]))
    return found


def content(path: Path, name: str = "demo") -> np.ndarray:
    with EmbeddingCache(path) as cache:
        return cache.arrays(cache.dataset(name))[0]


# -- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_a_cache_in_shards_reads_as_one_file_does(tmp_path: Path) -> None:
    add(tmp_path / "one.h5", 23, shard_bytes=None)
    embeddings = add(tmp_path / "many.h5", 23)
    assert not shards_directory(tmp_path / "one.h5").exists()
    assert sizes(tmp_path / "many.h5") == [5, 5, 5, 5, 3]
    rows = np.random.default_rng(0).integers(0, 23, 60)
    with EmbeddingCache(tmp_path / "one.h5") as one, EmbeddingCache(tmp_path / "many.h5") as many:
        assert many.header == one.header
        assert many.n_images == 23
        assert many.dataset().same_as(one.dataset())
        np.testing.assert_array_equal(many.embeddings(), embeddings)
        np.testing.assert_array_equal(many.embeddings(rows), embeddings[rows])
        np.testing.assert_array_equal(many.keys(rows), one.keys(rows))
        assert many.digest(rows) == one.digest(rows)
        assert many.embeddings(rows[:0]).shape == (0, 512)


def test_no_file_is_larger_than_was_asked_for(tmp_path: Path) -> None:
    most, n = 16_000_000, 17_000
    embeddings = add(tmp_path / "c.h5", n, shard_bytes=most)
    n_rows = rows_per_shard(most, HEADER.dim)
    assert n_rows % CHUNK_ROWS == 0, "shards end where chunks do: streamed rows are read a chunk at a time"
    assert sizes(tmp_path / "c.h5") == [n_rows, n_rows, n - 2 * n_rows]
    found = [file.stat().st_size for file in [tmp_path / "c.h5", *shards(tmp_path / "c.h5")]]
    assert max(found) <= most
    assert found[1] > 0.85 * most
    np.testing.assert_array_equal(content(tmp_path / "c.h5"), embeddings)


@pytest.mark.parametrize("most", [16_000_000, 100_000_000, 64_000_000_000, 10**13])
def test_a_full_shard_of_any_size_is_not_larger_by_its_parts(most: int) -> None:
    n = rows_per_shard(most, HEADER.dim)
    n_chunks = n // CHUNK_ROWS
    parts = n_chunks * (CHUNK_ROWS * 2048 + 4) + n_chunks * (CHUNK_ROWS * 32 + 4)
    sums = -(-n // (1 << 16)) * ((1 << 18) + 4) + 4 * n_chunks + 4
    places = 2 * n_chunks * 24  # of chunks, in HDF5's own index
    assert parts + sums + places < most
    assert parts > 0.85 * most


def test_a_small_cache_is_one_file_as_ever(tmp_path: Path) -> None:
    write_cache(tmp_path / "plain.h5", 50)
    embeddings = add(tmp_path / "c.h5", 50, shard_bytes=16_000_000)
    assert sorted(path.name for path in tmp_path.glob("c.h5*")) == ["c.h5", "c.h5.lock"]
    with h5py.File(tmp_path / "c.h5") as file, h5py.File(tmp_path / "plain.h5") as plain:
        assert list(file.attrs) == list(plain.attrs)
        assert list(file["images"]) == list(plain["images"])
        np.testing.assert_array_equal(file["images/embedding"][...], embeddings)
    assert describe(tmp_path / "c.h5").shards == 0


@pytest.mark.usefixtures("tiny")
def test_a_cache_becomes_sharded_when_it_outgrows_the_size(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    first = add(path, 3, 0, name="first")
    assert not shards(path)
    second = add(path, 4, 1, name="second")
    assert sizes(path) == [5, 2]
    np.testing.assert_array_equal(content(path, "first"), first)
    np.testing.assert_array_equal(content(path, "second"), second)
    assert verify(path).sound
    assert describe(path).shards == 2
    assert describe(path).bytes == sum(file.stat().st_size for file in [path, *shards(path)])


@pytest.mark.usefixtures("tiny")
def test_any_hdf5_tool_can_read_a_shard_and_what_the_index_lists(tmp_path: Path) -> None:
    embeddings = add(tmp_path / "c.h5", 12)
    with h5py.File(tmp_path / "c.h5") as file:
        assert file.attrs["format"].decode() == "hoarfrost-cache-index"
        names = [name.decode() for name in file["shards/name"][...]]
        assert names == [shard.name for shard in shards(tmp_path / "c.h5")]
        assert file["shards/n_images"][...].tolist() == [5, 5, 2]
        assert file["datasets/demo/path"][3].decode() == "0-3.png"
        fingerprint = file.attrs["fingerprint"]
    found = []
    for name in names:
        with h5py.File(shards_directory(tmp_path / "c.h5") / name) as file:
            assert file.attrs["fingerprint"] == fingerprint
            assert file.attrs["format"].decode() == "hoarfrost-cache"
            found.append(file["images/embedding"][...])
    np.testing.assert_array_equal(np.concatenate(found), embeddings)


@pytest.mark.usefixtures("tiny")
def test_streamed_training_takes_the_rows_of_all_shards(tmp_path: Path) -> None:
    embeddings = add(tmp_path / "c.h5", 33)
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        rows = cache.dataset().rows
        streamed = StreamedRows(cache.embeddings, rows, 512, 16_000_000, torch.device("cpu"))
        asked = torch.tensor([32, 0, 7, 7, 19])
        np.testing.assert_array_equal(streamed.take(asked).numpy(), embeddings[asked.numpy()])
        for places, part in streamed.blocks(np.arange(33)):
            np.testing.assert_array_equal(part.numpy(), embeddings[places])


def test_the_size_is_an_option_of_extract(hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    result = hoarfrost("extract", tmp_path, "--cache", tmp_path / "c.h5", "--shard-size", "1MB")
    assert result.status == 2
    assert "1MB is too small; the least is 16MB" in result.stderr
    assert "--shard-size" in hoarfrost("extract", "--help").stdout


@pytest.mark.usefixtures("tiny")
def test_the_commands_on_caches_take_one_in_shards(hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    add(path, 12)
    assert f"3 shards in {path}.shards; the cache needs them" in hoarfrost("cache", "info", path).stdout
    assert json.loads(hoarfrost("cache", "info", path, "--json").stdout)["shards"] == 3
    assert hoarfrost("cache", "verify", path).status == 0
    name = shards(path)[1].name
    shards(path)[1].unlink()
    assert hoarfrost("cache", "info", path).status == 1
    damaged = hoarfrost("cache", "verify", path)
    assert (damaged.status, damaged.stdout.count(name)) == (1, 1)
    assert "5 damaged embeddings removed" in hoarfrost("cache", "compact", path).stdout
    assert hoarfrost("cache", "verify", path).status == 0


# -- what a fold writes -----------------------------------------------------------------------------------------------


def identities(path: Path) -> dict[str, tuple[int, int]]:
    return {shard.name: (shard.stat().st_ino, shard.stat().st_mtime_ns) for shard in shards(path)}


@pytest.mark.usefixtures("tiny")
def test_full_shards_are_never_written_again(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    parts = [add(path, 12, 0, name="a")]
    for seed, (n, expected) in enumerate([(2, [5, 5, 4]), (1, [5] * 3), (1, [5] * 3 + [1]), (9, [5] * 5)], 1):
        before = identities(path)
        full = [name for name, size in zip(before, sizes(path), strict=True) if size == 5]
        parts.append(add(path, n, seed, name="abcde"[seed]))
        assert sizes(path) == expected
        after = identities(path)
        assert {name: after[name] for name in full} == {name: before[name] for name in full}
        assert len(after.keys() & before.keys()) == len(full)
    for name, embeddings in zip("abcde", parts, strict=True):
        np.testing.assert_array_equal(content(path, name), embeddings)


@pytest.mark.usefixtures("tiny")
def test_another_table_writes_the_index_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    embeddings = add(path, 12)
    before = identities(path)
    keys, _ = some_images(12)
    with CacheWriter(path, HEADER, "other") as writer:
        writer.finish(some_table(6, "other"), keys[6:])
    assert identities(path) == before
    np.testing.assert_array_equal(content(path, "other"), embeddings[6:])
    index = path.stat().st_mtime_ns
    with CacheWriter(path, HEADER, "other") as writer:
        assert not writer.finish(some_table(6, "other"), keys[6:])  # and nothing to say, nothing at all
    assert path.stat().st_mtime_ns == index


@pytest.mark.usefixtures("tiny")
def test_the_size_is_kept_until_another_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    add(path, 7, 0, name="a")
    add(path, 4, 1, name="b", shard_bytes=None)
    assert sizes(path) == [5, 5, 1]
    add(path, 10, 2, name="c", shard_bytes=2 * FIVE)
    assert sizes(path) == [5, 5, 10, 1]
    add(path, 3, 3, name="d", shard_bytes=None)
    assert sizes(path) == [5, 5, 10, 4]
    assert verify(path).sound


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(2, 7)), min_size=1, max_size=6))
def test_any_sequence_of_folds_keeps_all_images_and_no_shard_too_large(
    tmp_path_factory: pytest.TempPathFactory, folds: list[tuple[int, int]]
) -> None:
    path = tmp_path_factory.mktemp("folds") / "c.h5"
    expected = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hoarfrost.features.cache.folding, "rows_per_shard", rows_per_tiny_shard)
        for seed, (n, n_rows) in enumerate(folds):
            expected.append(add(path, n, seed, name=f"set{seed}", shard_bytes=n_rows * 10_000))
            assert all(size <= max(most for _, most in folds[: seed + 1]) for size in sizes(path))
        for seed, embeddings in enumerate(expected):
            np.testing.assert_array_equal(content(path, f"set{seed}"), embeddings)
        assert verify(path).sound
        with EmbeddingCache(path) as cache:
            assert cache.n_images == sum(n for n, _ in folds)


# -- compact ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("tiny")
def test_compact_writes_only_the_shards_that_change(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    add(path, 12, 0, name="a")
    before = identities(path)
    keys, embeddings = some_images(12)
    with CacheWriter(path, HEADER, "a") as writer:
        writer.finish(some_table(11, "a"), np.delete(keys, 7, axis=0))
    summary = compact(path)
    assert (summary.dropped_unused, summary.images) == (1, 11)
    assert sizes(path) == [5, 2, 4] or sorted(sizes(path)) == [2, 4, 5]
    assert len(identities(path).items() & before.items()) == 2
    np.testing.assert_array_equal(content(path, "a"), np.delete(embeddings, 7, axis=0))
    index = path.stat().st_mtime_ns
    assert compact(path).dropped_unused == 0
    assert path.stat().st_mtime_ns == index


@pytest.mark.usefixtures("tiny")
def test_compact_folds_parts_and_keeps_unfinished_work(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    embeddings = add(path, 12)
    keys, more = some_images(4, 3)
    with CacheWriter(path, HEADER, "late") as writer:
        writer.append(some_files(keys, "late"), more)
        writer.commit()
    assert compact(path).folded_parts == 1
    assert sizes(path) == [5, 5, 5, 1]
    assert not part_paths(path)
    np.testing.assert_array_equal(content(path), embeddings)
    with CacheWriter(path, HEADER, "late") as writer:
        assert set(writer.known_files().paths) == {f"late{i}.png" for i in range(4)}


@pytest.mark.usefixtures("tiny")
def test_a_cache_that_shrinks_below_the_size_is_one_file_again(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    add(path, 8)
    keys, embeddings = some_images(8)
    with CacheWriter(path, HEADER, "demo") as writer:
        writer.finish(some_table(2), keys[[1, 6]])
    compact(path)
    assert not shards_directory(path).exists()
    assert describe(path).shards == 0
    np.testing.assert_array_equal(content(path), embeddings[[1, 6]])
