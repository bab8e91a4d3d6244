"""Version 2 of the format: a row is an image in a view. Version 1 stays as it was, is read, and gets views added."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hoarfrost.features.cache.folding
from hoarfrost.features.cache import (
    CacheFile,
    CacheWriter,
    EmbeddingCache,
    Header,
    compact,
    describe,
    existing_header,
    verify,
)
from hoarfrost.features.cache.keys import KeyIndex, find_images
from hoarfrost.features.cache.layout import ENCODERS_OWN, row_keys, view_code
from hoarfrost.features.cache.parts import PartWriter
from hoarfrost.features.cache.shards import shards_directory
from hoarfrost.features.cache.store import part_paths
from hoarfrost.features.errors import CacheError
from tests.support.caches import HEADER, rows_per_tiny_shard, some_files, some_images, some_table, write_cache
from tests.support.commands import Hoarfrost
from tests.support.viewed import by_key, write_viewed

VIEWS = ("224", "448", "224:flip")
V1_ATTRIBUTES = [
    "format", "format_version", "fingerprint", "backbone", "weights", "weights_origin", "weights_sha256", "preprocessing",
    "precision", "compute", "dim", "versions",
]  # fmt: skip


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put five rows into a shard."""
    monkeypatch.setattr(hoarfrost.features.cache.folding, "rows_per_shard", rows_per_tiny_shard)


def add_view(path: Path, view: str, n: int = 20, seed: int = 0, *, is_finished: bool = True) -> np.ndarray:
    """Add a view of the images of `write_cache`; return its embeddings."""
    keys, embeddings = some_images(n, seed)[0], some_images(n, 77)[1]
    with CacheWriter(path, HEADER.with_views([view]), "demo") as writer:
        code = writer.header.code_of(view)
        writer.append([file._replace(key=file.key + code) for file in some_files(keys)], embeddings)
        if is_finished:
            writer.finish(some_table(n), keys)
        else:
            writer.commit()
    return embeddings


# -- layout -------------------------------------------------------------------------------------------------------------


def test_a_cache_of_the_encoders_own_view_has_the_layout_of_version_1(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5") as file:
        assert sorted(file.attrs) == sorted(V1_ATTRIBUTES)
        assert file.attrs["format_version"] == 1
        assert file["images/key"].shape == (20, 32)


def test_version_2_states_its_views_and_keys_end_with_their_codes(tmp_path: Path) -> None:
    embeddings = write_viewed(tmp_path / "c.h5", VIEWS)
    keys = some_images(20)[0]
    with h5py.File(tmp_path / "c.h5") as file:
        assert sorted(file.attrs) == sorted([*V1_ATTRIBUTES, "views", "layers"])
        assert file.attrs["format_version"] == 2
        assert file.attrs["fingerprint"].decode() == HEADER.fingerprint.digest  # views are no part of it
        codes = json.loads(file.attrs["views"])
        assert list(codes) == list(VIEWS)
        assert codes == {"224": "00" * 8, **{view: sha256(view.encode()).hexdigest()[:16] for view in VIEWS[1:]}}
        assert json.loads(file.attrs["layers"]) == {}
        stored = file["images/key"][...]
        assert stored.shape == (60, 40)
        for number, view in enumerate(VIEWS):
            rows = slice(20 * number, 20 * number + 20)
            assert np.array_equal(stored[rows, :32], keys)
            assert {bytes(code) for code in stored[rows, 32:]} == {bytes.fromhex(codes[view])}
            assert np.array_equal(file["images/embedding"][rows], embeddings[view])
        assert np.array_equal(file["datasets/demo/row"][...], np.arange(20))


def test_layers_state_their_columns(tmp_path: Path) -> None:
    layered = replace(HEADER, fingerprint=replace(HEADER.fingerprint, layers=(3, 4)), dim=768).of_views(["224"])
    keys, embeddings = some_images(4)[0], np.random.default_rng(0).standard_normal((4, 768), np.float32)
    with CacheWriter(tmp_path / "c.h5", layered, "demo") as writer:
        writer.append([file._replace(key=file.key + ENCODERS_OWN) for file in some_files(keys)], embeddings)
        writer.finish(some_table(4), keys)
    with h5py.File(tmp_path / "c.h5") as file:
        assert (file.attrs["format_version"], file.attrs["dim"]) == (2, 768)
        assert json.loads(file.attrs["layers"]) == {"3": [0, 256], "4": [256, 768]}
        assert file.attrs["fingerprint"].decode() == layered.fingerprint.digest != HEADER.fingerprint.digest
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert cache.header.fingerprint.layers == (3, 4)
        assert cache.views == ("224",)
        np.testing.assert_array_equal(cache.arrays(cache.dataset())[0], embeddings)
    info = describe(tmp_path / "c.h5")
    assert (info.layers, info.views) == ((3, 4), {"224": 4})


def test_embeddings_are_found_by_image_and_view(tmp_path: Path) -> None:
    embeddings = write_viewed(tmp_path / "c.h5", VIEWS)
    keys = some_images(20)[0]
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        table = cache.dataset()
        for view in VIEWS:
            np.testing.assert_array_equal(cache.embeddings(cache.rows_of(keys[::-1], view)), embeddings[view][::-1])
        assert cache.rows_of(np.zeros((1, 32), np.uint8), "448").tolist() == [-1]
        assert cache.rows_of(keys, "96").tolist() == [-1] * 20
        rows = cache.view_rows(table.rows, ["448", "96", "224"])
        assert rows.shape == (20, 3)
        assert (rows[:, 1] == -1).all()
        np.testing.assert_array_equal(cache.embeddings(rows[:, 0]), embeddings["448"])
        np.testing.assert_array_equal(cache.arrays(table)[0], embeddings["224"])
        np.testing.assert_array_equal(cache.keys(rows[:, 0]), keys)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=20))
