"""Samples with a known truth, and linear heads that are trained on them in folds."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

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
        own = folds != fold
        weights.append(ridge(data, own, penalty))
        scores[~own] = (data.x[~own] - data.x[own].mean(axis=0)) @ weights[-1]
    return scores, weights


def ridge(data: Drawn, own: npt.NDArray[np.bool_], penalty: float) -> Floats:
    """Return the weights (d,) of ridge regression on some of the samples."""
    x, y = data.x[own] - data.x[own].mean(axis=0), data.y[own]
    found: Floats = x.T @ np.linalg.solve(x @ x.T + penalty * np.eye(len(x)), y - y.mean())
    return found


def true_auc(weights: Floats, data: Drawn) -> float:
    """Return the ROC AUC of a linear score on new samples."""
    return float(norm.cdf(weights @ data.delta / np.linalg.norm(weights) / np.sqrt(2)))
