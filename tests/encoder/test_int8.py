"""The network in 8-bit integers: near float32's, calibrated once a cache, and refused where it cannot run."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

import hoarfrost.features.encoder.backbone.int8
from hoarfrost.features.cache import EmbeddingCache, Header, existing_header
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.encoder.backbone import Backbone, Weights, load_weights
from hoarfrost.features.encoder.backbone.int8 import PREFIX, ROUNDING, calibrated, calibrated_precision
from hoarfrost.features.encoder.backbone.rounding import rounded
from hoarfrost.features.errors import FingerprintMismatchError, HoarfrostError, ImageDecodeError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.loop import sample_images
from hoarfrost.features.extraction.plan import ExtractOptions, ExtractSummary
from tests.support.builders import SHARED_DATA, encode, picture, write_image_folder
from tests.support.commands import RunPython

pytest.importorskip("openvino")

BUSI = SHARED_DATA / "busi"


def some_images() -> torch.Tensor:
    """Make 24 images of four kinds: colourful, grey, noise, and stripes from fine to coarse."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    images = []
    for i in range(6):
        stripes = 127 + 120 * np.sin(x / (2 + i)) * np.cos(y / (3 + i))
        images += [
            load_image(encode(picture(200 + 20 * i, 200, seed=i))),
            load_image(encode(picture(60, 80, seed=i).convert("L"))),
            load_image(rng.integers(0, 256 - 40 * i, (50 + i, 60, 3), np.uint8)),
            load_image(stripes.astype(np.uint8)),
        ]
    return torch.stack([image.expand(3, -1, -1) for image in images])  # (24, 3, 224, 224)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:0")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return some_images()


@pytest.fixture(scope="module")
def precision(weights: Weights, images: torch.Tensor) -> str:
    """Calibrate on half of the images: three of each kind."""
    return calibrated_precision(weights, torch.cat([images[start : start + 4] for start in (0, 8, 16)]))


@pytest.fixture(scope="module")
def backbone(weights: Weights, precision: str) -> Backbone:
    return Backbone(weights, precision=precision)


