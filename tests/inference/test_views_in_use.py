"""A head that looks at several views and layers predicts the same in every use, and its maps lie where the image shows it."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.decoding.images import Decoding, decode_pixels
from hoarfrost.features.decoding.isolated import Cancellation
from hoarfrost.features.decoding.looks import load_image, looks_at
from hoarfrost.features.decoding.views import View, parse_views
from hoarfrost.features.encoder.backbone import Backbone, load_weights
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.heads.files import SavedHead
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.explain import Cases, Explainer, open_explainer
from hoarfrost.inference.explain.maps import LookMaps, embeddings_of, evidence_maps, spread_of
from hoarfrost.inference.export import export_head
from hoarfrost.inference.export.exporting import (
    LARGEST_DIFFERENCE_OF_VIEWS,
    ExportSummary,
    _difference_from_run,
    _trial_images,
)
from hoarfrost.inference.export.formats import run_onnx, run_torch
from hoarfrost.inference.export.model import Classifier, looks_of
from hoarfrost.inference.predict import Predictor, predict_dataset, run_head
from hoarfrost.inference.serve.limits import Limits
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Run, read_heads, read_run
from hoarfrost.training import TrainingConfig
from tests.heads.test_head_files import rewritten
from tests.heads.test_views_of_heads import HEADS, LAYERS, VIEWS
from tests.support.builders import encode, picture
from tests.support.caches import HEADER
from tests.support.pictured import pictured_run
from tests.support.predicted import read_csv
from tests.support.saved_heads import member, saved_head
from tests.support.viewed import extracted

NAMES = ("224", "224:flip", "224:crop", "448")
LOOKING = ("logistic,C=0.1", "mlp:8,members=2", "quadratic,C=1,layers=4,views=448+224:flip")
COUNTS = {"train": 3, "val": 2, "test": 2}
N = 14


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train on 14 images of different shapes in four views and two layers."""
    folder = tmp_path_factory.mktemp("viewed")
    for seed, (split, kind, i) in enumerate(
        (split, kind, i) for split, n in COUNTS.items() for kind in (0, 1) for i in range(n)
    ):
        path = folder / "images" / split / ("benign", "malignant")[kind] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn = picture(150 + 20 * (seed % 3), 120, seed=seed)
        path.write_bytes(encode(drawn))
    extracted(folder / "images", folder / "c.h5", ",".join(NAMES), layers=(3, 4))
    config = ExperimentConfig(training=TrainingConfig(epochs=3), views=",".join(NAMES))
    return run_experiment(folder / "c.h5", folder / "run", parse_heads(list(LOOKING)), config)


@pytest.fixture(scope="module")
def head(run: Run) -> SavedHead:
    found = run_head(read_heads(run.directory))
    assert found.views == NAMES
    assert len(found.members) > 2
    return found


@pytest.fixture(scope="module")
def explainer(head: SavedHead) -> Explainer:
    return open_explainer(head, device="cpu")


def contents(run: Run) -> list[bytes]:
    return [(run.directory.parent / "images" / path).read_bytes() for path in run.predictions.paths]


def own(run: Run) -> npt.NDArray[np.float64]:
    """Return the run's own probabilities of all images."""
    return run.predictions.probabilities[run.selected]


def copies(run: Run, folder: Path) -> Path:
    """Write the run's images where the run does not know them, in another order."""
    folder.mkdir()
    for i, content in enumerate(contents(run)):
        (folder / f"{(5 * i) % N:02}.png").write_bytes(content)
    return folder


# -- predicted and served ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_cache", [True, False], ids=["embeddings of the cache", "embedded again"])
def test_predict_gives_the_runs_own_numbers(run: Run, tmp_path: Path, has_cache: bool) -> None:
    images, place, away = copies(run, tmp_path / "new"), run.directory.parent / "c.h5", tmp_path / "away.h5"
    if not has_cache:
        place.rename(away)
    try:
        summary = predict_dataset(images, tmp_path / "p.csv", run=run.directory)
    finally:
        if not has_cache:
            away.rename(place)
    assert summary.forward_images == (0 if has_cache else N * len(NAMES))
    test = [i for i, split in enumerate(run.predictions.splits) if split != "train"]
    found = [float(row[summary.head]) for row in read_csv(tmp_path / "p.csv")]
    of_run = own(run)[:, 1]
    np.testing.assert_allclose([found[(5 * i) % N] for i in test], of_run[test], rtol=0, atol=1e-6)


