"""Views of regions: one cache has the whole image and its box, or the box around its mask, in views of their own."""

import json
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hoarfrost.features.decoding.quarantine
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.experiment.task import read_task
from hoarfrost.experiment.views import view_sets
from hoarfrost.features.cache import EmbeddingCache, verify
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.decoding.images import Decoding, decode_pixels
from hoarfrost.features.decoding.looks import load_looks, seen_in
from hoarfrost.features.decoding.quarantine import seen_isolated
from hoarfrost.features.decoding.region import Region
from hoarfrost.features.decoding.views import parse_views
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.errors import FingerprintMismatchError, ImageDecodeError, TrainingError, ViewError
from hoarfrost.features.exchange.exporting import export_dataset
from hoarfrost.features.exchange.importing import import_embeddings
from hoarfrost.features.extraction.loop import sample_images
from hoarfrost.features.extraction.regions import with_regions
from hoarfrost.features.fingerprint import FILE_BYTES, image_key
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import predict_dataset
from hoarfrost.inference.sources import opened_source
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import read_run
from tests.extraction.test_regions import BOX, extracted, pixels_of, spoil_two_boxes, write_mask, write_set
from tests.support.builders import encode, picture, write_csv
from tests.support.commands import ROOT, Hoarfrost

BOTH = "224,224:region"
BUSI = ROOT.parent / "shared" / "data" / "busi"
WEIGHTS = ROOT.parent / "shared" / "weights" / "resnet18-imagenet.safetensors"


def by_path(cache: Path) -> Mapping[str, Mapping[str, bytes]]:
    """Return the embedding of each image by view and path."""
    with EmbeddingCache(cache) as opened:
        table = opened.dataset()
        readable = np.flatnonzero(table.rows >= 0)
        rows = opened.view_rows(table.rows[readable], opened.views)
        assert (rows >= 0).all()
        paths = [table.paths[place] for place in readable]
        return {
            view: {path: row.tobytes() for path, row in zip(paths, opened.embeddings(rows[:, i]), strict=True)}
            for i, view in enumerate(opened.views)
        }


# -- pixels --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["224", "224:pad", "96:cover:crop=0.5", "224:tiles=2:rot90", "224:affine=3:flip", "448:flip"]
)
def test_view_of_a_region_looks_at_its_pixels_as_the_view_looks_at_an_image(name: str) -> None:
    size, *parts = name.split(":")
    content, region = encode(picture(300, 200)), Region((20, 30, 120, 90), 0.1)
    views = parse_views(f"{name},{':'.join([size, 'region', *parts])}", RESNET18)
    seen = seen_in(content, bytes(32), views, Decoding(), region).looks
    own = views[0].n_looks
    for look, expected in zip(seen[:own], load_looks(content, bytes(32), views[:1], Decoding()), strict=True):
        assert torch.equal(look, expected)
    if "affine" not in name:  # which draws from the view's name, too
        pixels = np.ascontiguousarray(decode_pixels(content)[20:100, 10:130])  # a margin of 10 pixels
        for look, expected in zip(seen[own:], load_looks(pixels, bytes(32), views[:1], Decoding()), strict=True):
            assert torch.equal(look, expected)
    for look, isolated in zip(seen, seen_isolated(content, bytes(32), views, Decoding(), region).looks, strict=True):
        assert torch.equal(look, isolated)


def test_region_of_a_large_jpeg_is_cut_at_its_own_size_and_the_whole_image_is_decoded_as_ever() -> None:
    content, region = encode(picture(1600, 1200), "JPEG"), Region((800, 600, 900, 700), 0.0)
    views = parse_views(BOTH, RESNET18)
    whole, part = seen_in(content, b"", views, Decoding(), region).looks
    assert torch.equal(whole, load_looks(content, b"", views[:1], Decoding())[0])
    pixels = decode_pixels(content, Decoding(size=1 << 20))[600:700, 800:900]
    assert torch.equal(part, load_looks(np.ascontiguousarray(pixels), b"", views[:1], Decoding())[0])
    facts = [seen_in(content, b"", some, Decoding(), region).facts for some in (views, views[:1])]
    assert facts[0] == facts[1]  # of the whole image


