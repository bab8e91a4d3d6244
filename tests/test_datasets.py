"""A folder, a CSV or an npz becomes a table of images, or an error that says what to do."""

import csv
import errno
import io
import os
import pickle
import re
import tempfile
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from features.datasets import Dataset, read_dataset
from features.errors import DatasetError, ImageDecodeError
from features.fingerprint import image_key
from tests.builders import SHARED_DATA, encode, picture, write_csv, write_image_folder, write_images, write_npz

HEADER = ["path", "label"]
NFC, NFD = unicodedata.normalize("NFC", "höhle"), unicodedata.normalize("NFD", "höhle")


def content(dataset: Dataset, index: int) -> object:
    """Read one image's content."""
    [(found, read)] = dataset.images.contents([index])
    assert found == index
    return read()


def write_manifest(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "images.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


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
        DatasetError, match=r"nowhere: no such file or folder\. Give a folder of images, a CSV or an npz"
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
    with pytest.raises(DatasetError, match=r"2 images lie outside any class folder \(first: loose1\.png\).*path,label"):
        read_dataset(tmp_path, name="x")


def test_images_outside_class_folders_of_a_split_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path, ["train/a/1.png", "test/a/1.png", "test/loose.png"])
    with pytest.raises(DatasetError, match=r"test: 1 images lie outside any class folder \(first: loose\.png\)"):
        read_dataset(tmp_path, name="x")


def test_one_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"all 3 images have one class \('benign'\); .* at least two"):
        read_dataset(write_image_folder(tmp_path, {"benign": 3}), name="x")


@pytest.mark.parametrize("folders", [["train"], ["val", "test"]])
def test_split_folders_that_cannot_do_are_refused_not_taken_for_classes(tmp_path: Path, folders: list[str]) -> None:
    root = write_image_folder(tmp_path, {f"{folder}/{label}": 1 for folder in folders for label in ("a", "b")})
    with pytest.raises(
        DatasetError, match=r"only .* here; .* needs train and at least one of val and test.*split anew"
    ):
        read_dataset(root, name="x")


def test_two_folders_of_one_split_are_refused(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, {"train/a": 1, "val/a": 1, "validation/b": 1})
    with pytest.raises(DatasetError, match=r"two folders name the same split \(train, val, validation\)"):
        read_dataset(root, name="x")


def test_folder_beside_the_splits_is_refused(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path, {"train/a": 1, "val/b": 1, "extra/a": 1})
    with pytest.raises(DatasetError, match=r"the folder 'extra' lies beside train, val.*unclear"):
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


# -- names of data sets -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given_path", "name"), [("demo/labels.csv", "demo"), ("demo", "demo"), ("demo/2024.csv", "2024")], ids=str
)
def test_a_data_set_is_named_by_its_folder_or_file(tmp_path: Path, given_path: str, name: str) -> None:
    for file in ("labels.csv", "2024.csv"):
        write_csv(tmp_path / "demo" / file, [HEADER, ["1.png", "a"], ["2.png", "b"]])
    assert read_dataset(tmp_path / given_path).name == name


@pytest.mark.parametrize("name", ["", "a/b", ".", "..", "tab\t"])
def test_a_name_the_cache_cannot_take_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="cannot name a data set"):
        read_dataset(write_image_folder(tmp_path, {"a": 1, "b": 1}), name=name)


@pytest.mark.parametrize("name", ["images.txt", "images.zip", "image.png", "noending"])
def test_a_file_of_unknown_type_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DatasetError, match="neither a folder nor a CSV or npz file"):
        read_dataset(tmp_path / name)


# -- CSV ----------------------------------------------------------------------------------------------------------------

PLAIN = "path,label\n1.png,a\nsub dir/2.png,b\n"


@pytest.mark.parametrize(
    "text",
    [
        PLAIN.encode(),
        b"\xef\xbb\xbf" + PLAIN.encode(),
        PLAIN.replace("\n", "\r\n").encode(),
        b"\xef\xbb\xbf" + PLAIN.replace("\n", "\r\n").replace(",", ";").encode(),
        PLAIN.replace("\n", "\r").encode(),
        PLAIN.replace(",", ";").encode(),
        PLAIN.replace(",", "\t").encode(),
        PLAIN.rstrip("\n").encode(),
        PLAIN.replace("path,label", "Path , LABEL").encode(),
        PLAIN.replace("1.png,a", ' "1.png" , a '.replace(' "', '"').replace('" ', '"')).encode(),
        PLAIN.replace("\n", "\n\n").replace("b\n", "b\n,\n  ,  \n").encode(),
        b"path,label,,\n1.png,a,,\nsub dir/2.png,b,,\n",
    ],
    ids=[
        "plain",
        "BOM",
        "CRLF",
        "Excel with decimal comma",
        "CR",
        "semicolons",
        "tabs",
        "no last newline",
        "odd header",
        "quotes",
        "blank lines",
        "trailing delimiters",
    ],
)
def test_csv_dialects_are_read_the_same(tmp_path: Path, text: bytes) -> None:
    dataset = read_dataset(write_manifest(tmp_path, text))
    assert dataset.paths == ["1.png", "sub dir/2.png"]
    assert dataset.labels == ["a", "b"]
    assert (dataset.splits, dataset.patients, dataset.attributes) == (None, None, {})


