"""What the cache records of the files themselves: by the bytes, as embeddings are; a cache may lack it."""

import shutil
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest

import hoarfrost.features.cache.folding
from hoarfrost.features.cache import (
    CacheFile,
    CacheWriter,
    DatasetTable,
    EmbeddingCache,
    Header,
    PartWriter,
    compact,
    open_caches,
    verify,
)
from hoarfrost.features.cache.layout import CHUNK_ROWS, Block
from hoarfrost.features.cache.opened import DamagedCacheError
from hoarfrost.features.cache.writing import CHUNK_FACTS, write_cache_file
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.facts import MAX_KINDS, Facts, FileHeader, ImageFacts, Kinds
from hoarfrost.features.fingerprint import Fingerprint, preprocessing
from tests.support.caches import (
    HEADER,
    rows_per_tiny_shard,
    some_facts,
    some_files,
    some_images,
    some_table,
    with_facts,
    write_cache,
)


def add(
    path: Path, n: int, facts: list[ImageFacts | None], seed: int = 0, header: Header = HEADER, **options: int
) -> list[ImageFacts | None]:
    """Add a dataset with facts to a cache; return these."""
    keys, embeddings = some_images(n, seed)
    files = [file._replace(key=file.key + header.code_of(header.own_view)) for file in some_files(keys)]
    with CacheWriter(path, header, f"of {seed}", **options) as writer:  # type: ignore[arg-type]
        writer.append(with_facts(files, facts), embeddings)
        writer.finish(some_table(n, f"of {seed}"), keys)
    return facts


def facts_in(path: Path, seed: int = 0) -> list[ImageFacts | None]:
    with EmbeddingCache(path) as cache:
        return cache.facts(cache.dataset(f"of {seed}").rows).images()


def test_facts_come_back_as_they_were_written(tmp_path: Path) -> None:
    facts = add(tmp_path / "c.h5", 30, some_facts(30))
    assert facts_in(tmp_path / "c.h5") == facts
    assert verify(tmp_path / "c.h5").problems == ()
    rows = np.random.default_rng(0).integers(0, 30, 50)
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert cache.facts(rows).images() == [facts[row] for row in rows]
        assert cache.facts(rows[:0]).images() == []
        assert cache.facts(rows).texts("manufacturer") == [f"Maker {'AB'[row % 2]}" for row in rows]


def test_any_hdf5_tool_can_read_them(tmp_path: Path) -> None:
    facts = add(tmp_path / "c.h5", 4, some_facts(4))
    with h5py.File(tmp_path / "c.h5") as file:
        assert file.attrs["format_version"] == 1
        stored, kinds = file["images/facts"][...], file["images/kinds"]
        assert stored["width"].tolist() == [600, 601, 602, 603]
        assert kinds["model"].asstr()[:].tolist() == ["", "Größe 7", "Größe 7"]
        assert stored["kind"].tolist() == [1, 2, 1, 2]
        assert facts[0] is not None
        assert stored["mean"][0] == np.float32(facts[0].moments[0])
        assert file["images/facts"].fletcher32


@pytest.mark.parametrize("known", [slice(0, 0), slice(0, 20), slice(20, None), slice(CHUNK_FACTS, CHUNK_FACTS + 1)])
def test_blocks_without_facts_are_unknown_among_others(tmp_path: Path, known: slice) -> None:
    n = CHUNK_FACTS + 7
    keys, embeddings = np.zeros((n, 32), np.uint8), np.zeros((n, 512), np.float32)
    facts = some_facts(n)
    wanted = [one if i in range(n)[known] else None for i, one in enumerate(facts)]
    cuts = sorted({0, known.start or 0, min(n, known.stop or n), n})
    blocks = [
        Block(keys[i:j], embeddings[i:j], Facts.of(wanted[i:j]) if any(wanted[i:j]) else None)
        for i, j in pairwise(cuts)
    ]
    write_cache_file(tmp_path / "c.h5", HEADER, n, blocks, [])
    with CacheFile(tmp_path / "c.h5") as file:
        assert file.facts(np.arange(n)).images() == wanted
    with h5py.File(tmp_path / "c.h5") as file:
        assert ("facts" in file["images"]) == any(wanted)