@pytest.mark.parametrize(
    ("region", "reason"),
    [
        (Region((100, 0, 110, 10), 0.1), "the box is outside of the image"),
        (Region((0, 79.8, 5, 90), 0.0), "the box is outside of the image"),
        (Region(BOX, 0.1, (5, 5)), "the mask has another size than the image"),
    ],
)
def test_region_that_is_not_in_the_image_makes_it_unreadable(region: Region, reason: str) -> None:
    with pytest.raises(ImageDecodeError, match=reason):
        seen_in(pixels_of(0), b"", parse_views(BOTH, RESNET18), Decoding(), region)


def test_key_has_the_file_and_the_box() -> None:
    content = encode(picture(30, 20))
    keys = [image_key(content, Region((0, 0, x1, 5), margin)) for x1, margin in ((5, 0.1), (6, 0.1), (5, 0.2))]
    assert keys[0] == keys[2]  # the margin is in the fingerprint
    assert keys[0] != keys[1]
    assert {key[:FILE_BYTES] for key in keys} == {image_key(content)[:FILE_BYTES]}
    assert {len(key) for key in keys} == {32}


# -- caches --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decode", ["threads", "processes"])
def test_views_are_bit_for_bit_those_of_two_caches(tmp_path: Path, decode: str) -> None:
    data = write_set(tmp_path / "d", 6)
    extracted(data, tmp_path / "whole.h5", None, views="224,224:flip")
    extracted(data, tmp_path / "cut.h5", "box", views="224:pad,224:pad:flip")
    views = "224,224:flip,224:region:pad,224:region:pad:flip"
    summary = extracted(data, tmp_path / "c.h5", "box", views=views, decode=decode, workers=2)
    assert (summary.embedded, summary.forward_images) == (6, 24)
    whole, cut, both = by_path(tmp_path / "whole.h5"), by_path(tmp_path / "cut.h5"), by_path(tmp_path / "c.h5")
    assert both["224"] == whole["224"]
    assert both["224:flip"] == whole["224:flip"]
    assert both["224:region:pad"] == cut["224:pad"]
    assert both["224:region:pad:flip"] == cut["224:pad:flip"]
    assert verify(tmp_path / "c.h5").sound
    with EmbeddingCache(tmp_path / "c.h5") as opened:
        step = opened.header.fingerprint.preprocessing["region"]
        assert step == "cut to its box, with a margin of 0.1 of the longer side, in views named region"
        numbers = opened.facts(opened.dataset().rows).numbers
        assert set(numbers["width"].tolist()) == {100}  # of the whole image


