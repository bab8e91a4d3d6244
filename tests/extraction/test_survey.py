"""`hoarfrost inspect` reports what is in a dataset and what preprocessing will do to it, and embeds nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.extraction.survey import PERCENTILES, survey
from tests.support.builders import encode, picture, write_csv, write_image_folder, write_npz
from tests.support.commands import Hoarfrost, RunPython
from tests.support.dicoms import dicom, encoded, grey_values

RGB = picture(40, 30)


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = write_image_folder(tmp_path / "mixed", {"a": 3, "b": 2})
    (folder / "a" / "twin.png").write_bytes((folder / "a" / "0.png").read_bytes())
    (folder / "a" / "large.jpg").write_bytes(encode(picture(1000, 900), "JPEG"))
    (folder / "b" / "deep.png").write_bytes(encode(Image.fromarray(np.asarray(RGB.convert("L")).astype(np.uint16) * 9)))
    (folder / "b" / "alpha.png").write_bytes(encode(RGB.convert("RGBA")))
    (folder / "b" / "IM1").write_bytes(encoded(dicom(grey_values(), bits=12, PatientID="p", PatientSex="F")))
    (folder / "b" / "cine").write_bytes(
        encoded(dicom(np.stack([grey_values(seed=i) for i in range(3)]), PhotometricInterpretation="MONOCHROME1"))
    )
    (folder / "b" / "text.png").write_text("no image\n")
    return folder


def test_every_kind_is_counted_with_sizes_and_what_becomes_of_it(mixed: Path) -> None:
    found = survey(mixed)
    assert {
        (kind.format, kind.mode, kind.bits): (kind.images, kind.smallest, kind.largest) for kind in found.kinds
    } == {
        ("PNG", "RGB", 8): (6, (12, 10), (12, 10)),
        ("DICOM, Explicit VR Little Endian", "MONOCHROME1", 16): (3, (40, 30), (40, 30)),
        ("DICOM, Explicit VR Little Endian", "MONOCHROME2", 12): (1, (40, 30), (40, 30)),
        ("JPEG", "RGB", 8): (1, (1000, 900), (1000, 900)),
        ("PNG", "I;16", 16): (1, (40, 30), (40, 30)),
        ("PNG", "RGBA", 8): (1, (40, 30), (40, 30)),
    }
    becomes = {kind.mode: kind.becomes for kind in found.kinds if kind.format != "JPEG"}
    assert becomes["I;16"] == f"scaled to 8 bits from {PERCENTILES}, grey, resized to 224 x 224"
    assert becomes["RGBA"] == "transparency over black, RGB, resized to 224 x 224"
    assert becomes["MONOCHROME1"].endswith(f"else {PERCENTILES}, inverted, grey, resized to 224 x 224")
    assert (
        "window 40/400, grey" in {k.mode: k.becomes for k in survey(mixed, window=Window(40, 400)).kinds}["MONOCHROME2"]
    )
    assert "decoded at 1/2, 1/4 or 1/8" in next(kind.becomes for kind in found.kinds if kind.format == "JPEG")


def test_labels_patients_duplicates_and_unreadable_images_are_counted(mixed: Path) -> None:
    found = survey(mixed)
    assert (found.images, found.labels, found.splits) == (14, {"b": 9, "a": 5}, {})
    assert (found.duplicates, found.unreadable) == (1, 1)
    assert found.unreadable_by_kind == {"no image format recognised": 1}
    assert found.errors[0][0] == "b/text.png"
    assert found.patients == 12  # frames share theirs; a file without a header is one of its own
    assert found.attributes["sex"] == {"": 13, "F": 1}
    assert found.refused == ""


def test_splits_of_an_npz_are_counted_without_a_file_for_each(tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", {"train": 4, "test": 3})
    found = survey(tmp_path / "x.npz")
    assert (found.splits, found.kinds[0].format, found.kinds[0].smallest) == (
        {"train": 4, "test": 3},
        "array",
        (28, 28),
    )


def test_one_class_is_shown_and_why_extract_would_refuse_it(tmp_path: Path) -> None:
    found = survey(write_image_folder(tmp_path / "x", {"a": 3}))
    assert found.images == 3
    assert "all 3 images have one class ('a')" in found.refused


def test_attribute_of_many_values_is_cut_short(tmp_path: Path) -> None:
    folder = write_image_folder(tmp_path, {"a": 15, "b": 15})
    rows = [[f"{label}/{i}.png", label, f"note {label} {i}"] for label in "ab" for i in range(15)]
    found = survey(write_csv(folder / "x.csv", [["path", "label", "note"], *rows]))
    assert found.attributes["note"]["10 others"] == 10
    assert len(found.attributes["note"]) == 21


def test_contact_sheet_shows_what_the_backbone_will_see(mixed: Path, tmp_path: Path) -> None:
    found = survey(mixed, contact_sheet=tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert found.contact_sheet == str(tmp_path / "sheet.png")
    assert sheet.shape == (2 * 224, 8 * 224, 3)  # 13 readable images
    first = load_image((mixed / "a" / "0.png").read_bytes()).permute(1, 2, 0).numpy()
    assert np.array_equal(sheet[:224, :224], first)
    assert list(tmp_path.glob("*.tmp")) == []


def test_contact_sheet_of_many_has_64(tmp_path: Path) -> None:
    survey(write_image_folder(tmp_path / "x", {"a": 50, "b": 50}), contact_sheet=tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (8 * 224, 8 * 224)


def test_command_reports_the_same_to_people_and_programs(hoarfrost: Hoarfrost, mixed: Path, tmp_path: Path) -> None:
    output = hoarfrost("inspect", mixed, "--contact-sheet", tmp_path / "sheet.png")
    assert output.status == 0, output.stderr
    assert "mixed: 14 images, 12 patients; 1 duplicates, 1 unreadable" in output.stdout
    assert "  6 PNG, RGB, 8 bits, 12 x 10: RGB, resized to 224 x 224" in output.stdout
    assert "    b/text.png: no image format recognised" in output.stdout
    document = json.loads(hoarfrost("inspect", mixed, "--json").stdout)
    assert (document["images"], document["unreadable"], document["contact_sheet"]) == (14, 1, None)
    assert document["kinds"][0]["becomes"] == "RGB, resized to 224 x 224"


@pytest.mark.parametrize("arguments", [["--contact-sheet", "{tmp}/mixed/b/text.png/sheet.png"], ["--window", "40"]])
def test_what_cannot_be_done_is_a_message(
    hoarfrost: Hoarfrost, mixed: Path, tmp_path: Path, arguments: list[str]
) -> None:
    output = hoarfrost("inspect", mixed, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert output.status in {1, 2}
    assert "sheet.png: cannot be written" in output.stderr or "not a window; write CENTER/WIDTH" in output.stderr


@pytest.mark.slow
def test_neither_torch_nor_a_backbone_is_imported(run_python: RunPython, mixed: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from hoarfrost.features.extraction.survey import survey;"
        f"survey(Path({str(mixed)!r}));"
        "print(*({'torch', 'torchvision', 'hoarfrost.features.encoder.backbone'} & set(sys.modules)))"
    )
    assert run_python("-c", code).stdout == "\n", sys.executable