def test_caches_without_facts_have_none_and_stay_as_they_are(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5", 30)
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert not cache.facts(np.arange(30)).known.any()
    with h5py.File(tmp_path / "c.h5") as file:
        assert sorted(file["images"]) == ["chunk_crc32", "embedding", "key", "row_crc32"]


def test_earlier_version_ignores_them(tmp_path: Path) -> None:
    """What an earlier reader looks for is all there, and is the same with facts as without."""
    keys, embeddings = some_images(30)
    write_cache(tmp_path / "plain.h5", 30)
    add(tmp_path / "c.h5", 30, some_facts(30))
    with h5py.File(tmp_path / "c.h5") as file, h5py.File(tmp_path / "plain.h5") as plain:
        assert list(file.attrs) == list(plain.attrs)
        for name in plain["images"]:
            np.testing.assert_array_equal(file["images"][name][...], plain["images"][name][...])
            assert file["images"][name].chunks == plain["images"][name].chunks


def test_a_cache_of_before_that_grows_has_the_facts_of_what_is_new(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5", 10, seed=7)
    facts = add(tmp_path / "c.h5", 5, some_facts(5))
    assert facts_in(tmp_path / "c.h5") == facts
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert cache.facts(cache.dataset("demo").rows).images() == [None] * 10
    with CacheWriter(tmp_path / "c.h5", HEADER, "more") as writer:  # and one that adds none keeps these
        keys, embeddings = some_images(3, 9)
        writer.append(some_files(keys), embeddings)
        writer.finish(some_table(3, "more"), keys)
    assert facts_in(tmp_path / "c.h5") == facts


def test_parts_of_several_writers_keep_them(tmp_path: Path) -> None:
    """As on a cluster: workers write parts, and the driver has no facts at all."""
    keys, embeddings = some_images(20)
    files = with_facts(some_files(keys), [*some_facts(20)])
    with CacheWriter(tmp_path / "c.h5", HEADER, "of 0") as writer:
        for first in (0, 10):
            worker = PartWriter(tmp_path / "c.h5", HEADER, "of 0")
            worker.append(files[first : first + 10], embeddings[first : first + 10])
            worker.commit()
        writer.add_parts()
        writer.finish(some_table(20, "of 0"), keys)
    assert facts_in(tmp_path / "c.h5") == some_facts(20)


def test_interrupted_extraction_keeps_them(tmp_path: Path) -> None:
    keys, embeddings = some_images(20)
    files = with_facts(some_files(keys), [*some_facts(20)])
    with CacheWriter(tmp_path / "c.h5", HEADER, "of 0") as writer:
        writer.append(files[:12], embeddings[:12])
        writer.commit()
    with CacheWriter(tmp_path / "c.h5", HEADER, "of 0") as writer:
        writer.append(files[12:], embeddings[12:])
        writer.finish(some_table(20, "of 0"), keys)
    assert facts_in(tmp_path / "c.h5") == some_facts(20)


def test_compaction_keeps_those_of_rows_that_stay(tmp_path: Path) -> None:
    add(tmp_path / "c.h5", 10, some_facts(10))
    keys, embeddings = some_images(8, 3)
    with CacheWriter(
        tmp_path / "c.h5", HEADER, "of 0"
    ) as writer:  # the earlier dataset is replaced: 10 rows are unused
        writer.append(with_facts(some_files(keys), [*some_facts(8, 3)]), embeddings)
        writer.finish(some_table(8, "of 0"), keys)
    assert compact(tmp_path / "c.h5").dropped_unused == 10
    assert facts_in(tmp_path / "c.h5") == some_facts(8, 3)


def test_shards_keep_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hoarfrost.features.cache.folding, "rows_per_shard", rows_per_tiny_shard)
    add(tmp_path / "c.h5", 13, some_facts(13), shard_bytes=50_000)
    add(tmp_path / "c.h5", 9, some_facts(9, 1), seed=1)
    assert len(list((tmp_path / "c.h5.shards").iterdir())) == 5
    assert facts_in(tmp_path / "c.h5") == some_facts(13)
    assert facts_in(tmp_path / "c.h5", 1) == some_facts(9, 1)


def test_another_view_of_the_same_bytes_tells_them(tmp_path: Path) -> None:
    header = HEADER.of_views(["224", "448"])
    keys, embeddings = some_images(6)
    with CacheWriter(tmp_path / "c.h5", header, "of 0") as writer:
        for view, facts in (("224", [None] * 6), ("448", [*some_facts(6)])):
            files = [file._replace(key=file.key + header.code_of(view)) for file in some_files(keys)]
            writer.append(with_facts(files, facts), embeddings)
        writer.finish(some_table(6, "of 0"), keys)
    assert facts_in(tmp_path / "c.h5") == some_facts(6)


def test_caches_read_as_one_have_those_of_either(tmp_path: Path) -> None:
    other = Header(Fingerprint("resnet18", "cd" * 32, preprocessing(RESNET18), "float32"), RESNET18.dim, "random:1")
    add(tmp_path / "a.h5", 6, [None, *some_facts(6)[1:]])
    add(tmp_path / "b.h5", 6, [*some_facts(6)], header=other)
    with open_caches([tmp_path / "a.h5", tmp_path / "b.h5"]) as cache:
        table: DatasetTable = cache.dataset()
        assert cache.facts(table.rows).images() == some_facts(6)


def test_more_kinds_than_a_file_may_have_are_unknown(tmp_path: Path) -> None:
    n = MAX_KINDS + 50
    facts = [ImageFacts(FileHeader(9, 9, 8, Kinds(model=f"{i}")), 1, (1.0, 1.0, 0.0, 3.0)) for i in range(n)]
    add(tmp_path / "c.h5", n, [*facts])
    found = facts_in(tmp_path / "c.h5")
    assert found[:MAX_KINDS] == facts[:MAX_KINDS]
    assert {one.header for one in found[MAX_KINDS:] if one is not None} == {FileHeader(9, 9, 8, Kinds())}


def damage(path: Path, name: str) -> None:
    """Flip a bit in a chunk of facts."""
    with h5py.File(path) as file:
        offset = file[name].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["images/facts", "images/kinds/model"])
