"""How well scores separate classes: ROC curves, their areas, DeLong's intervals."""

import math

import numpy as np

from hoarfrost.evaluation.checks import (
    Bools,
    Floats,
    Ints,
    binary_problems,
    checked,
    checked_binary,
    normal_interval,
    normal_quantile,
    tied_groups,
)


def roc_auc(y_true: Ints, y_score: Floats) -> float:
    """Return the area under the ROC curve; ties count one half.

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
    return float(roc_aucs(y_true, np.asarray(y_score)[None])[0])


def roc_aucs(y_true: Ints, y_scores: Floats) -> Floats:
    """Return the areas (m,) float64 under many ROC curves of the same samples, by the Mann-Whitney statistic.

    Errors are those of `roc_auc`.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    y_scores : ndarray (m, n) float64
        Each row as the `y_score` of `roc_auc`.

    Notes
    -----
    Every area in the project comes from here, or from `weighted_auc`. Counts of pairs are exact, so scores that rank the
    samples alike have the same area to the last digit.
    """
    for y_score in y_scores:
        y_true, _ = checked_binary(y_true, y_score)
    n_pos = int(y_true.sum())
    n_pairs = n_pos * (len(y_true) - n_pos)
    return np.array([_n_won(y_score, y_true == 1) / n_pairs for y_score in y_scores], np.float64)


def _n_won(y_score: Floats, positive: Bools) -> float:
    """Return in how many pairs of classes the positive sample has the higher score; ties count one half."""
    negatives, positives = np.sort(y_score[~positive]), np.sort(y_score[positive])  # sorted ones are found faster
    below_twice = np.searchsorted(negatives, positives, "left") + np.searchsorted(negatives, positives, "right")
    return int(below_twice.sum()) / 2


def macro_roc_auc(y_true: Ints, probabilities: Floats) -> float:
    """Return the ROC AUC of class 1; with more classes the macro mean of one-vs-rest, with several labels that of labels.

    Errors are those of `roc_auc`.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    probabilities : ndarray (n, C) float64
    """
    return float(macro_roc_aucs(y_true, np.asarray(probabilities)[None])[0])


def macro_roc_aucs(y_true: Ints, probabilities: Floats) -> Floats:
    """Return `macro_roc_auc` of many heads at once: (m,) float64 from probabilities (m, n, C). Errors as there."""
    y_true = np.asarray(y_true)
    if probabilities.ndim != 3 or probabilities.shape[1] != len(y_true):
        raise ValueError(f"{len(y_true)} labels, but probabilities of shape {probabilities.shape[1:]}")
    problems = binary_problems(y_true, probabilities.shape[2])
    areas: Floats = np.mean([roc_aucs(y, probabilities[:, rows, number]) for number, rows, y in problems], axis=0)
    return areas


def roc_curve(y_true: Ints, y_score: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the ROC curve: false positive rates, true positive rates and thresholds, each (k,) float64.

    The first threshold is infinity. Points on a straight line between others are omitted.
    """
    false, true, thresholds = _counts_at_thresholds(*checked_binary(y_true, y_score))
    is_corner = np.ones(len(true), bool)
    is_corner[1:-1] = (np.diff(false, 2) != 0) | (np.diff(true, 2) != 0)
    false, true = (np.concatenate([[0.0], one[is_corner]]) for one in (false, true))
    return false / false[-1], true / true[-1], np.concatenate([[np.inf], thresholds[is_corner]])


def precision_recall_curve(y_true: Ints, y_score: Floats) -> tuple[Floats, Floats, Floats]:
    """Return precision, recall (ascending) and thresholds (descending), each (k,) float64, one entry per distinct score.

    The average precision is the area under the steps: each precision applies from the recall before it to its own.
    """
    false, true, thresholds = _counts_at_thresholds(*checked_binary(y_true, y_score))
    return true / (true + false), true / true[-1], thresholds


def average_precision(y_true: Ints, y_score: Floats) -> float:
    """Return the area under the steps of `precision_recall_curve`. Errors as `roc_auc`."""
    precision, recall, _ = precision_recall_curve(y_true, y_score)
    steps = np.diff(recall, prepend=0.0) * precision
    return float(steps[::-1].sum())  # from the lowest threshold, as scikit-learn sums: the same to the last digit


def _counts_at_thresholds(y_true: Ints, y_score: Floats) -> tuple[Floats, Floats, Floats]:
    """Return how many negatives and positives score at least each distinct score, and these scores, descending."""
    order = np.argsort(-y_score, kind="stable")
    descending = y_score[order]
    last = np.flatnonzero(np.append(np.diff(descending) != 0, True))
    true = np.cumsum(y_true[order], dtype=np.float64)[last]
    return last + 1 - true, true, descending[last]