def test_serve_answers_as_predict_does(run: Run, head: SavedHead) -> None:
    pytest.importorskip("pydantic")
    from hoarfrost.inference.serve.reader import opened_reader

    notes: list[str] = []
    predictor, some = Predictor(head), [12, 13]
    with opened_reader(run.directory, None, Limits(), weights=None, device="cpu", notes=notes) as reader:
        assert reader.about.map_cells == 14
        seen = [reader.decode(contents(run)[i], Cancellation()) for i in some]
        answers = reader.answer(seen)
        explained = reader.explain(seen[0], answers[0])
    with EmbeddingCache(run.directory.parent / "c.h5") as cache:
        table = cache.dataset(None)
        x = cache.embeddings(cache.view_rows(table.rows, NAMES).ravel()).reshape(len(table.rows), len(NAMES), -1)
    rows = [list(table.paths).index(run.predictions.paths[i]) for i in some]
    wanted = predictor.predict(x[rows])
    for i, answer in enumerate(answers):
        assert list(answer.probabilities.values()) == pytest.approx(wanted.calibrated[i].tolist(), abs=1e-6)
        assert wanted.distances is not None
        assert answer.distance == pytest.approx(wanted.distances[i], rel=1e-4)
    assert explained.explanation is not None
    assert explained.explanation.map.startswith("data:image/png")


def test_the_served_map_lies_over_the_whole_image_whatever_the_views_show() -> None:
    pytest.importorskip("pydantic")
    from hoarfrost.inference.serve.reader import HeadReader

    head = saved_head([member("linear")], header=HEADER.of_views(["224:flip"]))
    backbone = Backbone(load_weights("random:0"))
    explainer = Explainer(Predictor(head), backbone, Decoding())
    reader = HeadReader(explainer, backbone, Cases(explainer, run=None, n=0), Limits())  # type: ignore[arg-type]
    content = encode(picture(300, 200))
    seen = reader.decode(content, Cancellation())
    (answer,) = reader.answer([seen])
    whole = load_image(content)
    wanted = Predictor(head).predict(backbone.embed(whole.expand(3, -1, -1).flip(2)[None]).numpy())
    assert list(answer.probabilities.values()) == pytest.approx(wanted.calibrated[0].tolist(), abs=1e-6)
    explanation = reader.explain(seen, answer).explanation
    assert explanation is not None
    shown = decode_pixels(base64.b64decode(explanation.image.partition(",")[2]))
    assert np.array_equal(shown, whole.permute(1, 2, 0).numpy())


# -- explained ---------------------------------------------------------------------------------------------------------


def test_explained_probabilities_are_predicts_and_the_map_sums_to_the_evidence(run: Run, explainer: Explainer) -> None:
    images = [explainer.prepared(content)[1] for content in contents(run)[-4:]]
    found = explainer.explain(images)
    for one, wanted in zip(found, own(run)[-4:], strict=True):
        np.testing.assert_allclose(one.probabilities, wanted, rtol=0, atol=1e-6)
        assert one.cells.shape == (14, 14)
        assert one.embedding.shape == (768,)
        p = one.probabilities[1]
        assert one.evidence == pytest.approx(np.log(p / (1 - p)), abs=1e-5)


GRID = (448, RESNET18.stages[-1])


