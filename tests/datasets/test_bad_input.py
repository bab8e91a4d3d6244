"""Bad input never kills an extraction and never passes silently: each is one row with its reason."""

import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError, Unreadable, reason_of
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions, ExtractSummary, kinds_of
from hoarfrost.features.fingerprint import image_key
from tests.extraction.test_extract import RANDOM
from tests.support.bad_images import BAD
from tests.support.builders import encode, picture, write_csv, write_image_folder
from tests.support.commands import Hoarfrost
from tests.support.dicoms import dicom, encoded, grey_values

pytestmark = pytest.mark.usefixtures("free_backbone")


def run(data: Path, **options: object) -> ExtractSummary:
    return extract(data, data.parent / "c.h5", options=ExtractOptions(**{**vars(RANDOM), **options}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images", {"a": 10, "b": 10})


def spoil(folder: Path, n: int) -> None:
    for i in range(n):
        (folder / "b" / f"bad {i}.png").write_bytes(b"" if i % 2 else b"text")


def kind_before_details(reason: str) -> str:
    """Return what a kind was before it was declared: the reason's text up to its details."""
    return re.split(r": | \(", reason, maxsplit=1)[0]


@pytest.mark.parametrize("name", BAD)
def test_each_kind_of_bad_file_is_one_row_with_the_right_reason(folder: Path, name: str) -> None:
    write, reason = BAD[name]
    write(folder / "b" / name)
    summary = run(folder)
    assert (summary.images, summary.embedded, summary.failed) == (21, 20, 1)
    assert summary.errors[0][0] == f"b/{name}"
    assert re.match(reason, summary.errors[0][1]), summary.errors
    assert summary.failed_by_kind == {kind_before_details(summary.errors[0][1]): 1}
    with EmbeddingCache(folder.parent / "c.h5") as cache:
        table = cache.dataset()
        assert [(path, error) for path, error in zip(table.paths, table.errors, strict=True) if error] == [
            *summary.errors
        ]


def test_image_with_the_wrong_extension_is_read_by_its_content(folder: Path) -> None:
    (folder / "a" / "photo.png").write_bytes(encode(picture(20, 20), "JPEG"))
    (folder / "a" / "scan.png").write_bytes(encoded(dicom(grey_values())))
    assert run(folder).failed == 0


def test_file_that_may_not_be_read_is_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refusing(path: str, *rest: int) -> int:
        if str(path).endswith("3.png"):  # root may read everything: chmod would prove nothing
            raise PermissionError(13, "Permission denied")
        return real(path, *rest)

    monkeypatch.setattr("hoarfrost.features.files.local.os.open", refusing)
    assert dict(run(folder, max_bad=0.5).errors) == {"a/3.png": "Permission denied", "b/3.png": "Permission denied"}


def test_folder_that_may_not_be_listed_is_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a" / "closed").mkdir()
    (folder / "a" / "closed" / "1.png").write_bytes(encode(picture(9, 9)))
    scan, real = os.scandir, os.open

    def refusing_to_list(path: str) -> object:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    def refusing(path: str, *rest: int) -> int:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return real(path, *rest)

    monkeypatch.setattr("hoarfrost.features.datasets.folders.os.scandir", refusing_to_list)
    monkeypatch.setattr("hoarfrost.features.datasets.table.os.open", refusing)
    assert run(folder).errors == (("a/closed", "Permission denied"),)


def test_file_that_vanishes_after_it_was_listed_is_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def vanishing(path: str, *rest: int) -> int:
        if str(path).endswith("b/3.png"):
            os.unlink(path)
        return real(path, *rest)

    monkeypatch.setattr("hoarfrost.features.files.local.os.open", vanishing)
    assert run(folder).errors == (("b/3.png", "No such file or directory"),)


def test_file_that_changes_while_it_is_read_is_a_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = (folder / "b" / "3.png").stat().st_ino
    real = os.fstat

    def writing(number: int) -> os.stat_result:
        status = real(number)
        if status.st_ino == target:
            with (folder / "b" / "3.png").open("ab") as file:
                file.write(b"more")
        return status

    monkeypatch.setattr("hoarfrost.features.files.local.os.fstat", writing)
    assert run(folder).errors == (("b/3.png", "changed while it was read"),)


def test_a_limit_of_ones_own_on_pixels_is_kept(folder: Path) -> None:
    (folder / "a" / "large.png").write_bytes(encode(picture(50, 40)))
    assert dict(run(folder, max_pixels=1999).errors) == {
        "a/large.png": "too many pixels: 50 x 40 are more than 1,999 allowed (--max-pixels)"
    }
    assert run(folder, max_pixels=2000).failed == 0


# -- too many -----------------------------------------------------------------------------------------------------------


def test_more_than_max_bad_stops_with_the_kinds_and_keeps_what_is_embedded(folder: Path) -> None:
    spoil(folder, 4)
    with pytest.raises(HoarfrostError) as stopped:
        run(folder)
    message = str(stopped.value)
    assert "2 of 24 images are unreadable so far, more than --max-bad 0.05 allows" in message
    assert "no image format recognised: 1 (as b/bad 0.png: " in message
    assert "the file is empty: 1 (as b/bad 1.png: the file is empty)" in message
    assert "pass a larger --max-bad; the same command goes on from there" in message
    summary = run(folder, max_bad=0.2)
    assert (summary.embedded + summary.reused, summary.failed) == (20, 4)
    assert summary.reused >= 10  # those before the second bad one
    assert summary.failed_by_kind == {"no image format recognised": 2, "the file is empty": 2}


def test_a_single_bad_image_never_stops_an_extraction_unless_none_may_be(folder: Path) -> None:
    spoil(folder, 1)
    assert run(folder).failed == 1
    with pytest.raises(HoarfrostError, match=r"1 of 21 images are unreadable so far, more than --max-bad 0 allows"):
        run(folder, max_bad=0.0)


def test_exactly_max_bad_goes_on(folder: Path) -> None:
    spoil(folder, 5)
    assert run(folder, max_bad=0.2).failed == 5
    with pytest.raises(HoarfrostError, match="5 of 25 images are unreadable so far"):
        run(folder, max_bad=0.19)


@pytest.mark.parametrize("kind", Unreadable)
def test_kind_of_a_reason_is_what_stands_before_its_details(kind: Unreadable) -> None:
    found = reason_of(ImageDecodeError(kind, "x: y (z)"))
    assert found == (kind, f"{kind}: x: y (z)")
    assert kind_before_details(found.text) == found.kind
    assert pickle.loads(pickle.dumps(ImageDecodeError(kind, "x"))).kind == kind


def test_what_the_system_says_is_a_kind_and_kinds_are_counted_the_most_frequent_first() -> None:
    empty, denied = reason_of(ImageDecodeError(Unreadable.EMPTY)), reason_of(OSError(13, "Permission denied"))
    assert kinds_of([empty, denied, denied]) == {"Permission denied": 2, "the file is empty": 1}
    assert list(kinds_of([empty, denied, denied])) == ["Permission denied", "the file is empty"]
    assert reason_of(MemoryError()).kind == Unreadable.NO_MEMORY_TO_READ


def test_an_image_in_quarantine_has_the_kind_of_its_crash(folder: Path) -> None:
    key = image_key((folder / "b" / "0.png").read_bytes())
    reason = "its decoder crashed: SIGSEGV (in quarantine: c.h5.quarantine)"
    (folder.parent / "c.h5.quarantine").write_text(f"{key.hex()} {reason}\n")
    summary = run(folder)
    assert (summary.errors, summary.failed_by_kind) == ((("b/0.png", reason),), {"its decoder crashed": 1})


def test_command_ends_with_status_1_and_says_the_kinds(hoarfrost: Hoarfrost, folder: Path) -> None:
    spoil(folder, 6)
    output = hoarfrost("extract", folder, "--cache", folder.parent / "c.h5", "--weights", "random:0", "--batch-size", 4)
    assert output.status == 1
    assert "no image format recognised: 1 (as b/bad 0.png" in output.stderr
    output = hoarfrost(
        "extract",
        folder,
        "--cache",
        folder.parent / "c.h5",
        "--weights",
        "random:0",
        "--max-bad",
        0.5,
        "--batch-size",
        4,
    )
    assert output.status == 0, output.stderr
    assert "  3 unreadable: the file is empty" in output.stdout


# -- missing files ------------------------------------------------------------------------------------------------------


def missing_csv(folder: Path, n: int) -> Path:
    rows = [["path", "label"], *([f"{'ab'[i % 2]}/{i // 2}.png", "ab"[i % 2]] for i in range(20))]
    return write_csv(folder / "x.csv", rows + [[f"images/a/gone {i}.png", "a"] for i in range(n)])


def test_thousands_of_missing_files_are_one_message_with_the_first_three_and_the_place(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(
        HoarfrostError, match="3,000 of 3,020 images are unreadable so far.*No such file or directory: 3,000"
    ):
        run(missing_csv(folder, 3000))
    assert caplog.text.count("gone") == 4
    assert (
        "3,000 of 3,020 files that it names do not exist. The first: images/a/gone 0.png, images/a/gone 1.png, "
        in caplog.text
    )
    place = os.path.realpath(folder)
    assert f"Paths are relative to {place}, so the first was looked for at {place}/images/a/gone 0.png." in caplog.text


def test_few_missing_files_are_rows_and_none_if_all_must_be_there(folder: Path) -> None:
    data = missing_csv(folder, 1)
    assert run(data).errors == (("images/a/gone 0.png", "No such file or directory"),)
    with pytest.raises(ImageDecodeError, match=r"1 of 21 files that it names do not exist.*--on-error skip"):
        run(data, on_error="fail")


def test_missing_files_stop_before_anything_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = read_dataset(missing_csv(folder, 5))

    def refuse(*_: object) -> bytes:
        raise AssertionError("a file was opened")

    monkeypatch.setattr("hoarfrost.features.datasets.table.read", refuse)
    with pytest.raises(HoarfrostError, match="5 of 25"):
        run(Path(dataset.source))


# -- what is said of images that were read ------------------------------------------------------------------------------


def test_animations_are_counted_in_the_summary(hoarfrost: Hoarfrost, folder: Path) -> None:
    for i in range(3):
        frames = [picture(20, 16, seed=10 * i + j).quantize(8) for j in range(2)]
        (folder / "a" / f"{i}.gif").write_bytes(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    output = hoarfrost("extract", folder, "--cache", folder.parent / "c.h5", "--weights", "random:0")
    assert output.status == 0, output.stderr
    assert "  3 animated: only the first frame is used" in output.stdout


@pytest.mark.parametrize("kind", ["TIFF", "DICOM"])
def test_several_images_behind_another_formats_name_are_counted_in_the_summary(folder: Path, kind: str) -> None:
    pages = [picture(20, 16, seed=i) for i in range(2)]
    tiff = encode(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    content = tiff if kind == "TIFF" else encoded(dicom(np.stack([grey_values(seed=i) for i in range(2)])))
    (folder / "a" / "odd.png").write_bytes(content)
    assert run(folder).notes == {"with several images, but the suffix of another format: only the first is used": 1}


def test_name_that_holds_control_characters_does_nothing_to_the_terminal(hoarfrost: Hoarfrost, folder: Path) -> None:
    (folder / "a" / "x\x1b[31m.png").write_text("no image")
    for arguments in (
        ["inspect", folder],
        ["extract", folder, "--cache", folder.parent / "c.h5", "--weights", "random:0"],
    ):
        output = hoarfrost(*arguments)
        assert output.status == 0
        assert r"x\x1b[31m.png: no image format recognised" in output.stdout + output.stderr
        assert "\x1b" not in output.stdout + output.stderr
