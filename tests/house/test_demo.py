"""The embedded demo set: what is in it, that it is the same every time, and that no one's files are harmed."""

import csv
import shutil
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from hoarfrost.demo import CLASS_SHARES, draw_patient, plan_patients, write_demo
from hoarfrost.demo.phantoms import HEIGHT, SCANNERS, WIDTH, Phantom, draw_anatomy, draw_phantom
from hoarfrost.features.errors import HoarfrostError


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    write_demo(directory, n_images=30, seed=7)
    return directory


def contents(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def table(directory: Path) -> list[dict[str, str]]:
    with (directory / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def phantoms(label: str, n: int) -> list[Phantom]:
    rngs = [np.random.default_rng([31, number]) for number in range(n)]
    return [draw_phantom(draw_anatomy(label, rng), SCANNERS[n % 2], rng) for n, rng in enumerate(rngs)]


# -- what is in it ----------------------------------------------------------------------------------------------------


def test_table_lists_exactly_the_images_that_were_written(demo_set: Path) -> None:
    rows = table(demo_set)
    assert list(rows[0]) == ["path", "label", "patient", "scanner"]
    assert sorted(row["path"] for row in rows) == sorted(contents(demo_set).keys() - {"labels.csv"})
    assert all(row["path"].startswith(f"{row['label']}/{row['patient']}_") for row in rows)


def test_images_are_grey_8_bit_pngs(demo_set: Path) -> None:
    for name, content in contents(demo_set).items():
        if name == "labels.csv":
            continue
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        size = (int.from_bytes(content[16:20]), int.from_bytes(content[20:24]))
        assert (*size, content[24], content[25]) == (WIDTH, HEIGHT, 8, 0)  # bit depth, colour type grey


def test_summary_counts_what_was_written(tmp_path: Path) -> None:
    summary = write_demo(tmp_path, n_images=31)
    rows = table(tmp_path)
    assert (summary.directory, summary.n_images, len(rows)) == (tmp_path, 31, 31)
    assert summary.n_patients == len({row["patient"] for row in rows})
    assert summary.n_images_by_class == {c: sum(row["label"] == c for row in rows) for c in CLASS_SHARES}


@pytest.mark.parametrize("n_images", [30, 31, 97, 480])
def test_classes_get_their_shares_of_the_images(n_images: int) -> None:
    counts = dict.fromkeys(CLASS_SHARES, 0)
    for patient in plan_patients(n_images, seed=0):
        counts[patient.label] += patient.n_images
    assert sum(counts.values()) == n_images
    assert all(abs(counts[label] - share * n_images) <= 1 for label, share in CLASS_SHARES.items())


def test_every_patient_has_one_class_and_one_to_four_images() -> None:
    rows = [(path, patient) for patient in plan_patients(480, seed=0) for path in patient.paths]
    labels, paths = defaultdict(set), defaultdict(set)
    for path, patient in rows:
        labels[patient.name].add(patient.label)
        paths[patient.name].add(path)
    assert {len(found) for found in labels.values()} == {1}
    assert {len(found) for found in paths.values()} == {1, 2, 3, 4}
    assert len(set.union(*paths.values())) == 480


@pytest.mark.parametrize("seed", range(20))
def test_smallest_set_has_three_patients_of_each_class_to_split(seed: int) -> None:
    labels = [patient.label for patient in plan_patients(30, seed)]
    assert min(labels.count(label) for label in CLASS_SHARES) >= 3


@pytest.mark.parametrize("seed", range(5))
def test_scanner_is_spread_evenly_over_classes(seed: int) -> None:
    patients = plan_patients(480, seed)
    for label in CLASS_SHARES:
        images = {scanner.name: 0 for scanner in SCANNERS}
        for patient in patients:
            if patient.label == label:
                images[patient.scanner.name] += patient.n_images
        assert 0.45 < images["A"] / sum(images.values()) < 0.55


def test_patient_numbers_do_not_tell_the_class() -> None:
    patients = plan_patients(480, seed=0)
    malignant = [number for number, patient in enumerate(patients) if patient.label == "malignant"]
    assert np.mean(malignant) / len(patients) == pytest.approx(0.5, abs=0.1)


# -- the same every time ----------------------------------------------------------------------------------------------


def test_same_seed_gives_the_same_bytes(demo_set: Path, tmp_path: Path) -> None:
    write_demo(tmp_path, n_images=30, seed=7)
    assert contents(tmp_path) == contents(demo_set)


def test_another_seed_gives_other_images(demo_set: Path, tmp_path: Path) -> None:
    write_demo(tmp_path, n_images=30, seed=8)
    assert not set(contents(tmp_path).values()) & set(contents(demo_set).values())


def test_no_image_occurs_twice(demo_set: Path) -> None:
    assert len(set(contents(demo_set).values())) == 31  # and the table


def test_patient_is_drawn_alike_alone_and_after_others() -> None:
    patients = plan_patients(30, seed=7)
    alone = [phantom.image for phantom in draw_patient(patients[-1])]
    after_others = [[phantom.image for phantom in draw_patient(patient)] for patient in patients][-1]
    np.testing.assert_array_equal(alone, after_others)


@pytest.mark.slow
def test_demo_is_written_in_under_ten_seconds_on_two_cores(tmp_path: Path) -> None:
    start = time.process_time()  # of all threads, and of no other process that keeps the cores busy
    write_demo(tmp_path)
    assert time.process_time() - start < 20


# -- files that are there already -------------------------------------------------------------------------------------


def test_second_writing_touches_no_file(demo_set: Path) -> None:
    def stamps() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in demo_set.rglob("*")}

    before = stamps()
    write_demo(demo_set, n_images=30, seed=7)
    assert stamps() == before


def test_smaller_set_leaves_no_image_of_a_larger_one(demo_set: Path, tmp_path: Path) -> None:
    write_demo(tmp_path, n_images=60, seed=1)
    write_demo(tmp_path, n_images=30, seed=7)
    assert contents(tmp_path) == contents(demo_set)


def test_interrupted_writing_is_completed(demo_set: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "demo"
    shutil.copytree(demo_set, unfinished)
    (unfinished / "labels.csv").unlink()
    first, second, *_ = sorted((unfinished / "benign").iterdir())
    first.rename(f"{first}.4711.tmp")
    second.write_bytes(second.read_bytes()[:100])
    write_demo(unfinished, n_images=30, seed=7)
    assert contents(unfinished) == contents(demo_set)


def test_other_files_in_a_demo_folder_are_left_alone(demo_set: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_set, tmp_path / "demo")
    notes = tmp_path / "demo" / "benign" / "notes.txt"
    notes.write_text("mine")
    write_demo(tmp_path / "demo", n_images=30, seed=8)
    assert notes.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("thesis.txt", "years of work"),
        ("benign/benign (1).png", "someone's image"),
        ("labels.csv", "path,label\nscan1.png,benign\n"),
        ("labels.csv", "path,label,patient,scanner\nscan1.png,benign,p001,A\n"),
        ("labels.csv", ""),
    ],
)
def test_folder_that_is_not_a_demo_set_is_refused(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    with pytest.raises(
        HoarfrostError, match=r"not empty and does not contain a demo set.*Choose a new or an empty folder"
    ):
        write_demo(tmp_path, n_images=30)
    assert contents(tmp_path) == {name: text.encode()}


def test_table_that_was_edited_is_not_taken_for_a_demo_sets(tmp_path: Path) -> None:
    write_demo(tmp_path, n_images=30)
    table = (tmp_path / "labels.csv").read_text()
    for edited in (
        table.replace(",A\n", ",Z\n", 1),
        table.replace("benign/p", "malignant/p", 1),
        table.replace(",p0", ",q0", 1),
    ):
        (tmp_path / "labels.csv").write_text(edited)
        with pytest.raises(HoarfrostError, match="does not contain a demo set"):
            write_demo(tmp_path, n_images=30)
        assert (tmp_path / "labels.csv").read_text() == edited


def test_demo_set_that_is_replaced_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_demo(tmp_path, n_images=31)
    assert not caplog.records
    write_demo(tmp_path, n_images=31)
    assert not caplog.records
    write_demo(tmp_path, n_images=30)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: another demo set, of 31 images, is replaced by this one of 30"
    ]