def maps_of(name: str, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Return how bright each cell of a view is, put back into the picture: (14, 14)."""
    (view,) = parse_views(name, RESNET18)
    (looks,) = looks_at(pixels, b"", [view])
    total = torch.zeros(14, 14, dtype=torch.float64)
    for tile, look in enumerate(looks):
        padded = torch.nn.functional.pad(look[:1].double(), (16, 0, 16, 0))[:, : view.size, : view.size]
        cells = torch.nn.functional.avg_pool2d(padded, 32)  # cell i is centred at pixel 32 i
        total += spread_of(view, tile, [pixels.shape[:2]], RESNET18.stages[-1], GRID).onto_grid(cells)[0]
    return total


@pytest.mark.parametrize("shape", [(300, 300), (260, 400), (420, 300)])
@pytest.mark.parametrize(
    "name",
    [
        "224", "448", "224:flip", "448:rot90", "224:rot180", "224:rot270", "448:rot90:flip", "224:crop", "448:crop=0.6:flip",
        "224:tiles=2", "224:tiles=2:flip", "224:tiles=2:rot90", "448:pad", "224:pad:flip", "448:cover", "448:pad:rot270",
    ],
)  # fmt: skip
def test_what_a_view_shows_is_put_back_where_it_is_in_the_image(name: str, shape: tuple[int, int]) -> None:
    for down, across in ((0.4, 0.6), (0.62, 0.35), (0.55, 0.55)):
        pixels = np.zeros(shape, np.uint8)
        row, column = int(down * shape[0]), int(across * shape[1])
        half = 16
        pixels[row - half : row + half, column - half : column + half] = 255
        found = maps_of(name, pixels)
        assert found.sum() > 0
        places = (torch.arange(14) + 0.0) * 32 / 448  # a cell's centre
        found /= found.sum()
        assert float(found.sum(1) @ places.double()) == pytest.approx(down, abs=0.05)
        assert float(found.sum(0) @ places.double()) == pytest.approx(across, abs=0.05)


def planted(view: View, cell: tuple[int, int], n_cells: int, dim: int) -> npt.NDArray[np.float32]:
    found = np.full((1, dim, n_cells, n_cells), 0.1, np.float32)
    found[0, :, cell[0], cell[1]] = 1 + np.random.default_rng(view.size).random(dim)
    return found


@pytest.mark.parametrize("kind", HEADS)
def test_the_map_over_views_and_layers_sums_to_the_evidence(kind: str) -> None:
    committee = HEADS[kind].committee.exact()
    looks = []
    for place, view in enumerate(parse_views(",".join(VIEWS), RESNET18)):
        stages = RESNET18.stages_of(LAYERS)
        spread = tuple(spread_of(view, 0, [(50, 70)], stage, GRID) for stage in stages)
        maps = tuple(planted(view, (2, 3), view.size // stage.cell_pixels, stage.dim) for stage in stages)
        looks.append(LookMaps(maps, place, 1.0, spread))
    x = embeddings_of(looks)
    assert x.shape == (1, len(VIEWS), 768)
    p = committee.probabilities(x)[0]
    for number in range(len(p)):
        (found,) = evidence_maps(committee, looks, [number])
        assert found.shape == (14, 14)
        if committee.is_multilabel:
            wanted = np.log(p[number] / (1 - p[number]))
        else:
            wanted = np.log(p[number]) - np.delete(np.log(p), number).mean()
        assert found.sum() == pytest.approx(wanted, abs=1e-5)


def test_tiles_count_by_their_share_and_a_views_embedding_is_their_mean() -> None:
    rng = np.random.default_rng(0)
    tiles = [LookMaps((rng.random((2, 4, 7, 7)).astype(np.float32),), 0, 1 / 4) for _ in range(4)]
    whole = LookMaps((rng.random((2, 4, 7, 7)).astype(np.float32),), 1)
    found = embeddings_of([*tiles, whole])
    means = [one.stages[0].astype(np.float64).mean((2, 3)) for one in (*tiles, whole)]
    np.testing.assert_allclose(found[:, 0].numpy(), np.mean(means[:4], axis=0), atol=1e-12)
    np.testing.assert_allclose(found[:, 1].numpy(), means[4], atol=1e-12)
    weights = torch.ones((2, 4), dtype=torch.float64)
    total = sum(one.divided(weights).sum((1, 2)) for one in tiles)
    np.testing.assert_allclose(total, found[:, 0].sum(1), atol=1e-12)


# -- exported ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(448, 448, 3), (448, 448)])
def test_an_exported_models_views_of_the_largest_size_are_the_products(shape: tuple[int, ...]) -> None:
    views = parse_views(
        "448,448:flip,448:crop,448:crop=0.6:flip,448:rot90,448:rot180,448:rot270:flip,224,224:flip,224:crop,224:tiles=2",
        RESNET18,
    )
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    made = [look for looks in looks_at(pixels, b"", views) for look in looks]
    colour = torch.from_numpy(pixels if pixels.ndim == 3 else np.stack([pixels] * 3, 2)).permute(2, 0, 1)[None]
    for look, wanted in zip(looks_of(views), made, strict=True):
        differs = (look(colour)[0].int() - wanted.expand(3, -1, -1).int()).abs()
        assert differs.max() <= 2  # torch resizes uint8 with weights of 8 to 15 bits
        assert (differs > 0).float().mean() < 0.08


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "448:pad",
            "the view 448:pad, which needs the image's own aspect ratio.*stretched to 448 x 448. Train without",
        ),
        ("224:cover:flip", "the view 224:cover:flip, which needs the image's own aspect ratio.*stretched to 224 x 224"),
        (
            "224:affine=3",
            "the view 224:affine=3, which is drawn from the file's bytes. An exported model sees pixels alone",
        ),
    ],
)
def test_views_that_pixels_alone_do_not_determine_are_refused(name: str, message: str) -> None:
    with pytest.raises(HoarfrostError, match=message):
        looks_of(parse_views(f"224,{name}", RESNET18))


def stretched(run: Run) -> npt.NDArray[np.uint8]:
    """Return the test images as an exported model takes them, (n, 3, 448, 448)."""
    some = [load_image(content, Decoding(size=448)).expand(3, -1, -1) for content in contents(run)[-4:]]
    return torch.stack(some).numpy()


@pytest.fixture(scope="module")
def onnx(run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportSummary]:
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return path, export_head(run.directory, path, file_format="onnx")


def check_exported(
    run: Run, head: SavedHead, content: bytes, summary: ExportSummary, runner: Callable[..., list[Any]]
) -> None:
    images = stretched(run)
    with torch.no_grad():
        wanted = [found.numpy() for found in Classifier(load_weights("random:0"), head)(torch.from_numpy(images))]
    for found, of_module in zip(runner(content, images), wanted, strict=True):
        np.testing.assert_allclose(found, of_module, rtol=0, atol=1e-4)
    differs = float(np.abs(wanted[1] - own(run)[-4:]).max())
    assert summary.largest_difference <= 1e-4
    assert summary.n_compared == 4
    assert summary.difference_from_run == pytest.approx(differs, abs=1e-4)
    assert differs < LARGEST_DIFFERENCE_OF_VIEWS


def test_an_onnx_file_predicts_as_its_module_and_states_how_it_differs_from_the_run(
    run: Run, head: SavedHead, onnx: tuple[Path, ExportSummary]
) -> None:
    path, summary = onnx
    check_exported(run, head, path.read_bytes(), summary, run_onnx)
    card = path.with_name("model_card.md").read_text(encoding="utf-8")
    for words in ("448 x 448", *NAMES):
        assert words in card


@pytest.mark.slow
def test_a_torch_program_predicts_as_its_module_and_states_how_it_differs_from_the_run(
    run: Run, head: SavedHead, tmp_path: Path
) -> None:
    summary = export_head(run.directory, tmp_path / "m.pt2", file_format="torch")
    check_exported(run, head, (tmp_path / "m.pt2").read_bytes(), summary, run_torch)


def test_a_model_whose_views_differ_too_much_from_the_runs_is_refused_with_the_way_out(
    run: Run, head: SavedHead
) -> None:
    def wrong(_: bytes, images: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.float32]]:
        return [np.tile(np.array([2, -1], np.float32), (len(images), 1))] * 2

    with pytest.raises(
        HoarfrostError, match=r"more than 0\.1\. Nothing was written\. It makes its views of an image that"
    ):
        _difference_from_run(run, head, Decoding(size=448), b"", wrong)


def test_trial_images_have_any_size() -> None:
    assert _trial_images(2, 448).shape == (2, 3, 448, 448)
    assert _trial_images(1, 96).shape == (1, 3, 96, 96)


# -- reported, and runs of before --------------------------------------------------------------------------------------


def test_the_report_states_views_and_layers(run: Run) -> None:
    write_report(run.directory)
    page = (run.directory / "report.html").read_text(encoding="utf-8")
    assert "4 views" in page
    assert "224:flip" in page
    assert "wrong where left and right mean something" in page


def test_a_run_of_before_views_still_reports_and_predicts(tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    before = Predictor(run_head(read_heads(run.directory))).predict(np.ones((2, 512), np.float32)).probabilities
    for name, keys in (("metrics.json", ["views"]), ("config.json", ["views", "layers"])):
        path = run.directory / name
        document = json.loads(path.read_text())
        place = document if name == "metrics.json" else document["embeddings"]
        for key in keys:
            del place[key]
        if name == "config.json":
            document["format_version"] = 5  # without digests
        path.write_text(json.dumps(document))

    def as_before(description: dict[str, Any], _: object) -> None:
        description["format_version"] = 3
        del description["views"], description["embeddings"]["layers"]

    for path in (run.directory / "heads").iterdir():
        rewritten(path, as_before)
    (run.directory / "SHA256SUMS").unlink()
    write_report(run.directory)
    again = read_run(run.directory)
    assert again.views is None
    assert again.config.embeddings.views == ()
    after = Predictor(run_head(read_heads(run.directory))).predict(np.ones((2, 512), np.float32)).probabilities
    assert np.array_equal(before, after)
