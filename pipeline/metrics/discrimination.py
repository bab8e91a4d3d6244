"""How well scores tell classes apart: ROC curves, their areas, DeLong's intervals."""

import math

import numpy as np
from scipy.stats import norm, rankdata
from sklearn import metrics as sk

from pipeline.metrics.checks import Floats, Ints, binary_problems, checked, checked_binary


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
    y_true, y_score = checked_binary(y_true, y_score)
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
        y_true, _ = checked_binary(y_true, y_score)
    n_pos = int(y_true.sum())
    rank_sums = rankdata(y_scores, axis=1)[:, y_true == 1].sum(axis=1)
    areas: Floats = (rank_sums - n_pos * (n_pos + 1) / 2) / (n_pos * (len(y_true) - n_pos))
    return areas


def macro_roc_auc(y_true: Ints, probabilities: Floats) -> float:
    """Give the ROC AUC of class 1; with more classes the macro mean of one-vs-rest, with several labels that of labels.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 where a label is unknown
    probabilities : ndarray (n, C) float64

    Raises
    ------
    ValueError
        As `roc_auc`.
    """
    return float(macro_roc_aucs(y_true, probabilities[None])[0])


def macro_roc_aucs(y_true: Ints, probabilities: Floats) -> Floats:
    """Give `macro_roc_auc` for many heads at once: (m,) float64 of probabilities (m, n, C)."""
    problems = binary_problems(y_true, probabilities.shape[2])
    areas: Floats = np.mean([roc_aucs(y, probabilities[:, rows, number]) for number, rows, y in problems], axis=0)
    return areas


def roc_curve(y_true: Ints, y_score: Floats) -> tuple[Floats, Floats, Floats]:
    """Give the ROC curve: false positive rates, true positive rates, thresholds, each (k,) float64."""
    y_true, y_score = checked_binary(y_true, y_score)
    fpr, tpr, thresholds = sk.roc_curve(y_true, y_score)
    return fpr, tpr, thresholds


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
    """Give a confidence interval of `macro_roc_auc`, clipped to [0, 1].

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1, each present; or (n, C) int64 of 0, 1 and -1 where a label is unknown
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
    The infinitesimal jackknife: the AUC of each class or label is a mean over samples to first order, with
    DeLong's placements as terms, so the macro mean's variance is that of the terms' mean over the
    classes, their correlation included. Bessel's correction in each group makes it DeLong's own
    interval where there are two classes. Assumes independent samples.
    """
    y_true, probabilities = checked(y_true, probabilities, probabilities.shape[1])
    problems = list(binary_problems(y_true, probabilities.shape[1]))
    influence = np.zeros(len(y_true))  # of each sample on the macro AUC
    aucs = []
    for number, rows, one in problems:
        v10, v01 = _placements(one, probabilities[rows, number])
        aucs.append(v10.mean())
        for group, terms in ((one == 1, v10), (one == 0, v01)):
            influence[rows[group]] += (terms - terms.mean()) / math.sqrt(len(terms) * (len(terms) - 1)) / len(problems)
    return _normal_interval(float(np.mean(aucs)), float((influence**2).sum()), level)


def _placements(y_true: Ints, y_score: Floats) -> tuple[Floats, Floats]:
    """For each positive the share of negatives below it, for each negative that of positives above; ties one half."""
    y_true, y_score = checked_binary(y_true, y_score)
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