def delong_ci(y_true: Ints, y_score: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Return DeLong's confidence interval (low, high) of the ROC AUC, clipped to [0, 1].

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    y_score : ndarray (n,) float64
        Higher means class 1.
    level : float
        Coverage, between 0 and 1.

    Raises
    ------
    ValueError
        If a class has fewer than two samples, a score is not finite, the lengths differ, or `level` is out of range.

    Notes
    -----
    Assumes independent samples. O(n log n): one sort, then counts. The normal interval, as in pROC. With few samples
    of a class and an AUC near one it is too narrow, mostly too high (100 samples, 10 of them positive, AUC 0.9: it
    covers the truth in 85% of draws), and it is a single point where the AUC is one. `newcombe_ci` covers there too.

    References
    ----------
    DeLong et al. (1988), Biometrics 44(3), 837-845. Sun and Xu (2014), IEEE Signal Processing Letters 21(11),
    1389-1393.
    """
    v10, v01 = placements(y_true, y_score)
    variance = float(v10.var(ddof=1) / len(v10) + v01.var(ddof=1) / len(v01))
    return normal_interval(roc_auc(y_true, y_score), variance, level)


def newcombe_ci(y_true: Ints, y_score: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Return Newcombe's score interval (low, high) of the ROC AUC: for few samples of a class, or an AUC near one.

    It lies in [0, 1], and is not a single point even where the AUC is zero or one.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    y_score : ndarray (n,) float64

    Raises
    ------
    ValueError
        As `roc_auc`; or if `level` is not between 0 and 1.

    Notes
    -----
    It contains the AUCs whose distance from the estimate is at most a quantile of their own standard deviations, as
    Wilson's interval does for a proportion. The variance is Hanley and McNeil's, with the class sizes averaged
    (method 5). It needs one sample of each class, and covers slightly more often than stated. Assumes independent
    samples.

    References
    ----------
    Newcombe (2006), Statistics in Medicine 25(4), 559-573.
    """
    n_pos = int((np.asarray(y_true) == 1).sum())
    return newcombe_limits(roc_auc(y_true, y_score), n_pos, len(y_true) - n_pos, level=level)


def newcombe_limits(auc: float, n_pos: float, n_neg: float, *, level: float = 0.95) -> tuple[float, float]:
    """Return Newcombe's interval, see `newcombe_ci`, of an area found with numbers of independent cases of each class.

    Numbers that are not whole are those of cases that tell as much as these.
    """
    from scipy.optimize import brentq

    z2 = normal_quantile(level) ** 2

    def lower(auc: float) -> float:
        def beyond(candidate: float) -> float:
            return (auc - candidate) ** 2 - z2 * newcombe_variance(candidate, n_pos, n_neg)

        # Where the AUC is one, one is a root too; the limit is the other root.
        return 0.0 if auc <= 0 else float(brentq(beyond, 0, min(auc, 1 - 1e-12)))

    return lower(auc), 1 - lower(1 - auc)


def newcombe_variance(auc: float, n_pos: float, n_neg: float) -> float:
    """Return the variance that Newcombe's interval assumes: Hanley and McNeil's, with the class sizes averaged."""
    spread = 1 + ((n_pos + n_neg) / 2 - 1) * ((1 - auc) / (2 - auc) + auc / (1 + auc))
    return auc * (1 - auc) * spread / (n_pos * n_neg)


def macro_auc_ci(y_true: Ints, probabilities: Floats, *, level: float = 0.95) -> tuple[float, float]:
    """Return a confidence interval (low, high) of `macro_roc_auc`, clipped to [0, 1].

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1, each present; or (n, C) int64 of 0, 1 and -1 (unknown)
    probabilities : ndarray (n, C) float64

    Raises
    ------
    ValueError
        As `score`; or if `level` is not between 0 and 1.

    Notes
    -----
    The infinitesimal jackknife: to first order the AUC of each class or label is a mean over samples, with DeLong's
    placements as terms. So the macro mean's variance is that of the terms' mean over the classes, including their
    correlation. With Bessel's correction in each group it equals DeLong's interval where there are two classes. Assumes
    independent samples.
    """
    auc, influence = auc_influence(y_true, probabilities)
    return normal_interval(auc, float((influence**2).sum()), level)


def auc_influence(y_true: Ints, probabilities: Floats) -> tuple[float, Floats]:
    """Return `macro_roc_auc`, and each sample's influence on it. Errors as `macro_auc_ci`.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1, each at least twice; or (n, C) int64 of 0, 1 and -1 (unknown)
    probabilities : ndarray (n, C) float64

    Returns
    -------
    auc : float
    influence : ndarray (n,) float64
        Its sum is zero. The sum of its squares is the variance of the AUC where samples are independent; with two
        classes this is DeLong's variance (Bessel's correction is included).
    """
    y_true, probabilities = checked(y_true, probabilities, probabilities.shape[1])
    problems = list(binary_problems(y_true, probabilities.shape[1]))
    influence = np.zeros(len(y_true))
    for number, rows, y in problems:
        v10, v01 = placements(y, probabilities[rows, number])
        for group, terms in ((y == 1, v10), (y == 0, v01)):
            influence[rows[group]] += (terms - terms.mean()) / math.sqrt(len(terms) * (len(terms) - 1)) / len(problems)
    return macro_roc_auc(y_true, probabilities), influence


def placements(y_true: Ints, y_score: Floats) -> tuple[Floats, Floats]:
    """Return for each positive the share of negatives below it, for each negative that of positives above; ties one half.

    Errors are those of `delong_ci`.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}, each at least twice
    y_score : ndarray (n,) float64

    Returns
    -------
    v10 : ndarray (n_pos,) float64
    v01 : ndarray (n_neg,) float64
    """
    y_true, y_score = checked_binary(y_true, y_score)
    positive = y_true == 1
    n_pos = int(positive.sum())
    n_neg = len(y_true) - n_pos
    if min(n_pos, n_neg) < 2:
        counts = f"{n_pos} positive and {n_neg} negative"
        raise ValueError(f"DeLong's variance needs two samples of each class; there are {counts}")
    # One sort serves both classes: the cumulative counts up to each group of ties are the ranks.
    order = np.argsort(y_score)
    ties, starts = tied_groups(y_score[order])
    n_tied_pos = np.add.reduceat(y_true[order], starts)
    n_tied_neg = np.diff(starts, append=len(order)) - n_tied_pos
    below = (np.cumsum(n_tied_neg) - n_tied_neg / 2) / n_neg  # (n_groups,)
    above = (n_pos - np.cumsum(n_tied_pos) + n_tied_pos / 2) / n_pos
    found = np.empty(len(order))
    found[order] = np.where(positive[order], below[ties], above[ties])
    return found[positive], found[~positive]
