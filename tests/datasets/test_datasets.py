"""A folder, a CSV or an npz becomes a table of images, or an error that says what to do."""

import errno
import os
import pickle
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import strategies as st

from hoarfrost.features.datasets import Dataset, read_dataset
from hoarfrost.features.errors import DatasetError, ImageDecodeError
from hoarfrost.features.fingerprint import image_key
from tests.support.builders import SHARED_DATA, encode, picture, write_csv, write_image_folder, write_images, write_npz

HEADER = ["path", "label"]
NFC, NFD = unicodedata.normalize("NFC", "höhle"), unicodedata.normalize("NFD", "höhle")


def content(dataset: Dataset, index: int) -> object:
    """Read one image's content."""
    [(found, read)] = dataset.images.contents([index])
    assert found == index
    return read()


# -- image folders ------------------------------------------------------------------------------------------------------


def test_class_folders_give_labels_and_no_splits(tmp_path: Path) -> None:
    dataset = read_dataset(write_image_folder(tmp_path / "busi", {"malignant": 1, "benign": 2}))
    assert dataset.paths == ["benign/0.png", "benign/1.png", "malignant/0.png"]
    assert dataset.labels == ["benign", "benign", "malignant"]
    assert dataset.classes == ("benign", "malignant")
    assert (dataset.splits, dataset.patients, dataset.attributes) == (None, None, {})
    assert (dataset.name, dataset.source) == ("busi", str(tmp_path / "busi"))


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "Testing"), ("TRAIN", "Validation")])
def test_split_folders_give_splits_and_labels(tmp_path: Path, names: tuple[str, ...]) -> None:
    root = write_image_folder(tmp_path / "data", {f"{split}/{label}": 1 for split in names for label in ("a", "b")})
    dataset = read_dataset(root)
    assert dataset.paths == [f"{split}/{label}/0.png" for split in names for label in ("a", "b")]
    assert dataset.labels == ["a", "b"] * len(names)
    expected = ("train", "val", "test")[: len(names)]
    assert dataset.splits == [split for split in expected for _ in range(2)]


def test_folder_called_valid_beside_other_classes_is_a_class(tmp_path: Path) -> None:
    dataset = read_dataset(write_image_folder(tmp_path, {"valid": 1, "invalid": 1}), name="x")
    assert dataset.labels == ["invalid", "valid"]
    assert dataset.splits is None


def test_nested_folders_belong_to_their_class(tmp_path: Path) -> None:
    write_images(tmp_path, ["a/p1/left/1.png", "a/2.png", "b/p2/3.png"])
    dataset = read_dataset(tmp_path, name="x")
    assert dict(zip(dataset.paths, dataset.labels, strict=True)) == {
        "a/2.png": "a",
        "a/p1/left/1.png": "a",
        "b/p2/3.png": "b",
    }


def test_hidden_files_and_what_macos_adds_are_ignored(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"a": 1, "b": 1})
    write_images(tmp_path, ["__MACOSX/a/0.png", ".cache/x/0.png", "a/._0.png", "a/.thumbs/0.png", ".hidden.png"])
    assert read_dataset(tmp_path, name="x").paths == ["a/0.png", "b/0.png"]


def test_files_that_are_no_images_are_ignored(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"a": 1, "b": 1})
    for name in ("README.txt", "a/Thumbs.db", "a/notes.json", "b/png"):
        (tmp_path / name).write_text("x")
    assert read_dataset(tmp_path, name="x").paths == ["a/0.png", "b/0.png"]


def test_suffixes_count_in_upper_case_too(tmp_path: Path) -> None:
    write_images(tmp_path, ["a/1.PNG", "a/2.JPeG", "b/3.TIF"])
    assert read_dataset(tmp_path, name="x").paths == ["a/1.PNG", "a/2.JPeG", "b/3.TIF"]


@pytest.mark.parametrize("name", ["with spaces", "Gänge & Höhlen", "<script>alert(1)<", "a,b;c", "'\"quoted\"'", "-rf"])
def test_odd_names_are_kept(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, [f"{name}/{name}.png", "other/1.png"])
    dataset = read_dataset(tmp_path, name="x")
    index = dataset.paths.index(f"{name}/{name}.png")
    assert dataset.labels[index] == name
    assert content(dataset, index) == (tmp_path / name / f"{name}.png").read_bytes()


def test_a_label_is_composed_and_its_path_is_as_on_disk(tmp_path: Path) -> None:
    write_images(tmp_path, [f"{NFD}/1.png", "other/1.png"])
    dataset = read_dataset(tmp_path, name="x")
    assert dataset.labels[0] == NFC
    assert (tmp_path / dataset.paths[0]).exists()


def test_linked_folder_is_followed(tmp_path: Path) -> None:
    write_image_folder(tmp_path / "store", {"first": 2})
    write_image_folder(tmp_path / "data", {"b": 1})
    (tmp_path / "data" / "a").symlink_to(tmp_path / "store" / "first", target_is_directory=True)
    dataset = read_dataset(tmp_path / "data")
    assert dataset.paths == ["a/0.png", "a/1.png", "b/0.png"]
    assert dataset.labels == ["a", "a", "b"]