@pytest.fixture(scope="module")
def embeddings(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    return backbone.embed(images)


@pytest.fixture(scope="module")
def in_float32(weights: Weights, images: torch.Tensor) -> torch.Tensor:
    return Backbone(weights).embed(images)


# -- embeddings ---------------------------------------------------------------------------------------------------------


def test_every_embedding_is_near_float32s(embeddings: torch.Tensor, in_float32: torch.Tensor) -> None:
    assert (embeddings.shape, embeddings.dtype) == ((24, 512), torch.float32)
    assert (F.cosine_similarity(embeddings, in_float32) >= 0.99).all()


def test_images_differ_as_they_do_in_float32(embeddings: torch.Tensor, in_float32: torch.Tensor) -> None:
    """Untrained networks give all images much the same direction: the differences from it must agree too."""
    mean = in_float32.mean(0)
    assert (F.cosine_similarity(embeddings - mean, in_float32 - mean) >= 0.95).all()


@pytest.mark.parametrize("n_images", [1, 3, 8, 9])
def test_an_embeddings_bits_do_not_depend_on_the_number_of_images(
    backbone: Backbone, images: torch.Tensor, embeddings: torch.Tensor, n_images: int
) -> None:
    assert torch.equal(backbone.embed(images[-n_images:]), embeddings[-n_images:])


def test_an_embeddings_bits_do_not_depend_on_its_batch_mates(
    backbone: Backbone, images: torch.Tensor, embeddings: torch.Tensor
) -> None:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    assert torch.equal(backbone.embed(images[order]), embeddings[order])


def test_another_backbone_of_the_same_calibration_gives_the_same_bits(
    weights: Weights, precision: str, images: torch.Tensor, embeddings: torch.Tensor
) -> None:
    assert torch.equal(Backbone(weights, precision=precision).embed(images[:2]), embeddings[:2])


def test_an_embedding_stays_as_it_was_when_the_next_is_computed(backbone: Backbone, images: torch.Tensor) -> None:
    first = backbone.embed(images[:1])
    before = first.clone()
    backbone.embed(images[1:2])
    assert torch.equal(first, before)


# -- calibration --------------------------------------------------------------------------------------------------------


def ranges_of(precision: str) -> list[float]:
    return [float(value) for value in precision.removeprefix(f"{PREFIX}{ROUNDING},").split(",")]


def test_calibration_is_one_range_for_each_of_the_sixteen_convolutions_in_blocks(precision: str) -> None:
    assert precision.startswith("int8:")
    assert len(ranges_of(precision)) == 16
    assert min(ranges_of(precision)) > 0


def test_calibration_does_not_depend_on_the_images_order(weights: Weights, images: torch.Tensor) -> None:
    assert calibrated_precision(weights, images[:10]) == calibrated_precision(weights, images[:10].flip(0))


def test_calibration_covers_what_every_image_gives(weights: Weights, images: torch.Tensor) -> None:
    """The ranges of two halves, taken together, are those of the whole."""
    whole, *halves = (ranges_of(calibrated_precision(weights, part)) for part in (images, images[:12], images[12:]))
    np.testing.assert_allclose(np.maximum(*halves), whole, rtol=1e-3)


def test_the_network_of_earlier_versions_is_still_there(
    weights: Weights, precision: str, images: torch.Tensor, embeddings: torch.Tensor, in_float32: torch.Tensor
) -> None:
    earlier = Backbone(weights, precision=precision.replace(f"{ROUNDING},", "")).embed(images)
    assert not torch.equal(earlier, embeddings)
    assert (F.cosine_similarity(earlier, in_float32) >= 0.99).all()


def test_kernels_keep_their_sums() -> None:
    weight = np.random.default_rng(0).normal(size=(16, 8, 3, 3)).astype(np.float32)
    weight[3] = 0
    step = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    found = rounded(weight)
    whole = np.divide(found, step, out=np.zeros_like(found), where=step > 0)
    np.testing.assert_allclose(whole, np.rint(whole), atol=1e-4)
    assert np.abs(whole).max() < 127.01
    error = (found - weight) / np.where(step > 0, step, 1)
    assert np.abs(error).max() < 1
    assert np.abs(error.sum((2, 3))).max() < 0.51
    nearest = np.rint(weight / np.where(step > 0, step, 1)) * step - weight
    assert np.abs(error.sum((2, 3))).mean() < 0.6 * np.abs((nearest / np.where(step > 0, step, 1)).sum((2, 3))).mean()


def test_drift_is_measured_on_images_that_the_calibration_did_not_see(weights: Weights, images: torch.Tensor) -> None:
    many = torch.cat([images, images.flip(3)])  # 48
    precision, drift = calibrated(weights, many)
    held = torch.arange(48) % 4 == 0
    assert precision == calibrated_precision(weights, many[~held])
    in_int8, in_float32 = Backbone(weights, precision=precision).embed(many[held]), Backbone(weights).embed(many[held])
    cosines = F.cosine_similarity(in_int8.double(), in_float32.double())
    centred = F.cosine_similarity((in_int8 - in_float32.mean(0)).double(), (in_float32 - in_float32.mean(0)).double())
    found = [drift.mean, drift.least, drift.centred_mean, drift.centred_least]
    expected = [float(f(one)) for one in (cosines, centred) for f in (torch.mean, torch.min)]
    np.testing.assert_allclose(found, expected, atol=1e-3)
    assert drift.images == 12
    assert calibrated(weights, images)[1].images == 24  # too few to hold some back


# -- extract ------------------------------------------------------------------------------------------------------------


def run(folder: Path, **options: object) -> ExtractSummary:
    values = {"weights": "random:0", "device": "cpu", "precision": "int8", "batch_size": 4, **options}
    return extract(folder, folder.parent / "c.h5", options=ExtractOptions(**values))  # type: ignore[arg-type]


def header(folder: Path) -> Header:
    started = existing_header(folder.parent / "c.h5")
    assert started is not None
    return started


def write_six_images(folder: Path) -> Path:
    return write_image_folder(folder / "images", {"benign": 3, "malignant": 3}, size=(50, 40))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images, and no cache."""
    return write_six_images(tmp_path)


@pytest.fixture(scope="module")
def extracted_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExtractSummary]:
    folder = write_six_images(tmp_path_factory.mktemp("extracted"))
    return folder, run(folder)


@pytest.fixture
def extracted(extracted_once: tuple[Path, ExtractSummary], tmp_path: Path) -> Path:
    """Six images, and a cache of them in 8-bit integers."""
    shutil.copytree(extracted_once[0].parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "images"


def add_images(folder: Path) -> None:
    (folder / "benign" / "new.png").write_bytes(encode(picture(70, 60, seed=70)))
    (folder / "malignant" / "new.png").write_bytes(encode(picture(60, 70, seed=71)))


def test_a_cache_records_its_calibration(extracted_once: tuple[Path, ExtractSummary]) -> None:
    folder, summary = extracted_once
    assert (summary.embedded, summary.device, summary.precision[:5]) == (6, "cpu", "int8:")
    assert (header(folder).fingerprint.precision, header(folder).compute) == (summary.precision, "openvino")
    assert header(folder).drift == summary.drift
    assert summary.drift is not None
    assert 0.9 < summary.drift.centred_least <= summary.drift.centred_mean <= 1


def test_the_cache_holds_the_calibrated_networks_embeddings(weights: Weights, extracted: Path) -> None:
    images = sample_images(read_dataset(extracted))  # all six, in order
    expected = Backbone(weights, precision=header(extracted).fingerprint.precision).embed(images)
    with EmbeddingCache(extracted.parent / "c.h5") as cache:
        embeddings, _ = cache.arrays(cache.dataset())
    np.testing.assert_array_equal(embeddings, expected.numpy())


@pytest.mark.parametrize("precision", ["int8", "auto", "fast"])
def test_more_images_keep_the_calibration_and_the_embeddings(
    extracted: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    before = header(extracted).fingerprint
    add_images(extracted)
    monkeypatch.delattr(hoarfrost.features.encoder.backbone.int8, "calibrated_precision")  # not needed
    summary = run(extracted, precision=precision)
    assert (summary.embedded, summary.reused) == (2, 6)
    assert (summary.fingerprint, summary.precision) == (before.digest, before.precision)
    assert header(extracted).fingerprint == before
    assert summary.drift == header(extracted).drift is not None


def test_an_interrupted_extraction_continues_with_its_calibration(folder: Path) -> None:
    (folder / "malignant" / "zzz.png").write_text("no image")
    with pytest.raises(ImageDecodeError, match="malignant/zzz.png: no image format recognised"):
        run(folder, on_error="fail", batch_size=2)
    started = header(folder).fingerprint
    add_images(folder)
    summary = run(folder)
    assert (summary.fingerprint, summary.reused, summary.failed) == (started.digest, 6, 1)


def test_another_precision_is_refused_on_a_cache_of_8_bit_integers(extracted: Path) -> None:
    add_images(extracted)
    with pytest.raises(FingerprintMismatchError, match="precision: float32 here, int8:.* there"):
        run(extracted, precision="float32")


def test_8_bit_integers_are_refused_on_a_cache_of_float32(folder: Path) -> None:
    run(folder, precision="float32")
    with pytest.raises(FingerprintMismatchError, match="precision: int8:.* here, float32 there"):
        run(folder)


def test_a_folder_without_a_readable_image_cannot_be_calibrated_on(folder: Path) -> None:
    for path in folder.rglob("*.png"):
        path.write_text("no image")
    with pytest.raises(HoarfrostError, match="none of the 6 sampled images could be read"):
        run(folder)
    assert not (folder.parent / "c.h5").exists()


# -- where it cannot run ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_another_device_than_the_cpu_is_refused(weights: Weights, precision: str, device: str) -> None:
    with pytest.raises(HoarfrostError, match=f"int8 runs on the CPU, not on {device}. Pass --device cpu with it"):
        Backbone(weights, device=device, precision=precision)


@pytest.fixture
def without_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = SimpleNamespace(util=SimpleNamespace(find_spec=lambda _: None))
    monkeypatch.setattr(hoarfrost.features.encoder.backbone.int8, "importlib", missing)


@pytest.mark.usefixtures("without_openvino")
def test_without_openvino_the_error_names_the_way_to_install_it(weights: Weights, precision: str) -> None:
    with pytest.raises(HoarfrostError, match=r"needs OpenVINO. Run pip install openvino"):
        Backbone(weights, precision=precision)


@pytest.mark.usefixtures("without_openvino")
def test_without_openvino_extract_stops_before_it_reads_an_image(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("hoarfrost.features.extraction.loop.seen_isolated")
    with pytest.raises(HoarfrostError, match="needs OpenVINO"):
        run(folder)
    assert not (folder.parent / "c.h5").exists()


@pytest.mark.usefixtures("without_openvino")
def test_unchanged_images_need_no_openvino(extracted: Path) -> None:
    assert run(extracted).reused == 6


# -- real images --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not BUSI.is_dir(), reason="../shared/data/busi is not on this machine")
def test_embeddings_of_busi_are_near_float32s(weights: Weights) -> None:
    dataset = read_dataset(BUSI)
    precision = calibrated_precision(weights, sample_images(dataset))
    chosen = range(0, len(dataset), len(dataset) // 120)
    images = torch.stack([load_image(read()).expand(3, -1, -1) for _, read in dataset.images.contents(chosen)])
    assert len(images) >= 120
    in_float32, in_int8 = Backbone(weights).embed(images), Backbone(weights, precision=precision).embed(images)
    assert (F.cosine_similarity(in_int8, in_float32) >= 0.99).all()


@pytest.mark.slow
def test_a_signal_is_survived_after_a_network_was_dropped_in_another_thread(run_python: RunPython) -> None:
    code = """
import signal, threading
from hoarfrost.features.encoder.backbone import load_weights
from hoarfrost.features.encoder.backbone.int8 import Int8Network
from hoarfrost.features.extraction.interrupts import StopSignals
networks = [Int8Network(load_weights("random:0"), "int8:" + ",".join(["9"] * 16))]
dropping = threading.Thread(target=networks.clear)
dropping.start()
dropping.join()
with StopSignals() as stop:
    signal.raise_signal(signal.SIGTERM)
print(stop.received)
"""
    assert run_python("-c", code).stdout == "15\n"
