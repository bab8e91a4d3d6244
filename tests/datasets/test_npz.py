"""npz files as datasets: what is read, and what is refused."""

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.errors import DatasetError, ImageDecodeError
from tests.support.builders import SHARED_DATA, encode, picture, write_npz

# -- npz ----------------------------------------------------------------------------------------------------------------


def test_npz_gives_its_own_splits_and_labels(tmp_path: Path) -> None:
    write_npz(tmp_path / "medmnist.npz", {"train": 3, "val": 2, "test": 2})
    dataset = read_dataset(tmp_path / "medmnist.npz")
    assert dataset.name == "medmnist"
    assert dataset.labels == ["0", "1", "0", "0", "1", "0", "1"]
    assert dataset.splits == ["train"] * 3 + ["val"] * 2 + ["test"] * 2
    assert dataset.paths[:4] == [f"medmnist.npz/train/{row}" for row in range(3)] + ["medmnist.npz/val/0"]
    assert dataset.patients is None


@pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "stored"])
@pytest.mark.parametrize("shape", [(28, 28), (5, 7), (8, 6, 3), (8, 6, 1)], ids=str)
def test_npz_rows_are_the_arrays_rows(tmp_path: Path, shape: tuple[int, ...], compressed: bool) -> None:
    arrays = write_npz(tmp_path / "x.npz", {"train": 4, "test": 3}, shape=shape, compressed=compressed)
    dataset = read_dataset(tmp_path / "x.npz")
    pixels = np.concatenate([arrays["train_images"], arrays["test_images"]])
    pixels = pixels[..., 0] if shape[-1] == 1 else pixels
    read = [(index, read()) for index, read in dataset.images.contents(range(7))]
    assert [index for index, _ in read] == list(range(7))
    assert all(np.array_equal(row, pixels[index]) for index, row in read)


@settings(max_examples=25)
@given(wanted=st.sets(st.integers(0, 11)))
def test_npz_rows_stream_in_order_for_any_subset(tmp_path_factory: pytest.TempPathFactory, wanted: set[int]) -> None:
    path = tmp_path_factory.getbasetemp() / "subset.npz"
    arrays = write_npz(path, {"train": 6, "val": 2, "test": 4}, shape=(3, 4))
    pixels = np.concatenate([arrays[f"{split}_images"] for split in ("train", "val", "test")])
    read = [(index, read()) for index, read in read_dataset(path).images.contents(sorted(wanted))]
    assert [index for index, _ in read] == sorted(wanted)
    assert all(np.array_equal(row, pixels[index]) for index, row in read)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([1, 0, 2]), ["1", "0", "2"]),
        (np.array([[1], [0], [2]], np.int64), ["1", "0", "2"]),
        (np.array(["b", "ä", "b"]), ["b", "ä", "b"]),
        (np.array([True, False, True]), ["True", "False", "True"]),
    ],
    ids=["(n,)", "(n, 1)", "text", "bool"],
)
def test_npz_labels_of_each_kind_are_read(tmp_path: Path, labels: np.ndarray, expected: list[str]) -> None:
    write_npz(tmp_path / "x.npz", {"train": 3}, train_labels=labels)
    assert read_dataset(tmp_path / "x.npz").labels == expected


def test_npz_stamp_is_the_files(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", {"train": 3})
    status = (tmp_path / "x.npz").stat()
    stamp = read_dataset(tmp_path / "x.npz").images.stamp(2)
    assert (stamp.size, stamp.mtime_ns) == (status.st_size, status.st_mtime_ns)


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="../shared/data is not here")
def test_pneumoniamnist_has_its_splits() -> None:
    dataset = read_dataset(SHARED_DATA / "pneumoniamnist.npz")
    assert dataset.splits is not None
    assert [dataset.splits.count(split) for split in ("train", "val", "test")] == [2428, 270, 468]
    assert dataset.classes == ("0", "1")


# -- npz: refused -------------------------------------------------------------------------------------------------------


IMAGES = np.zeros((4, 28, 28), np.uint8)


LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": IMAGES, "labels": LABELS}, r"the array 'train_images' is missing. MedMNIST's"),
        ({"test_images": IMAGES, "test_labels": LABELS}, r"the array 'train_images' is missing"),
        ({"train_images": IMAGES}, r"'train_labels' is missing, but train_images is present"),
        ({"train_images": IMAGES, "train_labels": LABELS[:3]}, r"4 train_images but 3 train_labels"),
        (
            {"train_images": IMAGES, "train_labels": np.zeros((4, 14), int)},
            r"no label has both 0 and 1, so there is nothing to learn",
        ),
        (
            {"train_images": IMAGES, "train_labels": np.ones(4)},
            r"train_labels is float64; expected whole numbers or text",
        ),
        ({"train_images": IMAGES, "train_labels": np.ones(4, int)}, r"all 4 images have one class \('1'\)"),
        ({"train_images": IMAGES[:0], "train_labels": LABELS[:0]}, r"no images listed"),
        ({"train_images": IMAGES / 255, "train_labels": LABELS}, r"train_images is float64 of shape .*expected uint8"),
        ({"train_images": IMAGES.astype(np.uint16), "train_labels": LABELS}, r"train_images is uint16"),
        ({"train_images": IMAGES[0], "train_labels": np.arange(28)}, r"of shape \(28, 28\)"),
        ({"train_images": np.zeros((4, 3, 8, 8), np.uint8), "train_labels": LABELS}, r"of shape \(4, 3, 8, 8\)"),
        ({"train_images": np.zeros((4, 8, 8, 4), np.uint8), "train_labels": LABELS}, r"of shape \(4, 8, 8, 4\)"),
        ({"train_images": np.zeros((4, 0, 8), np.uint8), "train_labels": LABELS}, r"of shape \(4, 0, 8\)"),
        (
            {"train_images": np.asfortranarray(IMAGES + 1), "train_labels": LABELS},
            r"in Fortran order; expected .* in C order",
        ),
        (
            {"train_images": IMAGES, "train_labels": LABELS, "val_images": IMAGES},
            r"'val_labels' is missing, but val_images is present",
        ),
    ],
)
def test_contradictory_npz_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path / "x.npz")


class WritesAFile:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("key", ["train_images", "train_labels"])
def test_pickled_npz_is_refused_without_running_it(tmp_path: Path, key: str) -> None:
    arrays = {"train_images": IMAGES, "train_labels": LABELS}
    arrays[key] = np.array([WritesAFile(tmp_path / "ran")] * 4, object)
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DatasetError, match=r"Object arrays cannot be loaded|train_images is object"):
        read_dataset(tmp_path / "x.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "wrong",
    [b"", b"some text", b"PK\x03\x04", pickle.dumps({"train_images": 1}), encode(picture())],
    ids=["empty", "text", "zip's start", "pickle", "PNG"],
)
def test_file_that_is_no_npz_is_refused(tmp_path: Path, wrong: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(wrong)
    with pytest.raises(DatasetError, match=r"x\.npz: not an npz file \(a zip archive of arrays\), or truncated"):
        read_dataset(tmp_path / "x.npz")


def test_npy_named_npz_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.npz").open("wb") as file:
        np.save(file, IMAGES)
    with pytest.raises(DatasetError, match="not an npz file"):
        read_dataset(tmp_path / "x.npz")


def test_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("train_images.npy", b"\x93NUMPY\x01\x00nonsense")
        archive.writestr("train_labels.npy", b"no array")
    with pytest.raises(DatasetError, match=r"x\.npz: not a readable npz file"):
        read_dataset(tmp_path / "x.npz")


@pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "stored"])
def test_damaged_npz_gives_its_pixels_or_a_clear_error(tmp_path: Path, compressed: bool) -> None:
    arrays = write_npz(tmp_path / "whole.npz", {"train": 6, "test": 2}, shape=(4, 5), compressed=compressed)
    whole = (tmp_path / "whole.npz").read_bytes()
    pixels = np.concatenate([arrays["train_images"], arrays["test_images"]])
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.integers(0, len(whole), 150):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        (tmp_path / "x.npz").write_bytes(damaged)
        try:
            dataset = read_dataset(tmp_path / "x.npz")
            assert all(np.array_equal(read(), pixels[i]) for i, read in dataset.images.contents(range(len(dataset))))
        except DatasetError:
            refused += 1
    assert refused > 75