def test_tsv_is_read(tmp_path: Path) -> None:
    dataset = read_dataset(write_csv(tmp_path / "images.tsv", [HEADER, ["1.png", "a"], ["2.png", "b"]], delimiter="\t"))
    assert dataset.labels == ["a", "b"]


def test_delimiter_is_told_by_the_known_columns(tmp_path: Path) -> None:
    text = 'path;label;"ratio (a,b,c,d)"\n1.png;a;1,5\n2.png;b;2,5\n'
    dataset = read_dataset(write_manifest(tmp_path, text))
    assert dataset.attributes == {"ratio (a,b,c,d)": ["1,5", "2,5"]}


def test_quoted_fields_hold_delimiters_quotes_and_line_breaks(tmp_path: Path) -> None:
    text = 'path,label,note\n"a,1.png","say ""x""","two\nlines"\n2.png,b,-\n'
    dataset = read_dataset(write_manifest(tmp_path, text))
    assert dataset.paths == ["a,1.png", "2.png"]
    assert dataset.labels == ['say "x"', "b"]
    assert dataset.attributes["note"] == ["two\nlines", "-"]


def test_labels_csv_inside_a_folder_describes_it(tmp_path: Path) -> None:
    root = write_image_folder(tmp_path / "demo", {"x": 2})
    write_csv(root / "labels.csv", [HEADER, ["x/1.png", "malignant"], ["x/0.png", "benign"]])
    dataset = read_dataset(root)
    assert dataset.name == "demo"
    assert dataset.paths == ["x/1.png", "x/0.png"]
    assert content(dataset, 0) == (root / "x/1.png").read_bytes()


def test_attributes_and_patients_are_read(tmp_path: Path) -> None:
    rows = [
        ["label", "Scanner", "path", "patient", "sex"],
        ["a", "GE", "1.png", "p1", ""],
        ["b", "", "2.png", "p2", "f"],
    ]
    dataset = read_dataset(write_csv(tmp_path / "x.csv", rows))
    assert dataset.patients == ["p1", "p2"]
    assert dataset.attributes == {"scanner": ["GE", ""], "sex": ["", "f"]}


@pytest.mark.parametrize(
    ("spelling", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        (" VAL ", "val"),
        ("validation", "val"),
        ("valid", "val"),
        ("TEST", "test"),
    ],
)
def test_split_spellings_are_understood(tmp_path: Path, spelling: str, split: str) -> None:
    rows = [[*HEADER, "split"], ["1.png", "a", spelling], ["2.png", "b", "train"]]
    assert read_dataset(write_csv(tmp_path / "x.csv", rows)).splits == [split, "train"]


@pytest.mark.parametrize(
    "name", ["höhle/ä.png", "<script>alert(1).png", "with spaces/and more.png", "a;b,c.png", "ラベル.png"]
)
def test_odd_names_in_a_csv_are_found(tmp_path: Path, name: str) -> None:
    write_images(tmp_path, [name, "2.png"])
    dataset = read_dataset(write_csv(tmp_path / "x.csv", [HEADER, [name, "a"], ["2.png", "b"]]))
    assert content(dataset, 0) == (tmp_path / name).read_bytes()


@pytest.mark.parametrize(("on_disk", "in_csv"), [(NFC, NFD), (NFD, NFC)], ids=["NFD in the CSV", "NFC in the CSV"])
def test_umlauts_are_found_however_they_are_composed(tmp_path: Path, on_disk: str, in_csv: str) -> None:
    write_images(tmp_path, [f"{on_disk}/{on_disk}.png", "2.png"])
    dataset = read_dataset(write_csv(tmp_path / "x.csv", [HEADER, [f"{in_csv}/{in_csv}.png", "a"], ["2.png", "b"]]))
    assert dataset.paths[0] == f"{on_disk}/{on_disk}.png"
    assert content(dataset, 0) == (tmp_path / on_disk / f"{on_disk}.png").read_bytes()


