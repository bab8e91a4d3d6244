"""Samples with a known truth, and linear heads that are trained on them in folds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from hoarfrost.evaluation.discrimination import auc_influence

Floats = npt.NDArray[np.float64]
N_INFORMATIVE = 16


@dataclass(frozen=True)
class Drawn:
    """Labels (n,), features (n, d) with unit variance in each class, and the difference of the class means (d,)."""

    y: npt.NDArray[np.int64]
    x: Floats
    delta: Floats


def drawn(rng: np.random.Generator, n: int, *, n_features: int, distance: float, prevalence: float = 0.3) -> Drawn:
    """Draw samples of two normal classes whose means are some distance apart, in few of the features."""
    y = rng.permutation((np.arange(n) < prevalence * n).astype(np.int64))
    delta = np.where(np.arange(n_features) < N_INFORMATIVE, distance / np.sqrt(min(n_features, N_INFORMATIVE)), 0.0)
    return Drawn(y, rng.normal(size=(n, n_features)) + y[:, None] * delta, delta)


def pooled_scores(
    rng: np.random.Generator, data: Drawn, *, penalty: float, n_folds: int
) -> tuple[Floats, list[Floats]]:
    """Predict each sample by ridge regression on the other folds; return the scores (n,) and each fold's weights (d,)."""
    folds = np.empty(len(data.y), np.int64)
    for value in (0, 1):
        rows = rng.permutation(np.flatnonzero(data.y == value))
        folds[rows] = np.arange(len(rows)) % n_folds
    scores, weights = np.empty(len(data.y)), []
    for fold in range(n_folds):
        scores[folds == fold], w = _predicted(data, folds != fold, penalty)
        weights.append(w)
    return scores, weights


def areas_of_splits(
    rng: np.random.Generator, data: Drawn, *, penalty: float, n_splits: int, share: float = 0.2
) -> tuple[list[float], Floats, list[Floats]]:
    """Train ridge regression on random splits; return the ROC AUC of what each holds out.

    And each sample's influences on them, (R, n), and the weights (d,).
    """
    areas, weights, influences = [], [], np.zeros((n_splits, len(data.y)))
    for number in range(n_splits):
        own = np.ones(len(data.y), bool)
        for value in (0, 1):
            rows = np.flatnonzero(data.y == value)
            own[rng.choice(rows, max(1, round(share * len(rows))), replace=False)] = False
        scores, w = _predicted(data, own, penalty)
        area, influences[number, ~own] = auc_influence(data.y[~own], np.column_stack([-scores, scores]))
        areas.append(area)
        weights.append(w)
    return areas, influences, weights


def _predicted(data: Drawn, own: npt.NDArray[np.bool_], penalty: float) -> tuple[Floats, Floats]:
    """Return the scores of what is not one's own by ridge regression, and its weights (d,)."""
    w = ridge(data, own, penalty)
    return (data.x[~own] - data.x[own].mean(axis=0)) @ w, w


def ridge(data: Drawn, own: npt.NDArray[np.bool_], penalty: float) -> Floats:
    """Return the weights (d,) of ridge regression on some of the samples."""
    x, y = data.x[own] - data.x[own].mean(axis=0), data.y[own]
    found: Floats = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y - y.mean())
    return found


def true_auc(weights: Floats, data: Drawn) -> float:
    """Return the ROC AUC of a linear score on new samples."""
    return float(norm.cdf(weights @ data.delta / np.linalg.norm(weights) / np.sqrt(2)))
