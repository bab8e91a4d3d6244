"""Masks beside images, patients in names, placeholders, the same bytes under two labels, aspect ratios of classes."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoarfrost.features.datasets import TableOptions, hints, read_dataset, read_table
from hoarfrost.features.errors import DatasetError
from hoarfrost.features.extraction.survey import survey
from tests.support.builders import encode, write_csv
from tests.support.dicoms import dicom, encoded, grey_values


def folder(tmp_path: Path, paths: list[str], size: tuple[int, int] = (8, 8)) -> Path:
    """Write images of random pixels."""
    rng = np.random.default_rng(len(paths))
    for path in paths:
        place = tmp_path / "set" / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode(Image.fromarray(rng.integers(0, 256, size[::-1], dtype=np.uint8))))
    return tmp_path / "set"


# -- masks --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mask", ["{}_mask.png", "{}_mask_1.png", "mask_{}.png", "{}_seg.png", "{}-mask.png", "{}_GT.png"]
)
def test_masks_beside_images_are_said_with_the_option_that_leaves_them_out(tmp_path: Path, mask: str) -> None:
    names = [f"{c}/x ({i})" for c in "ab" for i in range(4)]
    masks = ["/".join([name[0], mask.format(name[2:])]) for name in names]
    data = folder(tmp_path, [f"{name}.png" for name in names] + masks)
    (hint,) = hints(read_dataset(data))
    assert hint.startswith("8 of 16 files look like masks of the others (first: a/")
    glob = hint.partition("--exclude '")[2].partition("'")[0]
    left = read_dataset(data, options=TableOptions(exclude=(glob,)))
    assert left.paths == [f"{name}.png" for name in names]
    assert not hints(left)


def test_masks_in_a_folder_of_their_own_are_said(tmp_path: Path) -> None:
    data = folder(tmp_path, [f"{c}/{kind}/{i}.png" for c in "ab" for kind in ("images", "masks") for i in range(4)])
    first, *_ = hints(read_dataset(data))
    assert first.startswith("8 of 16 files look like masks of the others (first: a/masks/0.png)")
    assert "--exclude '*/masks/*'" in first
    assert len(read_dataset(data, options=TableOptions(exclude=("*/masks/*",)))) == 8


def test_images_of_two_values_are_said_by_inspect(tmp_path: Path) -> None:
    data = folder(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(4)])
    for i in range(5):
        bits = np.random.default_rng(i).integers(0, 2, (8, 8), dtype=np.uint8) * 255
        (data / "b" / f"other {i}.png").write_bytes(encode(Image.fromarray(bits)))
    (hint,) = survey(data).hints
    assert hint.startswith("5 of 13 images have two values only, like masks (first: b/other 0.png)")


def test_names_that_only_resemble_masks_have_no_hint(tmp_path: Path) -> None:
    data = folder(tmp_path, [f"{c}/{name}{i}.png" for c in "ab" for name in ("x", "unmasked", "seg") for i in range(4)])
    assert not hints(read_dataset(data))


def test_globs_choose_files_by_name_or_path(tmp_path: Path) -> None:
    data = folder(tmp_path, ["a/l1.png", "a/r1.png", "b/l2.png", "b/r2.png", "b/old/l3.png"])
    some = TableOptions(include=("l*",), exclude=("*/old/*",))
    assert read_dataset(data, options=some).paths == ["a/l1.png", "b/l2.png"]
    with pytest.raises(DatasetError, match="--include and --exclude leave none of 5 images"):
        read_dataset(data, options=TableOptions(exclude=("*",)))


# -- patients -----------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "sides": ([f"{c}/BP{i:03}{k}_{s}.png" for k, c in enumerate("ab") for i in range(6) for s in "LR"], 12),
    "numbers": ([f"{c}/p{k}{i}-{n}.png" for k, c in enumerate("ab") for i in range(5) for n in range(3)], 10),
    "class/patient/image": ([f"{c}/{c}{i}/{n}.png" for c in "ab" for i in range(5) for n in range(3)], 10),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_patients_that_paths_suggest_are_said_and_taken(tmp_path: Path, layout: str) -> None:
    paths, n_patients = LAYOUTS[layout]
    data = folder(tmp_path, paths)
    (hint,) = hints(read_dataset(data))
    assert f"the paths suggest {n_patients} patients of {len(paths)} images" in hint
    rule = hint.partition("--patient-from ")[2].rstrip(".").strip("'")
    dataset = read_dataset(data, options=TableOptions(patient_from=rule))
    assert dataset.patients is not None
    assert len(set(dataset.patients)) == n_patients
    assert not hints(dataset)


def test_folders_of_patients_above_the_classes_are_said_and_read(tmp_path: Path) -> None:
    data = folder(tmp_path, [f"p{i}/{c}/{n}.png" for i in range(8) for c in ("benign", "malignant") for n in range(4)])
    (hint, *_) = hints(read_table(data))
    assert "the folders look like PATIENT/CLASS: 8 folders hold folders of 2 names (benign, malignant)" in hint
    dataset = read_dataset(data, options=TableOptions(label_from="parent", patient_from="^([^/]+)/"))
    assert dataset.classes == ("benign", "malignant")
    assert dataset.patients is not None
    assert len(set(dataset.patients)) == 8
    assert not hints(dataset)


@pytest.mark.parametrize("paths", [
    [f"{c}/{i:04}.png" for c in "ab" for i in range(20)], [f"{c}/IMG_{i}.png" for c in "ab" for i in range(20)],
])  # fmt: skip
def test_names_that_suggest_no_patients_have_no_hint(tmp_path: Path, paths: list[str]) -> None:
    assert not hints(read_dataset(folder(tmp_path, paths)))


def test_rule_that_finds_nothing_is_refused(tmp_path: Path) -> None:
    data = folder(tmp_path, ["a/1.png", "b/2.png"])
    with pytest.raises(DatasetError, match=r"--patient-from \^x: finds nothing in a/1.png"):
        read_dataset(data, options=TableOptions(patient_from="^x"))
    with pytest.raises(DatasetError, match=r"--patient-from \(: not a regular expression"):
        read_dataset(data, options=TableOptions(patient_from="("))


# -- placeholders -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patient", ["ANONYMOUS", "Anonymized", "000000", "SECRET-7"])
def test_one_id_for_all_studies_is_said_and_does_not_count(
    tmp_path: Path, patient: str, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(6):
        place = tmp_path / "set" / "ab"[i % 2] / str(i)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(dicom(grey_values(seed=i), PatientID=patient, StudyInstanceUID=f"1.2.{i}")))
    dataset = read_dataset(tmp_path / "set")
    assert dataset.patients is not None
    assert len(set(dataset.patients)) == 6
    assert "all 6 images have the same patient id" in caplog.text
    assert "the images of one study count as one patient" in caplog.text
    assert "SECRET" not in caplog.text


def test_one_study_of_one_patient_is_one_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(6):
        place = tmp_path / "set" / "ab"[i % 2] / str(i)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encoded(dicom(grey_values(seed=i), PatientID="p7", StudyInstanceUID="1.2.3")))
    patients = read_dataset(tmp_path / "set").patients
    assert patients is not None
    assert len(set(patients)) == 1
    assert not caplog.text


def test_placeholders_in_a_csv_do_not_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [[f"{i}.png", "ab"[i % 2], "unknown" if i < 4 else f"p{i // 2}"] for i in range(12)]
    dataset = read_dataset(write_csv(tmp_path / "x.csv", [["path", "label", "patient"], *rows]))
    assert dataset.patients is not None
    assert dataset.patients[:5] == ["0.png", "1.png", "2.png", "3.png", "p2"]
    assert "4 of 12 images have a patient id that is a placeholder (unknown)" in caplog.text
    same = [[f"{i}.png", "ab"[i % 2], "7"] for i in range(12)]
    assert read_dataset(write_csv(tmp_path / "y.csv", [["path", "label", "patient"], *same])).patients is None


# -- what inspect adds --------------------------------------------------------------------------------------------------


def test_same_bytes_under_two_labels_are_said(tmp_path: Path) -> None:
    data = folder(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(5)])
    (data / "b" / "copy.png").write_bytes((data / "a" / "3.png").read_bytes())
    (data / "a" / "copy.png").write_bytes((data / "a" / "4.png").read_bytes())  # the same label: no conflict
    (hint,) = survey(data).hints
    assert hint.startswith(
        "2 files are 1 image under different labels: the same bytes, as in a/3.png (a) and b/copy.png (b)"
    )


@pytest.mark.parametrize(("wide", "is_said"), [((30, 10), True), ((11, 10), False)])
def test_aspect_ratios_that_differ_between_classes_are_said(
    tmp_path: Path, wide: tuple[int, int], is_said: bool
) -> None:
    data = folder(tmp_path, [f"a/{i}.png" for i in range(5)], (10, 10))
    folder(tmp_path, [f"b/{i}.png" for i in range(6)], wide)
    assert [hint.startswith("aspect ratios (width / height) differ") for hint in survey(data).hints] == [True] * is_said


def test_what_stretching_hides_and_padding_shows_is_said(tmp_path: Path) -> None:
    data = folder(tmp_path, [f"a/{i}.png" for i in range(5)], (10, 10))
    folder(tmp_path, [f"b/{i}.png" for i in range(6)], (30, 10))
    (hint,) = survey(data).hints
    assert "the median is 3.00 for 'b' and 1.00 for 'a'" in hint
    assert "stretched to a square, as by default, mostly hide their shape. Views with pad show it" in hint


@pytest.mark.parametrize(
    ("columns", "labels", "where"),
    [
        ({"laterality": "xy"}, "ab", "the column 'laterality' states left or right"),
        ({"Breast side": "xy"}, "ab", "the column 'breast side' states left or right"),
        ({"left_right": "xy"}, "ab", "the column 'left_right' states left or right"),
        ({"scanner": "xy", "eye": ["OD", "OS"]}, "ab", "the column 'eye' states left or right"),
        ({"s": "lr"}, "ab", "the column 's' states left or right"),
        ({}, ["Left", "right"], "the labels are left and right"),
        ({"side_effect": "xy", "outside": ["yes", "no"]}, "ab", ""),
        ({"s": "lx"}, "ab", ""),
        ({}, ["L", "M"], ""),
    ],
)
def test_left_and_right_in_columns_and_labels_are_said(
    tmp_path: Path, columns: dict[str, Sequence[str]], labels: Sequence[str], where: str
) -> None:
    folder(tmp_path, [f"{i}.png" for i in range(8)])
    rows = [[f"{i}.png", labels[i % 2], *(values[i // 2 % 2] for values in columns.values())] for i in range(8)]
    hints = survey(write_csv(tmp_path / "t.csv", [["path", "label", *columns], *rows])).hints
    found = [hint for hint in hints if "flips are wrong where left and right mean something" in hint]
    assert [hint.partition(". ")[0] for hint in found] == [where] * bool(where)
    assert all("Then leave out views with flip." in hint for hint in found)


@pytest.mark.parametrize(("names", "is_said"), [(("L", "R"), True), (("left", "RIGHT"), True), (("L", "M"), False)])
def test_folders_for_left_and_right_are_said(tmp_path: Path, names: tuple[str, str], is_said: bool) -> None:
    data = folder(tmp_path, [f"{label}/{name}/{i}.png" for label in "ab" for name in names for i in range(4)])
    found = [
        hint for hint in survey(data).hints if hint.startswith("there are folders for left and right. A mirror image")
    ]
    assert len(found) == is_said


def test_extract_says_the_hints(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from hoarfrost.features.extraction.extract import extract
    from hoarfrost.features.extraction.plan import ExtractOptions

    data = folder(tmp_path, [f"{c}/{i}{m}.png" for c in "ab" for i in range(4) for m in ("", "_mask")])
    (data / "b" / "9.png").write_bytes((data / "a" / "0.png").read_bytes())
    caplog.set_level(logging.WARNING)
    summary = extract(data, tmp_path / "c.h5", options=ExtractOptions(weights="random:0", precision="float32"))
    assert summary.images == 17
    assert "8 of 17 files look like masks" in caplog.text
    assert "the same bytes" in caplog.text
    caplog.clear()
    few = ExtractOptions(weights="random:0", precision="float32", table=TableOptions(exclude=("*mask*", "9.png")))
    assert extract(data, tmp_path / "d.h5", options=few).images == 8
    assert "look like masks" not in caplog.text


def test_images_that_all_have_one_embedding_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from hoarfrost.features.extraction.extract import extract
    from hoarfrost.features.extraction.plan import ExtractOptions

    for i in range(8):  # black, and of different bytes
        place = tmp_path / "set" / "ab"[i % 2] / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(encode(Image.new("L", (8 + i, 8))))
    extract(tmp_path / "set", tmp_path / "c.h5", options=ExtractOptions(weights="random:0", precision="float32"))
    assert "All images have the same embedding" in caplog.text