def test_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("a file")
    with pytest.raises(HoarfrostError, match=r"demo is a file\. The demo set needs a folder"):
        write_demo(tmp_path / "demo", n_images=30)


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(HoarfrostError, match=r"file/demo: the demo set cannot be written: Not a directory"):
        write_demo(tmp_path / "file" / "demo", n_images=30)


def test_too_few_images_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(HoarfrostError, match=r"29 images are too few .* Use 30 or more"):
        write_demo(tmp_path / "demo", n_images=29)
    assert not (tmp_path / "demo").exists()


# -- the phantoms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", CLASS_SHARES)
def test_phantom_is_a_grey_image_with_a_mask_of_its_size(label: str) -> None:
    for phantom in phantoms(label, 4):
        assert phantom.image.shape == phantom.lesion_mask.shape == (HEIGHT, WIDTH)
        assert phantom.image.dtype == np.uint8
        assert phantom.lesion_mask.dtype == np.bool_
        assert phantom.lesion_mask.any() == (label != "normal")


@pytest.mark.parametrize("label", ["benign", "malignant"])
def test_lesion_mask_covers_what_is_darker_than_its_surroundings(label: str) -> None:
    for phantom in phantoms(label, 12):
        inside, mask = phantom.image[phantom.lesion_mask], phantom.lesion_mask
        near, far = (ndimage.binary_dilation(mask, iterations=n) for n in (2, 12))
        assert inside.mean() < phantom.image[far & ~near].mean()


