"""`--region`: each image is cut to its box or its mask, with a margin, and embedded in a cache of its own."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.decoding.images import MAX_PIXELS
from hoarfrost.features.errors import DatasetError, FingerprintMismatchError, HoarfrostError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions, ExtractSummary
from hoarfrost.features.extraction.regions import with_regions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import predict_dataset
from tests.support.builders import write_csv
from tests.support.commands import Hoarfrost

BOX = (10, 20, 40, 35)  # x0, y0, x1, y1


def pixels_of(i: int) -> np.ndarray:
    """Return an image of 80 rows and 100 columns, no two pixels of a neighbourhood alike."""
    return np.random.default_rng(i).integers(0, 256, (80, 100), np.uint8)


def write_set(folder: Path, n: int = 12, suffix: str = ".png", box: str | None = "10,20,40,35", **columns: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [["path", "label", *([] if box is None else ["box"]), *columns]]
    for i in range(n):
        Image.fromarray(pixels_of(i)).save(folder / f"{i}{suffix}")
        rows.append(
            [f"{i}{suffix}", "ab"[i % 2], *([] if box is None else [box]), *(c.format(i) for c in columns.values())]
        )
    write_csv(folder / "labels.csv", rows)
    return folder


def spoil_two_boxes(data: Path) -> None:
    """Leave the first image of a set without a box, and put that of the second one outside of it."""
    lines = (data / "labels.csv").read_text().splitlines()
    lines[1], lines[2] = "0.png,a,", '1.png,b,"500,500,600,600"'
    (data / "labels.csv").write_text("\n".join(lines) + "\n")


def write_mask(path: Path, x0: int, y0: int, x1: int, y1: int) -> None:
    mask = np.zeros((80, 100), np.uint8)
    mask[y0:y1, x0:x1] = 255
    Image.fromarray(mask).save(path)


def crops(data: Path, region: str, margin: float = 0.0, **options: object) -> dict[str, np.ndarray]:
    """Return the pixels of each region by path."""
    dataset = with_regions(read_dataset(data), region, margin, max_pixels=MAX_PIXELS, **options)  # type: ignore[arg-type]
    return {dataset.paths[i]: np.asarray(read()) for i, read in dataset.images.contents(range(len(dataset)))}


def extracted(data: Path, cache: Path, region: str | None = "box", **options: object) -> ExtractSummary:
    plain = {"weights": "random:0", "device": "cpu", "precision": "float32", "region": region}
    return extract(data, cache, options=ExtractOptions(**{**plain, **options}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "cell", ["10,20,40,35", "[10, 20, 40, 35]", "10;20;40;35", "10 20 40 35", "10.0,20.0,40.0,35.2", "(10,20,40,35)"]
)
def test_box_is_cut_out_however_it_is_written(tmp_path: Path, cell: str) -> None:
    found = crops(write_set(tmp_path / "d", box=cell), "box")
    np.testing.assert_array_equal(found["3.png"], pixels_of(3)[20:35, 10:40])


def test_margin_is_a_share_of_the_longer_side_and_ends_at_the_image(tmp_path: Path) -> None:
    found = crops(write_set(tmp_path / "d"), "box", 0.5)
    np.testing.assert_array_equal(found["3.png"], pixels_of(3)[5:50, 0:55])


def test_mask_beside_the_image_gives_the_box_around_it(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d", box=None)
    for i in range(12):
        write_mask(data / f"{i}_mask.png", *BOX)
    write_mask(data / "3_mask_1.png", 50, 60, 60, 70)  # a second lesion, as in BUSI
    found = crops(data, "mask")
    np.testing.assert_array_equal(found["2.png"], pixels_of(2)[20:35, 10:40])
    np.testing.assert_array_equal(found["3.png"], pixels_of(3)[20:70, 10:60])


def test_mask_may_be_in_a_column(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d", box=None, mask="masks/m{}.png")
    (data / "masks").mkdir()
    for i in range(12):
        write_mask(data / "masks" / f"m{i}.png", *BOX)
    np.testing.assert_array_equal(crops(data, "mask")["7.png"], pixels_of(7)[20:35, 10:40])


def test_box_of_a_large_jpeg_is_in_its_own_pixels(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    large = np.zeros((1200, 1600, 3), np.uint8)
    large[600:, 800:] = 255
    rows = [["path", "label", "box"]]
    for i in range(2):
        Image.fromarray(large).save(tmp_path / "d" / f"{i}.jpg", quality=95)
        rows.append([f"{i}.jpg", "ab"[i], "808,608,1600,1200"])
    write_csv(tmp_path / "d" / "labels.csv", rows)
    found = crops(tmp_path / "d", "box")["0.jpg"]
    assert found.shape == (592, 792, 3)
    assert found.min() > 240


@pytest.mark.usefixtures("free_backbone")
def test_region_is_an_image_of_its_own_in_a_cache_of_another_fingerprint(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d")
    assert extracted(data, tmp_path / "r.h5").embedded == 12
    with EmbeddingCache(tmp_path / "r.h5") as opened:
        assert (
            opened.header.fingerprint.preprocessing["region"]
            == "cut to its box, with a margin of 0.1 of the longer side"
        )
    with pytest.raises(FingerprintMismatchError, match="preprocessing.region: absent here"):
        extracted(data, tmp_path / "r.h5", None)
    with pytest.raises(FingerprintMismatchError, match="margin of 0.5 of the longer side"):
        extracted(data, tmp_path / "r.h5", margin=0.5)


@pytest.mark.usefixtures("free_backbone")
def test_changed_box_is_embedded_again_and_an_unchanged_one_is_not(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d")
    extracted(data, tmp_path / "r.h5")
    assert extracted(data, tmp_path / "r.h5").embedded == 0
    text = (data / "labels.csv").read_text()
    (data / "labels.csv").write_text(text.replace('"10,20,40,35"', '"10,20,40,36"', 1))
    assert extracted(data, tmp_path / "r.h5").embedded == 1


@pytest.mark.usefixtures("free_backbone")
def test_changed_mask_is_embedded_again(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d", box=None)
    for i in range(12):
        write_mask(data / f"{i}_mask.png", *BOX)
    extracted(data, tmp_path / "r.h5", "mask")
    write_mask(data / "5_mask.png", 0, 0, 50, 50)
    assert extracted(data, tmp_path / "r.h5", "mask").embedded == 1


@pytest.mark.usefixtures("free_backbone")
def test_image_without_a_region_is_listed_with_the_reason(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d")
    spoil_two_boxes(data)
    summary = extracted(data, tmp_path / "r.h5", max_bad=1.0)
    assert summary.errors == (("0.png", "no box"), ("1.png", "the box is outside of the image"))


@pytest.mark.usefixtures("free_backbone")
def test_empty_mask_mask_of_another_size_and_no_mask_are_listed(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d", box=None)
    for i in range(1, 12):
        write_mask(data / f"{i}_mask.png", *(BOX if i > 1 else (0, 0, 0, 0)))
    Image.new("L", (5, 5), 255).save(data / "2_mask.png")
    summary = extracted(data, tmp_path / "r.h5", "mask", max_bad=1.0)
    assert [reason for _, reason in summary.errors] == [
        "no mask", "the mask is empty", "the mask has another size than the image",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("box", "region", "expected"),
    [
        (None, "box", "has no column box"),
        ("10,20,5,35", "box", "is not x0,y0,x1,y1 in pixels with x0 < x1"),
        ("10,20,nan,35", "box", "is not x0,y0,x1,y1"),
        ("10,20", "box", "is not x0,y0,x1,y1"),
        (None, "mask", "has no column mask, and no file NAME_mask"),
    ],
)
def test_dataset_without_regions_is_refused(tmp_path: Path, box: str | None, region: str, expected: str) -> None:
    with pytest.raises(DatasetError, match=expected):
        extracted(write_set(tmp_path / "d", box=box), tmp_path / "r.h5", region)
    assert not (tmp_path / "r.h5").exists()


def test_mask_outside_of_the_folder_is_not_read(tmp_path: Path) -> None:
    write_mask(tmp_path / "secret.png", *BOX)
    with pytest.raises(DatasetError, match=r"the mask \.\./secret.png is outside of"):
        crops(write_set(tmp_path / "d", box=None, mask="../secret.png"), "mask")


def test_margin_needs_a_region(tmp_path: Path) -> None:
    with pytest.raises(HoarfrostError, match="--margin is for --region"):
        extracted(write_set(tmp_path / "d"), tmp_path / "r.h5", None, margin=0.2)


@pytest.mark.usefixtures("free_backbone")
def test_whole_image_and_region_are_used_side_by_side(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    data = write_set(tmp_path / "d", 60)
    caches = [tmp_path / "whole.h5", tmp_path / "region.h5"]
    extracted(data, caches[0], None)
    extracted(data, caches[1])
    run = run_experiment(caches, tmp_path / "run", parse_heads(["logistic"]), ExperimentConfig())
    assert [one.cache for one in run.config.embeddings.of_each] == [str(path) for path in caches]
    assert predict_dataset(caches, tmp_path / "out.csv", run=tmp_path / "run").predicted == 60
    run_experiment(caches[1], tmp_path / "alone", parse_heads(["logistic"]), ExperimentConfig())
    done = hoarfrost("predict", data, "--run", tmp_path / "alone", "--output", tmp_path / "new.csv")
    assert done.status == 1
    assert "The head was trained on regions (each image was cut to its box, with a margin of 0.1" in done.stderr
    assert predict_dataset(caches[1], tmp_path / "new.csv", run=tmp_path / "alone").predicted == 60
