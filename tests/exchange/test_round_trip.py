"""What `cache export` writes, `cache import` reads back without loss."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.features.cache import CacheWriter, EmbeddingCache
from hoarfrost.features.errors import DatasetError, HoarfrostError
from hoarfrost.features.exchange.exporting import export_dataset
from hoarfrost.features.exchange.importing import ImportOptions, import_embeddings
from tests.support.caches import HEADER, some_facts, some_files, some_images, some_table, with_facts, write_cache
from tests.support.commands import Hoarfrost
from tests.support.foreign import cohort, write_npz
from tests.support.viewed import by_key

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
FORMATS = ["npz", "parquet", "h5ad"]


def strange_cache(path: Path) -> Path:
    """Write a cache of two views with all that is unusual: duplicates, unreadable files, reserved names, missing views."""
    header = replace(HEADER, views=("224", "448"), weights_path="/weights/a.pth", compute="eager")
    keys, embeddings = some_images(10)
    embeddings[0, :3] = np.array([np.nan, np.inf, -0.0], np.float32)
    table = some_table(
        12,
        name="odd one",
        paths=[f"sub/imäge{i}.png" for i in range(11)] + ["not\udcffutf8.png"],
        rows=np.array([0] * 10 + [0, -1]),
        errors=[""] * 11 + ["damaged or truncated image: it ends early"],
        splits=["train", "val", "test"] * 4,
        patients=[f"p{i // 2}" for i in range(12)],
        attributes={
            name: [f"{name}{i}" for i in range(12)]
            for name in ("site", "error", "digest", "embeddings", "facts", "größe")
        },
        root="/data/odd",
    )
    with CacheWriter(path, header, "odd one", root="/data/odd") as writer:
        for view, n in (("224", 10), ("448", 7)):
            files = [file._replace(key=file.key + header.code_of(view)) for file in some_files(keys[:n])]
            files = with_facts(files, [None, *some_facts(n)[1:]])
            writer.append(files, embeddings[:n] * (1 if view == "224" else 2))
        writer.finish(table, np.concatenate([keys, keys[3:4], keys[:1]]))
    return path


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip_loses_nothing(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    cache = strange_cache(tmp_path / "a.h5")
    exported = export_dataset(cache, tmp_path / f"out.{name}")
    assert (exported.images, exported.unreadable, exported.views) == (12, 1, ("224", "448"))
    summary = import_embeddings(tmp_path / f"out.{name}", tmp_path / "b.h5")
    assert summary.is_own
    assert by_key(tmp_path / "b.h5") == by_key(cache)
    with EmbeddingCache(cache) as before, EmbeddingCache(tmp_path / "b.h5") as after:
        assert after.header == before.header
        assert after.dataset().same_as(before.dataset())
        assert after.dataset().created == before.dataset().created
        facts = [cache.facts(cache.dataset().rows[:11]).images() for cache in (before, after)]
        assert facts[0] == facts[1]
        assert [one is not None for one in facts[0]] == [False] + [True] * 10


@pytest.mark.parametrize("name", FORMATS)
def test_round_trip_of_embeddings_made_elsewhere(tmp_path: Path, name: str) -> None:
    pytest.importorskip("pyarrow")
    made = cohort(tmp_path)
    import_embeddings(
        write_npz(tmp_path / "a.npz", made), tmp_path / "a.h5", made.csv, ImportOptions(encoder_name="UNI")
    )
    export_dataset(tmp_path / "a.h5", tmp_path / f"out.{name}")
    import_embeddings(tmp_path / f"out.{name}", tmp_path / "b.h5")
    assert by_key(tmp_path / "b.h5") == by_key(tmp_path / "a.h5")
    with EmbeddingCache(tmp_path / "a.h5") as before, EmbeddingCache(tmp_path / "b.h5") as after:
        assert after.header == before.header
        assert after.dataset().same_as(before.dataset())


def test_import_of_an_export_adds_to_the_cache_that_it_is_of(tmp_path: Path) -> None:
    write_cache(tmp_path / "a.h5")
    export_dataset(tmp_path / "a.h5", tmp_path / "out.npz")
    import_embeddings(tmp_path / "out.npz", tmp_path / "a.h5", None, ImportOptions(name="again"))
    with EmbeddingCache(tmp_path / "a.h5") as opened:
        assert opened.dataset_names() == ["again", "demo"]
        assert opened.n_images == 20
        np.testing.assert_array_equal(opened.dataset("again").rows, opened.dataset("demo").rows)


def test_anndata_reads_the_h5ad(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    keys, embeddings = write_cache(tmp_path / "a.h5")
    export_dataset(tmp_path / "a.h5", tmp_path / "out.h5ad")
    found = anndata.read_h5ad(tmp_path / "out.h5ad")
    np.testing.assert_array_equal(found.X, embeddings)
    assert [*found.obs_names][:2] == ["image0.png", "image1.png"]
    assert [*found.obs["label"]][:2] == ["malignant", "benign"]
    assert found.obs["digest"].iloc[3] == keys[3].tobytes().hex()
    assert "resnet18" in found.uns["hoarfrost"]


def test_h5ad_that_anndata_wrote_again_is_still_whole(tmp_path: Path) -> None:
    anndata = pytest.importorskip("anndata")
    write_cache(tmp_path / "a.h5")
    export_dataset(tmp_path / "a.h5", tmp_path / "out.h5ad")
    anndata.read_h5ad(tmp_path / "out.h5ad").write_h5ad(tmp_path / "again.h5ad")
    import_embeddings(tmp_path / "again.h5ad", tmp_path / "b.h5")
    assert by_key(tmp_path / "b.h5") == by_key(tmp_path / "a.h5")
    with EmbeddingCache(tmp_path / "a.h5") as before, EmbeddingCache(tmp_path / "b.h5") as after:
        assert after.dataset().same_as(before.dataset())


def test_other_programs_read_the_npz_without_pickles_and_the_parquet(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    _, embeddings = write_cache(tmp_path / "a.h5")
    for name in ("npz", "parquet"):
        export_dataset(tmp_path / "a.h5", tmp_path / f"out.{name}")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        np.testing.assert_array_equal(found["embeddings"], embeddings)
        assert found["label"][1] == "benign"
    table = pq.read_table(tmp_path / "out.parquet")
    np.testing.assert_array_equal(np.stack(table.column("embeddings").to_numpy()), embeddings)
    assert table.column("label")[1].as_py() == "benign"


def test_existing_file_is_kept_unless_overwrite_is_passed(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    write_cache(tmp_path / "a.h5")
    (tmp_path / "out.npz").write_bytes(b"precious")
    refused = hoarfrost("cache", "export", tmp_path / "a.h5", "--output", tmp_path / "out.npz")
    assert refused.status == 1
    assert "exists. Name another file, or pass --overwrite" in refused.stderr
    assert (tmp_path / "out.npz").read_bytes() == b"precious"
    done = hoarfrost("cache", "export", tmp_path / "a.h5", "--output", tmp_path / "out.npz", "--overwrite")
    assert done.status == 0
    assert done.stdout.startswith("demo: 20 images, embeddings of 512 numbers; ")


def test_a_cache_is_not_replaced_by_its_own_export(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    write_cache(tmp_path / "a.h5")
    (tmp_path / "link.h5").symlink_to(tmp_path / "a.h5")
    before = (tmp_path / "a.h5").read_bytes()
    for name in ("a.h5", "link.h5"):
        refused = hoarfrost(
            "cache", "export", tmp_path / "a.h5", "--output", tmp_path / name, "--format", "npz", "--overwrite"
        )
        assert refused.status == 1
        assert "is a file of the cache itself" in refused.stderr
    assert (tmp_path / "a.h5").read_bytes() == before


def test_unknown_suffix_names_the_formats(tmp_path: Path) -> None:
    write_cache(tmp_path / "a.h5")
    with pytest.raises(DatasetError, match=r"Known: \.npz, \.parquet, \.pq, \.h5ad"):
        export_dataset(tmp_path / "a.h5", tmp_path / "out.csv")
    assert export_dataset(tmp_path / "a.h5", tmp_path / "out.bin", format_name="npz").format == "npz"


def test_labels_of_an_export_are_not_replaced_by_a_csv(tmp_path: Path) -> None:
    write_cache(tmp_path / "a.h5")
    export_dataset(tmp_path / "a.h5", tmp_path / "out.npz")
    with pytest.raises(HoarfrostError, match="Omit --dataset to import it as it is"):
        import_embeddings(tmp_path / "out.npz", tmp_path / "b.h5", cohort(tmp_path).csv)


def test_fingerprint_that_was_changed_in_an_export_is_refused(tmp_path: Path) -> None:
    write_cache(tmp_path / "a.h5")
    export_dataset(tmp_path / "a.h5", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        arrays = dict(found)
    arrays["hoarfrost"] = np.array(str(arrays["hoarfrost"]).replace("float32", "float16"))
    np.savez(tmp_path / "changed.npz", **arrays)
    with pytest.raises(DatasetError, match="the exported embeddings are damaged: the fingerprint does not match"):
        import_embeddings(tmp_path / "changed.npz", tmp_path / "b.h5")
    assert not (tmp_path / "b.h5").exists()


def test_facts_that_a_cache_cannot_hold_are_refused(tmp_path: Path) -> None:
    export_dataset(strange_cache(tmp_path / "a.h5"), tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        arrays = dict(found)
    facts = [json.loads(text) if text else None for text in arrays["facts"]]
    for change in ({"bits": 99_999}, {"width": "wide"}, {"kinds": ["PNG"]}):
        changed = [one and {**one, "header": {**one["header"], **change}} for one in facts]
        arrays["facts"] = np.array([json.dumps(one) if one else "" for one in changed])
        np.savez(tmp_path / "changed.npz", **arrays)
        with pytest.raises(DatasetError, match="the exported embeddings are damaged"):
            import_embeddings(tmp_path / "changed.npz", tmp_path / "b.h5")
    assert not (tmp_path / "b.h5").exists()
