"""Trees of DICOM files and files of several frames: told by content, a row for each frame, patients without their names."""

import json
import logging
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.datasets.pseudonyms import Pseudonyms, salt_path
from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.decoding.images import decode_pixels
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.errors import CacheError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.features.fingerprint import bytes_key
from tests.extraction.test_extract import RANDOM
from tests.support.builders import encode, picture, write_csv, write_images
from tests.support.commands import ROOT, Hoarfrost
from tests.support.dicoms import PYDICOM_FILES, dicom, encoded, grey_values

HEADER = ["path", "label"]


def write_dicom(path: Path, seed: int = 0, n_frames: int = 1, **elements: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.stack([grey_values(bits=12, seed=100 * seed + i) for i in range(n_frames)])
    path.write_bytes(encoded(dicom(pixels if n_frames > 1 else pixels[0], bits=12, **elements)))


def write_tiff(path: Path, n_pages: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [picture(20, 16, seed=i) for i in range(n_pages)]
    path.write_bytes(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]))


# -- trees --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["1.dcm", "IM000001", "1.2.840.113619.2.1", "scan.DCM", "export.bin"])
def test_dicom_is_told_by_content_whatever_its_name(tmp_path: Path, name: str) -> None:
    write_dicom(tmp_path / "a" / "patient" / "study" / name)
    write_images(tmp_path, ["b/1.png"])
    (tmp_path / "a" / "patient" / "README").write_text("not an image")
    (tmp_path / "a" / "DICOMDIR").write_bytes((PYDICOM_FILES / "dicomdirtests" / "DICOMDIR").read_bytes())
    assert read_dataset(tmp_path, name="x").paths == [f"a/patient/study/{name}", "b/1.png"]


@pytest.mark.parametrize("splits", [("", ""), ("train/", "test/")], ids=["classes", "splits"])
def test_trees_in_class_and_split_folders_are_read(tmp_path: Path, splits: tuple[str, str]) -> None:
    for split in splits:
        for label in "ab":
            write_dicom(tmp_path / f"{split}{label}" / "study" / "IM1", PatientID=f"{split}{label}")
    dataset = read_dataset(tmp_path, name="x")
    assert dataset.labels == (["a", "b"] if splits[0] == "" else ["a", "b", "a", "b"])


def test_csv_names_files_and_its_patients_count_before_the_headers(tmp_path: Path) -> None:
    write_dicom(tmp_path / "tree" / "IM1", PatientID="p", PatientSex="F")
    write_dicom(tmp_path / "tree" / "IM2", seed=1, PatientID="q", PatientSex="M")
    rows = [[*HEADER, "patient", "sex"], ["tree/IM1", "a", "mine 1", "x"], ["tree/IM2", "b", "mine 2", "y"]]
    dataset = read_dataset(write_csv(tmp_path / "x.csv", rows))
    assert dataset.patients == ["mine 1", "mine 2"]
    assert dataset.attributes["sex"] == ["x", "y"]