def test_rows_of_images_and_views_are_found_as_a_dictionary_finds_them(pairs: list[tuple[int, int]]) -> None:
    names = ["224", "448", "448:pad", "32"]
    header = HEADER.of_views(names)
    images = np.zeros((4, 32), np.uint8)
    images[:, 31] = range(4)  # the same first eight bytes
    stored = [row_keys(images[[image]], header.code_of(names[view])) for image, view in pairs]
    index = KeyIndex(np.concatenate([np.empty((0, 40), np.uint8), *stored]))
    first = {pair: row for row, pair in reversed(list(enumerate(pairs)))}
    for view, name in enumerate(names):
        expected = [first.get((image, view), -1) for image in range(4)]
        assert find_images(index, header, images, [name]).tolist() == expected
    any_view = [next((first[image, view] for view in range(4) if (image, view) in first), -1) for image in range(4)]
    assert find_images(index, header, images, names).tolist() == any_view


@pytest.mark.parametrize(
    "views", ['{"224": "0000000000000000", "448": "0000000000000001"}', '["224"]', "{}", '{"x": 1}']
)
def test_views_that_do_not_match_their_codes_are_damage(tmp_path: Path, views: str) -> None:
    write_viewed(tmp_path / "c.h5", VIEWS)
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        file.attrs.create("views", np.bytes_(views.encode()), dtype=h5py.string_dtype("utf-8", len(views)))
    with pytest.raises(CacheError, match="its views are not a JSON object of names and their codes"):
        EmbeddingCache(tmp_path / "c.h5")


# -- version 1 gets views -------------------------------------------------------------------------------------------------