@pytest.mark.parametrize("target", [".", "..", "../..", "../../.."])
def test_link_that_leads_back_up_adds_nothing(tmp_path: Path, target: str) -> None:
    root = write_image_folder(tmp_path / "above" / "data", {"a": 1, "b": 1})
    (root / "a" / "loop").symlink_to(target, target_is_directory=True)
    dataset = read_dataset(root)
    assert dataset.paths == ["a/0.png", "b/0.png"]
    assert dataset.labels == ["a", "b"]


def test_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, {"a/x": 1, "a/y": 1, "b": 1})
    (root / "a/x/to_y").symlink_to("../y", target_is_directory=True)
    (root / "a/y/to_x").symlink_to("../x", target_is_directory=True)
    assert read_dataset(root, name="x").paths == ["a/x/0.png", "a/x/to_y/0.png", "b/0.png"]


@pytest.mark.parametrize("target", ["self.png", "nowhere.png"], ids=["looping", "dangling"])
def test_link_that_leads_nowhere_is_an_unreadable_image(tmp_path: Path, target: str) -> None:
    write_image_folder(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "self.png").symlink_to(target)
    (tmp_path / "loop").symlink_to("loop")
    dataset = read_dataset(tmp_path, name="x")
    assert dataset.paths == ["a/0.png", "a/self.png", "b/0.png"]
    with pytest.raises(ImageDecodeError, match="Too many levels of symbolic links|No such file"):
        content(dataset, 1)


def test_folder_named_like_an_image_is_an_unreadable_image(tmp_path: Path) -> None:
    write_images(tmp_path, ["a/0.png", "a/folder.png/inside.png", "b/0.png"])
    dataset = read_dataset(tmp_path, name="x")
    assert dataset.paths == ["a/0.png", "a/folder.png", "b/0.png"]
    with pytest.raises(ImageDecodeError, match="Is a directory"):
        content(dataset, 1)


@pytest.mark.timeout(20)
def test_named_pipe_is_an_unreadable_image_not_a_wait_for_ever(tmp_path: Path) -> None:
    write_image_folder(tmp_path, {"a": 1, "b": 1})
    os.mkfifo(tmp_path / "a" / "pipe.png")
    dataset = read_dataset(tmp_path, name="x")
    with pytest.raises(ImageDecodeError, match="a pipe, socket or device"):
        content(dataset, dataset.paths.index("a/pipe.png"))


def test_stamp_changes_with_the_file(tmp_path: Path) -> None:
    dataset = read_dataset(write_image_folder(tmp_path, {"a": 1, "b": 1}), name="x")
    before = dataset.images.stamp(0)
    assert (before.size, before.mtime_ns) == ((tmp_path / "a/0.png").stat().st_size, before.mtime_ns)
    (tmp_path / "a/0.png").write_bytes(encode(picture(30, 30)))
    os.utime(tmp_path / "a/0.png", ns=(0, before.mtime_ns + 1))
    assert dataset.images.stamp(0) != before


def test_contents_come_in_the_order_asked_for(tmp_path: Path) -> None:
    dataset = read_dataset(write_image_folder(tmp_path, {"a": 3, "b": 2}), name="x")
    read = [(index, read()) for index, read in dataset.images.contents([0, 2, 4])]
    assert read == [(i, (tmp_path / dataset.paths[i]).read_bytes()) for i in (0, 2, 4)]


@pytest.mark.skipif(not SHARED_DATA.exists(), reason="../shared/data is not here")
def test_busi_has_its_780_images() -> None:
    dataset = read_dataset(SHARED_DATA / "busi")
    assert {label: dataset.labels.count(label) for label in dataset.classes} == {
        "benign": 437,
        "malignant": 210,
        "normal": 133,
    }


# -- image folders: refused ---------------------------------------------------------------------------------------------


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"nowhere: no such file or folder\. Pass a folder of images, a CSV or an npz"
    ):
        read_dataset(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["x" * 300, "nul\0byte"], ids=["too long", "NUL"])
def test_impossible_path_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="no such file or folder"):
        read_dataset(tmp_path / name)


@pytest.mark.parametrize("folders", [[], ["a", "b/c"], ["train/a", "test/a"]], ids=["empty", "classes", "splits"])
def test_folder_without_images_is_refused(tmp_path: Path, folders: list[str]) -> None:
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(
        DatasetError, match=r"no images found in class folders \(files ending in .*\.png.*Expected ROOT/CLASS"
    ):
        read_dataset(tmp_path, name="x")


def test_images_outside_class_folders_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, ["a/1.png", "b/1.png", "loose2.png", "loose1.png"])
    with pytest.raises(DatasetError, match=r"2 images are not in a class folder \(first: loose1\.png\).*path,label"):
        read_dataset(tmp_path, name="x")


