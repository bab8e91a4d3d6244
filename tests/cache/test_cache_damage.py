"""Damaged and hostile files: named as such, never read as something else, never a crash."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from hoarfrost.features.cache import CacheWriter, EmbeddingCache, compact, describe, verify
from hoarfrost.features.cache.layout import row_bytes
from hoarfrost.features.cache.store import part_paths
from hoarfrost.features.errors import CacheError, FingerprintMismatchError
from tests.support.caches import HEADER, some_files, some_images, some_table, write_cache

ROOT = Path(__file__).parents[2]

FLIPS = """
import random, sys
from pathlib import Path
import numpy as np
from hoarfrost.features.cache import EmbeddingCache, verify
from hoarfrost.features.errors import CacheError, FingerprintMismatchError
path, n_flips = Path(sys.argv[1]), int(sys.argv[2])
sound = path.read_bytes()

def content():
    with EmbeddingCache(path) as cache:
        table = cache.dataset()
        embeddings, readable = cache.arrays(table)
        return (embeddings.tobytes(), table.paths, table.labels, table.patients, table.rows.tolist(), dict(table.attributes),
                cache.header.fingerprint.digest, cache.header.weights)

expected = content()
random.seed(0)
outcomes = {"harmless": 0, "refused": 0}
for _ in range(n_flips):
    bit = random.randrange(8 * len(sound))
    flipped = bytearray(sound)
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    try:
        found = content()
    except CacheError as error:
        assert str(path) in str(error), error
        outcomes["refused"] += 1
        assert not verify(path).sound, bit
    else:
        assert found == expected, f"bit {bit} changed what is read, silently"
        outcomes["harmless"] += 1