def test_labels_and_patients_that_look_the_same_are_the_same(tmp_path: Path) -> None:
    rows = [[*HEADER, "patient"], ["1.png", NFC, NFD], ["2.png", NFD, NFC], ["3.png", "b", "p"]]
    dataset = read_dataset(write_csv(tmp_path / "x.csv", rows))
    assert dataset.labels == [NFC, NFC, "b"]
    assert dataset.patients == [NFC, NFC, "p"]


def test_windows_backslashes_are_understood(tmp_path: Path) -> None:
    write_images(tmp_path, ["a/b/1.png", "2.png"])
    dataset = read_dataset(write_csv(tmp_path / "x.csv", [HEADER, ["a\\b\\1.png", "a"], [".\\2.png", "b"]]))
    assert dataset.paths == ["a/b/1.png", "2.png"]


def test_backslash_that_is_part_of_a_name_is_kept(tmp_path: Path) -> None:
    write_images(tmp_path, ["a\\b.png", "2.png"])
    dataset = read_dataset(write_csv(tmp_path / "x.csv", [HEADER, ["a\\b.png", "a"], ["2.png", "b"]]))
    assert dataset.paths == ["a\\b.png", "2.png"]


def test_absolute_paths_inside_the_folder_are_made_relative(tmp_path: Path) -> None:
    write_images(tmp_path / "real", ["a/1.png", "2.png"])
    (tmp_path / "link").symlink_to("real", target_is_directory=True)
    rows = [HEADER, [str(tmp_path / "link" / "a" / "1.png"), "a"], [str(tmp_path / "real" / "2.png"), "b"]]
    write_csv(tmp_path / "real" / "x.csv", rows)
    assert read_dataset(tmp_path / "link" / "x.csv").paths == ["a/1.png", "2.png"]


def test_missing_image_of_a_csv_is_an_unreadable_image(tmp_path: Path) -> None:
    dataset = read_dataset(write_manifest(tmp_path, PLAIN))
    with pytest.raises(ImageDecodeError, match="No such file or directory"):
        content(dataset, 0)


