"""Shards that were moved, lost, swapped or damaged are named as such."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

import hoarfrost.features.cache.folding
from hoarfrost.features.cache import CacheWriter, EmbeddingCache, Header, compact, verify
from hoarfrost.features.cache.shards import shards_directory
from hoarfrost.features.errors import CacheError
from tests.cache.test_cache_damage import flip_byte, overwrite_row
from tests.cache.test_cache_shards import FIVE, add, content, identities, shards
from tests.support.caches import HEADER, rows_per_tiny_shard, some_files, some_images, some_table


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoarfrost.features.cache.folding, "rows_per_shard", rows_per_tiny_shard)


@pytest.mark.usefixtures("tiny")
def test_index_and_shards_move_together(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    embeddings = add(tmp_path / "here" / "c.h5", 12)
    (tmp_path / "here").rename(tmp_path / "there")
    np.testing.assert_array_equal(content(tmp_path / "there" / "c.h5"), embeddings)
    (tmp_path / "there" / "c.h5").rename(tmp_path / "new.h5")
    with pytest.raises(CacheError, match=r"new\.h5\.shards.*is missing"):
        EmbeddingCache(tmp_path / "new.h5")
    shards_directory(tmp_path / "there" / "c.h5").rename(shards_directory(tmp_path / "new.h5"))
    np.testing.assert_array_equal(content(tmp_path / "new.h5"), embeddings)
    (tmp_path / "link.h5").symlink_to(tmp_path / "new.h5")
    np.testing.assert_array_equal(content(tmp_path / "link.h5"), embeddings)


def remove(path: Path) -> int:
    shards(path)[1].unlink()
    return 5


def swap(path: Path) -> int:
    first, second, _ = shards(path)
    first.rename(first.with_suffix(".x"))
    second.rename(first)
    first.with_suffix(".x").rename(second)
    return 10


def put_foreign(path: Path) -> int:
    other = path.with_name("other.h5")
    fingerprint = type(HEADER.fingerprint)("resnet18", "cd" * 32, {}, "float32")
    keys, embeddings = some_images(12, 9)
    with CacheWriter(other, Header(fingerprint, HEADER.dim, "imagenet"), "demo", shard_bytes=FIVE) as writer:
        writer.append(some_files(keys), embeddings)
        writer.finish(some_table(12), keys)
    shutil.copy(shards(other)[1], shards(path)[1])
    return 5


def put_stale(path: Path) -> int:
    other = path.with_name("other.h5")
    add(other, 12, 5)
    shutil.copy(shards(other)[1], shards(path)[1])
    return 5


def truncate(path: Path) -> int:
    os.truncate(shards(path)[1], 3000)
    return 5


def empty(path: Path) -> int:
    shards(path)[1].write_bytes(b"")
    return 5


def put_index(path: Path) -> int:
    shutil.copy(path, shards(path)[1])
    return 5


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (put_index, "it is an index, not a shard"),
        (remove, "is missing. Copy it back"),
        (swap, "holds the images of shard-.*, so the two are swapped"),
        (put_foreign, "made with other settings.*weights"),
        (put_stale, "it holds other images"),
        (truncate, "truncated"),
        (empty, "not an HDF5 file"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_a_shard_that_is_not_what_it_should_be_is_named_and_costs_only_itself(
    tmp_path: Path, harm: object, said: str
) -> None:
    path = tmp_path / "c.h5"
    embeddings = add(path, 12)
    names = [shard.name for shard in shards(path)]
    n_lost = harm(path)  # type: ignore[operator]
    with pytest.raises(CacheError, match=f"{names[0 if n_lost == 10 else 1]}.*{said}"):
        EmbeddingCache(path)
    with pytest.raises(CacheError, match=said), CacheWriter(path, HEADER, "demo"):
        pass
    report = verify(path)
    assert not report.sound
    assert sum(any(name in problem for problem in report.problems) for name in names) == n_lost // 5
    summary = compact(path)
    assert (summary.dropped_damaged, summary.images) == (n_lost, 12 - n_lost)
    assert verify(path).sound
    with EmbeddingCache(path) as cache:
        found, readable = cache.arrays(cache.dataset())
        np.testing.assert_array_equal(found, embeddings[readable])
        assert readable.sum() == 12 - n_lost
        assert all("extract again" in cache.dataset().errors[row] for row in np.flatnonzero(~readable))
    add(path, 12)
    np.testing.assert_array_equal(content(path), embeddings)
    assert verify(path).sound


@pytest.mark.usefixtures("tiny")
def test_a_shard_whose_rows_are_sound_but_others_is_found_by_verify(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    add(path, 12)
    add(tmp_path / "other.h5", 12, 5)
    victim, other = shards(path)[1], shards(tmp_path / "other.h5")[1]
    with h5py.File(victim) as file:
        claimed = bytes(file.attrs["content"])
    shutil.copy(other, victim)
    with h5py.File(victim, "r+", libver=("v110", "v110")) as file:
        file.attrs.create("content", np.bytes_(claimed), dtype=h5py.string_dtype("utf-8", 64))
    assert any(victim.name in problem and "other images" in problem for problem in verify(path).problems)


@pytest.mark.usefixtures("tiny")
def test_a_damaged_row_is_named_with_its_shard_and_dropped_by_compact(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    embeddings = add(path, 12)
    before = identities(path)
    second = shards(path)[1]
    overwrite_row(second, 2)  # the cache's eighth
    with pytest.raises(CacheError, match=second.name):
        content(path)
    (problem,) = verify(path).problems
    assert f"{second}: row 7 " in problem
    assert "demo: 0-7.png" in problem
    assert compact(path).dropped_damaged == 1
    assert identities(path).items() >= {name: it for name, it in before.items() if name != second.name}.items()
    assert verify(path).sound
    np.testing.assert_array_equal(content(path), np.delete(embeddings, 7, axis=0))


@pytest.mark.usefixtures("tiny")
def test_no_flipped_byte_of_the_list_of_shards_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    add(path, 12)
    with h5py.File(path) as file:
        offsets = [file[f"shards/{name}"].id.get_chunk_info(0).byte_offset for name in ("name", "n_images", "content")]
    for offset in offsets:
        flip_byte(path, offset + 8)
        with pytest.raises(CacheError, match=r"c\.h5: the cache is damaged: /shards cannot be read"):
            EmbeddingCache(path)
        assert not verify(path).sound
        flip_byte(path, offset + 8)
    assert verify(path).sound


@pytest.mark.parametrize("name", ["../../secret.h5", "/etc/passwd", "shard-1-0000000g.h5", ""])
@pytest.mark.usefixtures("tiny")
def test_an_index_from_elsewhere_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "c.h5"
    add(path, 12)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        names = file["shards/name"][...]
        names[1] = name.encode()
        del file["shards/name"]
        file["shards"].create_dataset("name", data=names, chunks=(3,), fletcher32=True)
    with pytest.raises(CacheError, match="its list of shards has"):
        EmbeddingCache(path)
    assert not verify(path).sound


@pytest.mark.usefixtures("tiny")
def test_shards_without_their_index_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    embeddings = add(path, 12)
    path.rename(tmp_path / "mislaid")
    with CacheWriter(path, HEADER, "demo", shard_bytes=FIVE):
        pass
    (tmp_path / "mislaid").rename(path)
    np.testing.assert_array_equal(content(path), embeddings)


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("name", lambda names: names[[0, 0, 2]], "its list of shards has a shard twice"),
        ("n_images", lambda numbers: [numbers[0], 0, numbers[2]], "its list of shards has 'shard-.*' with 0 images"),
        ("n_images", lambda numbers: numbers.astype(np.int32), "its list of shards does not have this format"),
        ("content", lambda contents: contents[:, :31], "its list of shards does not have this format"),
        ("name", lambda names: names[:2], "its list of shards does not have this format"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_an_impossible_list_of_shards_is_damage(
    tmp_path: Path, column: str, values: Callable[[np.ndarray], object], said: str
) -> None:
    path = tmp_path / "c.h5"
    add(path, 12)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        new = np.array(values(file["shards"][column][...]))
        del file["shards"][column]
        file["shards"].create_dataset(column, data=new, chunks=new.shape, fletcher32=True)
    with pytest.raises(CacheError, match=rf"c\.h5: the cache is damaged: {said}"):
        EmbeddingCache(path)


@pytest.mark.usefixtures("tiny")
def test_a_shard_of_fewer_images_than_the_index_says_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    add(path, 12)
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        file["shards/n_images"][1] += 1
    with pytest.raises(CacheError, match="it has 5 images, not 6"):
        EmbeddingCache(path)


@pytest.mark.usefixtures("tiny")
def test_a_cache_that_lost_all_its_shards_is_made_again_as_the_message_says(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    embeddings = add(path, 12)
    shutil.rmtree(shards_directory(path))
    with pytest.raises(
        CacheError, match=rf"is missing\. Copy it back.*`hoarfrost cache compact {path}`; the next extract"
    ):
        EmbeddingCache(path)
    assert (compact(path).images, verify(path).sound) == (0, True)
    add(path, 12)
    np.testing.assert_array_equal(content(path), embeddings)