def test_npz_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    write_npz(tmp_path / "whole.npz", {"train": 6, "test": 2}, shape=(4, 5))
    whole = (tmp_path / "whole.npz").read_bytes()
    for length in range(0, len(whole), len(whole) // 40):
        (tmp_path / "x.npz").write_bytes(whole[:length])
        with pytest.raises(DatasetError, match="not an npz file|not a readable npz"):
            read_dataset(tmp_path / "x.npz")


def test_npz_that_is_damaged_after_its_listing_is_refused_while_reading(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", {"train": 6})
    dataset = read_dataset(tmp_path / "x.npz")
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:-200])
    with pytest.raises(DatasetError, match=r"x\.npz: train_images is damaged: .*Copy the file again"):
        list(dataset.images.contents([0]))


def test_npz_with_fewer_pixels_than_its_header_says_is_refused(tmp_path: Path) -> None:
    write_npz(tmp_path / "whole.npz", {"train": 6}, compressed=False)
    with zipfile.ZipFile(tmp_path / "whole.npz") as whole, zipfile.ZipFile(tmp_path / "x.npz", "w") as short:
        for name in whole.namelist():
            short.writestr(name, whole.read(name)[: -100 if "images" in name else None])
    dataset = read_dataset(tmp_path / "x.npz")
    with pytest.raises(DatasetError, match="train_images is damaged: its header states 4,704 bytes, but it has 4,604"):
        list(dataset.images.contents(range(6)))


def test_stored_rows_are_read_by_whoever_wants_them_also_after_the_last_was_given(tmp_path: Path) -> None:
    arrays = write_npz(tmp_path / "x.npz", {"train": 6}, compressed=False)
    n_open = len(os.listdir("/proc/self/fd"))
    read = [read for _, read in read_dataset(tmp_path / "x.npz").images.contents([1, 4])]
    (tmp_path / "x.npz").unlink()
    assert all(np.array_equal(arrays["train_images"][row], one()) for row, one in zip([1, 4], read, strict=True))
    del read
    assert len(os.listdir("/proc/self/fd")) == n_open


def test_a_stored_npz_that_is_cut_short_while_it_is_read_is_one_images_error(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", {"train": 6}, compressed=False)
    (_, first), (_, last) = read_dataset(tmp_path / "x.npz").images.contents([0, 5])
    os.truncate(tmp_path / "x.npz", 2000)
    assert first().shape == (28, 28)
    with pytest.raises(ImageDecodeError, match="cut short while it was read"):
        last()


@pytest.mark.parametrize("check_s", [0.0, 1.0])
def test_a_stored_npz_with_a_wrong_checksum_is_refused_at_its_end_at_the_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_s: float
) -> None:
    monkeypatch.setattr("hoarfrost.features.datasets.npz.CHECK_SECONDS", check_s)
    write_npz(tmp_path / "x.npz", {"train": 6}, compressed=False)
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[2000] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(DatasetError, match=r"x\.npz: train_images is damaged: its checksum is wrong"):
        list(read_dataset(tmp_path / "x.npz").images.contents(range(6)))


def test_a_cell_that_is_far_too_long_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "cohort.csv").write_text(f"path,label,note\na.png,x,\nb.png,y,{'n' * 9000}\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"cohort\.csv line 3: the note has 9000 characters"):
        read_dataset(tmp_path / "cohort.csv")


def test_a_column_that_hdf5_could_not_name_is_refused_or_renamed(tmp_path: Path) -> None:
    csv = tmp_path / "cohort.csv"
    csv.write_text("path,label,.\na.png,x,1\nb.png,y,2\n", encoding="utf-8")
    with pytest.raises(DatasetError, match=r"'\.' cannot be a column's name"):
        read_dataset(csv)
    csv.write_text("path,label,a/b,a\N{DIVISION SLASH}b\na.png,x,1,3\nb.png,y,2,4\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="two columns have the name"):
        read_dataset(csv)