# -- CSV: refused -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"the column 'path' is missing; the header has no columns"),
        ("file,label\n1.png,a\n", r"the column 'path' is missing; the header has file, label\. Needed: path,label"),
        ("path,class\n1.png,a\n", r"the column 'label' is missing"),
        ("path,label\n", r"no images listed"),
        ("path,label\n1.png,a\n2.png,a\n", r"all 2 images have one class \('a'\)"),
        ("path,label\n1.png,a\n2.png,b\n./1.png,b\n", r"line 4: the path 1\.png stands already in line 2"),
        ('path,label,n\n1.png,a,"x\ny"\n\n1.png,b,-\n', r"line 5: the path 1\.png stands already in line 3"),
        (
            "path,label\n../1.png,a\n2.png,b\n",
            r"line 2: \.\./1\.png is outside the CSV's folder .* put it above the images",
        ),
        ("path,label\na/../../1.png,a\n2.png,b\n", r"line 2: .* is outside the CSV's folder"),
        ("path,label\n..\\x\\1.png,a\n2.png,b\n", r"line 2: \.\./x/1\.png is outside the CSV's folder"),
        ("path,label\n1.png,a\n/etc/2.png,b\n", r"line 3: /etc/2\.png is outside the CSV's folder"),
        ("path,label\nC:\\data\\1.png,a\n2.png,b\n", r"line 2: C:/data/1\.png is outside the CSV's folder"),
        ("path,label\n\\\\server\\share\\1.png,a\n2.png,b\n", r"line 2: //server/share/1\.png is outside"),
        ("path,label\n1.png,a\n  ,b\n", r"line 3: the path is empty"),
        ("path,label\n1.png,a\n2.png, \n", r"line 3: the label is empty\. Fill it in, or remove the line"),
        ("path,label,patient\n1.png,a,p\n2.png,b,\n", r"line 3: the patient is empty"),
        ("path,label,split\n1.png,a,train\n2.png,b,\n", r"line 3: '' is no split; use train, val or test"),
        ("path,label,split\n1.png,a,train\n2.png,b,fold 1\n", r"line 3: 'fold 1' is no split"),
        ("path,label\n1.png,a\n2.png,b,c\n", r"line 3: 3 fields, the header has 2\. Put a text that holds ','"),
        ("path,label\n1.png,a\n\n2.png\n", r"line 4: 1 fields, the header has 2"),
        ("path,label,label\n1.png,a,b\n", r"two columns have the name 'label'\. Rename one"),
        ("path,label, Label\n1.png,a,b\n", r"two columns have the name 'label'"),
        ("path,label,\n1.png,a,x\n2.png,b,\n", r"column 3 has no name in the header"),
        ('path,label\n1.png,"a"b\n', r"not a well-formed CSV: .*expected after"),
        ('path,label\n1.png,"a\n', r"not a well-formed CSV: unexpected end of data"),
        ("path,label\n1.png,a\0\n2.png,b\n", r"line 2: holds a NUL character"),
        ("x" * 200_000, r"not a well-formed CSV: field larger than field limit"),
        (b"path,label\nh\xf6hle.png,a\n", r"not UTF-8 text .*Save it as 'CSV UTF-8'"),
        ("path,label\n1.png,a\n".encode("utf-16"), r"not UTF-8 text .*Save it as 'CSV UTF-8'"),
        (b"\x89PNG\r\n\x1a\n\0\0", r"not UTF-8 text"),
    ],
)
def test_contradictory_csv_is_refused(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as refused:
        read_dataset(write_manifest(tmp_path, text))
    assert "images.csv" in str(refused.value)


def test_csv_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> object:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = write_manifest(tmp_path, PLAIN)
    monkeypatch.setattr(Path, "open", forbidden)
    with pytest.raises(DatasetError, match=r"images\.csv: cannot be read: Permission denied"):
        read_dataset(path)


# Names that are one file name each: no separators, no spaces around, no "..". csv.writer leaves a lone CR unquoted.
names = (
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r/\\"), min_size=1, max_size=12)
    .map(str.strip)
    .filter(lambda name: name.strip(".") != "" and name[1:2] != ":")
)
tables = st.lists(st.tuples(names, names, names), min_size=2, max_size=8, unique_by=lambda row: row[0]).filter(
    lambda rows: len({unicodedata.normalize("NFC", label) for _, label, _ in rows}) > 1
)


@settings(max_examples=60)
@given(rows=tables, delimiter=st.sampled_from(",;\t"), newline=st.sampled_from(["\n", "\r\n"]), bom=st.booleans())
@example(rows=[('"', "a'b", "p"), ("b\nc", '"b"', "q;,\tr")], delimiter=";", newline="\r\n", bom=True)
def test_any_table_that_csv_writes_is_read_back(
    rows: list[tuple[str, str, str]], delimiter: str, newline: str, bom: bool
) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=newline)
    writer.writerows([["path", "label", "patient"], *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_bytes(buffer.getvalue().encode("utf-8-sig" if bom else "utf-8"))
        dataset = read_dataset(path)
    assert dataset.paths == [path for path, _, _ in rows]
    assert dataset.labels == [unicodedata.normalize("NFC", label) for _, label, _ in rows]
    assert dataset.patients == [unicodedata.normalize("NFC", patient) for _, _, patient in rows]


@settings(max_examples=60)
@given(st.binary(max_size=200) | st.text(st.sampled_from('path,label;\t"\n\r a1'), max_size=80).map(str.encode))
def test_no_csv_leads_to_anything_but_a_clear_error(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.csv"
        path.write_bytes(b"path,label\n" + text)
        try:
            assert len(read_dataset(path)) >= 2
        except DatasetError as error:
            assert str(path) in str(error)  # noqa: PT017 - most examples are refused, some are not


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
        ({"images": IMAGES, "labels": LABELS}, r"no array 'train_images'; expected MedMNIST's"),
        ({"test_images": IMAGES, "test_labels": LABELS}, r"no array 'train_images'"),
        ({"train_images": IMAGES}, r"train_images has no train_labels beside it"),
        ({"train_images": IMAGES, "train_labels": LABELS[:3]}, r"4 train_images but 3 train_labels"),
        (
            {"train_images": IMAGES, "train_labels": np.zeros((4, 14), int)},
            r"no label is there in some images and absent in others",
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
            r"val_images has no val_labels beside it",
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
    with pytest.raises(
        DatasetError, match="train_images is damaged: its header promises 4,704 bytes, of which 4,604 are there"
    ):
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
    monkeypatch.setattr("features.datasets.npz.CHECK_SECONDS", check_s)
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
    with pytest.raises(DatasetError, match=r"'\.' cannot name a column"):
        read_dataset(csv)
    csv.write_text("path,label,a/b,a\N{DIVISION SLASH}b\na.png,x,1,3\nb.png,y,2,4\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="two columns have the name"):
        read_dataset(csv)


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
