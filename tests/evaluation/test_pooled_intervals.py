"""Intervals of pooled predictions: they cover the average performance of heads trained in this way."""

import numpy as np
import pytest
from scipy.stats import norm

from hoarfrost.evaluation import compare_heads, score
from hoarfrost.evaluation.intervals import NEWCOMBE, variance_inflation
from tests.support.folds import Drawn, drawn, pooled_scores, true_auc

N, N_DRAWS, N_FOLDS = 150, 200, 5


@pytest.fixture(scope="module")
def simulated() -> list[tuple[np.ndarray, np.ndarray, list[float]]]:
    """Draw datasets, and predict each by ridge regression in folds: labels, pooled scores, true areas by fold."""
    rng, found = np.random.default_rng(0), []
    for _ in range(N_DRAWS):
        data = drawn(rng, N, n_features=512, distance=3.2)
        pooled, weights = pooled_scores(rng, data, penalty=300, n_folds=N_FOLDS)
        found.append((data.y, pooled, [true_auc(one, data) for one in weights]))
    return found


def covered(simulated: list[tuple[np.ndarray, np.ndarray, list[float]]], n_folds: int) -> float:
    target = np.mean([areas for *_, areas in simulated])
    intervals = [score(y, probabilities_of(p), ("a", "b"), n_folds=n_folds).printed("roc_auc") for y, p, _ in simulated]
    return float(np.mean([one is not None and one.low <= target <= one.high for one in intervals]))


def probabilities_of(scores: np.ndarray) -> np.ndarray:
    p = norm.cdf(scores)
    return np.column_stack([1 - p, p])


def test_interval_covers_where_that_of_one_test_split_does_not(
    simulated: list[tuple[np.ndarray, np.ndarray, list[float]]],
) -> None:
    assert covered(simulated, 1) < 0.92
    assert covered(simulated, N_FOLDS) >= 0.93


def test_equally_good_heads_differ_significantly_in_few_draws() -> None:
    rng, p_values = np.random.default_rng(1), []
    for _ in range(N_DRAWS):
        data = drawn(rng, N, n_features=128, distance=2.0)
        half = [Drawn(data.y, data.x[:, start::2], data.delta[start::2]) for start in (0, 1)]
        folds = rng.integers(0, 2**31)
        heads = {
            name: probabilities_of(pooled_scores(np.random.default_rng(folds), one, penalty=100, n_folds=N_FOLDS)[0])
            for name, one in zip("ab", half, strict=True)
        }
        (found,) = compare_heads(data.y, heads, "a", n_folds=N_FOLDS)
        p_values.append(found.p)
    assert np.mean(np.array(p_values) < 0.05) <= 0.07


def test_images_of_a_patient_are_summed() -> None:
    rng = np.random.default_rng(2)
    y, p = rng.integers(0, 2, 100), rng.random(100)
    once = score(y, probabilities_of(p + 0.4 * y), ("a", "b"), n_folds=5).auc
    twice = np.repeat(np.arange(100), 2)
    again = score(y[twice], probabilities_of((p + 0.4 * y)[twice]), ("a", "b"), twice, n_folds=5).auc
    assert again.method.endswith("clustered by patient")
    assert again.high - again.low == pytest.approx(once.high - once.low, rel=0.03)


def test_perfect_areas_have_a_width_and_no_interval_leaves_zero_to_one() -> None:
    y = np.repeat([0, 1], [30, 20])
    perfect = score(y, probabilities_of(y - 0.5), ("a", "b"), n_folds=5).auc
    assert perfect.method == NEWCOMBE
    assert perfect.low is not None
    assert 0.5 < perfect.low < 0.95
    assert score(y, probabilities_of(y - 0.5), ("a", "b")).auc.low > perfect.low
    nearly = np.where(np.arange(50) == 49, -1.0, y - 0.5)
    found = score(y, probabilities_of(nearly), ("a", "b"), n_folds=5).auc
    assert 0 < found.low < found.value < found.high < 1


def test_variance_is_that_of_nadeau_and_bengio() -> None:
    assert variance_inflation(5) == pytest.approx(1 + 5 * (1 / 5) / (4 / 5))
