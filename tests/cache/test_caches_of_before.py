"""Caches written before there were other encoders than ResNet18 are read, and their images are known."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoarfrost.experiment.task import read_task
from hoarfrost.features.cache import EmbeddingCache, verify
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.features.fingerprint import Fingerprint, preprocessing
from tests.support.commands import ROOT

# Written by commit 5ccdf3c: `extract --weights random:0 --precision float32` of 12 and of 6 such images, the second time with
# `--views 224,224:flip --layers 3,4`.
CACHES = ROOT / "tests" / "support" / "reference" / "caches"
FINGERPRINTS = {"one_view": (), "two_views": (3, 4)}
N_IMAGES = {"one_view": 12, "two_views": 6}


@pytest.fixture(params=FINGERPRINTS)
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return Path(shutil.copy(CACHES / f"{request.param}.h5", tmp_path))


def write_images(folder: Path, n: int) -> Path:
    """Write the images that were embedded, as files without compression: their bytes are the same everywhere."""
    for i in range(n):
        place = folder / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.bmp")
    return folder


def test_it_is_read_and_found_whole(cache: Path) -> None:
    assert verify(cache).problems == ()
    with EmbeddingCache(cache) as opened:
        made_by = opened.header.fingerprint
        assert made_by.encoder is RESNET18
        own = Fingerprint(
            "resnet18", made_by.weights_sha256, preprocessing(RESNET18), "float32", FINGERPRINTS[cache.stem]
        )
        assert made_by.digest == own.digest
        embeddings = opened.embeddings()
        assert embeddings.shape[1] == RESNET18.dim_of(made_by.layers) == opened.header.dim
        assert np.isfinite(embeddings).all()
        assert list(opened.dataset("images").labels[:2]) == ["a", "a"]
        if cache.stem == "one_view":
            assert read_task(opened, "images", (), 0).names == ("a", "b")


def test_its_images_are_known_and_it_stays_as_it_is(cache: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", N_IMAGES[cache.stem])
    with EmbeddingCache(cache) as opened:
        before = opened.embeddings()
    summary = extract(images, cache, name="images", options=ExtractOptions(weights="random:0", precision="float32"))
    assert (summary.forward_images, summary.reused) == (0, N_IMAGES[cache.stem])
    with EmbeddingCache(cache) as opened:
        np.testing.assert_array_equal(opened.embeddings(), before)


def test_an_embedding_of_today_is_that_of_then(cache: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    options = ExtractOptions(
        weights="random:0", precision="float32", views=",".join(("224", "224:flip")[: 1 + (cache.stem == "two_views")]),
        layers=FINGERPRINTS[cache.stem] or None,
    )  # fmt: skip
    extract(images, tmp_path / "new.h5", name="images", options=options)
    with EmbeddingCache(cache) as old, EmbeddingCache(tmp_path / "new.h5") as new:
        rows_of = [each.dataset("images").rows for each in (old, new)]
        paths = [tuple(each.dataset("images").paths) for each in (old, new)]
        then = old.embeddings(np.array([rows_of[0][paths[0].index(path)] for path in paths[1]]))
        now = new.embeddings(rows_of[1])
    # Another processor adds in another order; on the same one they are the same bits.
    np.testing.assert_allclose(now, then, rtol=1e-4, atol=1e-5)