def test_images_outside_class_folders_of_a_split_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/a/1.png", "test/a/1.png", "test/loose.png"])
    with pytest.raises(DatasetError, match=r"test: 1 images are not in a class folder \(first: loose\.png\)"):
        read_dataset(tmp_path, name="x")


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"all 3 images have one class \('benign'\); .* at least two"):
        read_dataset(write_image_folder(tmp_path, {"benign": 3}), name="x")


@pytest.mark.parametrize("folders", [["train"], ["val", "test"]])
def test_split_folders_that_cannot_do_are_refused_not_taken_for_classes(tmp_path: Path, folders: list[str]) -> None:
    root = write_image_folder(tmp_path, {f"{folder}/{label}": 1 for folder in folders for label in ("a", "b")})
    with pytest.raises(
        DatasetError, match=r"only .* found; .* needs train and at least one of val and test.*split the images again"
    ):
        read_dataset(root, name="x")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, {"train/a": 1, "val/a": 1, "validation/b": 1})
    with pytest.raises(DatasetError, match=r"two folders are the same split \(train, val, validation\)"):
        read_dataset(root, name="x")


def test_folder_beside_the_splits_is_refused(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, {"train/a": 1, "val/b": 1, "extra/a": 1})
    with pytest.raises(DatasetError, match=r"the folder 'extra' is next to train, val.*unclear"):
        read_dataset(root, name="x")


@pytest.mark.parametrize("where", ["", "a/deep"])
def test_folder_that_may_not_be_read_is_refused_and_below_a_class_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    write_image_folder(tmp_path, {"a/deep": 1, "b": 1})
    scandir = os.scandir

    def forbidden(path: os.PathLike[str] | str) -> object:  # root may read everything: chmod would prove nothing
        if Path(path) == tmp_path / where:
            raise PermissionError(errno.EACCES, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    if where:
        assert read_dataset(tmp_path, name="x").paths == ["a/deep", "b/0.png"]
        return
    with pytest.raises(
        DatasetError, match=re.escape(f"{tmp_path / where}: the folder cannot be listed: Permission denied")
    ):
        read_dataset(tmp_path, name="x")


# -- names of datasets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_path", "name"), [("demo/labels.csv", "demo"), ("demo", "demo"), ("demo/2024.csv", "2024")], ids=str
)
def test_a_dataset_is_named_by_its_folder_or_file(tmp_path: Path, given_path: str, name: str) -> None:
    for file in ("labels.csv", "2024.csv"):
        write_csv(tmp_path / "demo" / file, [HEADER, ["1.png", "a"], ["2.png", "b"]])
    assert read_dataset(tmp_path / given_path).name == name


@pytest.mark.parametrize("name", ["", "a/b", ".", "..", "tab\t"])
def test_a_name_the_cache_cannot_take_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="cannot be a dataset's name"):
        read_dataset(write_image_folder(tmp_path, {"a": 1, "b": 1}), name=name)


@pytest.mark.parametrize("name", ["images.txt", "images.zip", "image.png", "noending"])
def test_a_file_of_unknown_type_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DatasetError, match="not a folder, a CSV or an npz file"):
        read_dataset(tmp_path / name)


# Names that are one file name each: no separators, no spaces around, no "..". csv.writer leaves a lone CR unquoted.
names = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r/\\"), min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda name: name.strip(".") != "" and name[1:2] != ":")
)


# -- pieces, which are sent to other processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("make", ["folder", "npz", "npz in a file that is compressed", "frames"])
@pytest.mark.parametrize("indices", [[0, 1, 2, 3, 4], [1], [0, 3, 4]])
def test_a_piece_that_is_sent_elsewhere_has_the_images_that_it_had_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str, indices: list[int]
) -> None:
    monkeypatch.chdir(tmp_path)
    if make.startswith("npz"):
        write_npz(Path("set.npz"), {"train": 3, "test": 2}, compressed="compressed" in make)
        images = read_dataset(Path("set.npz")).images
    elif make == "frames":
        pages = [picture(12, 10, seed=i) for i in range(3)]
        for label in "ab":
            Path("set", label).mkdir(parents=True)
            pages[0].save(Path("set", label, "scan.tiff"), save_all=True, append_images=pages[1:])
        images = read_dataset(Path("set")).images
    else:
        images = read_dataset(write_image_folder(Path("set"), {"a": 3, "b": 2})).images
    expected = [(images.stamp(index), image_key(read())) for index, read in images.contents(indices)]
    piece = pickle.loads(pickle.dumps(images.subset(indices)))
    places = list(range(len(indices)))
    smaller = images.subset(range(5)).subset(indices)
    monkeypatch.chdir("/")
    for source in (piece, smaller):
        read = dict(source.contents(places))
        assert [(source.stamp(place), image_key(read[place]())) for place in places] == expected
        assert not source.stamps(of_urls=True).missing.any()