print(outcomes)
"""


def flip(path: Path, n_flips: int) -> str:
    result = subprocess.run(
        [sys.executable, "-c", FLIPS, str(path), str(n_flips)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize("n_flips", [50, pytest.param(700, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_read_as_something_else(tmp_path: Path, n_flips: int) -> None:
    keys, embeddings = some_images(6)  # so that nearly half of the file's bits are not theirs
    with CacheWriter(tmp_path / "c.h5", HEADER, "demo") as writer:
        writer.append(some_files(keys), embeddings)
        columns = {"patients": [f"p{i // 2}" for i in range(6)], "attributes": {"scanner": ["A", "B"] * 3}}
        writer.finish(some_table(6, **columns), keys)
    assert "refused" in flip(tmp_path / "c.h5", n_flips)


def overwrite_row(path: Path, row: int) -> None:
    with h5py.File(path) as file:
        offset = file["images/embedding"].id.get_chunk_info(0).byte_offset
    with path.open("r+b") as raw:
        raw.seek(offset + row * row_bytes(HEADER.dim) + 100)
        raw.write(b"damage")


def test_verify_names_the_damaged_row_and_its_image(tmp_path: Path) -> None:
    keys, _ = write_cache(tmp_path / "c.h5", 20)
    overwrite_row(tmp_path / "c.h5", 7)
    report = verify(tmp_path / "c.h5")
    assert not report.sound
    assert len(report.problems) == 1
    assert f"row 7 (key {keys[7].tobytes().hex()[:12]}…; demo: image7.png)" in report.problems[0]


def test_a_damaged_embedding_is_an_error_on_reading(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5", 20)
    overwrite_row(tmp_path / "c.h5", 7)
    with (
        EmbeddingCache(tmp_path / "c.h5") as cache,
        pytest.raises(CacheError, match="do not match their checksum.*cache verify.*cache compact"),
    ):
        cache.arrays(cache.dataset())


def test_compact_drops_damaged_rows_and_the_next_extraction_embeds_them_again(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    keys, embeddings = write_cache(path, 20)
    overwrite_row(path, 7)
    summary = compact(path)
    assert (summary.dropped_damaged, summary.images) == (1, 19)
    assert verify(path).sound
    with EmbeddingCache(path) as cache:
        table = cache.dataset()
        found, readable = cache.arrays(table)
        assert np.flatnonzero(~readable).tolist() == [7]
        assert "extract again" in table.errors[7]
        np.testing.assert_array_equal(found, np.delete(embeddings, 7, axis=0))
    with CacheWriter(path, HEADER, "demo") as writer:
        assert keys[7].tobytes() not in writer
        assert "image7.png" not in writer.known_files().paths


def test_compact_drops_what_no_dataset_uses_and_folds_parts(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    keys, embeddings = some_images(10)
    with CacheWriter(path, HEADER, "demo") as writer:
        writer.append(some_files(keys[:8]), embeddings[:8])
        writer.finish(some_table(4), keys[:4])
        writer.append(some_files(keys[8:], "late"), embeddings[8:])
        writer.commit()
    assert describe(path).unused == 4
    summary = compact(path)
    assert (summary.dropped_unused, summary.folded_parts, summary.images) == (4, 1, 6)
    assert not part_paths(path)
    assert compact(path).dropped_unused == 0  # the unfinished extraction's work is in use
    with EmbeddingCache(path) as cache:
        np.testing.assert_array_equal(cache.arrays(cache.dataset())[0], embeddings[:4])
    with CacheWriter(path, HEADER, "demo") as writer:  # the unfinished extraction's work is kept
        assert all(key.tobytes() in writer for key in keys[8:])
        assert {"late0.png", "late1.png"} <= set(writer.known_files().paths)


def test_compacting_an_unfinished_first_extraction_keeps_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    keys, embeddings = some_images(6)
    with CacheWriter(path, HEADER, "demo", root="/images") as writer:
        for i in range(0, 6, 2):
            writer.append(some_files(keys[i : i + 2], f"{i}-"), embeddings[i : i + 2])
            writer.commit()
    for _ in range(2):
        assert compact(path).images == 6
    with pytest.raises(CacheError, match="first extraction is not finished"), EmbeddingCache(path) as cache:
        cache.dataset()
    with CacheWriter(path, HEADER, "demo", root="/images") as writer:
        assert len(writer.known_files().paths) == 6
        writer.finish(some_table(6), keys)
    assert verify(path).sound
    with EmbeddingCache(path) as cache:
        np.testing.assert_array_equal(cache.arrays(cache.dataset())[0], embeddings)


def test_compact_refuses_a_part_of_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_cache(path, 3)
    before = path.read_bytes()
    plant_foreign_part(tmp_path, path)
    with pytest.raises(FingerprintMismatchError, match="weights"):
        compact(path)
    assert path.read_bytes() == before


def column_byte(path: Path, name: str) -> int:
    with h5py.File(path) as file:
        return int(file[name].id.get_chunk_info(0).byte_offset)


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("column", ["label", "path", "row"])
def test_a_damaged_table_costs_no_embedding(tmp_path: Path, column: str) -> None:
    path = tmp_path / "c.h5"
    keys, embeddings = write_cache(path, 20)
    flip_byte(path, column_byte(path, f"datasets/demo/{column}") + 3)
    assert not verify(path).sound
    summary = compact(path)
    assert (summary.images, summary.dropped_datasets) == (20, ("demo",))
    with CacheWriter(path, HEADER, "demo") as writer:
        assert all(key.tobytes() in writer for key in keys)
        writer.finish(some_table(20), keys)
    with EmbeddingCache(path) as cache:
        np.testing.assert_array_equal(cache.arrays(cache.dataset())[0], embeddings)


def test_a_damaged_table_is_written_again_by_its_own_extraction(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    keys, _ = write_cache(path, 20)
    flip_byte(path, column_byte(path, "datasets/demo/label") + 3)
    with CacheWriter(path, HEADER, "demo") as writer:
        assert not writer.known_files()
        writer.finish(some_table(20), keys)
    assert verify(path).sound


@pytest.mark.parametrize(("sums", "kept"), [("chunk_crc32", 20), ("row_crc32", 20), ("key", 0)])
def test_damaged_sums_and_keys_are_found_and_fixed_by_compact(tmp_path: Path, sums: str, kept: int) -> None:
    path = tmp_path / "c.h5"
    _, embeddings = write_cache(path, 20)
    flip_byte(path, column_byte(path, f"images/{sums}"))
    assert not verify(path).sound
    assert compact(path).images == kept
    assert verify(path).sound
    with EmbeddingCache(path) as cache:
        np.testing.assert_array_equal(cache.arrays(cache.dataset())[0], embeddings[:kept])


def test_only_damaged_parts_are_a_clear_error_and_stay(tmp_path: Path) -> None:
    (tmp_path / "c.h5.parts").mkdir()
    part = tmp_path / "c.h5.parts" / "part-1.h5"
    part.write_text("x")
    for look in (compact, describe):
        with pytest.raises(CacheError, match=r"only damaged parts.*Remove .*c\.h5\.parts"):
            look(tmp_path / "c.h5")
    assert not verify(tmp_path / "c.h5").sound
    assert part.exists()


def test_info_counts_damaged_parts_and_continues(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_cache(path, 5)
    (tmp_path / "c.h5.parts").mkdir()
    (tmp_path / "c.h5.parts" / "part-1.h5").write_text("x")
    info = describe(path)
    assert (info.images, info.damaged_parts) == (5, 1)


def test_preprocessing_that_is_not_an_object_is_refused(tmp_path: Path) -> None:
    with tampered(tmp_path) as file:
        file.attrs.create("preprocessing", np.bytes_(b"[1, 2]"), dtype=h5py.string_dtype("utf-8", 6))
    refused(tmp_path, "not a JSON object")


def test_compact_with_nothing_to_do_writes_nothing(tmp_path: Path) -> None:
    write_cache(tmp_path / "c.h5")
    before = (tmp_path / "c.h5").stat().st_mtime_ns
    summary = compact(tmp_path / "c.h5")
    assert summary.bytes_before == summary.bytes_after
    assert (tmp_path / "c.h5").stat().st_mtime_ns == before


@pytest.mark.parametrize("share", [0, 10, 50, 90, 99])
def test_a_truncated_file_is_named_as_such(tmp_path: Path, share: int) -> None:
    path = tmp_path / "c.h5"
    write_cache(path, 50)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * share // 100])
    with pytest.raises(CacheError, match="truncated|not an HDF5 file"), EmbeddingCache(path) as cache:
        cache.arrays(cache.dataset())
    assert not verify(path).sound


def plant_foreign_part(tmp_path: Path, path: Path) -> None:
    other = type(HEADER)(type(HEADER.fingerprint)("resnet18", "cd" * 32, {}, "float32"), HEADER.dim, "imagenet")
    keys, embeddings = some_images(2, 9)
    with CacheWriter(tmp_path / "other.h5", other, "demo") as writer:
        writer.append(some_files(keys), embeddings)
        writer.commit()
    path.with_name(path.name + ".parts").mkdir(exist_ok=True)
    part = part_paths(tmp_path / "other.h5")[0]
    part.rename(path.with_name(path.name + ".parts") / part.name)


def test_verify_names_a_mixed_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    write_cache(path, 3)
    plant_foreign_part(tmp_path, path)
    assert any("2 fingerprints are mixed" in problem for problem in verify(path).problems)


# -- hostile files ----------------------------------------------------------------------------------------------------


def tampered(tmp_path: Path) -> h5py.File:
    write_cache(tmp_path / "c.h5", 20)
    return h5py.File(tmp_path / "c.h5", "r+", libver=("v110", "v110"))


def refused(tmp_path: Path, match: str) -> None:
    with pytest.raises(CacheError, match=match), EmbeddingCache(tmp_path / "c.h5") as cache:
        cache.arrays(cache.dataset())
    assert not verify(tmp_path / "c.h5").sound


def test_an_external_link_is_not_followed(tmp_path: Path) -> None:
    write_cache(tmp_path / "secret.h5", 20, seed=3)
    with tampered(tmp_path) as file:
        del file["images/embedding"]
        file["images/embedding"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/images/embedding")
    refused(tmp_path, "/images/embedding is a link, not data")


def test_a_soft_link_is_not_followed(tmp_path: Path) -> None:
    with tampered(tmp_path) as file:
        file["datasets/demo/more"] = file["datasets/demo/label"]
        del file["datasets/demo/label"]
        file["datasets/demo/label"] = h5py.SoftLink("/datasets/demo/more")
    refused(tmp_path, "/datasets/demo/label is a link, not data")


def test_data_stored_in_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(20 * 32))
    with tampered(tmp_path) as file:
        del file["images/key"]
        file["images"].create_dataset("key", (20, 32), np.uint8, external=[(str(tmp_path / "raw"), 0, 20 * 32)])
    refused(tmp_path, "not stored as this format requires")


def test_a_virtual_dataset_is_refused(tmp_path: Path) -> None:
    write_cache(tmp_path / "secret.h5", 20, seed=3)
    with tampered(tmp_path) as file:
        del file["images/embedding"]
        layout = h5py.VirtualLayout((20, 512), np.float32)
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "images/embedding", (20, 512))
        file["images"].create_virtual_dataset("embedding", layout)
    refused(tmp_path, "not stored as this format requires")


def test_a_huge_declared_shape_is_not_allocated(tmp_path: Path) -> None:
    with tampered(tmp_path) as file:
        for name, dtype in (("key", np.uint8), ("embedding", np.float32)):
            width = file[f"images/{name}"].shape[1]
            del file[f"images/{name}"]
            file["images"].create_dataset(name, (10**12, width), dtype, chunks=(1024, width), fletcher32=True)
    refused(tmp_path, "declares .* bytes, but .* are there")


def test_a_column_that_packs_gigabytes_into_little_is_refused(tmp_path: Path) -> None:
    with tampered(tmp_path) as file:
        del file["datasets/demo/path"]
        dtype = h5py.string_dtype("utf-8", 1 << 20)
        file["datasets/demo"].create_dataset(
            "path", (20,), dtype, chunks=(1,), compression="gzip", fletcher32=True, data=np.zeros(20, dtype)
        )
    refused(tmp_path, "not a column of texts")


def test_a_pickled_object_or_variable_length_text_is_refused(tmp_path: Path) -> None:
    with tampered(tmp_path) as file:
        del file.attrs["weights"]
        file.attrs["weights"] = "variable length, outside the checksums"
    refused(tmp_path, "the attribute 'weights' is not a short text")


def test_columns_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with tampered(tmp_path) as file:
        del file["datasets/demo/row"]
        file["datasets/demo"].create_dataset("row", data=np.arange(5), chunks=(5,), fletcher32=True)
    refused(tmp_path, "differ in length")


def test_rows_that_point_outside_are_refused(tmp_path: Path) -> None:
    with tampered(tmp_path) as file:
        del file["datasets/demo/row"]
        file["datasets/demo"].create_dataset("row", data=np.arange(20) + 10**9, chunks=(20,), fletcher32=True)
    refused(tmp_path, "points to embeddings that are not there")


def test_a_row_that_slipped_to_another_key_is_found(tmp_path: Path) -> None:
    with tampered(tmp_path) as file:
        keys = file["images/key"][...]
        file["images/key"][...] = np.roll(keys, 1, axis=0)
    assert len(verify(tmp_path / "c.h5").problems) == 20


def test_a_fingerprint_that_does_not_fit_its_parts_is_refused(tmp_path: Path) -> None:
    with tampered(tmp_path) as file:
        file.attrs.create("precision", np.bytes_(b"float16"), dtype=h5py.string_dtype("utf-8", 7))
    refused(tmp_path, "fingerprint does not match its encoder, weights")


def write_parts(path: Path, n_parts: int = 3) -> list[Path]:
    """Write parts of five images each, of an extraction that was killed."""
    for seed in range(n_parts):
        keys, embeddings = some_images(5, seed)
        with CacheWriter(path, HEADER, "demo") as writer:
            writer.append(some_files(keys), embeddings)
            writer.commit()
    return part_paths(path)


def extract_again(path: Path, n_parts: int = 3) -> None:
    """Embed what `write_parts` wrote, as far as it is missing, and finish."""
    keys, embeddings = map(np.concatenate, zip(*(some_images(5, seed) for seed in range(n_parts)), strict=True))
    with CacheWriter(path, HEADER, "demo") as writer:
        new = [i for i, key in enumerate(keys) if key.tobytes() not in writer]
        assert len(new) == 5
        writer.append([some_files(keys)[i] for i in new], embeddings[new])
        writer.finish(some_table(len(keys)), keys)
    with EmbeddingCache(path) as cache:
        np.testing.assert_array_equal(cache.arrays(cache.dataset())[0], embeddings)
    assert verify(path).sound


def point_nowhere(part: Path) -> None:
    part.unlink()
    part.symlink_to(part.parent / "gone")


def replace_by_folder(part: Path) -> None:
    part.unlink()
    part.mkdir()


@pytest.mark.parametrize("lose", [Path.unlink, point_nowhere, replace_by_folder, lambda part: part.write_text("x")])
def test_extracting_again_embeds_what_a_lost_part_had(tmp_path: Path, lose: Callable[[Path], object]) -> None:
    path = tmp_path / "c.h5"
    lose(write_parts(path)[1])
    for problem in verify(path).problems:
        assert f"hoarfrost cache compact {path}`" in problem or "Run the same `hoarfrost extract` again" in problem
        assert f"--cache {path}.parts" not in problem
    describe(path)
    extract_again(path)


@pytest.mark.parametrize("lose", [point_nowhere, lambda part: part.write_text("x")])
def test_compact_keeps_all_but_a_lost_part(tmp_path: Path, lose: Callable[[Path], object]) -> None:
    path = tmp_path / "c.h5"
    lose(write_parts(path)[1])
    assert compact(path).images == 10
    extract_again(path)


def test_part_that_is_deleted_during_an_extraction_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "c.h5"
    first, *_ = write_parts(path)
    with CacheWriter(path, HEADER, "demo") as writer:
        first.unlink()
        with pytest.raises(CacheError, match=rf"{first.name}: this part of the cache {path} is missing\. Run the same"):
            writer.fold()
    extract_again(path)
