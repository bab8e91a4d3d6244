"""The report's pictures: the right ones, of images that are still what was embedded, and none where none are wanted."""

import io
import os
import re
from base64 import b64decode
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoarfrost.evaluation.leakage import Leakage, SimilarPair
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.decoding.images import encode_png
from hoarfrost.features.decoding.pictures import thumbnail
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.extraction.extract import extract
from hoarfrost.inference.sources import RunSource
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.gallery import N_CASES, PICTURES_BYTES, Case, CaseGroup, groups_of, read_pictures
from hoarfrost.report.look import ImagesSection, look_of
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Run
from tests.extraction.test_extract import RANDOM
from tests.support.builders import encode, picture, write_npz
from tests.support.commands import Hoarfrost
from tests.support.dicoms import dicom, encoded, grey_values
from tests.support.pictured import image_dataset, pictured_run, trained, without_images, write_pictured_cache

HOSTILE = "<img src=x onerror=alert(1)>"
BREAKOUT = '"]}</script><script>alert(2)</script>'


def looked(run: Run, *, with_images: bool = True) -> ImagesSection:
    return look_of(run, with_images=with_images, with_map=False)


def shown_paths(look: ImagesSection) -> set[str]:
    return {case.path for group in look.groups.values() for cases in group.cases for case in cases}


def html_of(run: Run) -> str:
    return write_report(run.directory, with_map=False).read_text(encoding="utf-8")


def threshold_of(run: Run) -> float:
    test = run.head(run.selected).test
    assert test is not None
    (threshold,) = test.thresholds
    return threshold