@pytest.mark.usefixtures("free_backbone")
def test_another_box_is_another_image_and_is_embedded(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d")
    assert extracted(data, tmp_path / "c.h5", views=BOTH).embedded == 12
    assert extracted(data, tmp_path / "c.h5").embedded == 0  # the cache's own views
    text = (data / "labels.csv").read_text()
    shutil.copy(data / "1.png", data / "again.png")
    (data / "labels.csv").write_text(text.replace('"10,20,40,35"', '"10,20,40,36"', 1) + 'again.png,b,"0,0,20,20"\n')
    assert extracted(data, tmp_path / "c.h5").embedded == 2  # one file has two regions now
    with EmbeddingCache(tmp_path / "c.h5") as opened:
        table = opened.dataset()
        assert len(set(table.rows.tolist())) == 13
        rows = opened.view_rows(table.rows, opened.views)
        first, last = opened.embeddings(rows[1]), opened.embeddings(rows[12])
    np.testing.assert_array_equal(first[0], last[0])
    assert (first[1] != last[1]).any()


@pytest.mark.usefixtures("free_backbone")
def test_more_views_are_added_and_masks_give_boxes(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d", box=None)
    for i in range(12):
        write_mask(data / f"{i}_mask.png", *BOX)
    extracted(data, tmp_path / "c.h5", "mask", views=BOTH)
    more = extracted(data, tmp_path / "c.h5", "mask", views="224,448:region:crop,224:region")
    assert more.forward_images == 12
    boxed = write_set(tmp_path / "boxed")
    extracted(boxed, tmp_path / "b.h5", "box", views=BOTH)
    assert by_path(tmp_path / "c.h5")["224:region"] == by_path(tmp_path / "b.h5")["224:region"]
    write_mask(data / "5_mask.png", 0, 0, 50, 50)
    assert extracted(data, tmp_path / "c.h5", "mask").embedded == 1


@pytest.mark.usefixtures("free_backbone")
def test_image_without_a_region_is_listed_with_the_reason(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d")
    spoil_two_boxes(data)
    (data / "2.png").write_bytes(b"no image")
    summary = extracted(data, tmp_path / "c.h5", views=BOTH, max_bad=1.0)
    assert [path for path, _ in summary.errors] == ["0.png", "1.png", "2.png"]
    assert [reason for _, reason in summary.errors[:2]] == ["no box", "the box is outside of the image"]


@pytest.mark.usefixtures("free_backbone")
def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d")
    with pytest.raises(
        ViewError, match="The view 224:region shows the region of each image. State where it is with --reg"
    ):
        extracted(data, tmp_path / "c.h5", None, views=BOTH)
    assert not (tmp_path / "c.h5").exists()
    extracted(data, tmp_path / "c.h5", views=BOTH)
    with pytest.raises(ViewError, match="The view 224:region shows the region"):
        extracted(data, tmp_path / "c.h5", None)
    with pytest.raises(
        ViewError, match="--views 448: the cache has views of whole images and of regions. Name one of a r"
    ):
        extracted(data, tmp_path / "c.h5", views="448")
    with pytest.raises(FingerprintMismatchError, match="margin of 0.5 of the longer side, in views named region"):
        extracted(data, tmp_path / "c.h5", margin=0.5)
    extracted(data, tmp_path / "cut.h5")
    with pytest.raises(FingerprintMismatchError, match="in views named region"):
        extracted(data, tmp_path / "cut.h5", views=BOTH)
    extracted(data, tmp_path / "whole.h5", None)
    with pytest.raises(FingerprintMismatchError, match="preprocessing.region"):
        extracted(data, tmp_path / "whole.h5", views=BOTH)


@pytest.mark.usefixtures("free_backbone")
def test_image_that_ended_an_extraction_is_decoded_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_set(tmp_path / "d", 6)
    extracted(data, tmp_path / "expected.h5", views=BOTH)
    key = image_key((data / "3.png").read_bytes(), Region((10.0, 20.0, 40.0, 35.0), 0.1))
    (tmp_path / "c.h5.trying").write_bytes(key)
    isolated = []

    def counted(*arguments: object) -> object:
        isolated.append(arguments[1])
        return seen_isolated(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(hoarfrost.features.decoding.quarantine, "seen_isolated", counted)
    extracted(data, tmp_path / "c.h5", views=BOTH)
    assert isolated == [key]
    assert by_path(tmp_path / "c.h5") == by_path(tmp_path / "expected.h5")


def test_source_of_some_images_can_be_sent_to_another_host(tmp_path: Path) -> None:
    dataset = read_dataset(write_set(tmp_path / "d", 4))
    images = with_regions(dataset, "box", 0.2, max_pixels=1 << 20, are_views=True).images
    some = pickle.loads(pickle.dumps(images.subset([1, 3])))
    assert some.region(1) == images.region(3) == Region((10.0, 20.0, 40.0, 35.0), 0.2)
    assert [read() for _, read in some.contents([0, 1])] == [read() for _, read in images.contents([1, 3])]


def test_sample_for_8_bit_integers_has_images_and_regions(tmp_path: Path) -> None:
    dataset = read_dataset(write_set(tmp_path / "d", 4))
    whole = sample_images(dataset)
    cut = sample_images(with_regions(dataset, "box", None, max_pixels=1 << 20))
    both = sample_images(with_regions(dataset, "box", None, max_pixels=1 << 20, are_views=True))
    assert torch.equal(both, torch.stack([whole[0], cut[1], whole[2], cut[3]]))


@pytest.mark.usefixtures("free_backbone")
def test_export_and_import_lose_nothing(tmp_path: Path) -> None:
    extracted(write_set(tmp_path / "d"), tmp_path / "c.h5", views=BOTH)
    export_dataset(tmp_path / "c.h5", tmp_path / "c.npz")
    import_embeddings(tmp_path / "c.npz", tmp_path / "again.h5")
    assert by_path(tmp_path / "again.h5") == by_path(tmp_path / "c.h5")
    with EmbeddingCache(tmp_path / "again.h5") as again, EmbeddingCache(tmp_path / "c.h5") as first:
        assert again.header.fingerprint == first.header.fingerprint
        assert again.keys(again.dataset().rows).tolist() == first.keys(first.dataset().rows).tolist()


# -- training ------------------------------------------------------------------------------------------------------------


def write_striped(folder: Path, n: int = 80) -> Path:
    """Write noise with a square of stripes, of which only a look at the square shows whether they lie or stand."""
    folder.mkdir()
    rows = [["path", "label", "box"]]
    for i in range(n):
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (224, 224), np.uint8)
        stripes = np.broadcast_to(np.arange(20) // 5 % 2 * 255, (20, 20)).astype(np.uint8)
        x, y = rng.integers(0, 200, 2).tolist()
        pixels[y : y + 20, x : x + 20] = stripes if i % 2 else stripes.T
        Image.fromarray(pixels).save(folder / f"{i}.png")
        rows.append([f"{i}.png", ("lying", "standing")[i % 2], f"{x},{y},{x + 20},{y + 20}"])
    write_csv(folder / "labels.csv", rows)
    return folder


def test_heads_look_at_regions_and_at_whole_images_by_members_of_their_own() -> None:
    sets = view_sets(["224", "224:region", "224:flip", "224:region:flip"], RESNET18, are_chosen=False)
    whole, part = ("224", "224:flip"), ("224:region", "224:region:flip")
    assert [one.units for one in sets] == [(("224",),), (whole,), (part,), (whole, part)]


@pytest.mark.usefixtures("free_backbone", "few_references")
def test_class_that_only_the_region_shows_is_learnt_and_predicted_from_a_cache(
    tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    data = write_striped(tmp_path / "d")
    cache, run = tmp_path / "c.h5", tmp_path / "run"
    extracted(data, cache, views=BOTH, margin=0.0)
    results = run_experiment(cache, run, parse_heads(["logistic"]), ExperimentConfig())
    assert results.views is not None
    by_set = {one.views: one.roc_auc for one in results.views.results}
    assert set(by_set) == {("224",), ("224:region",), ("224", "224:region")}
    assert by_set["224:region",] == 1
    assert by_set["224",] < 0.85
    page = write_report(run).read_text(encoding="utf-8")
    assert "224:region" in page
    assert "Heads also look at a region of each image (views named region)" in page
    assert "cut to its box, with a margin of 0 of the longer side, in views named region" in page
    assert predict_dataset(cache, tmp_path / "out.csv", run=run).predicted == 80
    run_experiment(cache, tmp_path / "both", parse_heads(["logistic"]), ExperimentConfig(views=BOTH))
    page = write_report(tmp_path / "both").read_text(encoding="utf-8")
    assert "Each size and geometry, of the whole image and of its region, has members of its own" in page
    with opened_source(read_run(run)) as source:  # the report shows the images: their files are those embedded
        reasons: dict[str, str] = {}
        assert len(list(source.contents(list(results.predictions.paths), reasons))) == 80
        assert not reasons
    done = hoarfrost("predict", data, "--run", run, "--output", tmp_path / "new.csv")
    assert done.status == 1
    assert "where they are in new images is not known here" in done.stderr
    done = hoarfrost("explain", data, "--run", run, "--output", tmp_path / "maps")
    assert done.status == 1
    assert "The head was trained on regions" in done.stderr
    done = hoarfrost("export", "--run", run, "--format", "torch", "--output", tmp_path / "m.pt2")
    assert done.status == 1
    assert "The head was trained on regions" in done.stderr


@pytest.mark.usefixtures("free_backbone")
def test_two_regions_of_one_file_are_one_file(tmp_path: Path) -> None:
    data = write_set(tmp_path / "d", 40)
    text = (data / "labels.csv").read_text()
    for i in range(40):
        shutil.copy(data / f"{i}.png", data / f"{i}-second.png")
        text += f'{i}-second.png,{"ab"[i % 2]},"50,40,90,70"\n'
    (data / "labels.csv").write_text(text)
    extracted(data, tmp_path / "c.h5", views=BOTH)
    with EmbeddingCache(tmp_path / "c.h5") as opened:
        task = read_task(opened, None, (), 0, near_duplicates="ignore")
    assert len(task.y) == 80
    assert len(set(task.table.rows.tolist())) == 80
    splits = dict[str, set[str]]()
    for path, split in zip(task.table.paths, task.splits.tolist(), strict=True):
        splits.setdefault(path.removesuffix(".png").removesuffix("-second"), set()).add(split)
    assert len(splits) == 40
    assert {len(found) for found in splits.values()} == {1}
    # With splits of the user's own, a file on both sides is a leak.
    lines = (data / "labels.csv").read_text().splitlines()
    lines = [f"{lines[0]},split", *(f"{line},{'train' if i < 40 else 'test'}" for i, line in enumerate(lines[1:]))]
    (data / "labels.csv").write_text("\n".join(lines) + "\n")
    extracted(data, tmp_path / "c.h5", views=BOTH)
    with pytest.raises(TrainingError, match="leak: 40 identical images are in two splits"):
        run_experiment(tmp_path / "c.h5", tmp_path / "run", parse_heads(["logistic"]), ExperimentConfig())


# -- real images ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not BUSI.is_dir() or not WEIGHTS.is_file(), reason="../shared has no BUSI, or no weights, here")
def test_masks_of_busi_from_extract_to_predict(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    data = tmp_path / "busi"
    for label in ("benign", "malignant"):
        (data / label).mkdir(parents=True)
        for path in sorted((BUSI / label).glob("*.png"))[:60]:
            if "_mask" in path.name:
                continue
            shutil.copy(path, data / label)
            with Image.open(path) as image:  # BUSI's copy here has no masks of its own
                mask = Image.new("L", image.size)
                mask.paste(255, (image.width // 4, image.height // 4, image.width * 3 // 4, image.height * 3 // 4))
            mask.save(data / label / f"{path.stem}_mask.png")
    cache, run = tmp_path / "busi.h5", tmp_path / "run"
    options = ("--weights", WEIGHTS, "--device", "cpu", "--region", "mask", "--views", BOTH)
    done = hoarfrost("extract", data, "--exclude", "*_mask*", "--cache", cache, *options, "--json")
    assert json.loads(done.stdout)["embedded"] == 120
    assert hoarfrost("train", "--cache", cache, "--run", run, "--positive", "malignant").status == 0
    found = read_run(run)
    assert found.views is not None
    assert {one.views for one in found.views.results} == {("224",), ("224:region",), ("224", "224:region")}
    assert min(one.roc_auc for one in found.views.results) > 0.6
    assert hoarfrost("report", "--run", run).status == 0
    assert hoarfrost("predict", cache, "--run", run, "--output", tmp_path / "out.csv").status == 0
