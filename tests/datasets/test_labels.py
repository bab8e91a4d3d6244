"""Labels that are one in several spellings, labels in other columns, and labels that look like none."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from hoarfrost.features.datasets import TableOptions, hints, read_dataset, read_table
from hoarfrost.features.datasets.spellings import normal_form, spellings
from hoarfrost.features.errors import DatasetError
from tests.support.builders import write_csv

ZERO_WIDTH = "malignant\u200b"


def table(tmp_path: Path, labels: Sequence[str]) -> Path:
    return write_csv(
        tmp_path / "set.csv", [["path", "label"], *([f"{i}.png", label] for i, label in enumerate(labels))]
    )


SAME = {
    "case": ("benign", "Benign"), "numbers": ("1", "1.0"), "decimal comma": ("0,5", "0.5"), "signs": ("+1", "1"),
    "zero-width space": ("malignant", ZERO_WIDTH), "spaces": ("no finding", "no  finding"),
    "no-break space": ("no finding", "no\u00a0finding"), "full width": ("A1", "\uff211"), "sharp s": ("GROSS", "gro\u00df"),
    "byte order mark": ("a", "\ufeffa"), "exponents": ("10", "1e1"), "soft hyphen": ("ab", "a\u00adb"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAME)
def test_labels_that_look_the_same_are_refused_with_their_counts_and_the_way_out(tmp_path: Path, kind: str) -> None:
    one, other = SAME[kind]
    path = table(tmp_path, [one, other, "third", one])
    with pytest.raises(DatasetError, match="would be separate classes") as raised:
        read_dataset(path)
    assert "(2 images)" in str(raised.value)
    assert "(1 image)" in str(raised.value)
    assert "--merge-labels" in str(raised.value)
    assert "--label-map FILE" in str(raised.value)
    merged = read_dataset(path, options=TableOptions(merge_labels=True))
    assert merged.labels == [one, one, "third", one]


@pytest.mark.parametrize("labels", [("1", "2"), ("1", "10"), ("a", "b"), ("1.5", "15"), ("I", "II"), ("a-b", "a_b")])
def test_labels_that_differ_stay_apart(labels: tuple[str, str]) -> None:
    assert not spellings(dict.fromkeys(labels, 1))


def test_equal_counts_keep_the_plain_spelling() -> None:
    assert next(iter(spellings({"Malignant": 7, "malignant": 7, ZERO_WIDTH: 7})[0])) == "malignant"


@pytest.mark.parametrize("missing", ["nan", "NaN", "NULL", "#N/A", "<NA>"])
def test_missing_value_in_words_is_no_class(tmp_path: Path, missing: str) -> None:
    path = table(tmp_path, ["a", "b", missing, missing])
    with pytest.raises(DatasetError, match=rf"a missing value in words: '{missing}' \(2 images\)"):
        read_dataset(path)


def test_all_problems_of_labels_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"separate classes: '1' .*'1\.0'.* Also, the label .*'nan'"):
        read_dataset(table(tmp_path, ["1", "1.0", "nan", "0"]))


def test_label_map_names_labels(tmp_path: Path) -> None:
    path = table(tmp_path, ["nan", "Nv", "nv", "mel"])
    names = write_csv(tmp_path / "map.csv", [["label", "name"], ["nan", "unknown"], ["nv", "nevus"]])
    assert read_dataset(path, options=TableOptions(label_map=names)).labels == ["unknown", "nevus", "nevus", "mel"]


@pytest.mark.parametrize(
    ("rows", "reason"),
    [([["label", "x"], ["a", "b"]], "not a CSV with the columns label,name"), ([["label", "name"], ["a", ""]], "is empty"),
     ([["label", "name"], ["a", "b"], ["a", "c"]], "'a' is in it twice"), ([["label", "name"], ["z", "b"]], "no label of")],
)  # fmt: skip
def test_label_map_that_does_not_fit_is_refused(tmp_path: Path, rows: list[list[str]], reason: str) -> None:
    path, names = table(tmp_path, ["a", "b"]), write_csv(tmp_path / "map.csv", rows)
    with pytest.raises(DatasetError, match=reason):
        read_dataset(path, options=TableOptions(label_map=names))


def test_normal_form_of_a_normal_form_is_itself() -> None:
    for label in ["Benign ", ZERO_WIDTH, "1.0", "1_000", "nan", "\uff21", "inf", "gro\u00df"]:
        assert normal_form(normal_form(label)) == normal_form(label)


# -- what labels look like ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "hint"),
    [
        ([f"{i}.5" for i in range(40)], "40 different numbers. They look like a measurement"),
        (["a"] * 20 + ["b"] * 2, r"1 of 2 classes have 3 images or fewer \(first: 'b', 2\)"),
        ([f"c{i}" for i in range(40) for _ in range(5)], "there are 40 classes"),
        (["Effusion", "Mass", "Effusion|Mass"] * 5, r"look like several labels .* --label-separator '\|'"),
        (["images"] * 9 + ["masks"] * 9, "'images' looks like a folder of images or masks"),
    ],
    ids=["regression", "few images", "many classes", "several labels", "masks"],
)
def test_labels_that_are_no_classes_are_said(tmp_path: Path, labels: list[str], hint: str) -> None:
    assert any(__import__("re").search(hint, text) for text in hints(read_table(table(tmp_path, labels))))


def test_ordinary_labels_have_no_hint(tmp_path: Path) -> None:
    assert hints(read_table(table(tmp_path, ["a"] * 20 + ["b"] * 30 + ["c"] * 10))) == ()


def test_several_labels_in_a_cell_become_columns(tmp_path: Path) -> None:
    path = table(tmp_path, ["Effusion|Mass", "Mass", "No Finding", "Effusion"])
    dataset = read_dataset(path, options=TableOptions(label_separator="|"))
    assert dataset.labels == ["", "", "", ""]
    assert dataset.attributes == {
        "Effusion": ["1", "0", "0", "1"], "Mass": ["1", "1", "0", "0"], "No Finding": ["0", "0", "1", "0"],
    }  # fmt: skip