def test_errors_are_those_of_the_test_split_the_most_confident_first(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    p, threshold = run.predictions.probabilities[run.selected][:, 1], threshold_of(run)
    wrong = [
        (abs(p[i] - threshold), run.predictions.paths[i])
        for i, split in enumerate(run.predictions.splits)
        if split == "test" and (p[i] >= threshold) != run.y_true()[i]
    ]
    errors = looked(run).groups["errors"]
    assert [cases[0].path for cases in errors.cases] == [path for _, path in sorted(wrong, reverse=True)][:N_CASES]
    assert errors.note.startswith(f"Wrong predictions of {run.selected} on the ")


def test_least_certain_are_those_nearest_to_the_threshold(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    p = run.predictions.probabilities[run.selected]
    margins = {
        run.predictions.paths[i]: abs(p[i, 1] - threshold_of(run))
        for i, split in enumerate(run.predictions.splits)
        if split == "test"
    }
    unsure = looked(run).groups["unsure"]
    assert [cases[0].path for cases in unsure.cases] == sorted(margins, key=margins.__getitem__)[:N_CASES]


def test_each_image_is_a_jpeg_of_its_own_file(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    look = looked(run)
    assert look.pictures.uris.keys() == shown_paths(look)
    assert not look.pictures.reasons
    for path, uri in look.pictures.uris.items():
        assert uri.startswith("data:image/jpeg;base64,")
        assert b64decode(uri.partition(",")[2]) == thumbnail((tmp_path / "images" / path).read_bytes(), None)


@pytest.mark.usefixtures("free_backbone")
@pytest.mark.parametrize("window", [None, Window(900, 300)])
def test_dicom_is_shown_through_the_window_that_the_backbone_saw_it_through(
    tmp_path: Path, window: Window | None
) -> None:
    for i, label in enumerate("ab"):
        (tmp_path / "scans" / label).mkdir(parents=True)
        (tmp_path / "scans" / label / "1.dcm").write_bytes(
            encoded(dicom(grey_values(seed=i), bits=12, WindowCenter=2000, WindowWidth=4000))
        )
    extract(tmp_path / "scans", tmp_path / "c.h5", options=replace(RANDOM, window=window))
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        table = cache.dataset()
        cases = tuple((Case(path, ()),) for path in table.paths)
        source = RunSource(cache, table, {path: i for i, path in enumerate(table.paths)})
        pictures = read_pictures(source, [CaseGroup("x", "", cases)])
    content = (tmp_path / "scans" / "a" / "1.dcm").read_bytes()
    assert b64decode(pictures.uris["a/1.dcm"].partition(",")[2]) == thumbnail(content, None, window)
    assert (thumbnail(content, None, window) == thumbnail(content, None)) == (window is None)


def test_picture_of_a_large_photograph_is_small_and_carries_no_metadata() -> None:
    exif = Image.Exif()
    exif[0x010E] = "Jane Doe"
    content = thumbnail(encode(picture(900, 600), "JPEG", exif=exif), 128)
    with Image.open(io.BytesIO(content)) as image:
        assert max(image.size) == 128
        assert not image.getexif()
    assert b"Jane" not in content
    assert len(content) < 10_000


def test_picture_has_the_pixels_of_its_file_or_as_many_as_its_bytes_allow() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1500, 3), np.uint8)
    for most_bytes in (10_000, 100_000, None):
        content = thumbnail(noise, None, most_bytes=most_bytes)
        with Image.open(io.BytesIO(content)) as image:
            if most_bytes is None:
                assert image.size == (1500, 1000)
            else:
                assert 0.1 * most_bytes < len(content) <= most_bytes
                assert image.width / image.height == pytest.approx(1.5, rel=0.05)


def test_large_images_share_the_bytes_of_the_page(tmp_path: Path) -> None:
    dataset = image_dataset(tmp_path / "images", n=40)
    rng = np.random.default_rng(0)
    for path in dataset.paths:  # noise: nothing compresses worse
        (tmp_path / "images" / path).write_bytes(encode_png(rng.integers(0, 256, (1200, 900), np.uint8)))
    run = trained(write_pictured_cache(tmp_path / "c.h5", dataset, distance=0.01), tmp_path / "run")
    uris = looked(run).pictures.uris
    assert len(uris) >= 5
    assert sum(len(b64decode(uri.partition(",")[2])) for uri in uris.values()) <= PICTURES_BYTES


def test_only_images_that_are_shown_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hoarfrost.features.datasets import table

    run, read = pictured_run(tmp_path), []
    original = table.read
    monkeypatch.setattr(table, "read", lambda path: read.append(path) or original(path))
    look = looked(run)
    root = os.path.realpath(tmp_path / "images")
    assert sorted(read) == sorted(f"{root}/{path}" for path in shown_paths(look))
    assert len(read) < len(run.predictions.paths)


def test_changed_file_is_not_shown_and_the_page_says_so(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    path = sorted(shown_paths(looked(run)))[0]
    (tmp_path / "images" / path).write_bytes(encode(picture(12, 10, seed=999)))
    look = looked(run)
    assert path not in look.pictures.uris
    assert look.pictures.reasons == {path: "its content is not what was embedded"}
    assert "No image: its content is not what was embedded." in html_of(run)


def test_file_that_is_gone_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    path = sorted(shown_paths(looked(run)))[0]
    (tmp_path / "images" / path).unlink()
    look = looked(run)
    assert look.pictures.reasons == {path: "the file no longer exists"}
    assert look.pictures.uris.keys() == shown_paths(look) - {path}


def test_images_that_were_embedded_anew_as_others_after_training_are_not_shown(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    facts = replace(run.config.embeddings, digest="0" * 64)
    look = looked(replace(run, config=replace(run.config, embeddings=facts)))
    assert not look.pictures.uris
    assert "was extracted again after the heads were trained, and some images have changed" in look.pictures.note
    assert look.map is None


def test_a_copy_extracted_anew_with_the_same_bytes_is_shown(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    for image in (tmp_path / "images").rglob("*.png"):
        os.utime(image, (2e9, 2e9))
    write_pictured_cache(tmp_path / "c.h5", image_dataset(tmp_path / "images"))
    assert looked(run).pictures.uris.keys() == shown_paths(looked(run))


def test_missing_images_leave_the_captions_and_the_way_back(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    without_images(tmp_path)
    html = html_of(run)
    assert f"{tmp_path}/images: no such folder or npz file. The images were read from there. Copy them back" in html
    assert "hoarfrost extract PLACE --cache" in html
    assert "data:image" not in html
    assert all(f"<code>{path}</code>" in html.replace("<wbr>", "") for path in shown_paths(looked(run)))


def test_map_is_left_out_where_it_is_not_wanted(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    run = pictured_run(tmp_path)
    assert hoarfrost("report", "--run", run.directory, "--no-map").status == 0
    html = (run.directory / "report.html").read_text(encoding="utf-8")
    assert "The map is missing. This report was written with --no-map." in html
    assert "map-data" not in html
    assert "data:image" in html


def test_missing_cache_leaves_no_picture_and_no_map(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    (tmp_path / "c.h5").rename(tmp_path / "moved.h5")
    html = html_of(run)
    assert "Images are not shown, because they cannot be checked for changes." in html
    assert f"The map is missing. The cache {tmp_path}/c.h5 no longer exists." in html
    assert "data:image" not in html


@pytest.mark.parametrize("compressed", [True, False], ids=["compressed", "stored"])
def test_rows_of_an_npz_are_shown(tmp_path: Path, compressed: bool) -> None:
    arrays = write_npz(tmp_path / "m.npz", {"train": 60, "val": 20, "test": 30}, compressed=compressed)
    cache = write_pictured_cache(tmp_path / "c.h5", read_dataset(tmp_path / "m.npz"))
    look = looked(trained(cache, tmp_path / "run"))
    assert look.pictures.uris.keys() == shown_paths(look)
    path = next(path for path in look.pictures.uris if "/test/" in path)
    with Image.open(io.BytesIO(b64decode(look.pictures.uris[path].partition(",")[2]))) as shown:
        mean = np.asarray(shown).astype(float)
    assert abs(mean - arrays["test_images"][int(path.rpartition("/")[2])]).mean() < 20  # JPEG of noise


def test_npz_whose_rows_changed_is_not_shown(tmp_path: Path) -> None:
    write_npz(tmp_path / "m.npz", {"train": 60, "val": 20, "test": 30})
    cache = write_pictured_cache(tmp_path / "c.h5", read_dataset(tmp_path / "m.npz"))
    run = trained(cache, tmp_path / "run")
    write_npz(tmp_path / "m.npz", {"train": 60, "val": 20, "test": 30}, shape=(20, 20))
    look = looked(run)
    assert not look.pictures.uris
    assert set(look.pictures.reasons.values()) == {"its content is not what was embedded"}


def test_no_images_leaves_no_pixel_and_reads_none(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    run = pictured_run(tmp_path)
    assert "data:image" in html_of(run)
    assert hoarfrost("report", "--run", run.directory, "--no-images").status == 0
    html = (run.directory / "report.html").read_text(encoding="utf-8")
    assert "data:image" not in html
    assert "<img" not in html
    assert "This report is without images (--no-images)." in html


def test_captions_hold_path_labels_and_probabilities_alone(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    for group in looked(run).groups.values():
        for case in (case for cases in group.cases for case in cases):
            for line in case.lines:
                caption = r"((train|validation|test), )?(label|predicted) (benign|malignant)(, [01]\.\d{3})?"
                assert re.fullmatch(caption, line)


def test_patients_are_in_no_caption(tmp_path: Path) -> None:
    run = pictured_run(tmp_path, patients=[f"Jane Doe {i}" for i in range(80)])
    html = html_of(run)
    assert "Jane Doe" not in html[html.index('<h2 id="look">') : html.index('<h2 id="provenance">')]


def test_near_duplicates_are_shown_in_pairs(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    first = next(p for p, s in zip(run.predictions.paths, run.predictions.splits, strict=True) if s == "train")
    second = next(p for p, s in zip(run.predictions.paths, run.predictions.splits, strict=True) if s == "test")
    pair = SimilarPair(first, "train", second, "test", 0.9987)
    run = replace(run, leakage=Leakage(0, (), 0, (), 1, (pair,), 0.99))
    look = looked(run)
    group = look.groups["duplicates"]
    assert [[case.path for case in cases] for cases in group.cases] == [[first, second]]
    assert group.cases[0][1].lines[-1] == "cosine 0.999"
    assert {first, second} <= look.pictures.uris.keys()


def test_suspect_labels_are_shown(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    assert run.suspects is not None
    group = looked(run).groups["suspects"]
    assert [cases[0].path for cases in group.cases] == [image.path for image in run.suspects.images[:N_CASES]]


def test_several_labels_an_image_have_an_answer_each(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {name: [str(v) for v in rng.integers(0, 2, 80)] for name in ("effusion", "mass")}
    dataset = image_dataset(tmp_path / "images", attributes=columns)
    run = trained(write_pictured_cache(tmp_path / "c.h5", dataset), tmp_path / "run", label_columns=())
    lines = [
        case.lines for group in groups_of(run, evaluation_of(run)).values() for cases in group.cases for case in cases
    ]
    assert any(re.fullmatch("(effusion|mass): (yes|no)", first) for first, *_ in lines)
    assert looked(run).pictures.uris


def test_hostile_names_appear_as_text_beside_pictures(tmp_path: Path) -> None:
    names = [f"{HOSTILE}{BREAKOUT}{i}.png" for i in range(80)]
    dataset = image_dataset(tmp_path / "images", labels=(HOSTILE, BREAKOUT))
    hostile = image_dataset(
        tmp_path / "images", labels=(HOSTILE, BREAKOUT), attributes={HOSTILE: [HOSTILE, BREAKOUT] * 40}
    )
    for path, name in zip(dataset.paths, names, strict=True):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / path).rename(tmp_path / "images" / name)
    hostile = replace(hostile, paths=names, images=replace(hostile.images, files=names))  # type: ignore[type-var]
    run = trained(write_pictured_cache(tmp_path / "c.h5", hostile), tmp_path / "run")
    html = write_report(run.directory).read_text(encoding="utf-8")
    images = re.findall(r"<img [^>]*>", html)
    assert images
    assert all(image.startswith('<img src="data:image/jpeg;base64,') for image in images)
    assert "<script>alert" not in html
    assert html.count("<script") == html.count("</script>") == 4
    assert "data:image" in html


def test_report_with_all_its_images_is_under_three_megabytes(tmp_path: Path) -> None:
    dataset = image_dataset(tmp_path / "images", n=200)
    rng = np.random.default_rng(0)
    for path in dataset.paths:  # noise: nothing compresses worse
        (tmp_path / "images" / path).write_bytes(encode_png(rng.integers(0, 256, (200, 200, 3), np.uint8)))
    run = trained(write_pictured_cache(tmp_path / "c.h5", dataset, distance=0.01), tmp_path / "run")
    assert len(looked(run).pictures.uris) >= 20
    assert write_report(run.directory).stat().st_size < 3_000_000


def test_report_with_pictures_and_map_is_the_same_bytes_twice(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    assert write_report(run.directory).read_bytes() == write_report(run.directory).read_bytes()
