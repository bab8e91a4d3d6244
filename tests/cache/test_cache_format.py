"""What a cache file holds, and that it comes back as it was written."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoarfrost.features.cache import CacheWriter, EmbeddingCache
from hoarfrost.features.cache.keys import KeyIndex
from hoarfrost.features.cache.layout import CHUNK_ROWS, Block
from hoarfrost.features.cache.reading import CacheFile
from hoarfrost.features.cache.writing import write_cache_file
from hoarfrost.features.errors import CacheError, FingerprintMismatchError
from hoarfrost.features.fingerprint import Fingerprint
from tests.support.caches import FINGERPRINT, HEADER, some_files, some_images, some_table, write_cache


def test_embeddings_come_back_bit_for_bit(tmp_path: Path) -> None:
    keys, embeddings = write_cache(tmp_path / "c.h5", 50)
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        found, readable = cache.arrays(cache.dataset())
    assert readable.all()
    np.testing.assert_array_equal(found.view(np.uint32), embeddings.view(np.uint32))


@pytest.mark.parametrize("n", [0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 7])
def test_any_number_of_images_is_kept_however_it_was_cut_into_blocks(tmp_path: Path, n: int) -> None:
    keys, embeddings = some_images(n)
    for cut in (300, 5000):
        blocks = [Block(keys[i : i + cut], embeddings[i : i + cut]) for i in range(0, n, cut)]
        write_cache_file(tmp_path / "c.h5", HEADER, n, blocks, [])
        with CacheFile(tmp_path / "c.h5") as file:
            np.testing.assert_array_equal(file.embeddings(), embeddings)
            np.testing.assert_array_equal(file.keys, keys)


def test_rows_are_read_in_any_order_and_repeatedly(tmp_path: Path) -> None:
    keys, embeddings = some_images(3000)
    write_cache_file(tmp_path / "c.h5", HEADER, 3000, [Block(keys, embeddings)], [])
    rows = np.random.default_rng(1).integers(0, 3000, 500)
    with CacheFile(tmp_path / "c.h5") as file:
        np.testing.assert_array_equal(file.embeddings(rows), embeddings[rows])
        assert file.embeddings(np.array([], np.int64)).shape == (0, 512)


def test_any_hdf5_tool_can_read_it(tmp_path: Path) -> None:
    keys, embeddings = write_cache(tmp_path / "c.h5", 30)
    with h5py.File(tmp_path / "c.h5") as file:
        assert file.attrs["format"].decode() == "hoarfrost-cache"
        assert file.attrs["format_version"] == 1
        assert file.attrs["fingerprint"].decode() == FINGERPRINT.digest
        assert file.attrs["dim"] == 512
        assert json.loads(file.attrs["preprocessing"])["resize"] == [224, 224]
        np.testing.assert_array_equal(file["images/key"][...], keys)
        np.testing.assert_array_equal(file["images/embedding"][...], embeddings)
        assert file["images/embedding"].fletcher32
        table = file["datasets/demo"]
        assert table["path"][3].decode() == "image3.png"
        np.testing.assert_array_equal(table["row"][...], np.arange(30))


texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(texts, texts, texts, texts), min_size=1, max_size=12))
def test_any_text_in_a_table_comes_back(tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, ...]]) -> None:
    path = tmp_path_factory.mktemp("table") / "c.h5"
    n = len(cells)
    keys, embeddings = some_images(n)
    paths, labels, patients, scanners = (list(column) for column in zip(*cells, strict=True))
    table = some_table(
        n, paths=paths, labels=labels, patients=patients, attributes={"scanner": scanners}, rows=np.arange(n)
    )
    write_cache_file(path, HEADER, n, [Block(keys, embeddings)], [table])
    with CacheFile(path) as file:
        assert file.tables.read("demo").same_as(table)


def test_names_that_are_not_utf8_come_back(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    keys, embeddings = some_images(1)
    write_cache_file(tmp_path / "c.h5", HEADER, 1, [Block(keys, embeddings)], [some_table(1, paths=[name])])
    with CacheFile(tmp_path / "c.h5") as file:
        assert file.tables.read("demo").paths == [name]


def test_another_fingerprint_is_refused_naming_what_differs(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5")
    before = (tmp_path / "c.h5").read_bytes()
    other = Fingerprint("resnet18", "ab" * 32, FINGERPRINT.preprocessing, "bfloat16")
    said = r"was added\. Differences: precision: bfloat16 here, float32 there.*another --cache"
    with pytest.raises(FingerprintMismatchError, match=said):
        with CacheWriter(tmp_path / "c.h5", type(HEADER)(other, HEADER.dim, "random:0"), "demo"):
            pass
    assert (tmp_path / "c.h5").read_bytes() == before


def test_a_newer_format_is_named_as_such(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5")
    with h5py.File(tmp_path / "c.h5", "r+") as file:
        file.attrs["format_version"] = 3
    with pytest.raises(CacheError, match="newer hoarfrost.*format 3.*Upgrade"):
        EmbeddingCache(tmp_path / "c.h5")


def test_what_is_no_cache_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("not HDF5 at all")
    with pytest.raises(CacheError, match="not a hoarfrost cache.*not an HDF5 file"):
        EmbeddingCache(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(CacheError, match="an HDF5 file but not a hoarfrost cache"):
        EmbeddingCache(tmp_path / "other.h5")
    with pytest.raises(CacheError, match=r"No cache at .*missing.h5\. Create it with: hoarfrost extract"):
        EmbeddingCache(tmp_path / "missing.h5")


def test_a_dataset_is_chosen_by_name_where_there_are_several(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5", name="first")
    write_cache(tmp_path / "c.h5", name="second", seed=1)
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert cache.dataset_names() == ["first", "second"]
        assert cache.n_images == 40
        assert cache.dataset("second").name == "second"
        with pytest.raises(CacheError, match="has 2 datasets. Choose one with --dataset: first, second"):
            cache.dataset()
        with pytest.raises(CacheError, match="does not have a dataset 'third'"):
            cache.dataset("third")


def test_the_same_bytes_under_two_paths_are_one_embedding(tmp_path: Path) -> None:
    keys, embeddings = some_images(3)
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        writer.append(some_files(keys), embeddings)
        writer.finish(some_table(4), keys[[0, 1, 2, 0]])
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert cache.n_images == 3
        assert cache.dataset().rows.tolist() == [0, 1, 2, 0]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=3), max_size=30), st.lists(st.binary(min_size=1, max_size=3), max_size=30)
)
def test_keys_are_found_as_a_dictionary_finds_them(stored: list[bytes], asked: list[bytes]) -> None:
    # Short values padded at the end share their first eight bytes' tail, and some share all eight.
    def array(values: list[bytes]) -> np.ndarray:
        rows = [(b"\1" * 8 + value).ljust(32, b"\0") if len(value) > 1 else value.ljust(32, b"\0") for value in values]
        return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, 32)

    first: dict[bytes, int] = {}
    for i, row in enumerate(array(stored)):
        first.setdefault(row.tobytes(), i)
    expected = [first.get(row.tobytes(), -1) for row in array(asked)]
    assert KeyIndex(array(stored)).find(array(asked)).tolist() == expected
