"""Damaged, hostile and contradictory files of embeddings end in an error that says what is wrong, and write nothing."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.errors import CacheError, DatasetError, HoarfrostError
from hoarfrost.features.exchange.importing import ImportOptions, import_embeddings
from tests.support.foreign import DIM, Cohort, cohort, read_back, write_npz, write_slides

UNI, SKIP = ImportOptions(encoder_name="UNI"), ImportOptions(encoder_name="UNI", on_error="skip")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("exploded",)


def pickled_ids(path: Path, made: Cohort) -> None:
    np.savez(path, embeddings=made.embeddings, paths=np.array([Bomb(), *made.paths[1:]], object))


def declared_too_large(path: Path, made: Cohort) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        content = io.BytesIO()
        np.lib.format.write_array_header_1_0(content, {"descr": "<f4", "fortran_order": False, "shape": (10**9, DIM)})
        archive.writestr("embeddings.npy", content.getvalue() + made.embeddings.tobytes())


def truncated(path: Path, made: Cohort) -> None:
    write_npz(path, made)
    path.write_bytes(path.read_bytes()[:-200])


def without_names(path: Path, made: Cohort) -> None:
    np.savez(path, embeddings=made.embeddings)


def without_embeddings(path: Path, made: Cohort) -> None:
    np.savez(path, paths=np.array(made.paths))


def fewer_names(path: Path, made: Cohort) -> None:
    write_npz(path, made, paths=np.array(made.paths[:-1]))


def same_name_twice(path: Path, made: Cohort) -> None:
    write_npz(path, made, paths=np.array([made.paths[1], *made.paths[1:]]))


def no_rows(path: Path, made: Cohort) -> None:
    np.savez(path, embeddings=made.embeddings[:0], paths=np.array(made.paths[:0], str))


def no_columns(path: Path, made: Cohort) -> None:
    write_npz(path, made, embeddings=made.embeddings[:, :0])


def whole_numbers(path: Path, made: Cohort) -> None:
    write_npz(path, made, embeddings=made.embeddings.astype(np.int32))


def other_names(path: Path, made: Cohort) -> None:
    write_npz(path, made, paths=np.array([f"elsewhere{i}" for i in range(len(made.paths))]))


def all_nan(path: Path, made: Cohort) -> None:
    write_npz(path, made, embeddings=made.embeddings * np.nan)


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (pickled_ids, "the array 'paths' holds pickled Python objects"),
        (declared_too_large, "the array 'embeddings' declares 48,000,000,000 bytes, but the file does not have them"),
        (truncated, "not a readable npz file"),
        (without_names, "the samples have no names"),
        (without_embeddings, "no embeddings. Expected floating-point numbers of the shape"),
        (fewer_names, "80 embeddings but 79 paths"),
        (same_name_twice, r"'scan1.png' appears more than once in paths"),
        (no_rows, "the file has no embeddings: it is empty"),
        (no_columns, "its embeddings have 0 numbers"),
        (whole_numbers, "no embeddings. Expected floating-point numbers of the shape"),
        (other_names, "none of its 80 names is an image of"),
        (all_nan, "no image has a finite embedding, so nothing was imported"),
    ],
)
def test_npz_that_cannot_be_trusted_is_refused_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, Cohort], None], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    made = cohort(tmp_path)
    write(tmp_path / "a.npz", made)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(DatasetError, match=expected):
        import_embeddings(tmp_path / "a.npz", tmp_path / "c.h5", made.csv, UNI)
    assert sorted(tmp_path.iterdir()) == there


@pytest.mark.parametrize("name", ["a.npz", "a.parquet", "a.h5ad", "a.h5", "manifest.csv"])
@pytest.mark.parametrize(
    "content", [b"", b"\x89HDF\r\n\x1a\n", b"PAR1PAR1", b"\0" * 999, os.urandom(4096)], ids=range(5)
)
def test_random_bytes_are_refused_in_every_format(tmp_path: Path, name: str, content: bytes) -> None:
    pytest.importorskip("pyarrow")
    made = cohort(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=name):
        import_embeddings(tmp_path / name, tmp_path / "c.h5", made.csv)
    assert not (tmp_path / "c.h5").exists()


def test_rows_that_are_not_finite_are_listed_with_the_reason(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    made.embeddings[3, 5], made.embeddings[8, 0] = np.nan, np.inf
    summary = import_embeddings(write_npz(tmp_path / "a.npz", made), tmp_path / "c.h5", made.csv, UNI)
    reason = "the imported embedding is not finite (NaN or infinity)"
    assert summary.errors == (("scan3.png", reason), ("scan8.png", reason))
    assert "scan3.png" not in read_back(tmp_path / "c.h5")
    with EmbeddingCache(tmp_path / "c.h5") as opened:
        assert opened.dataset().errors[8] == reason


def test_embeddings_of_nothing_but_zeros_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = cohort(tmp_path)
    made.embeddings[[3, 8]] = 0
    assert import_embeddings(write_npz(tmp_path / "a.npz", made), tmp_path / "c.h5", made.csv, UNI).imported == 80
    assert "2 embeddings are all zeros (first: scan3.png)" in caplog.text


def test_numbers_too_large_for_float32_are_not_finite(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    large = made.embeddings.astype(np.float64)
    large[1, 1] = 1e200
    summary = import_embeddings(write_npz(tmp_path / "a.npz", made, embeddings=large), tmp_path / "c.h5", made.csv, UNI)
    assert [path for path, _ in summary.errors] == ["scan1.png"]


def test_rows_absent_on_either_side_are_an_error_with_a_way_out(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    other = Cohort(made.csv, [*made.paths[2:], "extra.png"], made.embeddings[1:])
    source = write_npz(tmp_path / "a.npz", other)
    with pytest.raises(DatasetError) as caught:
        import_embeddings(source, tmp_path / "c.h5", made.csv, UNI)
    assert "2 of 80 images have no embedding in the file (first: scan0.png, scan1.png)" in str(caught.value)
    assert "1 embeddings belong to no image (first: extra.png)" in str(caught.value)
    assert "--on-error skip" in str(caught.value)
    assert not (tmp_path / "c.h5").exists()
    summary = import_embeddings(source, tmp_path / "c.h5", made.csv, SKIP)
    assert (summary.imported, summary.failed, summary.ignored) == (78, 2, 1)
    assert summary.errors[0] == ("scan0.png", "no embedding in the imported file")


def test_slides_of_two_dimensions_are_not_mixed(tmp_path: Path) -> None:
    made = cohort(tmp_path, 2)
    slides = write_slides(
        tmp_path / "slides", {"scan0": np.ones((3, 4), np.float32), "scan1": np.ones((3, 5), np.float32)}
    )
    with pytest.raises(DatasetError, match=r"different dimensions \(4 in scan0.h5, 5 in scan1.h5\)"):
        import_embeddings(slides, tmp_path / "c.h5", made.csv, UNI)


def test_slide_without_patches_is_listed(tmp_path: Path) -> None:
    made = cohort(tmp_path, 8)
    bags = {f"scan{i}": row[None] for i, row in enumerate(made.embeddings)} | {"scan1": np.ones((0, DIM), np.float32)}
    summary = import_embeddings(write_slides(tmp_path / "slides", bags), tmp_path / "c.h5", made.csv, UNI)
    assert [path for path, _ in summary.errors] == ["scan1.png"]


def test_slide_that_declares_what_it_does_not_have_is_refused(tmp_path: Path) -> None:
    made = cohort(tmp_path, 2)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("features", (10**9, 1024), np.float32, chunks=(1, 1024))
    with pytest.raises(DatasetError, match=r"declares 4,096,000,000,000 bytes, but 0 are in the file"):
        import_embeddings(tmp_path / "a.h5", tmp_path / "c.h5", made.csv, UNI)


def test_slide_that_points_to_another_file_is_not_followed(tmp_path: Path) -> None:
    made = cohort(tmp_path, 2)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["features"] = np.ones((2, 4), np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["features"] = h5py.ExternalLink("secret.h5", "/features")
    with pytest.raises(DatasetError, match="no dataset 'features' in it"):
        import_embeddings(tmp_path / "a.h5", tmp_path / "c.h5", made.csv, UNI)


def manifest(folder: Path, *places: str) -> Path:
    lines = ["origin,embeddings,target,split", *(f"scan{i}.png,{place},0,train" for i, place in enumerate(places))]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def test_pickle_in_a_tensor_file_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = cohort(tmp_path, 2)
    torch.save(Bomb(), tmp_path / "0.pt")
    (tmp_path / "1.pt").write_bytes(pickle.dumps(Bomb()))
    for place in ("0.pt", "1.pt"):
        with pytest.raises(DatasetError, match=rf"{place}: not a readable file of tensors alone"):
            import_embeddings(manifest(tmp_path, place), tmp_path / "c.h5", made.csv)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (("../0.pt",), "is outside of the manifest's folder"),
        (("/etc/passwd",), "is outside of the manifest's folder"),
        (("missing.pt",), "missing.pt: not a readable file of tensors alone"),
        (("a.pt", "b.pt"), "an embedding of 5 numbers; the first file has 4"),
        (("text.pt",), "expected a tensor of floating-point numbers"),
        (("mixed.pt",), r"tensors of different dimensions \(4 and 5\)"),
        ((), "the manifest lists no embeddings"),
    ],
)
def test_manifest_that_cannot_be_trusted_is_refused(tmp_path: Path, places: tuple[str, ...], expected: str) -> None:
    made = cohort(tmp_path, 2)
    for name, content in (
        ("a", torch.ones(4)),
        ("b", torch.ones(5)),
        ("text", ["no"]),
        ("mixed", [torch.ones(4), torch.ones(5)]),
    ):
        torch.save(content, tmp_path / f"{name}.pt")
    with pytest.raises(DatasetError, match=expected):
        import_embeddings(manifest(tmp_path, *places), tmp_path / "c.h5", made.csv)


def test_parquet_of_lists_of_several_lengths_is_refused(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = cohort(tmp_path, 2)
    pq.write_table(pa.table({"path": made.paths, "embedding": [[1.0, 2.0], [1.0, 2.0, 3.0]]}), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"different lengths \(2 to 3\)"):
        import_embeddings(tmp_path / "a.parquet", tmp_path / "c.h5", made.csv)


def test_empty_cells_of_a_parquet_are_listed(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    made = cohort(tmp_path)
    rows = [None, *made.embeddings[1:].tolist()]
    pq.write_table(
        pa.table({"path": made.paths, "embedding": pa.array(rows, pa.list_(pa.float32()))}), tmp_path / "a.parquet"
    )
    summary = import_embeddings(tmp_path / "a.parquet", tmp_path / "c.h5", made.csv, UNI)
    assert [path for path, _ in summary.errors] == ["scan0.png"]
    np.testing.assert_array_equal(read_back(tmp_path / "c.h5")["scan1.png"], made.embeddings[1])


def test_other_embeddings_of_the_same_images_are_not_mixed_in(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    (tmp_path / "scan0.png").write_bytes(b"an image")  # its bytes are known, so it is the same image in both
    import_embeddings(write_npz(tmp_path / "a.npz", made), tmp_path / "c.h5", made.csv, UNI)
    before = (tmp_path / "c.h5").read_bytes()
    other = made._replace(embeddings=made.embeddings + 1)
    with pytest.raises(CacheError, match=r"has other embeddings of 1 of these images \(first: scan0.png\)"):
        import_embeddings(write_npz(tmp_path / "b.npz", other), tmp_path / "c.h5", made.csv, UNI)
    assert (tmp_path / "c.h5").read_bytes() == before


def test_embeddings_of_another_encoder_are_not_mixed_in(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    source = write_npz(tmp_path / "a.npz", made)
    import_embeddings(source, tmp_path / "c.h5", made.csv, UNI)
    with pytest.raises(CacheError, match="backbone: elsewhere:CONCH here, elsewhere:UNI there"):
        import_embeddings(source, tmp_path / "c.h5", made.csv, ImportOptions(encoder_name="CONCH"))


def test_full_disk_leaves_no_half_written_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cohort(tmp_path)
    source = write_npz(tmp_path / "a.npz", made)
    monkeypatch.setattr(
        "hoarfrost.features.cache.writing.os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(HoarfrostError, match="No space left"):
        import_embeddings(source, tmp_path / "c.h5", made.csv, UNI)
    monkeypatch.undo()
    assert not (tmp_path / "c.h5").exists()
    assert import_embeddings(source, tmp_path / "c.h5", made.csv, UNI).imported == 80


def test_more_than_the_memory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cohort(tmp_path)
    source = write_npz(tmp_path / "a.npz", made)
    monkeypatch.setattr("hoarfrost.features.exchange.content.usable_memory", lambda: 1000.0)
    with pytest.raises(DatasetError, match="which is more than the memory of this machine"):
        import_embeddings(source, tmp_path / "c.h5", made.csv, UNI)


@pytest.mark.parametrize("labels", [["a", "b"] * 40, [0, 1] * 40])
def test_labels_are_taken_from_arrays_by_their_usual_name(tmp_path: Path, labels: list[str] | list[int]) -> None:
    rng, paths = np.random.default_rng(0), [f"{place}.png" for place in range(80)]
    embeddings = rng.normal(size=(80, 16)).astype(np.float32)
    np.savez(tmp_path / "a.npz", embeddings=embeddings, paths=np.array(paths), labels=np.array(labels))
    import_embeddings(tmp_path / "a.npz", tmp_path / "c.h5", None, UNI)
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert list(cache.dataset().labels) == [str(label) for label in labels]


def test_labels_are_needed_from_somewhere(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="the file has no labels. Pass the dataset"):
        import_embeddings(write_npz(tmp_path / "a.npz", cohort(tmp_path)), tmp_path / "c.h5")


def test_missing_column_of_ids_names_the_columns(tmp_path: Path) -> None:
    made = cohort(tmp_path)
    with pytest.raises(DatasetError, match="--id-column nope: .* has no such column. Its further columns: site, slide"):
        import_embeddings(
            write_npz(tmp_path / "a.npz", made), tmp_path / "c.h5", made.csv, ImportOptions(id_column="nope")
        )
