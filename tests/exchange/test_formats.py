"""Embeddings of other programs become a cache, from each format that is read."""

import csv
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hoarfrost.features.cache import EmbeddingCache, verify
from hoarfrost.features.exchange.importing import ImportOptions, import_embeddings
from tests.support.builders import encode, picture
from tests.support.commands import Hoarfrost
from tests.support.foreign import DIM, Cohort, cohort, read_back, write_npz, write_slides

UNI = ImportOptions(encoder_name="UNI")


def parquet_lists(folder: Path, made: Cohort) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image_id": made.paths, "embedding": list(made.embeddings)}), folder / "a.parquet")
    return folder / "a.parquet"


def parquet_columns(folder: Path, made: Cohort) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    order = np.random.default_rng(0).permutation(DIM)
    columns = {f"feature_{i}": made.embeddings[:, i] for i in order.tolist()}
    pq.write_table(pa.table({"age": np.ones(len(made.paths)), "path": made.paths, **columns}), folder / "b.parquet")
    return folder / "b.parquet"


def h5ad(folder: Path, made: Cohort) -> Path:
    anndata, pandas = pytest.importorskip("anndata"), pytest.importorskip("pandas")
    anndata.AnnData(made.embeddings, obs=pandas.DataFrame(index=made.paths)).write_h5ad(folder / "c.h5ad")
    return folder / "c.h5ad"


def eva(folder: Path, made: Cohort) -> Path:
    rows = [["origin", "embeddings", "target", "split"]]
    for i, (path, row) in enumerate(zip(made.paths, made.embeddings, strict=True)):
        torch.save([torch.from_numpy(row)] if i % 2 else torch.from_numpy(row)[None], folder / f"{path}.pt")
        rows.append([path, f"{path}.pt", str(i % 2), ("train", "val", "test")[i % 3]])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "manifest.csv"


def npz_of_other_names(folder: Path, made: Cohort) -> Path:
    np.savez(
        folder / "d.npz", Features=made.embeddings.astype(np.float64), ids=np.array([f"/far/{p}" for p in made.paths])
    )
    return folder / "d.npz"


FORMATS = [
    parquet_lists,
    parquet_columns,
    h5ad,
    eva,
    npz_of_other_names,
    lambda folder, made: write_npz(folder / "e.npz", made),
]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("write", FORMATS)
def test_each_format_gives_the_same_embeddings_and_a_sound_cache(
    tmp_path: Path, write: Callable[[Path, Cohort], Path]
) -> None:
    made = cohort(tmp_path)
    summary = import_embeddings(write(tmp_path, made), tmp_path / "c.h5", made.csv, UNI)
    assert (summary.images, summary.imported, summary.failed, summary.dim) == (80, 80, 0, DIM)
    found = read_back(tmp_path / "c.h5")
    np.testing.assert_array_equal(np.stack([found[path] for path in made.paths]), made.embeddings)
    assert verify(tmp_path / "c.h5").problems == ()