def test_views_added_to_version_1_keep_its_rows_and_digests(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    keys, embeddings = write_cache(path)
    write_cache(path, 6, seed=5, name="other")
    before = by_key(path)
    with EmbeddingCache(path) as cache:
        digests = [cache.digest(cache.dataset(name).rows) for name in ("demo", "other")]
        sums = CacheFile(path).row_sums
    flips = add_view(path, "224:flip")
    with EmbeddingCache(path) as cache:
        assert cache.views == ("224", "224:flip")
        assert [cache.digest(cache.dataset(name).rows) for name in ("demo", "other")] == digests
        np.testing.assert_array_equal(cache.arrays(cache.dataset("demo"))[0], embeddings)
        np.testing.assert_array_equal(cache.embeddings(cache.rows_of(keys, "224:flip")), flips)
    with CacheFile(path) as file:
        assert np.array_equal(file.row_sums[:26], sums)
    assert before.items() <= by_key(path).items()
    assert verify(path).sound
    info = describe(path)
    assert info.views == {"224": 26, "224:flip": 20}
    assert {dataset.name: dataset.lacking for dataset in info.datasets} == {"demo": {}, "other": {"224:flip": 6}}
    assert info.unused == 0


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("n", [10, 12])
def test_full_shards_of_version_1_stay_as_they_are_under_an_index_of_version_2(tmp_path: Path, n: int) -> None:
    path = tmp_path / "c.h5"
    keys, embeddings = some_images(n)
    with CacheWriter(path, HEADER, "demo", shard_bytes=50_000) as writer:
        writer.append(some_files(keys), embeddings)
        writer.finish(some_table(n), keys)
    full = {shard.name: shard.read_bytes() for shard in sorted(shards_directory(path).iterdir())[:2]}
    flips = add_view(path, "224:flip", n)
    assert {name: (shards_directory(path) / name).read_bytes() for name in full} == full
    with h5py.File(path) as index:
        assert index.attrs["format_version"] == 2
    versions = [h5py.File(shard).attrs["format_version"] for shard in sorted(shards_directory(path).iterdir())]
    assert versions[:2] == [1, 1]
    assert set(versions[2:]) == {2}
    assert verify(path).sound, verify(path).problems
    with EmbeddingCache(path) as cache:
        np.testing.assert_array_equal(cache.arrays(cache.dataset())[0], embeddings)
        np.testing.assert_array_equal(cache.embeddings(cache.rows_of(keys, "224:flip")), flips)
    assert describe(path).views == {"224": n, "224:flip": n}
    add_view(path, "448", n)
    assert {name: (shards_directory(path) / name).read_bytes() for name in full} == full
    before = by_key(path)
    assert compact(path).images == 3 * n
    assert by_key(path) == before
    assert len(before) == 3 * n


def test_a_part_of_version_2_beside_a_file_of_version_1_is_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    keys, embeddings = write_cache(path)
    flips = add_view(path, "224:flip", is_finished=False)
    assert len(part_paths(path)) == 1
    header = existing_header(path)
    assert header is not None
    assert header.views == ("224", "224:flip")
    assert verify(path).sound
    info = describe(path)
    assert (info.views, info.images_in_parts) == ({"224": 20, "224:flip": 0}, 20)
    assert info.datasets[0].lacking == {"224:flip": 20}  # until its extraction has ended
    with EmbeddingCache(path) as cache:  # readers see the last finished extraction
        assert cache.views == ("224",)
    with CacheWriter(path, HEADER, "demo") as writer:
        assert writer.header.views == ("224", "224:flip")
        assert keys[4].tobytes() + view_code("224:flip") in writer
        assert keys[4].tobytes() + ENCODERS_OWN in writer
        assert writer.has_views(keys, ["224", "224:flip"]).all()
        assert not writer.has_views(keys, ["224", "448"]).any()
        writer.finish(some_table(20), keys)
    with EmbeddingCache(path) as cache:
        np.testing.assert_array_equal(cache.embeddings(cache.rows_of(keys, "224")), embeddings)
        np.testing.assert_array_equal(cache.embeddings(cache.rows_of(keys, "224:flip")), flips)


def test_a_part_of_version_1_beside_a_file_of_version_2_is_taken_in(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_viewed(path, VIEWS)
    keys, embeddings = some_images(5, 3)
    worker = PartWriter(path, HEADER, "demo")  # a release that knows one view
    worker.append(some_files(keys, "new"), embeddings)
    worker.commit()
    before = by_key(path)
    compact(path)
    after = by_key(path)
    assert before.items() <= after.items()
    assert [after[key.tobytes() + ENCODERS_OWN] for key in keys] == [row.tobytes() for row in embeddings]
    assert verify(path).sound


def test_a_writer_keeps_the_views_that_a_cache_got_while_it_waited(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_cache(path)
    late = CacheWriter(path, HEADER, "other")  # it read the header of version 1
    add_view(path, "448")
    with late as writer:
        assert writer.header.views == ("224", "448")
        keys, embeddings = some_images(3, 9)
        code = writer.header.code_of("224")
        writer.append([file._replace(key=file.key + code) for file in some_files(keys)], embeddings)
        writer.finish(some_table(3, "other"), keys)
    assert describe(path).views == {"224": 23, "448": 20}
    assert verify(path).sound


def test_headers_of_version_1_stay_until_other_views_are_added() -> None:
    assert HEADER.with_views(["224"]) == HEADER
    assert HEADER.with_views(["448"]).views == ("224", "448")
    assert HEADER.of_views(["448", "448"]).views == ("448",)
    assert HEADER.of_views(["448"]).with_views(["224", "448"]).views == ("448", "224")
    second = replace(HEADER, views=("224",))  # another program may write this
    assert second.with_views(["224"]).format_version == 2
    assert (HEADER.format_version, HEADER.key_bytes, HEADER.code_of("224")) == (1, 32, b"")


# -- damage ---------------------------------------------------------------------------------------------------------------


def damage(path: Path, row: int, header: Header = HEADER) -> None:
    """Flip a byte of one row's embedding, on the disk."""
    with h5py.File(path) as file:
        data = file["images/embedding"]
        info = data.id.get_chunk_info(row // data.chunks[0])
        at = info.byte_offset + row % data.chunks[0] * 4 * header.dim + 5
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def test_a_damaged_row_is_named_with_its_view_and_image_and_is_dropped_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_viewed(path, VIEWS)
    before = by_key(path)
    key = some_images(20)[0][7].tobytes()
    damage(path, 27)
    report = verify(path)
    assert not report.sound
    assert len(report.problems) == 1
    assert f"row 27 (key {key.hex()[:12]}…; view 448; demo: 0-7.png) does not match" in report.problems[0]
    assert compact(path).dropped_damaged == 1
    assert verify(path).sound
    gone = key + view_code("448")
    assert by_key(path) == {each: row for each, row in before.items() if each != gone}
    info = describe(path)
    assert info.views == {"224": 20, "448": 19, "224:flip": 20}
    assert (info.datasets[0].lacking, info.datasets[0].unreadable) == ({"448": 1}, 0)


def test_an_image_whose_first_view_was_damaged_is_tried_again_and_keeps_the_others(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_viewed(path, VIEWS)
    before = by_key(path)
    damage(path, 7)
    compact(path)
    after = by_key(path)
    assert len(after) == 59
    assert after.items() <= before.items()
    with EmbeddingCache(path) as cache:
        table = cache.dataset()
        assert [table.paths[i] for i in np.flatnonzero(table.rows < 0)] == ["0-7.png"]
        assert "its embedding was damaged" in table.errors[7]
    assert compact(path).dropped_unused == 2  # nothing refers to its other views until it is extracted again


def test_compaction_drops_all_views_of_images_that_no_dataset_has(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_viewed(path, VIEWS)
    keys = some_images(20)[0]
    with CacheWriter(path, HEADER, "demo") as writer:
        writer.finish(some_table(12, prefix="0-"), keys[:12])
    assert describe(path).unused == 24
    before = by_key(path)
    done = compact(path)
    assert (done.images, done.dropped_unused) == (36, 24)
    assert by_key(path) == {
        key: row for key, row in before.items() if key[:32] in {each.tobytes() for each in keys[:12]}
    }
    assert verify(path).sound
    with EmbeddingCache(path) as cache:
        np.testing.assert_array_equal(cache.keys(cache.dataset().rows), keys[:12])


@pytest.mark.usefixtures("tiny")
def test_a_lost_shard_costs_its_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_viewed(path, VIEWS, n=10, shard_bytes=50_000)
    shards = sorted(shards_directory(path).iterdir())
    assert len(shards) == 6
    before = by_key(path)
    shards[3].unlink()  # of the view 448, images 5 to 9
    assert not verify(path).sound
    compact(path)
    keys = some_images(10)[0]
    lost = {key.tobytes() + view_code("448") for key in keys[5:]}
    assert by_key(path) == {key: row for key, row in before.items() if key not in lost}
    assert describe(path).datasets[0].lacking == {"448": 5}
    assert verify(path).sound


# -- what people read -----------------------------------------------------------------------------------------------------


def test_info_prints_views_and_what_lacks_them(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    path = tmp_path / "c.h5"
    write_cache(path)
    write_cache(path, 6, seed=5, name="other")
    assert "\nviews" not in hoarfrost("cache", "info", path).stdout
    assert "\nlayers" not in hoarfrost("cache", "info", path).stdout
    add_view(path, "224:flip")
    lines = hoarfrost("cache", "info", path).stdout.splitlines()
    assert "views 224 (26 embeddings), 224:flip (20 embeddings)" in lines
    other = next(i for i, line in enumerate(lines) if line.startswith("dataset other: 6 images"))
    assert lines[other + 1] == "  6 images without view 224:flip"
    assert lines[-1] == "To add what a dataset lacks, extract it again, without --views or with all of its views."
    document = json.loads(hoarfrost("cache", "info", path, "--json").stdout)
    assert document["views"] == {"224": 26, "224:flip": 20}
    assert [each["lacking"] for each in document["datasets"]] == [{}, {"224:flip": 6}]


def test_info_prints_layers_and_a_view_that_is_not_the_encoders_own(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    layered = replace(HEADER, fingerprint=replace(HEADER.fingerprint, layers=(3, 4)), dim=768).of_views(["448"])
    keys, embeddings = some_images(4)[0], np.zeros((4, 768), np.float32)
    with CacheWriter(tmp_path / "c.h5", layered, "demo") as writer:
        code = layered.code_of("448")
        writer.append([file._replace(key=file.key + code) for file in some_files(keys)], embeddings)
        writer.finish(some_table(4), keys)
    text = hoarfrost("cache", "info", tmp_path / "c.h5").stdout
    assert "layers 3, 4\nviews 448 (4 embeddings)\n" in text
    assert "without view" not in text
