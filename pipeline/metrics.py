"""How good predictions are, with intervals. NumPy in, floats out; the sole user of scikit-learn's metrics."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, rankdata
from sklearn import metrics as sk

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def score(y_true: Ints, probabilities: Floats, classes: Sequence[str]) -> dict[str, Any]:
    """Score one head on one split.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1
    probabilities : ndarray (n, C) float64
        Rows sum to one.
    classes : sequence of str, length C

    Returns
    -------
    dict
        `n`, `accuracy`, `majority_accuracy` (of always answering the most frequent class), `loss`
        (mean cross-entropy, nats), `roc_auc` with `roc_auc_ci95`; with more than two classes the
        AUC is the macro mean of one-vs-rest, and `roc_auc_per_class` has its terms.

    Raises
    ------
    ValueError
        If a class has fewer than two samples (ROC AUC or its interval is undefined then), or the
        arrays do not fit one another.
    """
    n_classes = len(classes)
    y_true, probabilities = _checked(y_true, probabilities, n_classes)
    counts = np.bincount(y_true, minlength=n_classes)
    if counts.min() < 2:
        rarest = classes[int(counts.argmin())]
        raise ValueError(f"ROC AUC and its interval need two samples of each class; {rarest!r} has {counts.min()}")
    result: dict[str, Any] = {
        "n": len(y_true),
        "accuracy": float(sk.accuracy_score(y_true, probabilities.argmax(axis=1))),
        "majority_accuracy": float(counts.max() / len(y_true)),
        "loss": float(sk.log_loss(y_true, probabilities, labels=np.arange(n_classes))),
    }
    if n_classes == 2:
        result["roc_auc"] = roc_auc(y_true, probabilities[:, 1])
        result["roc_auc_ci95"] = list(delong_ci(y_true, probabilities[:, 1]))
        return result
    per_class = [roc_auc((y_true == c).astype(np.int64), probabilities[:, c]) for c in range(n_classes)]
    result["roc_auc"] = float(np.mean(per_class))
    result["roc_auc_ci95"] = list(macro_auc_ci(y_true, probabilities))
    result["roc_auc_per_class"] = dict(zip(classes, per_class, strict=True))
    return result


def roc_auc(y_true: Ints, y_score: Floats) -> float:
    """Give the area under the ROC curve (scikit-learn's), ties counted one half.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    y_score : ndarray (n,) float64
        Higher means class 1.

    Raises
    ------
    ValueError
        If only one class is present, a score is not finite, or the lengths differ.
    """
    y_true, y_score = _checked_binary(y_true, y_score)
    return float(sk.roc_auc_score(y_true, y_score))


def roc_aucs(y_true: Ints, y_scores: Floats) -> Floats:
    """Give the areas under many ROC curves over the same samples at once.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    y_scores : ndarray (m, n) float64
        Each row as the `y_score` of `roc_auc`, which this equals to rounding.

    Returns
    -------
    ndarray (m,) float64

    Raises
    ------
    ValueError
        As `roc_auc`.

    Notes
    -----
    The Mann-Whitney statistic, by mid-ranks.
    """
    for y_score in y_scores:
        y_true, _ = _checked_binary(y_true, y_score)
    n_pos = int(y_true.sum())
    rank_sums = rankdata(y_scores, axis=1)[:, y_true == 1].sum(axis=1)
    areas: Floats = (rank_sums - n_pos * (n_pos + 1) / 2) / (n_pos * (len(y_true) - n_pos))
    return areas


def macro_roc_auc(y_true: Ints, probabilities: Floats) -> float:
    """Give the ROC AUC of class 1, or with more than two classes the macro mean of one-vs-rest.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1
    probabilities : ndarray (n, C) float64

    Raises
    ------
    ValueError
        As `roc_auc`.
    """
    return float(macro_roc_aucs(y_true, probabilities[None])[0])


def macro_roc_aucs(y_true: Ints, probabilities: Floats) -> Floats:
    """Give `macro_roc_auc` for many heads at once: (m,) float64 of probabilities (m, n, C)."""
    n_classes = probabilities.shape[2]
    classes = [1] if n_classes == 2 else range(n_classes)
    areas: Floats = np.mean([roc_aucs((y_true == c).astype(np.int64), probabilities[:, :, c]) for c in classes], axis=0)
    return areas


def roc_curve(y_true: Ints, y_score: Floats) -> tuple[Floats, Floats, Floats]:
    """Give the ROC curve: false positive rates, true positive rates, thresholds, each (k,) float64."""
    y_true, y_score = _checked_binary(y_true, y_score)
    fpr, tpr, thresholds = sk.roc_curve(y_true, y_score)
    return fpr, tpr, thresholds


def confusion_matrix(y_true: Ints, y_pred: Ints, n_classes: int) -> Ints:
    """Count (C, C) int64: row = true class, column = predicted class."""
    matrix: Ints = sk.confusion_matrix(y_true, y_pred, labels=np.arange(n_classes)).astype(np.int64)
    return matrix


def delong_ci(y_true: Ints, y_score: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Give DeLong's confidence interval of the ROC AUC, clipped to [0, 1].

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    y_score : ndarray (n,) float64
        Higher means class 1.
    level : float
        Coverage, between 0 and 1.

    Returns
    -------
    (low, high) : floats

    Raises
    ------
    ValueError
        If a class has fewer than two samples, a score is not finite, the lengths differ, or
        `level` is not between 0 and 1.

    Notes
    -----
    Assumes independent samples. O(n log n), by mid-ranks.

    References
    ----------
    DeLong et al. (1988), Biometrics 44(3), 837-845. Sun and Xu (2014), IEEE Signal Processing
    Letters 21(11), 1389-1393.
    """
    auc, variance = delong_variance(y_true, y_score)
    return _normal_interval(auc, variance, level)


def delong_variance(y_true: Ints, y_score: Floats) -> tuple[float, float]:
    """Give the ROC AUC and DeLong's estimate of its variance. Errors as `delong_ci`."""
    v10, v01 = _placements(y_true, y_score)
    return float(v10.mean()), float(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01))