def test_cache_is_marked_as_made_elsewhere(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    summary = import_embeddings(write_npz(tmp_path / "a.npz", made), tmp_path / "c.h5", made.csv, UNI)
    with EmbeddingCache(tmp_path / "c.h5") as opened:
        header = opened.header
        assert dict(opened.dataset().attributes)["site"][0] == "B"
    assert (header.fingerprint.backbone, header.dim, header.weights) == ("elsewhere:UNI", DIM, "made elsewhere")
    assert header.weights_origin == f"file a.npz with SHA-256 {summary.source_sha256}"
    assert header.fingerprint.encoder.dim == DIM


def test_order_of_rows_does_not_matter_because_names_are_matched(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    order = np.random.default_rng(1).permutation(80)
    shuffled = Cohort(made.csv, [made.paths[i] for i in order], made.embeddings[order])
    import_embeddings(write_npz(tmp_path / "a.npz", shuffled), tmp_path / "c.h5", made.csv, UNI)
    np.testing.assert_array_equal(np.stack([*read_back(tmp_path / "c.h5").values()]), made.embeddings)


def test_slides_become_the_mean_over_their_patches_and_this_is_said(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    made = cohort(tmp_path, 20, suffix=".svs")
    rng = np.random.default_rng(0)
    bags = {
        f"scan{i}": rng.standard_normal((1, 3 + i, DIM) if i % 2 else (3 + i, DIM)).astype(np.float16)
        for i in range(20)
    }
    slides = write_slides(tmp_path / "slides", bags)
    done = hoarfrost(
        "cache", "import", slides, "--dataset", made.csv, "--cache", tmp_path / "c.h5", "--encoder-name", "UNI"
    )
    assert done.status == 0
    assert "each embedding is the mean over patches of its file" in done.stdout
    assert "matched by file names without suffix" in done.stdout
    expected = [bags[f"scan{i}"].reshape(-1, DIM).astype(np.float64).mean(axis=0) for i in range(20)]
    np.testing.assert_allclose(np.stack([*read_back(tmp_path / "c.h5").values()]), expected, rtol=1e-6)
    with EmbeddingCache(tmp_path / "c.h5") as opened:
        assert opened.header.fingerprint.preprocessing["elsewhere"] == {"dim": DIM, "pooling": "mean over patches"}


def test_slide_embeddings_are_not_pooled(tmp_path: Path) -> None:
    made = cohort(tmp_path, 20, suffix=".svs")
    slides = write_slides(tmp_path / "slides", {f"scan{i}": row for i, row in enumerate(made.embeddings)})
    assert import_embeddings(slides, tmp_path / "c.h5", made.csv).pooling == ""
    np.testing.assert_array_equal(np.stack([*read_back(tmp_path / "c.h5").values()]), made.embeddings)


def test_column_of_ids_matches_names_that_are_no_paths(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    source = write_npz(tmp_path / "a.npz", made, paths=np.array([f"S-{i}" for i in range(80)]))
    import_embeddings(source, tmp_path / "c.h5", made.csv, ImportOptions(id_column="slide"))
    np.testing.assert_array_equal(read_back(tmp_path / "c.h5")["scan7.png"], made.embeddings[7])


def test_manifest_of_eva_brings_labels_and_splits_of_its_own(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    import_embeddings(eva(tmp_path, made), tmp_path / "c.h5", None, ImportOptions(name="eva"))
    with EmbeddingCache(tmp_path / "c.h5") as opened:
        table = opened.dataset("eva")
    assert [*table.labels][:2] == ["0", "1"]
    assert table.splits is not None
    assert [*table.splits][:4] == ["train", "val", "test", "train"]


def test_bag_of_tensors_is_their_mean(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    manifest = eva(tmp_path, made)
    torch.save([torch.ones(DIM), torch.zeros(DIM)], tmp_path / "scan3.png.pt")
    assert import_embeddings(manifest, tmp_path / "c.h5", made.csv).pooling == "mean over patches"
    np.testing.assert_array_equal(read_back(tmp_path / "c.h5")["scan3.png"], np.full(DIM, 0.5, np.float32))


def test_keys_are_of_the_bytes_where_the_images_are_here(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    for i in range(4):
        (tmp_path / f"scan{i}.png").write_bytes(encode(picture(seed=i // 2)))
    summary = import_embeddings(write_npz(tmp_path / "a.npz", made), tmp_path / "c.h5", made.csv)
    assert summary.bytes_known == 4
    with EmbeddingCache(tmp_path / "c.h5") as opened:
        rows = opened.dataset().rows
    assert rows[0] == rows[1] != rows[2] == rows[3]


def test_second_import_of_one_encoder_adds_a_dataset(tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 1)):
        made = cohort(tmp_path / name, seed=seed)
        source = write_npz(tmp_path / f"{name}.npz", made)
        import_embeddings(source, tmp_path / "c.h5", made.csv, ImportOptions(name, encoder_name="UNI"))
    for name, seed in (("first", 0), ("second", 1)):  # the same paths, and not the same images
        made = cohort(tmp_path / name, seed=seed)
        np.testing.assert_array_equal(np.stack([*read_back(tmp_path / "c.h5", name).values()]), made.embeddings)


def test_slide_of_many_patches_is_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hoarfrost.features.exchange.hdf5.PATCHES_AT_ONCE", 7)
    bag = np.random.default_rng(0).standard_normal((100, 5)).astype(np.float32)
    write_slides(tmp_path / "slides", {"scan0": bag, "scan1": bag[:1]})
    from hoarfrost.features.exchange.hdf5 import read_slides

    found = read_slides(tmp_path / "slides").arrays["features"]
    np.testing.assert_allclose(found[0], bag.mean(axis=0), rtol=1e-5)
    np.testing.assert_array_equal(found[1], bag[0])


def test_nothing_but_hdf5_is_read_as_slides(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["coords"] = np.zeros(3)
    from hoarfrost.features.errors import DatasetError
    from hoarfrost.features.exchange.hdf5 import read_slides

    with pytest.raises(DatasetError, match="no dataset 'features' in it. It has: coords"):
        read_slides(tmp_path / "a.h5")