def test_truncated_dicom_is_listed_and_a_patient_of_its_own(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a" / "1.dcm", PatientID="p")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "2.dcm").write_bytes(b"")
    dataset = read_dataset(tmp_path, name="x")
    assert dataset.paths == ["a/1.dcm", "b/2.dcm"]
    assert dataset.patients is not None
    assert dataset.patients[1] == "b/2.dcm"


def test_dataset_of_clean_images_opens_no_file_to_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_images(tmp_path, [f"{label}/{i}.png" for label in "ab" for i in range(5)])

    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("a file was opened")

    monkeypatch.setattr("builtins.open", refuse)
    assert len(read_dataset(tmp_path, name="x")) == 10


# -- frames -------------------------------------------------------------------------------------------------------------


def test_each_frame_has_a_row_under_its_number(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a" / "cine.dcm", n_frames=3, PatientID="p")
    write_tiff(tmp_path / "b" / "stack.tif", 2)
    write_tiff(tmp_path / "b" / "single.tif", 1)
    dataset = read_dataset(tmp_path, name="x")
    assert dataset.paths == [
        "a/cine.dcm#frame=1", "a/cine.dcm#frame=2", "a/cine.dcm#frame=3", "b/single.tif", "b/stack.tif#frame=1",
        "b/stack.tif#frame=2",
    ]  # fmt: skip
    assert dataset.labels == ["a"] * 3 + ["b"] * 3
    assert dataset.patients is not None
    assert dataset.patients[0] == dataset.patients[2] != dataset.patients[3]


def test_frames_are_those_of_the_file_read_once(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a" / "cine.dcm", n_frames=3)
    write_tiff(tmp_path / "b" / "stack.tif", 2)
    dataset = read_dataset(tmp_path, name="x")
    frames = [read() for _, read in dataset.images.contents(range(5))]
    assert all(isinstance(frame, EncodedFrame) for frame in frames)
    cine = (tmp_path / "a" / "cine.dcm").read_bytes()
    assert [frame[1:] for frame in frames[:3]] == [(bytes_key(cine), i, 3) for i in (1, 2, 3)]
    assert frames[0].content is frames[2].content
    for i in range(2):
        assert np.array_equal(decode_pixels(frames[3 + i]), np.asarray(picture(20, 16, seed=i)))


def test_frames_of_a_file_that_changes_meanwhile_are_not_mixed(tmp_path: Path) -> None:
    write_dicom(tmp_path / "a" / "cine.dcm", n_frames=2)
    write_images(tmp_path, ["b/1.png"])
    (_, first), (_, second) = read_dataset(tmp_path, name="x").images.contents([0, 1])
    first()
    write_dicom(tmp_path / "a" / "cine.dcm", n_frames=2, seed=5)
    os.utime(tmp_path / "a" / "cine.dcm", ns=(0, 0))
    with pytest.raises(Exception, match="changed while it was read"):
        second()


def test_pages_of_one_file_are_never_split(tmp_path: Path) -> None:
    write_tiff(tmp_path / "a" / "1.tif", 3)
    write_tiff(tmp_path / "b" / "2.tif", 1)
    assert read_dataset(tmp_path, name="x").patients == ["a/1.tif"] * 3 + ["b/2.tif"]


def test_label_of_a_file_counts_for_all_frames_but_those_that_the_csv_names(tmp_path: Path) -> None:
    write_dicom(tmp_path / "cine.dcm", n_frames=4)
    write_dicom(tmp_path / "one.dcm", seed=1)
    rows = [HEADER, ["cine.dcm", "a"], ["cine.dcm#frame=3", "b"], ["one.dcm#frame=1", "b"], ["one.dcm#frame=7", "b"]]
    dataset = read_dataset(write_csv(tmp_path / "x.csv", rows))
    assert dict(zip(dataset.paths, dataset.labels, strict=True)) == {
        "cine.dcm#frame=1": "a", "cine.dcm#frame=2": "a", "cine.dcm#frame=4": "a", "cine.dcm#frame=3": "b",
        "one.dcm#frame=1": "b", "one.dcm#frame=7": "b",
    }  # fmt: skip
    contents = [read() for _, read in dataset.images.contents(range(6))]
    assert contents[4] == (tmp_path / "one.dcm").read_bytes()
    with pytest.raises(Exception, match="no frame 7: the file has 1"):
        decode_pixels(contents[5])


def test_file_that_has_such_a_name_is_that_file(tmp_path: Path) -> None:
    write_images(tmp_path, ["odd.png#frame=2", "2.png"])
    dataset = read_dataset(write_csv(tmp_path / "x.csv", [HEADER, ["odd.png#frame=2", "a"], ["2.png", "b"]]))
    [(_, read)] = dataset.images.contents([0])
    assert read() == (tmp_path / "odd.png#frame=2").read_bytes()


@pytest.mark.usefixtures("free_backbone")
def test_frames_are_embedded_each_and_reused(tmp_path: Path) -> None:
    folder = tmp_path / "cines"
    write_dicom(folder / "a" / "cine.dcm", n_frames=5, PatientID="p")
    write_tiff(folder / "b" / "stack.tif", 3)
    summary = extract(folder, tmp_path / "d.h5", options=RANDOM)
    assert (summary.images, summary.embedded, summary.failed) == (8, 8, 0)
    assert extract(folder, tmp_path / "d.h5", options=RANDOM).forward_images == 0
    (folder / "a" / "cine.dcm").rename(folder / "b" / "moved")
    write_dicom(folder / "a" / "other.dcm", seed=9)
    assert extract(folder, tmp_path / "d.h5", options=RANDOM).embedded == 1
    with EmbeddingCache(tmp_path / "d.h5") as cache:
        assert "b/moved#frame=5" in cache.dataset().paths


@pytest.mark.usefixtures("free_backbone")
def test_window_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    write_dicom(folder / "a" / "1.dcm")
    write_dicom(folder / "b" / "2.dcm", seed=1)
    extract(folder, tmp_path / "d.h5", options=RANDOM)
    windowed = ExtractOptions(**{**vars(RANDOM), "window": Window.parse("900/1500")})
    with pytest.raises(CacheError, match=r'preprocessing.dicom window: "900/1500" here, "the file\'s first" there'):
        extract(folder, tmp_path / "d.h5", options=windowed)
    extract(folder, tmp_path / "e.h5", options=windowed)
    with EmbeddingCache(tmp_path / "d.h5") as own, EmbeddingCache(tmp_path / "e.h5") as asked:
        assert not np.array_equal(own.embeddings(), asked.embeddings())


@pytest.mark.usefixtures("free_backbone")
def test_window_below_zero_is_taken_on_the_command_line(hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    write_dicom(tmp_path / "scans" / "a" / "1.dcm")
    write_dicom(tmp_path / "scans" / "b" / "2.dcm", seed=1)
    output = hoarfrost(
        "extract", tmp_path / "scans", "--cache", tmp_path / "c.h5", "--weights", "random:0", "--window", "-600/1500"
    )
    assert output.status == 0, output.stderr
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        assert cache.header.fingerprint.preprocessing["dicom window"] == "-600/1500"


# -- patients -----------------------------------------------------------------------------------------------------------


def patients_of(folder: Path, pseudonyms: Pseudonyms) -> list[str]:
    patients = read_dataset(folder, name="x", pseudonyms=pseudonyms).patients
    assert patients is not None
    return patients


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    for i, patient in enumerate(("p1", "p2", "p1", "p3")):
        write_dicom(tmp_path / "archive" / "ab"[i % 2] / f"{i}.dcm", seed=i, PatientID=patient, PatientName="DOE^JANE")
    return tmp_path / "archive"


def test_patient_is_a_hash_that_is_the_same_for_the_same_salt_only(archive: Path, tmp_path: Path) -> None:
    salt = salt_path(tmp_path / "c.h5")
    first = patients_of(archive, Pseudonyms(salt))  # a/0 p1, a/2 p1, b/1 p2, b/3 p3
    assert first[0] == first[1]
    assert len(set(first)) == 3
    assert all(re.fullmatch("[0-9a-f]{16}", patient) for patient in first)
    assert patients_of(archive, Pseudonyms(salt)) == first
    assert set(patients_of(archive, Pseudonyms(tmp_path / "other.salt"))).isdisjoint(first)
    assert set(patients_of(archive, Pseudonyms())).isdisjoint(first)


@pytest.mark.usefixtures("free_backbone")
def test_salt_is_its_owners_only_and_there_only_if_needed(archive: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "clean", ["a/1.png", "b/2.png"])
    extract(tmp_path / "clean", tmp_path / "c.h5", options=RANDOM)
    assert not salt_path(tmp_path / "c.h5").exists()
    extract(archive, tmp_path / "c.h5", options=RANDOM)
    assert stat.S_IMODE(salt_path(tmp_path / "c.h5").stat().st_mode) == 0o600


def test_damaged_salt_is_named(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "c.h5.salt").write_text("abc\n")
    with pytest.raises(CacheError, match=r"c\.h5\.salt: .*(cannot be read|not a salt)"):
        patients_of(archive, Pseudonyms(tmp_path / "c.h5.salt"))


def test_ids_are_kept_if_asked_for(archive: Path) -> None:
    assert patients_of(archive, Pseudonyms(keep_ids=True)) == ["p1", "p1", "p2", "p3"]


def test_site_scanner_sex_and_age_are_attributes(tmp_path: Path) -> None:
    known = {
        "InstitutionName": "St. Elsewhere", "Manufacturer": "Acme", "ManufacturerModelName": "One", "PatientSex": "f",
        "PatientAge": "061Y", "BurnedInAnnotation": "NO",
    }  # fmt: skip
    write_dicom(tmp_path / "a" / "1", **known)
    write_dicom(tmp_path / "b" / "2", seed=1)
    assert read_dataset(tmp_path, name="x").attributes == {
        "site": ["St. Elsewhere", ""], "scanner": ["Acme One", ""], "sex": ["F", ""], "age": ["60-69", ""],
        "burned-in text": ["no", ""],
    }  # fmt: skip


def test_burned_in_text_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_dicom(tmp_path / "a" / "1", BurnedInAnnotation="YES")
    write_dicom(tmp_path / "b" / "2", seed=1, BurnedInAnnotation="NO")
    with caplog.at_level(logging.WARNING):
        dataset = read_dataset(tmp_path, name="x")
    assert dataset.attributes["burned-in text"] == ["yes", "no"]
    assert re.search(
        r"1 of 2 DICOM files have text burned into their pixels, according to their headers \(first: a/1\)", caplog.text
    )


def test_paths_that_tell_the_patient_are_warned_of_without_quoting_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_dicom(tmp_path / "a" / "doe_jane" / "1", PatientID="X-1", PatientName="DOE^JANE")
    write_dicom(tmp_path / "b" / "2", seed=1, PatientID="X-2")
    read_dataset(tmp_path, name="x")
    assert "the paths of 1 DICOM files contain their patient's id, name or birth date" in caplog.text
    assert "doe" not in caplog.text


@pytest.mark.parametrize(
    ("folder", "told"),
    [("born 1937-02-19", True), ("19370219", True), ("ACC-4711-B", True), ("X-2", True), ("1937", False), ("a", False)],
)
def test_birth_dates_and_accession_numbers_in_paths_are_warned_of_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str, told: bool
) -> None:
    known = {
        "PatientID": "X-2",
        "PatientBirthDate": "19370219",
        "AccessionNumber": "ACC-4711-B",
        "PatientName": "LI^BO",
    }
    write_dicom(tmp_path / "a" / folder / "1", **known)
    write_dicom(tmp_path / "b" / "2", seed=1, **known)
    read_dataset(tmp_path, name="x")
    assert ("the paths of 1 DICOM files contain" in caplog.text) == told


def test_name_in_the_path_of_the_dataset_itself_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i, label in enumerate("ab"):
        write_dicom(tmp_path / "study of Doe_Jane" / label / "1", seed=i, PatientID="X-1", PatientName="DOE^JANE")
    read_dataset(tmp_path / "study of Doe_Jane", name="x")
    assert "the paths of 2 DICOM files contain" in caplog.text


def test_files_that_tell_neither_patient_nor_study_are_patients_of_their_own(tmp_path: Path) -> None:
    for i, label in enumerate("aab"):
        write_dicom(tmp_path / label / f"{i}", seed=i, **({"PatientID": "p"} if i == 0 else {}))
    patients = read_dataset(tmp_path, name="x").patients
    assert patients is not None
    assert patients[1:] == ["a/1", "b/2"]


# -- what is no file ----------------------------------------------------------------------------------------------------


def listed_in_time(folder: Path) -> list[str]:
    """List a dataset in another process, which a pipe would hang."""
    code = (
        "import json, sys; from pathlib import Path; from hoarfrost.features.datasets import read_dataset;"
        "print(json.dumps([*read_dataset(Path(sys.argv[1]), name='x').paths]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    paths: list[str] = json.loads(done.stdout)
    return paths


def test_pipes_devices_and_endless_zeros_are_listed_without_waiting_for_them(tmp_path: Path) -> None:
    write_images(tmp_path, ["a/1.png", "b/2.png"])
    for suffix in ("tif", "dcm", "png"):
        os.mkfifo(tmp_path / "a" / f"pipe.{suffix}")
        (tmp_path / "a" / f"zero.{suffix}").symlink_to("/dev/zero")
        (tmp_path / "a" / f"sparse.{suffix}").touch()
        os.truncate(tmp_path / "a" / f"sparse.{suffix}", 1 << 30)
    os.mkfifo(tmp_path / "a" / "pipe")
    names = [f"a/{kind}.{suffix}" for kind in ("pipe", "sparse", "zero") for suffix in ("dcm", "png", "tif")]
    assert listed_in_time(tmp_path) == sorted(["a/1.png", "b/2.png", *names])