def test_damage_is_named_and_costs_the_facts_alone(tmp_path: Path, name: str) -> None:
    add(tmp_path / "c.h5", 10, some_facts(10))
    damage(tmp_path / "c.h5", name)
    assert not verify(tmp_path / "c.h5").sound
    with pytest.raises(DamagedCacheError, match="cache compact"):
        facts_in(tmp_path / "c.h5")
    summary = compact(tmp_path / "c.h5")
    assert (summary.images, summary.dropped_damaged) == (10, 0)
    assert verify(tmp_path / "c.h5").problems == ()
    assert facts_in(tmp_path / "c.h5") == [None] * 10


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images["facts"].attrs.create("x", 1),  # nothing that is read
        lambda images: images.move("kinds", "other"),
        lambda images: images.move("facts", "kinds/facts"),
    ],
)
def test_strange_facts_are_refused_or_absent(tmp_path: Path, change: object) -> None:
    add(tmp_path / "c.h5", 10, some_facts(10))
    shutil.copy(tmp_path / "c.h5", tmp_path / "d.h5")
    with h5py.File(tmp_path / "d.h5", "r+") as file:
        change(file["images"])  # type: ignore[operator]
        is_missing, is_whole = "facts" not in file["images"], "kinds" in file["images"]
    if is_missing:
        assert facts_in(tmp_path / "d.h5") == [None] * 10
    elif is_whole:
        assert facts_in(tmp_path / "d.h5") == some_facts(10)
    else:  # embeddings are read without them
        assert facts_in(tmp_path / "d.h5") == [None] * 10
        assert not verify(tmp_path / "d.h5").sound
        assert compact(tmp_path / "d.h5").images == 10
        assert verify(tmp_path / "d.h5").sound


def test_a_later_version_may_record_more(tmp_path: Path) -> None:
    add(tmp_path / "c.h5", 10, some_facts(10))
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        stored = file["images/facts"][...]
        more = np.zeros(10, np.dtype([("later", "<f8"), *((name, stored.dtype[name]) for name in stored.dtype.names)]))
        for name in stored.dtype.names:
            more[name] = stored[name]
        del file["images/facts"]
        file["images"].create_dataset("facts", data=more, chunks=(10,), fletcher32=True)
    assert facts_in(tmp_path / "c.h5") == some_facts(10)


def test_numbers_of_a_part_point_to_its_own_kinds() -> None:
    first, second = Facts.of([*some_facts(3)]), Facts.of([*some_facts(4)][1:])
    joined = Facts.joined([first, Facts.unknown(2), second])
    assert joined.images() == [*some_facts(3), None, None, *some_facts(4)[1:]]
    assert len(joined.kinds) == 3
    assert CHUNK_ROWS < CHUNK_FACTS
