"""Several views of each image: out-of-fold loss chooses which are used, and the test images have no part in it."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hoarfrost.evaluation import roc_auc
from hoarfrost.experiment.compared_views import choose_views
from hoarfrost.experiment.crossval import NESTED
from hoarfrost.experiment.development import development_of, outer_folds
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.experiment.gate import check_leakage
from hoarfrost.experiment.splits import k_folds
from hoarfrost.experiment.task import Task, read_task
from hoarfrost.experiment.variants import fit_variants
from hoarfrost.experiment.views import ViewSet, chosen_views, view_sets
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.errors import HoarfrostError, TrainingError
from hoarfrost.heads.files import read_head
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import Predictor
from hoarfrost.runs import Run
from hoarfrost.training import TrainingConfig
from tests.support.commands import Hoarfrost
from tests.support.delong import delong_covariance
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache

N = 90
LABELS = mixed({"benign": 50, "malignant": 40})
POSITIVE = np.array([label == "malignant" for label in LABELS], int)
SPLITS = ["train"] * 66 + ["test"] * 24
QUICK = TrainingConfig(epochs=3)
HEADS = ("logistic,C=0.001", "linear")
SMALL, LARGE = ("224", "224:flip"), ("448", "448:flip")

Views = Mapping[str, npt.NDArray[np.float32]]


def two_sizes(distance: float = 0.15) -> dict[str, npt.NDArray[np.float32]]:
    """Draw embeddings of two sizes; only the larger one shows what the labels say."""
    found = {view: embeddings_of(LABELS, seed=i, distance=0.0) for i, view in enumerate(SMALL)}
    centres = embeddings_of(LABELS, seed=7, distance=distance)
    return found | {view: centres + 0.3 * embeddings_of(LABELS, seed=i, distance=0.0) for i, view in enumerate(LARGE)}


def train(folder: Path, x: Views, heads: tuple[str, ...] = HEADS, **options: Any) -> Run:
    columns = {name: options.pop(name) for name in ("splits", "layers") if name in options}
    cache = write_labelled_cache(folder / "c.h5", LABELS, views=x, **columns)
    asked = ExperimentConfig(training=QUICK, **options)
    return run_experiment(cache, folder / "run", parse_heads(list(heads)), asked)


def task_of(path: Path, x: Views, **options: Any) -> Task:
    columns = {name: options.pop(name) for name in ("splits", "layers", "lacking") if name in options}
    with EmbeddingCache(write_labelled_cache(path, LABELS, views=x, **columns)) as cache:
        return read_task(cache, None, (), 0, **options)


def probabilities(run: Run, head: str, split: str = "test") -> npt.NDArray[np.float64]:
    return run.predictions.probabilities[head][run.rows_of(split)][:, 1]


# -- which set of views ------------------------------------------------------------------------------------------------


def test_the_size_that_carries_the_signal_is_chosen_in_each_fold(tmp_path: Path) -> None:
    run = train(tmp_path, two_sizes(0.25), ("logistic",), n_folds=3)
    assert run.views is not None
    assert (run.views.basis, run.views.n_choices) == ("folds", 3)
    of_sets = {one.views: one for one in run.views.results}
    assert set(of_sets) == {("224",), SMALL, LARGE, SMALL + LARGE}
    assert [one.work for one in run.views.results] == [1, 2, 8, 10]
    assert [one.n_chosen for one in run.views.results] == [0, 0, 3, 0]
    assert of_sets[LARGE].roc_auc > 0.9 > 0.65 > of_sets[SMALL].roc_auc
    assert of_sets["224",].difference is None
    assert run.config.embeddings.views == LARGE
    for head in run.heads:
        saved = read_head(run.directory / head.weights_file)
        assert saved.views == LARGE
        assert {one.spec.views for one in saved.members} == {"448+448:flip"}
    # The nested result is that of what each fold chose.
    assert run.cross_validation is not None
    nested = next(one for one in run.cross_validation.results if one.name == NESTED)
    assert nested.pooled.value("roc_auc") == pytest.approx(of_sets[LARGE].roc_auc, abs=1e-12)
    document = json.loads((run.directory / "metrics.json").read_text())["views"]
    assert [tuple(one["views"]) for one in document["results"]] == [one.views for one in run.views.results]


def test_each_sets_figures_are_those_of_a_training_on_it_alone(tmp_path: Path) -> None:
    views = two_sizes(0.06)
    heads = ("logistic,C=0.001", "quadratic,C=1")  # nothing random: a head's name draws its initial weights
    run = train(tmp_path / "auto", views, heads, splits=SPLITS)
    document = json.loads((run.directory / "metrics.json").read_text())["views"]
    assert (document["basis"], document["n_choices"]) == ("test", 1)
    y, found = POSITIVE[66:], {}
    for names in (("224",), SMALL, LARGE, SMALL + LARGE):
        alone = train(tmp_path / str(len(found)), views, heads, splits=SPLITS, views=",".join(names))
        assert alone.views is None  # named views are all used together
        found[names] = probabilities(alone, alone.selected)
    for one in document["results"]:
        names = tuple(one["views"])
        p = found[names]
        assert one["roc_auc"] == pytest.approx(roc_auc(y, p), abs=1e-9)
        assert one["loss"] == pytest.approx(-np.log(np.where(y == 1, p, 1 - p)).mean(), abs=1e-9)
        if names == ("224",):
            assert one["difference"] is None
            continue
        first = found["224",]
        assert one["difference"]["value"] == pytest.approx(roc_auc(y, p) - roc_auc(y, first), abs=1e-9)
        covariance = delong_covariance(y, np.stack([p, first]))[1]
        deviation = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
        assert one["difference"]["high"] == pytest.approx(one["difference"]["value"] + 1.959964 * deviation, abs=1e-6)


def test_of_sets_with_equal_loss_the_smaller_is_chosen(tmp_path: Path) -> None:
    x = embeddings_of(LABELS)
    task = task_of(tmp_path / "c.h5", {"224": x, "224:flip": x})
    development = development_of(task, 0)
    sets = view_sets(task.views, task.encoder, are_chosen=False)
    (fitted,) = fit_variants(parse_heads(["logistic,C=0.001"]), [development], task, QUICK, lambda *_: None, sets=sets)
    chosen, compared = choose_views(fitted, task, development, "mean")
    losses = {one: variants["logistic,C=0.001"].loss for one, variants in fitted.items()}
    small, large = sets
    assert losses[small] == pytest.approx(losses[large])
    assert chosen == small
    assert compared is not None


def test_all_views_are_chosen_unless_another_set_is_better_by_more_than_its_noise(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = embeddings_of(LABELS)
    for noise, wanted in ((0.0, 2), (50.0, 1)):
        other = x + noise * rng.standard_normal(x.shape).astype(np.float32)
        task = task_of(tmp_path / f"{noise}.h5", {"224": x, "448": other + 1e-3})
        development = development_of(task, 0)
        sets = view_sets(task.views, task.encoder, are_chosen=False)
        (fitted,) = fit_variants(parse_heads(["logistic"]), [development], task, QUICK, lambda *_: None, sets=sets)
        chosen, _ = choose_views(fitted, task, development, "mean")
        assert len(chosen.views) == wanted


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (("224",), [[("224",)]]),
        (("224", "224:flip"), [[("224",)], [("224", "224:flip")]]),
        (("448", "224"), [[("448",)], [("224",)], [("448",), ("224",)]]),
        (
            ("224", "448:pad", "224:crop", "448"),
            [
                [("224",)],
                [("224", "224:crop")],
                [("448:pad",)],
                [("448",)],
                [("224", "224:crop"), ("448:pad",), ("448",)],
            ],
        ),
    ],
)
def test_sets_are_the_first_view_each_size_and_geometry_and_all(
    names: tuple[str, ...], wanted: list[list[tuple[str, ...]]]
) -> None:
    assert view_sets(names, RESNET18, are_chosen=False) == tuple(ViewSet(tuple(units)) for units in wanted)
    (chosen,) = view_sets(names, RESNET18, are_chosen=True)
    assert chosen == ViewSet(tuple(wanted[-1]))


# -- honest ------------------------------------------------------------------------------------------------------------


def test_views_of_an_image_are_never_on_two_sides_of_a_division(tmp_path: Path) -> None:
    x = embeddings_of(LABELS, distance=0.0)  # labels that nothing explains: only copies of an image would reveal them
    run = train(tmp_path, {"224": x, "224:flip": x, "448": x}, ("quadratic,C=100", "mlp:16,members=3"), n_folds=3)
    assert run.cross_validation is not None
    for one in run.cross_validation.results:
        assert one.pooled.value("roc_auc") < 0.68
    task = task_of(tmp_path / "again.h5", {"224": x, "224:flip": x})
    assert len(task.looks) == N == len(task.y)
    for development in (development_of(task, 0), *(fold.development for fold in outer_folds(task, 3, 0))):
        for fold in development.folds:
            assert not {*fold.train.tolist()} & {*fold.val.tolist()}


def head_files(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.directory / "heads").iterdir()}


def test_altered_test_images_change_neither_the_choice_nor_the_heads(tmp_path: Path) -> None:
    views, heads = two_sizes(0.08), ("logistic", "mlp:8,members=10", "quadratic,C=1")
    first = train(tmp_path / "a", views, heads, splits=SPLITS)
    altered = {name: x.copy() for name, x in views.items()}
    for number, x in enumerate(altered.values()):
        x[66:] = (3 - number) * x[:24] + number  # copies of training images in one view, others in another
    second = train(tmp_path / "b", altered, heads, splits=SPLITS)
    assert head_files(first) == head_files(second)
    assert first.selected == second.selected
    assert first.config.embeddings.views == second.config.embeddings.views
    assert first.views is not None
    assert second.views is not None
    assert [one.n_chosen for one in first.views.results] == [one.n_chosen for one in second.views.results]
    assert [one.roc_auc for one in first.views.results] != [one.roc_auc for one in second.views.results]
    for name, found in first.predictions.probabilities.items():
        assert np.array_equal(found[:66], second.predictions.probabilities[name][:66])


def test_a_head_file_predicts_test_images_as_the_csv_says_to_the_last_digit(tmp_path: Path) -> None:
    views = two_sizes(0.08)
    run = train(tmp_path, views, ("logistic", "mlp:8,members=10"), splits=SPLITS)
    names = run.config.embeddings.views
    x = np.stack([views[name] for name in names], axis=1)[66:]
    for head in run.heads:
        found = Predictor(read_head(run.directory / head.weights_file)).predict(x).probabilities
        assert np.array_equal(found, run.predictions.probabilities[head.name][run.rows_of("test")])


def test_streamed_views_are_trained_and_predicted_as_those_in_memory(tmp_path: Path) -> None:
    views = two_sizes(0.08)
    held = train(tmp_path / "a", views, ("logistic,C=0.01",), splits=SPLITS, near_duplicates="ignore")
    streamed = train(
        tmp_path / "b", views, ("logistic,C=0.01",), splits=SPLITS, near_duplicates="ignore", memory_limit=300_000
    )
    assert streamed.config.streamed_bytes == 300_000
    assert streamed.config.embeddings.views == held.config.embeddings.views
    np.testing.assert_allclose(
        probabilities(streamed, "logistic,C=0.01"), probabilities(held, "logistic,C=0.01"), rtol=0, atol=1e-6
    )


# -- what a head looks at ----------------------------------------------------------------------------------------------


def layered(seed: int = 0, distance: float = 0.1) -> dict[str, npt.NDArray[np.float32]]:
    """Draw embeddings of layers 3 and 4 in two views."""
    found = {}
    for number, view in enumerate(SMALL):
        x = [embeddings_of(LABELS, seed=seed + 2 * number + i, distance=distance) for i in (0, 1)]
        found[view] = np.concatenate([x[0][:, :256], x[1]], axis=1)
    return found


@pytest.mark.parametrize("head", ["mlp:8,layers=4,views=224", "logistic,C=0.01,layers=4,views=224", "linear,layers=4"])
def test_a_head_uses_its_own_views_and_layers_alone(tmp_path: Path, head: str) -> None:
    first, other = layered(), layered(seed=50)
    columns = RESNET18.columns_of((3, 4))
    changed = {view: x.copy() for view, x in first.items()}
    for view, x in changed.items():
        x[:, columns[3]] = other[view][:, columns[3]]
        if "views=" in head and view != "224":
            x[:] = other[view]
    found = [
        train(tmp_path / name, views, (head,), splits=SPLITS, layers=(3, 4), views=",".join(SMALL))
        for name, views in (("a", first), ("b", changed))
    ]
    (one,), (two,) = (run.predictions.probabilities.values() for run in found)
    assert np.array_equal(one, two)
    states = [
        [m.module.state_dict() for m in read_head(run.directory / run.heads[0].weights_file).members] for run in found
    ]
    for a, b in zip(*states, strict=True):
        assert a["0.mean"].shape == (512,)
        assert all(np.array_equal(a[name].numpy(), b[name].numpy()) for name in a)


def test_all_layers_or_the_last_alone_by_out_of_fold_loss(tmp_path: Path) -> None:
    x = layered(distance=0.0)["224"]
    signal = embeddings_of(LABELS, seed=9, distance=0.2)
    for name, columns, part, wanted in (
        ("3", slice(0, 256), signal[:, :256], None),  # layer 4 alone would know nothing
        ("4", slice(256, 768), signal, "4"),
    ):
        views = {"224": x.copy()}
        views["224"][:, columns] = part
        views["224"][:, :256] *= 1 if name == "3" else 30
        run = train(tmp_path / name, views, ("logistic,C=0.001,transform=none",), splits=SPLITS, layers=(3, 4))
        (head,) = run.heads
        specs = {member.spec.layers for member in read_head(run.directory / head.weights_file).members}
        assert head.name == "logistic,C=0.001,transform=none"
        assert specs == {wanted}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("mlp:8,views=224:crop", "the view 224:crop is not among those of this training: 224, 224:flip"),
        ("mlp:8,views=224+448", r"views=224\+448: the view 448 is not among those"),
        ("mlp:8,layers=2", "there are no embeddings of layer 2. There are: 3, 4"),
        ("logistic,layers=3+1", "there are no embeddings of layer 1"),
        ("mlp:8,layers=x", "layers must be auto, or numbers of layers joined by"),
        ("mlp:8,views=", "views must be auto, or names of views joined by"),
    ],
)
def test_views_and_layers_that_are_not_there_are_refused(tmp_path: Path, head: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        train(tmp_path, layered(), (head,), layers=(3, 4))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ("224:crop", "has no embeddings of the view 224:crop. It has: 224, 224:flip. Add it: hoarfrost extract"),
        ("high", "has no embeddings of the view 224:crop"),
        ("225", "the size must be a multiple of 32"),
        ("224:spin", "'spin' is not known"),
    ],
)
def test_named_views_that_are_not_there_are_refused_by_the_command(
    tmp_path: Path, hoarfrost: Hoarfrost, views: str, message: str
) -> None:
    x = embeddings_of(LABELS)
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, views={"224": x, "224:flip": x})
    done = hoarfrost("train", "--cache", cache, "--run", tmp_path / "run", "--views", views, "--head", "linear")
    assert done.status == 1
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "run").exists()


# -- images that lack a view -------------------------------------------------------------------------------------------


def test_a_view_that_some_images_lack_is_not_used_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    views, lacking = two_sizes(), {"448": (3, 4), "448:flip": (5,)}
    with caplog.at_level(logging.WARNING):
        task = task_of(tmp_path / "c.h5", views, lacking=lacking)
    assert task.views == SMALL
    reason = "not used, because embeddings are missing: the views 448 (2 of 90 images), 448:flip (1 of 90 images)"
    assert reason in caplog.text
    np.testing.assert_array_equal(task.embeddings(np.arange(N)), views["224"])
    with EmbeddingCache(tmp_path / "c.h5") as cache:
        with pytest.raises(TrainingError, match=r"embeddings are missing for the views 448 \(2 of 90 images\)"):
            chosen_views(cache, cache.dataset(None), "224,448")
        names, rows = chosen_views(cache, cache.dataset(None), "224:flip,224")
        assert names == ("224:flip", "224")
        np.testing.assert_array_equal(cache.embeddings(rows[:, 1]), views["224"])


def test_images_without_any_common_view_are_refused(tmp_path: Path) -> None:
    x = embeddings_of(LABELS)
    with pytest.raises(HoarfrostError, match="embeddings are missing for the views 224 .1 of 90 images., 448"):
        task_of(tmp_path / "c.h5", {"224": x, "448": x}, lacking={"224": (0,), "448": (1,)})


# -- what else sees the views ------------------------------------------------------------------------------------------


def mirrored_copies() -> dict[str, npt.NDArray[np.float32]]:
    """Draw images of which 80 and 81 are mirror images of 5 and 6."""
    x, flipped = embeddings_of(LABELS, seed=1), embeddings_of(LABELS, seed=2)
    noise = np.random.default_rng(0).normal(0, 0.05, (2, 2, x.shape[1])).astype(np.float32)
    x[80:82], flipped[80:82] = flipped[5:7] + noise[0], x[5:7] + noise[1]
    return {"224": x, "224:flip": flipped}


@pytest.mark.parametrize("order", [SMALL, SMALL[::-1]])
def test_near_duplicates_are_found_across_mirror_images(tmp_path: Path, order: tuple[str, ...]) -> None:
    found = mirrored_copies()
    task = task_of(tmp_path / "c.h5", {name: found[name] for name in order})
    folds = k_folds(task.y, task.groups, task.names, 5, seed=0)
    for copy, original in ((80, 5), (81, 6)):
        assert task.groups[copy] == task.groups[original]
        assert folds[copy] == folds[original]
    assert len(set(task.groups.tolist())) == N - 2
    without = task_of(tmp_path / "one.h5", {"224": found["224"]})
    assert len(set(without.groups.tolist())) == N


@pytest.mark.parametrize("mode", ["warn", "group"])
def test_mirror_images_of_training_images_in_a_given_test_split_are_reported(tmp_path: Path, mode: str) -> None:
    leakage = check_leakage(task_of(tmp_path / "c.h5", mirrored_copies(), splits=SPLITS, near_duplicates=mode))
    assert leakage.n_near_duplicates == 2
    assert {tuple(sorted((one.first, one.second))) for one in leakage.near_duplicates} == {
        tuple(sorted(f"{LABELS[i]}/{i}.png" for i in pair)) for pair in ((80, 5), (81, 6))
    }


def test_references_learn_from_the_mean_embedding(tmp_path: Path) -> None:
    views = two_sizes(0.08)
    of_views = train(tmp_path / "a", views, ("logistic,C=0.01",), splits=SPLITS, views=",".join(LARGE))
    mean = np.mean([views[name] for name in LARGE], axis=0, dtype=np.float32)
    of_mean = train(tmp_path / "b", {"224": mean}, ("logistic,C=0.01",), splits=SPLITS)
    assert len(of_views.references) > 2
    for one, other in zip(of_views.references, of_mean.references, strict=True):
        assert (one.name, one.setting) == (other.name, other.setting)
        assert one.test is not None
        assert other.test is not None
        assert one.test.value("roc_auc") == pytest.approx(other.test.value("roc_auc"), abs=1e-9)
        assert one.test.value("loss") == pytest.approx(other.test.value("loss"), abs=1e-4)
    # A penalised head takes the mean too.
    np.testing.assert_allclose(
        probabilities(of_views, "logistic,C=0.01"), probabilities(of_mean, "logistic,C=0.01"), rtol=0, atol=1e-6
    )
