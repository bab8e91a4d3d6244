"""`extract` records what files tell besides their pictures, in the same pass, and finds it by their bytes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.extraction.extract import embed_like
from hoarfrost.features.facts import FileHeader, ImageFacts, Kinds
from tests.support.builders import write_npz
from tests.support.dicoms import dicom, encoded, grey_values
from tests.support.viewed import extracted

pytestmark = pytest.mark.usefixtures("free_backbone")


def write_images(folder: Path) -> Path:
    """Write six images of two formats and two sizes."""
    rng = np.random.default_rng(0)
    for i in range(6):
        place = folder / "ab"[i % 2] / f"{i}.{'jpg' if i % 2 else 'png'}"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (50, 40 + 10 * (i % 3), 3), np.uint8)).save(place)
    return folder


def by_path(cache: Path) -> dict[str, ImageFacts | None]:
    with EmbeddingCache(cache) as opened:
        table = opened.dataset()
        readable = np.flatnonzero(table.rows >= 0)
        return {
            table.paths[place]: one
            for place, one in zip(readable, opened.facts(table.rows[readable]).images(), strict=True)
        }


def headers(cache: Path) -> dict[str, FileHeader | None]:
    return {path: one and one.header for path, one in by_path(cache).items()}


def test_each_image_has_those_of_its_file(tmp_path: Path) -> None:
    extracted(write_images(tmp_path / "images"), tmp_path / "c.h5")
    for path, header in headers(tmp_path / "c.h5").items():
        i = int(Path(path).stem)
        assert header == FileHeader(40 + 10 * (i % 3), 50, 8, Kinds("JPEG" if i % 2 else "PNG", "RGB", exif="no"))


def test_renamed_files_and_files_that_are_not_read_again_keep_them(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    extracted(images, tmp_path / "c.h5")
    before = by_path(tmp_path / "c.h5")
    (images / "a" / "0.png").rename(images / "a" / "zero.png")
    assert extracted(images, tmp_path / "c.h5").embedded == 0
    after = by_path(tmp_path / "c.h5")
    assert after["a/zero.png"] == before["a/0.png"] is not None
    assert {path: one for path, one in after.items() if path != "a/zero.png"} == {
        path: one for path, one in before.items() if path != "a/0.png"
    }


def test_further_views_change_none_of_them(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    extracted(images, tmp_path / "c.h5")
    before = by_path(tmp_path / "c.h5")
    extracted(images, tmp_path / "c.h5", "224,448,224:flip")
    assert by_path(tmp_path / "c.h5") == before
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        rows = cache.view_rows(cache.dataset().rows, ["448"])[:, 0]
        assert cache.facts(rows).images() == list(before.values())


def test_embeddings_that_are_copied_from_a_cache_bring_them(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images")
    extracted(images, tmp_path / "c.h5")
    with EmbeddingCache(tmp_path / "c.h5") as source:
        found = embed_like(images, tmp_path / "new.h5", source.header, source_cache=source, is_listed=True)
    assert found.forward_images == 0
    assert by_path(tmp_path / "new.h5") == by_path(tmp_path / "c.h5")


def test_rows_of_an_npz_have_the_size_of_an_array(tmp_path: Path) -> None:
    write_npz(tmp_path / "d.npz", {"train": 4, "test": 4})
    extracted(tmp_path / "d.npz", tmp_path / "c.h5")
    found = {one and one[:3] for one in headers(tmp_path / "c.h5").values()}
    assert found == {(28, 28, 8)}


def test_frames_of_a_file_have_its_header_and_their_own_grey_levels(tmp_path: Path) -> None:
    frames = np.stack([grey_values(bits=12, seed=i) >> i for i in range(3)])
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "b").mkdir()
    data = dicom(frames, bits=12, Manufacturer="Maker", WindowCenter=2048, WindowWidth=4096)
    (tmp_path / "images" / "a" / "1.dcm").write_bytes(encoded(data))
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "images" / "b" / "2.png")
    extracted(tmp_path / "images", tmp_path / "c.h5")
    found = [one for path, one in by_path(tmp_path / "c.h5").items() if path.startswith("a")]
    assert [one and one.header.kinds.manufacturer for one in found] == ["Maker"] * 3
    means = [one.moments[0] for one in found if one is not None]
    assert means[0] > 1.8 * means[1] > 3 * means[2]