def macro_auc_ci(y_true: Ints, probabilities: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Give a confidence interval of the macro one-vs-rest ROC AUC, clipped to [0, 1].

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1, each present
    probabilities : ndarray (n, C) float64
    level : float

    Returns
    -------
    (low, high) : floats

    Raises
    ------
    ValueError
        As `score`; or if `level` is not between 0 and 1.

    Notes
    -----
    The infinitesimal jackknife: each one-vs-rest AUC is a mean over samples to first order, with
    DeLong's placements as terms, so the macro mean's variance is that of the terms' mean over the
    classes, their correlation included. Bessel's correction in each group makes it DeLong's own
    interval where there are two classes. Assumes independent samples.
    """
    y_true, probabilities = _checked(y_true, probabilities, probabilities.shape[1])
    n_classes = probabilities.shape[1]
    influence = np.zeros(len(y_true))  # of each sample on the macro AUC
    aucs = []
    for c in range(n_classes):
        one = (y_true == c).astype(np.int64)
        v10, v01 = _placements(one, probabilities[:, c])
        aucs.append(v10.mean())
        for group, terms in ((one == 1, v10), (one == 0, v01)):
            influence[group] += (terms - terms.mean()) / math.sqrt(len(terms) * (len(terms) - 1)) / n_classes
    return _normal_interval(float(np.mean(aucs)), float((influence**2).sum()), level)


def _placements(y_true: Ints, y_score: Floats) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it, for each negative that of positives above; ties one half."""
    y_true, y_score = _checked_binary(y_true, y_score)
    positive = y_true == 1
    n_pos, n_neg = int(positive.sum()), int((~positive).sum())
    if min(n_pos, n_neg) < 2:
        raise ValueError(
            f"DeLong's variance needs two samples of each class; there are {n_pos} positive and {n_neg} negative"
        )
    ranks = rankdata(y_score)
    v10 = (ranks[positive] - rankdata(y_score[positive])) / n_neg
    v01 = 1 - (ranks[~positive] - rankdata(y_score[~positive])) / n_pos
    return v10, v01


def _normal_interval(estimate: float, variance: float, level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    half = float(norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    return max(0.0, estimate - half), min(1.0, estimate + half)


def _checked(y_true: Ints, probabilities: Floats, n_classes: int) -> tuple[Ints, Floats]:
    y_true, probabilities = np.asarray(y_true), np.asarray(probabilities, np.float64)
    if probabilities.shape != (len(y_true), n_classes):
        raise ValueError(
            f"{len(y_true)} labels of {n_classes} classes, but probabilities of shape {probabilities.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("some probabilities are NaN or infinite")
    if not np.isin(y_true, np.arange(n_classes)).all():
        raise ValueError(f"y_true holds values other than 0 to {n_classes - 1}")
    if not len(y_true):
        raise ValueError("there are no samples")
    return y_true.astype(np.int64), probabilities


def _checked_binary(y_true: Ints, y_score: Floats) -> tuple[Ints, Floats]:
    y_true, y_score = np.asarray(y_true), np.asarray(y_score, np.float64)
    if y_true.shape != y_score.shape or y_true.ndim != 1:
        raise ValueError(f"y_true has the shape {y_true.shape}, y_score {y_score.shape}; both must be (n,)")
    if not np.isin(y_true, (0, 1)).all():
        raise ValueError("y_true holds values other than 0 and 1")
    if not np.isfinite(y_score).all():
        raise ValueError("y_score holds NaN or infinite values")
    n_pos = int((y_true == 1).sum())
    if n_pos in {0, len(y_true)}:
        raise ValueError(f"ROC AUC needs both classes; there are {n_pos} positive and {len(y_true) - n_pos} negative")
    return y_true.astype(np.int64), y_score
