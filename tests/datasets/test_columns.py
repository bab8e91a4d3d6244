"""CSVs as public datasets and Excel write them: other columns, bare names, folders elsewhere, separators, commas."""

import shlex
from pathlib import Path

import pytest

from hoarfrost.cli import main
from hoarfrost.features.datasets import TableOptions, read_dataset
from hoarfrost.features.errors import DatasetError
from tests.support.builders import write_csv, write_image_folder

NIH = [["Image Index", "Finding Labels", "Patient ID", "View"], ["0.png", "Effusion|Mass", "7", "PA"],
       ["1.png", "No Finding", "8", "AP"], ["2.png", "Mass", "9", "AP"]]  # fmt: skip


def test_columns_of_other_names_are_taken_by_options(tmp_path: Path) -> None:
    options = TableOptions(
        path_column="Image Index", label_column="Finding Labels", patient_column="Patient ID", label_separator="|"
    )
    dataset = read_dataset(write_csv(tmp_path / "nih.csv", NIH), options=options)
    assert dataset.paths == ["0.png", "1.png", "2.png"]
    assert dataset.patients == ["7", "8", "9"]
    assert dataset.attributes["Mass"] == ["1", "0", "1"]
    assert dataset.attributes["view"] == ["PA", "AP", "AP"]


def test_missing_path_column_is_answered_by_the_command_that_works(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a set.csv", NIH)
    with pytest.raises(DatasetError, match="the column 'path' is missing") as raised:
        read_dataset(path)
    command = str(raised.value).partition("Perhaps: ")[2]
    words = shlex.split(command)
    assert words[:3] == ["hoarfrost", "inspect", str(path)]
    write_image_folder(tmp_path / "made", {"a": 3})
    for i, made in enumerate(sorted((tmp_path / "made" / "a").iterdir())):
        made.rename(tmp_path / f"{i}.png")
    with pytest.raises(SystemExit) as ended:
        main.main(words[1:], "hoarfrost")
    assert ended.value.code == 0


def test_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--label-column dx: no such column; the header has image index, "):
        read_dataset(
            write_csv(tmp_path / "x.csv", NIH), options=TableOptions(path_column="image index", label_column="dx")
        )


def ham10000(tmp_path: Path) -> Path:
    for part, name in (("part_1", "ISIC_1"), ("part_1", "ISIC_2"), ("part_2", "ISIC_3")):
        (tmp_path / "images" / part).mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / part / f"{name}.jpg").write_bytes(b"x")
    rows = [["lesion_id", "image_id", "dx"], ["H1", "ISIC_1", "nv"], ["H1", "ISIC_2", "nv"], ["H2", "ISIC_3", "mel"]]
    return write_csv(tmp_path / "ham.csv", rows)


@pytest.mark.parametrize("is_root_given", [False, True])
def test_names_without_extensions_are_found_in_folders(tmp_path: Path, is_root_given: bool) -> None:
    root = tmp_path / "images" if is_root_given else None
    options = TableOptions(path_column="image_id", label_column="dx", patient_column="lesion_id", image_root=root)
    dataset = read_dataset(ham10000(tmp_path), options=options)
    prefix = "" if is_root_given else "images/"
    assert dataset.paths == [f"{prefix}part_1/ISIC_1.jpg", f"{prefix}part_1/ISIC_2.jpg", f"{prefix}part_2/ISIC_3.jpg"]
    assert dataset.images.location == str(root or tmp_path)
    assert not dataset.images.stamps(of_urls=False).missing.any()


def test_name_that_several_files_have_is_refused(tmp_path: Path) -> None:
    path = ham10000(tmp_path)
    (tmp_path / "images" / "part_2" / "ISIC_1.png").write_bytes(b"x")
    with pytest.raises(
        DatasetError, match="ISIC_1: several files .* have this name: images/part_1/ISIC_1.jpg, images/part_2"
    ):
        read_dataset(path, options=TableOptions(path_column="image_id", label_column="dx"))


@pytest.mark.parametrize("stated", ["sep=;\n", '"sep=;"\n', "SEP=;\r\n", "\ufeffsep=;\n"])
def test_excels_line_with_the_separator_is_skipped(tmp_path: Path, stated: str) -> None:
    (tmp_path / "x.csv").write_text(f"{stated}path;label;age\n1.png;a;20,5\n2.png;b;21\n", encoding="utf-8")
    dataset = read_dataset(tmp_path / "x.csv")
    assert dataset.paths == ["1.png", "2.png"]
    assert dataset.attributes == {"age": ["20.5", "21"]}
    (tmp_path / "x.csv").write_text(f"{stated}path;label\n1.png;a\n2.png;\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="line 4: the label is empty"):
        read_dataset(tmp_path / "x.csv")


def test_decimal_commas_are_points_only_in_columns_of_numbers(tmp_path: Path) -> None:
    text = "path;label;age;place;year\n1.png;a;-20,5;Rome, Italy;2001\n2.png;b;;1,5;2002\n"
    (tmp_path / "x.csv").write_text(text)
    found = read_dataset(tmp_path / "x.csv").attributes
    assert found == {"age": ["-20.5", ""], "place": ["Rome, Italy", "1,5"], "year": ["2001", "2002"]}


@pytest.mark.parametrize("names", [
    ("training_set", "test_set", "valid"), ("Training Set", "Test-Set", "validation"), ("train", "testset", "dev"),
])  # fmt: skip
def test_usual_names_of_split_folders_are_splits(tmp_path: Path, names: tuple[str, str, str]) -> None:
    for name in names:
        write_image_folder(tmp_path / "set" / name, {"a": 1, "b": 1})
    dataset = read_dataset(tmp_path / "set")
    assert dataset.splits is not None
    assert dict(dataset.splits.counts()) == {"train": 2, "test": 2, "val": 2}
    rows = [["path", "label", "split"], *([f"{i}.png", "ab"[i % 2], name] for i, name in enumerate(names))]
    in_table = read_dataset(write_csv(tmp_path / "x.csv", rows)).splits
    assert in_table == ["train", "test", "val"]
