"""Distances detect images unlike the training set; the threshold's false alarms are as stated."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoarfrost.evaluation import roc_auc
from hoarfrost.evaluation.conformal import calibrate
from hoarfrost.evaluation.novelty import N_DIRECTIONS, Embeddings, fit_novelty
from hoarfrost.experiment.development import development_of
from hoarfrost.experiment.task import read_task
from hoarfrost.experiment.validated import novelty_of
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from tests.support.builders import SHARED_DATA
from tests.support.labelled import mixed, write_labelled_cache

BUSI, FOREIGN = SHARED_DATA / "busi", SHARED_DATA / "pneumoniamnist.npz"


def drawn(n: int, seed: int, *, shift: float = 0.0, dim: int = 64) -> Embeddings:
    """Draw embeddings (n, dim) as those of a backbone are: positive, with unlike spreads; shifted in one quiet direction."""
    rng = np.random.default_rng(seed)
    spread = np.geomspace(1, 0.02, dim)
    x = 5 + rng.normal(size=(n, dim)) * spread
    x[:, -1] += shift
    return x.astype(np.float32)


def area(own: np.ndarray, others: np.ndarray) -> float:
    return roc_auc(np.repeat([0, 1], [len(own), len(others)]), np.concatenate([own, others]))


def test_shift_in_a_quiet_direction_is_found_though_it_is_small() -> None:
    reference = fit_novelty([drawn(2_000, 0)])
    own, others = reference.distances(drawn(500, 1)), reference.distances(drawn(500, 2, shift=0.5))
    assert area(own, others) > 0.95
    lengths = [np.linalg.norm(drawn(500, seed, shift=shift), axis=1) for seed, shift in ((1, 0.0), (2, 0.5))]
    assert area(*lengths) < 0.6  # their lengths do not reveal it


def test_distance_is_mahalanobis_by_the_shrunken_covariance_where_few_directions_are_all() -> None:
    x = drawn(300, 0, dim=N_DIRECTIONS + 1)
    unit = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float64)
    centred = unit - unit.mean(axis=0)
    covariance = centred.T @ centred / len(x)
    n, p, trace, squares = len(x), x.shape[1], np.trace(covariance), (covariance**2).sum()
    share = min(1.0, ((1 - 2 / p) * squares + trace**2) / ((n + 1 - 2 / p) * (squares - trace**2 / p)))
    shrunken = (1 - share) * covariance + share * trace / p * np.eye(p)
    slow = [np.sqrt(row @ np.linalg.solve(shrunken, row)) for row in centred]
    assert fit_novelty([x]).distances(x) == pytest.approx(np.array(slow), rel=1e-3)


@given(st.floats(0.01, 100), st.integers(1, 40))
@settings(max_examples=20)
def test_neither_contrast_nor_batches_change_a_distance(scale: float, size: int) -> None:
    x = drawn(120, 0)
    reference = fit_novelty([x])
    whole = reference.distances(x)
    assert reference.distances((x * np.float32(scale)).astype(np.float32)) == pytest.approx(whole, rel=1e-4)
    parts = np.concatenate([reference.distances(x[i : i + size]) for i in range(0, len(x), size)])
    assert parts == pytest.approx(whole, rel=1e-9)
    blocks = fit_novelty(x[i : i + size] for i in range(0, len(x), size))
    assert blocks.distances(x) == pytest.approx(whole, rel=1e-3)


def test_flag_alarms_at_the_stated_rate_on_images_like_those_of_training() -> None:
    reference, alarms = fit_novelty([drawn(1_000, 0)]), []
    for seed in range(1, 60):
        x = drawn(400, seed)
        threshold = calibrate(reference.distances(x[:99])).quantile(0.95)
        alarms.append((reference.distances(x[99:]) > threshold).mean())
    assert np.mean(alarms) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_few_equal_or_empty_embeddings_give_finite_distances(n: int) -> None:
    for x in (
        np.ones((n, RESNET18.dim), np.float32),
        np.zeros((n, RESNET18.dim), np.float32),
        drawn(n, 0, dim=RESNET18.dim),
    ):
        reference = fit_novelty([x])
        assert np.isfinite(reference.distances(drawn(3, 1, dim=RESNET18.dim))).all()
        assert np.isfinite(reference.distances(np.zeros((1, RESNET18.dim), np.float32))).all()


def test_few_embeddings_are_measured_as_the_eigenvectors_of_their_covariance_measure_them() -> None:
    x, others = drawn(60, 0, dim=240), drawn(20, 1, dim=240)
    alone = fit_novelty([x[:25], x[25:]])
    repeated = fit_novelty([x, x])  # the same covariance, of more than a fourth as many embeddings as values
    np.testing.assert_allclose(np.abs((alone.directions * repeated.directions).sum(axis=1)), 1, atol=1e-4)
    n, unit = len(x), (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float64)
    covariance = np.cov(unit.T, bias=True)
    p, trace, squares = x.shape[1], np.trace(covariance), (covariance**2).sum()
    share = min(1.0, ((1 - 2 / p) * squares + trace**2) / ((n + 1 - 2 / p) * (squares - trace**2 / p)))
    values = (1 - share) * np.linalg.eigvalsh(covariance)[::-1] + share * trace / p
    k = len(alone.variances)
    assert alone.variances == pytest.approx(values[:k], rel=1e-4)
    assert alone.rest == pytest.approx(values[k:].mean(), rel=1e-4)
    assert np.isfinite(alone.distances(others)).all()


def test_no_embeddings_at_all_are_refused() -> None:
    with pytest.raises(ValueError, match="there are no embeddings"):
        fit_novelty([])


def test_what_is_kept_is_small_and_no_embedding() -> None:
    x = drawn(200, 0, dim=RESNET18.dim)
    kept = fit_novelty([x])
    values = [kept.mean, kept.directions, kept.variances]
    assert sum(array.nbytes for array in values) < 70_000
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    directions = kept.directions / np.linalg.norm(kept.directions, axis=1, keepdims=True)
    assert np.abs(directions @ unit.T).max() < 0.9  # no direction is an image's


def test_threshold_is_by_validation_images_which_the_reference_does_not_know(tmp_path: Path) -> None:
    path = write_labelled_cache(tmp_path / "c.h5", mixed({"benign": 120, "malignant": 80}))
    with EmbeddingCache(path) as cache:
        task = read_task(cache, None, ["malignant"], 0, cross_fit=False)
    reference, distances = novelty_of(task, development_of(task, 0), task.views[0])
    rows = {name: np.flatnonzero(task.splits == name) for name in ("train", "val")}
    assert len(distances.scores) == len(rows["val"])
    assert distances.scores == pytest.approx(np.sort(reference.distances(task.embeddings(rows["val"]))))
    again = fit_novelty([task.embeddings(rows["train"])])
    assert again.mean == pytest.approx(reference.mean)


def test_threshold_is_by_all_training_images_out_of_fold_where_there_is_no_validation_split(tmp_path: Path) -> None:
    path = write_labelled_cache(tmp_path / "c.h5", mixed({"benign": 120, "malignant": 80}))
    with EmbeddingCache(path) as cache:
        task = read_task(cache, None, ["malignant"], 0)
    development = development_of(task, 0)
    reference, distances = novelty_of(task, development, task.views[0])
    found = [
        fit_novelty([task.embeddings(fold.train)]).distances(task.embeddings(fold.val)) for fold in development.folds
    ]
    assert len(distances.scores) == len(task.rows_of("train"))
    assert distances.scores == pytest.approx(np.sort(np.concatenate(found)))
    assert reference.mean == pytest.approx(fit_novelty([task.embeddings(task.rows_of("train"))]).mean)


@pytest.mark.slow
@pytest.mark.skipif(not (BUSI.is_dir() and FOREIGN.is_file()), reason="needs BUSI and PneumoniaMNIST")
def test_chest_x_rays_are_found_by_what_was_learnt_from_breast_ultrasound(tmp_path: Path, busi_cache: Path) -> None:
    folder = tmp_path
    with np.load(FOREIGN) as arrays:  # its 624 test images, without the 5,232 others
        of_test = {name: values if name.startswith("test") else values[:1] for name, values in arrays.items()}
    np.savez(folder / "foreign.npz", **of_test)
    extract(folder / "foreign.npz", folder / "foreign.h5", options=ExtractOptions(weights="random:0"))
    with EmbeddingCache(busi_cache) as cache:
        task = read_task(cache, None, ["malignant"], 0)
    with EmbeddingCache(folder / "foreign.h5") as cache:
        foreign, _ = cache.arrays(cache.dataset())
    reference, distances = novelty_of(task, development_of(task, 0), task.views[0])
    own = reference.distances(task.embeddings(np.flatnonzero(task.splits == "test")))
    others = reference.distances(foreign)
    assert area(own, others) >= 0.99
    threshold = distances.quantile(0.95)
    assert (others > threshold).mean() > 0.95
    assert (own > threshold).mean() < 0.12
