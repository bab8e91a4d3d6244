"""Models on covariates, alone and with the images' score: encoded and fitted on some rows, they predict all."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import binary_problems

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PENALTY = 1.0  # scikit-learn's C, for features with unit variance
_MAX_ITERATIONS = 2_000
_SMALLEST = 1e-7  # a probability of 0 has no logit


@dataclass(frozen=True)
class Covariate:
    """One column of n images.

    Attributes
    ----------
    name : str
    texts : ndarray (n,) of str
    is_missing : ndarray (n,) bool
    numbers : ndarray (n,) float64 or None
        NaN where missing; None for categories.
    """

    name: str
    texts: npt.NDArray[np.str_]
    is_missing: npt.NDArray[np.bool_]
    numbers: Floats | None


def encoded(columns: Sequence[Covariate], fitted: Ints) -> Floats:
    """Return covariates as features (n, k), encoded by what the fitted rows alone show.

    Parameters
    ----------
    columns : sequence of Covariate
    fitted : ndarray (m,) int64
        Rows from which medians and levels are taken.

    Returns
    -------
    ndarray (n, k) float64
        Of numbers, the value, the median where it is missing, and whether it is missing. Of categories, one column of 0
        and 1 for each level of the fitted rows, "missing" being one; other levels are 0 in all of them.
    """
    return np.column_stack([found for one in columns for found in _features(one, fitted)])


def _features(one: Covariate, fitted: Ints) -> list[Floats]:
    absent = one.is_missing.astype(np.float64)
    missing = [absent] if absent[fitted].any() else []
    if one.numbers is None:
        levels = np.unique(one.texts[fitted][~one.is_missing[fitted]]).tolist()
        return [((one.texts == level) & ~one.is_missing).astype(np.float64) for level in levels] + missing
    known = one.numbers[fitted][~one.is_missing[fitted]]
    median = float(np.median(known)) if len(known) else 0.0
    return [np.where(one.is_missing, median, one.numbers), *missing]


def clinical_and_both(columns: Sequence[Covariate], images: Floats, y: Ints, fitted: Ints) -> tuple[Floats, Floats]:
    """Fit a model on covariates, and one on covariates and the images' score; predict all rows by each.

    Parameters
    ----------
    columns : sequence of Covariate
    images : ndarray (n, C) float64
        Probabilities by heads that learned from none of these rows, so that the score is as good as on new images.
    y : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    fitted : ndarray (m,) int64
        Rows to fit on.

    Returns
    -------
    clinical, both : ndarray (n, C) float64

    Notes
    -----
    Logistic regressions with an L2 penalty on standardised features. The second is stacking (Wolpert 1992, Neural Networks
    5(2), 241-259) with one score of the images, their logit (of more than two classes, one for each).
    """
    features = encoded(columns, fitted)
    logs = np.log(np.clip(images, _SMALLEST, 1))
    if y.ndim == 1:
        scores = (logs - logs.mean(axis=1, keepdims=True))[
            :, int(images.shape[1] == 2) :
        ]  # of two classes, one is enough
        both = np.column_stack([features, scores])
        return _fitted(features, y, fitted, images.shape[1]), _fitted(both, y, fitted, images.shape[1])
    logits = logs - np.log(np.clip(1 - images, _SMALLEST, 1))
    clinical, joined = np.empty_like(images), np.empty_like(images)
    for number, rows, _ in binary_problems(y[fitted], images.shape[1]):
        known, truth = fitted[rows], y[:, number]
        clinical[:, number] = _fitted(features, truth, known, 2)[:, 1]
        joined[:, number] = _fitted(np.column_stack([features, logits[:, number]]), truth, known, 2)[:, 1]
    return clinical, joined


def _fitted(features: Floats, y: Ints, rows: Ints, n_classes: int) -> Floats:
    """Fit logistic regression on some rows, standardised by themselves; return its probabilities (n, C) of all."""
    from sklearn.linear_model import LogisticRegression

    mean, scale = features[rows].mean(axis=0), features[rows].std(axis=0)
    z = (features - mean) / np.where(scale > 0, scale, 1.0)
    found, classes = np.zeros((len(z), n_classes)), np.unique(y[rows])
    if len(classes) < 2:
        found[:, classes] = 1.0
    else:
        model = LogisticRegression(C=PENALTY, max_iter=_MAX_ITERATIONS).fit(z[rows], y[rows])
        found[:, model.classes_] = model.predict_proba(z)
    return found