def test_lesion_mask_is_one_piece_within_the_image() -> None:
    for phantom in phantoms("malignant", 12):
        pieces, _ = ndimage.label(phantom.lesion_mask)
        assert np.bincount(pieces[pieces > 0]).max() > 0.98 * phantom.lesion_mask.sum()  # a spike's tip may be cut off
        assert 0.01 < phantom.lesion_mask.mean() < 0.3


def test_attenuating_lesion_casts_a_shadow_and_fluid_brightens_what_lies_behind() -> None:
    rng = np.random.default_rng(5)
    anatomy = draw_anatomy("benign", rng)
    assert anatomy.lesion is not None
    brightness = []
    for attenuation_db in (-20, 0, 20):
        lesion = replace(anatomy.lesion, attenuation_db=attenuation_db)
        phantom = draw_phantom(replace(anatomy, lesion=lesion), SCANNERS[0], np.random.default_rng(6))
        behind = np.maximum.accumulate(phantom.lesion_mask, axis=0) & ~phantom.lesion_mask
        brightness.append(phantom.image[behind].mean())
    assert brightness[0] > brightness[1] + 10 > brightness[2] + 20


def test_scanners_show_the_same_anatomy_with_different_grain() -> None:
    anatomy = draw_anatomy("normal", np.random.default_rng(5))
    grain = []
    for scanner in SCANNERS:
        image = draw_phantom(anatomy, scanner, np.random.default_rng(6)).image.astype(float)
        fine = image - ndimage.gaussian_filter(image, 3)
        grain.append(np.mean(fine[:, 1:] * fine[:, :-1]) / fine.var())  # correlation of neighbours in a row
    assert grain[1] > grain[0] + 0.03


def test_malignant_lesions_are_taller_and_rougher_than_benign_ones() -> None:
    def means(label: str) -> tuple[float, float]:
        lesions = [draw_anatomy(label, np.random.default_rng([3, n])).lesion for n in range(60)]
        found = [lesion for lesion in lesions if lesion is not None]
        return float(np.mean([x.tallness for x in found])), float(np.mean([x.spiculation for x in found]))

    (benign_tallness, benign_roughness), (tallness, roughness) = means("benign"), means("malignant")
    assert tallness > benign_tallness
    assert roughness > benign_roughness
