"""The map of the embeddings: true to them, the same each time, and coloured by what the dataset says."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.features.cache import CacheWriter
from hoarfrost.features.errors import CacheError
from hoarfrost.inference.sources import opened_source
from hoarfrost.report import map as map_module
from hoarfrost.report.map import OTHERS, SIDE, EmbeddingMap, map_of, principal_components
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Run
from tests.support.caches import HEADER
from tests.support.chromium import HOW_TO_GET_IT, find_chromium, open_page
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache
from tests.support.pictured import pictured_run, trained

LABELS = mixed({"benign": 60, "malignant": 40})


def mapped_run(folder: Path, labels: list[str] = LABELS, **columns: object) -> Run:
    cache = write_labelled_cache(folder / "c.h5", labels, **columns)  # type: ignore[arg-type]
    return trained(cache, folder / "run")


def mapped(run: Run) -> EmbeddingMap:
    with opened_source(run) as source:
        return map_of(run, source)


def embedded_json(html: str) -> dict[str, list[dict[str, str]]]:
    found = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found[1])  # type: ignore[no-any-return]


def test_principal_components_are_those_of_a_plain_decomposition() -> None:
    x = np.random.default_rng(0).normal(size=(40, 12)).astype(np.float32) * np.arange(1, 13)
    found, shares = principal_components(x)
    standardised = (x - x.mean(axis=0)) / x.std(axis=0)
    u, s, _ = np.linalg.svd(standardised, full_matrices=False)
    assert np.allclose(np.abs(found), np.abs(u * s), atol=1e-4)
    assert np.allclose(shares, s**2 / (s**2).sum(), atol=1e-6)


@pytest.mark.parametrize("x", [np.ones((5, 8)), np.eye(5)[:, :1].repeat(8, axis=1)], ids=["constant", "one direction"])
def test_principal_components_of_degenerate_embeddings_are_finite(x: np.ndarray) -> None:
    found, shares = principal_components(x.astype(np.float32))
    assert np.isfinite(found).all()
    assert np.isfinite(shares).all()


def test_every_image_is_a_point_of_both_layouts_inside_the_frame(tmp_path: Path) -> None:
    found = mapped(mapped_run(tmp_path))
    assert [layout.name for layout in found.layouts] == ["PCA", "t-SNE"]
    for layout in found.layouts:
        points = np.array([point.split(",") for point in layout.points]).astype(int)
        assert points.shape == (100, 2)
        assert (points >= 0).all()
        assert (points <= [SIDE, layout.height]).all()
        assert "".join(layout.paths).count("M") == 100


def test_classes_that_embeddings_part_are_apart_on_the_map(tmp_path: Path) -> None:
    run = mapped_run(tmp_path, embeddings=embeddings_of(LABELS, distance=2.0))
    found = mapped(run)
    is_malignant = np.array(run.predictions.labels) == "malignant"
    for layout in found.layouts:
        points = np.array([point.split(",") for point in layout.points]).astype(float)
        gap = points[is_malignant].mean(axis=0) - points[~is_malignant].mean(axis=0)
        along = points @ gap
        assert along[is_malignant].min() > along[~is_malignant].max()
    assert found.colourings[0].same_neighbours == 1
    assert found.colourings[0].by_chance == pytest.approx(0.6**2 + 0.4**2)


def test_map_is_coloured_by_label_split_and_each_attribute(tmp_path: Path) -> None:
    attributes = {"scanner": ["A", "B"] * 50, "age": [str(i) for i in range(100)], "site": ["one"] * 100}
    splits = [("train", "train", "train", "val", "test")[i // 2 % 5] for i in range(100)]
    run = mapped_run(tmp_path, attributes=attributes, splits=splits)
    found = {colouring.name: colouring for colouring in mapped(run).colourings}
    assert list(found) == ["label", "split", "age", "scanner"]  # one site tells nothing
    assert found["label"].values == ("benign", "malignant")
    assert found["split"].values == ("train", "validation", "test")
    assert found["scanner"].counts == (50, 50)
    assert len(found["age"].values) == 4
    for colouring in found.values():
        assert np.bincount(colouring.of).tolist() == list(colouring.counts)


def test_rare_values_share_a_colour_where_there_are_many(tmp_path: Path) -> None:
    sites = [f"site {min(i // 4, 14):02}" for i in range(100)]
    colouring = {one.name: one for one in mapped(mapped_run(tmp_path, attributes={"site": sites})).colourings}["site"]
    assert len(colouring.values) == map_module.N_COLOURS
    assert colouring.values[-1] == OTHERS
    assert sum(colouring.counts) == 100


def test_large_datasets_are_drawn_from_the_same_way_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_module, "MOST_POINTS", 60)
    run = mapped_run(tmp_path)
    found = mapped(run)
    assert found == mapped(run)
    assert len(found.layouts[0].points) == 60
    assert found.note.startswith("60 of 100 images, drawn at random")
    assert found != mapped(replace(run, config=replace(run.config, seed=1)))


def test_few_images_have_no_tsne(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(map_module, "FEWEST_FOR_TSNE", 101)
    assert [layout.name for layout in mapped(mapped_run(tmp_path)).layouts] == ["PCA"]


def test_two_reports_of_a_run_have_the_same_map(tmp_path: Path) -> None:
    run = mapped_run(tmp_path)
    first = embedded_json(write_report(run.directory).read_text(encoding="utf-8"))
    assert first == embedded_json(write_report(run.directory).read_text(encoding="utf-8"))


def test_page_draws_the_points_that_its_script_gets(tmp_path: Path) -> None:
    html = write_report(mapped_run(tmp_path).directory).read_text(encoding="utf-8")
    data = embedded_json(html)
    for layout in data["layouts"]:
        for point in layout["points"].split():
            assert f"M{point}h0" in html


def test_hostile_attributes_stay_inside_the_json(tmp_path: Path) -> None:
    values = ["<img src=x onerror=alert(1)>", '"]}</script><script>alert(2)</script>']
    html = write_report(mapped_run(tmp_path, attributes={values[0]: values * 50}).directory).read_text(encoding="utf-8")
    assert html.count("<script") == html.count("</script>") == 4
    assert "<img" not in html
    colouring = embedded_json(html)["colourings"][2]
    assert colouring["name"] == values[0]
    assert sorted(colouring["values"]) == sorted(values)


def test_cache_of_another_fingerprint_gives_no_map_and_says_so(tmp_path: Path) -> None:
    run = mapped_run(tmp_path)
    other = replace(run, config=replace(run.config, embeddings=replace(run.config.embeddings, fingerprint="0" * 64)))
    with pytest.raises(CacheError, match=r"now holds other embeddings .* not 000000000000"), opened_source(other):
        pass


def test_cache_of_other_images_gives_no_map_and_says_so(tmp_path: Path) -> None:
    run = mapped_run(tmp_path)
    paths = ("benign/elsewhere.png", *run.predictions.paths[1:])
    other = replace(run, predictions=replace(run.predictions, paths=paths))
    with (
        pytest.raises(CacheError, match=r"Missing images: 1 \(benign/elsewhere.png first\)"),
        opened_source(other),
    ):
        pass


def test_cache_without_the_dataset_gives_no_map_and_no_failure(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    (tmp_path / "c.h5").unlink()
    with CacheWriter(tmp_path / "c.h5", HEADER, "another"):
        pass
    html = write_report(run.directory).read_text(encoding="utf-8")
    assert "The map is missing." in html


@pytest.mark.skipif(find_chromium() is None, reason=HOW_TO_GET_IT)
def test_browser_colours_the_map_by_what_is_chosen(tmp_path: Path) -> None:
    run = mapped_run(tmp_path, attributes={"scanner": ["<b>A</b>", "B"] * 50})
    html = write_report(run.directory).read_text(encoding="utf-8")
    assert '<p class="choice" hidden>' in html  # without scripts there is no choice
    chosen = tmp_path / "chosen.html"
    chosen.write_text(html.replace('<option value="2">', '<option value="2" selected>'), encoding="utf-8")
    dom = open_page(chosen, "--dump-dom")
    assert '<p class="choice">' in dom
    assert dom.count("; coloured by scanner.") == 2
    assert "<span>&lt;b&gt;A&lt;/b&gt;: 50</span>" in dom
    assert [len(re.findall(r'<path class="point point-\d" d="M\d', dom))] == [
        2 * 2 + 2
    ]  # layouts by values, and the legend
