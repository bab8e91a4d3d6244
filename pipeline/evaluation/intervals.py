"""The choice of the interval that each figure gets. Every output that prints one uses this module."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum

import numpy as np
from scipy.special import expit, logit

from hoarfrost.evaluation.bootstrap import bootstrap_auc_ci, bootstrap_ci
from hoarfrost.evaluation.checks import Floats, Ints, binary_problems, checked_groups, normal_quantile
from hoarfrost.evaluation.discrimination import auc_influence, macro_auc_ci, newcombe_limits, newcombe_variance, roc_auc
from hoarfrost.evaluation.estimates import TOO_FEW, Estimate, wilson
from hoarfrost.evaluation.influence import Influence
from hoarfrost.evaluation.shares import BOOTSTRAP, share
from hoarfrost.evaluation.units import count_patients, is_repeated, too_few_of_classes, too_few_patients

FEW = 30
"""With fewer samples of the rarer class, DeLong's interval covers too rarely (measured)."""
NEAR_ONE = 0.9
"""With a ROC AUC at or above this, too."""
DELONG, NEWCOMBE = "DeLong", "Newcombe"
NADEAU, CLUSTERED = "Nadeau and Bengio", "clustered by patient"
LINEARISED = "delta method"
RESAMPLED_UNITS = "bootstrap"
N_RESAMPLED = 500


class IntervalKind(Enum):
    """The kinds of intervals that a metric may declare."""

    NONE = "none"
    AREA = "area under a ROC curve"
    SHARE = "a proportion of samples"
    LOSS = "a mean of zero or more: normal on the scale of the logarithm"
    UNIT = "between 0 and 1: normal on the scale of the logit"
    CORRELATION = "between -1 and 1: normal on Fisher's scale"
    BENEFIT = "any sign: normal as it is"
    RESAMPLED = "any figure: scored again on units drawn with replacement"


_NO_VARIANCE = 1e-20  # of rounding
_Scale = tuple[Callable[[float], float], Callable[[float], float], Callable[[float], float]]
_SCALES: Mapping[IntervalKind, _Scale] = {  # there, back, and the slope of the way back
    IntervalKind.LOSS: (math.log, math.exp, lambda value: value),
    IntervalKind.UNIT: (logit, expit, lambda value: value * (1 - value)),
    IntervalKind.SHARE: (logit, expit, lambda value: value * (1 - value)),
    IntervalKind.BENEFIT: (float, float, lambda _: 1.0),
    IntervalKind.CORRELATION: (math.atanh, math.tanh, lambda value: 1 - value**2),
}


# -- metrics ------------------------------------------------------------------------------------------------------------


def metric_estimate(
    kind: IntervalKind,
    plain: Estimate,
    y_true: Ints,
    probabilities: Floats,
    groups: Ints | None,
    score_rows: Callable[[Ints], float],
    inflation: float = 1.0,
    influence: Callable[[], Influence] | None = None,
) -> Estimate:
    """Return a metric with the interval of its kind. Errors as `area`.

    Parameters
    ----------
    plain : Estimate
        The metric on all samples, without an interval.
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    probabilities : ndarray (n, C) float64
    groups : ndarray (n,) int64 or None
        Patients, where they are known.
    score_rows : callable
        Takes rows (m,) int64, some more than once, and returns the metric on these samples. Raises ValueError where it
        is undefined there.
    inflation : float
        From `variance_inflation`, where the samples were predicted by the heads of several folds; else 1. Figures that are
        resampled have no interval then.
    influence : callable, optional
        Returns each sample's influence on the metric; not for areas, nor for figures that are resampled.
    """
    if kind is IntervalKind.AREA and inflation > 1:
        return pooled_area(plain, y_true, probabilities, groups, inflation)
    if kind is IntervalKind.AREA:
        return area(plain, y_true, probabilities, groups)
    if kind is IntervalKind.NONE or (kind is IntervalKind.RESAMPLED and inflation > 1):
        return plain
    reason = too_few_of_classes(y_true, probabilities.shape[1], groups)
    if kind is IntervalKind.RESAMPLED:
        return plain.without_interval(reason) if reason else _resampled(plain, score_rows, groups)
    if influence is None:
        return plain
    found = influence()
    if kind is IntervalKind.SHARE and found.hits is not None and found.counted is not None and inflation == 1:
        proportion = share(found.hits, found.counted, groups)
        return replace(plain, low=proportion.low, high=proportion.high, method=proportion.method)
    if reason:
        return plain.without_interval(reason)
    limited = linearised(plain, kind, found.values, groups, inflation=inflation)
    if limited.interval is not None or kind is IntervalKind.LOSS:
        return limited
    return _of_constant(plain, kind, int(n_of_rarest(y_true, probabilities.shape[1], groups) / inflation))


def linearised(
    plain: Estimate,
    kind: IntervalKind,
    influence: Floats,
    groups: Ints | None,
    *,
    level: float = 0.95,
    inflation: float = 1.0,
) -> Estimate:
    """Return a figure with a normal interval, on the scale of its kind, from each sample's influence (the delta method).

    Parameters
    ----------
    plain : Estimate
        The figure, without an interval.
    influence : ndarray (n,) float64
    groups : ndarray (n,) int64 or None
        Patients. Where some have several samples, the variance is that of sums over patients.

    Returns
    -------
    Estimate
        Without an interval where the figure has no variance, or there are too few patients.

    References
    ----------
    Efron (1982), The Jackknife, the Bootstrap and Other Resampling Plans, chapter 6. Boyd, Eng and Page (2013), ECML
    PKDD, 451-466 (the logit of average precision). Liang and Zeger (1986), Biometrika 73(1), 13-22 (clusters).
    """
    value = plain.value
    if value is None or not math.isfinite(value):
        return plain
    to_scale, from_scale, slope = _SCALES[kind]
    found, variance = difference(value, influence, groups, level=level, inflation=inflation)
    if found.why_none:
        return plain.without_interval(found.method)
    if variance < _NO_VARIANCE or slope(value) <= 0:
        return plain
    half = normal_quantile(level) * math.sqrt(variance) / slope(value)
    low, high = (float(from_scale(to_scale(value) + sign * half)) for sign in (-1, 1))
    method = LINEARISED if found.method == DELONG else f"{LINEARISED}, {found.method}"
    return replace(plain, low=low, high=high, method=method)


def _of_constant(plain: Estimate, kind: IntervalKind, n_rarest: int) -> Estimate:
    """Return a figure of 0 or 1 with Wilson's limits: no variance is no certainty. `n_rarest` patients limit it."""
    value = round(plain.value or 0.0, 9)  # a mean of ones may be just below one
    # A correlation of 0 without variance: one class was predicted for all, so no limits are known.
    if value not in {0, 1} or n_rarest < 1 or (kind is IntervalKind.CORRELATION and not value):
        return plain
    found = wilson(n_rarest if value else 0, n_rarest)
    return replace(plain, low=found.low, high=found.high, method=found.method)


def n_of_rarest(y_true: Ints, n_classes: int, groups: Ints | None) -> int:
    """Return the patients, or samples, of the rarest class, or of the rarer answer about a label."""
    units = np.arange(len(y_true)) if groups is None else groups
    problems = [(units[rows], y) for _, rows, y in binary_problems(y_true, n_classes)]
    if y_true.ndim == 1:
        problems = [(units, y_true)]
    return min(len(np.unique(of[y == value])) for of, y in problems for value in np.unique(y))


def area(
    plain: Estimate, y_true: Ints, probabilities: Floats, groups: Ints | None, *, level: float = 0.95, seed: int = 0
) -> Estimate:
    """Return a (macro) ROC AUC with its interval. Errors as `macro_auc_ci`.

    Parameters
    ----------
    plain : Estimate
        The area, without an interval.
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    probabilities : ndarray (n, C) float64
    groups : ndarray (n,) int64 or None
        Patients. Where some have several samples, the interval is by bootstrap over patients.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate
        By "bootstrap over patients"; else by "Newcombe" with fewer than thirty samples of a class or an area of 0.9 or more,
        where DeLong's covers too rarely; else by "DeLong". If an area of 0 or 1, or equal scores, leave these without any
        width, by "Newcombe" from the numbers of patients. None, with the reason, where too few patients have several samples.
    """
    auc, influence = auc_influence(y_true, probabilities)
    if reason := too_few_of_classes(y_true, probabilities.shape[1], groups):
        return plain.without_interval(reason)
    if auc in {0, 1} or (influence**2).sum() < _NO_VARIANCE:
        # No draw differs, which is no certainty.
        low, high = of_perfect_areas(y_true, probabilities, groups, level)
        return replace(plain, low=low, high=high, method=NEWCOMBE)
    if groups is not None and is_repeated(groups):
        try:
            drawn = bootstrap_auc_ci(y_true, probabilities, groups, level=level, seed=seed)
        except ValueError:  # most draws lack one of many classes
            return plain.without_interval(f"{TOO_FEW}: {n_of_rarest(y_true, probabilities.shape[1], groups)}")
        return replace(plain, low=drawn.low, high=drawn.high, method=BOOTSTRAP)
    if auc >= NEAR_ONE or n_of_rarest(y_true, probabilities.shape[1], None) < FEW:
        low, high = widened_newcombe(y_true, probabilities, auc, influence, level=level)
        return replace(plain, low=low, high=high, method=NEWCOMBE)
    low, high = macro_auc_ci(y_true, probabilities, level=level)
    return replace(plain, low=low, high=high, method=DELONG)


def widened_newcombe(
    y_true: Ints, probabilities: Floats, auc: float, influence: Floats, *, level: float = 0.95
) -> tuple[float, float]:
    """Return Newcombe's interval of a (macro) area between 0 and 1, as if there were more or fewer cases.

    Its own variance is that of scores with a certain distribution. Where positives are more varied than negatives, it
    is too small, and the interval covers in 87 to 90%. The larger of its variance and DeLong's covers in 92 to 99%
    (`statistics.area_rule`). With several classes, DeLong's variance of the macro mean, which knows how their areas
    correlate, is multiplied by as much as Newcombe's variances of the single areas exceed DeLong's: 93 to 100%, where
    DeLong's interval covers in 36 to 92% near 1.
    """
    sizes, variances = [], []
    for number, rows, y in binary_problems(y_true, probabilities.shape[1]):
        sizes.append(np.bincount(y)[::-1])
        one, of_one = auc_influence(y, np.column_stack([y * 0.0, probabilities[rows, number]]))
        variances.append((newcombe_variance(one, *sizes[-1].tolist()), float((of_one**2).sum())))
    assumed, found = np.sum(variances, axis=0)
    n_pos, n_neg = (1 / np.mean(1 / np.array(sizes, np.float64), axis=0)).tolist()
    variance = float((influence**2).sum()) * max(assumed / found, 1.0)
    times = variance / newcombe_variance(auc, n_pos, n_neg)
    return newcombe_limits(auc, n_pos / times, n_neg / times, level=level)


def variance_inflation(n_folds: int) -> float:
    """Return the factor by which the variance of pooled predictions of `n_folds` folds exceeds that of one head's.

    Nadeau and Bengio's: 1 + K n_test / n_train. Training sets of different folds overlap, so a training set that happens
    to be good is good in all of them.

    References
    ----------
    Nadeau and Bengio (2003), Machine Learning 52(3), 239-281.
    """
    return 1 + n_folds / (n_folds - 1)


def pooled_area(
    plain: Estimate, y_true: Ints, probabilities: Floats, groups: Ints | None, inflation: float, *, level: float = 0.95
) -> Estimate:
    """Return a (macro) ROC AUC of pooled predictions of folds, with an interval of the average area of such heads.

    Parameters
    ----------
    plain : Estimate
        The area, without an interval.
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    probabilities : ndarray (n, C) float64
    groups : ndarray (n,) int64 or None
        Patients, whose images are summed.
    inflation : float
        From `variance_inflation`.

    Returns
    -------
    Estimate
        A normal interval of the area's logit, with the inflated variance; of an area of 0 or 1 Newcombe's, as if there
        were fewer patients. None with too few patients of several samples.

    Notes
    -----
    It covers the mean area of heads that are trained in this way on as many images as one fold trains on. In simulations
    of ridge regression on 16 and 512 features and 60 to 500 samples it covers in 95 to 99% (`statistics.folds_coverage`).
    """
    auc, influence = auc_influence(y_true, probabilities)
    if reason := too_few_of_classes(y_true, probabilities.shape[1], groups):
        return plain.without_interval(reason)
    if not 0 < auc < 1 or not influence.any():
        low, high = of_perfect_areas(y_true, probabilities, groups, level, inflation)
        return replace(plain, low=low, high=high, method=NEWCOMBE)
    return by_logit(replace(plain, value=auc), influence, groups, inflation, level=level)


def by_logit(plain: Estimate, influence: Floats, groups: Ints | None, inflation: float, *, level: float) -> Estimate:
    """Return an area between 0 and 1 with the normal interval of its logit, from the influence (n,) of each sample."""
    assert plain.value is not None
    found, variance = difference(plain.value, influence, groups, level=level, inflation=inflation)
    if found.why_none:
        return plain.without_interval(found.method)
    half = normal_quantile(level) * math.sqrt(variance) / (plain.value * (1 - plain.value))
    centre = float(logit(plain.value))
    return replace(plain, low=float(expit(centre - half)), high=float(expit(centre + half)), method=found.method)


def of_perfect_areas(
    y_true: Ints, probabilities: Floats, groups: Ints | None, level: float, inflation: float = 1.0
) -> tuple[float, float]:
    """Return the mean of Newcombe's limits over the classes, from the numbers of patients, or else of samples."""
    limits = []
    for number, rows, y in binary_problems(y_true, probabilities.shape[1]):
        units = rows if groups is None else groups[rows]
        n_pos, n_neg = (len(np.unique(units[y == value])) / inflation for value in (1, 0))
        limits.append(newcombe_limits(roc_auc(y, probabilities[rows, number]), n_pos, n_neg, level=level))
    low, high = np.mean(limits, axis=0).tolist()
    return low, high


def _resampled(plain: Estimate, score_rows: Callable[[Ints], float], groups: Ints | None) -> Estimate:
    """Score again on patients, or samples, drawn with replacement; no interval where too few draws can be scored."""

    def statistic(weights: Floats) -> Floats:
        draws = (np.repeat(np.arange(plain.n), row.astype(np.int64)) for row in weights)
        return np.array([_score_or_nan(score_rows, rows) for rows in draws])

    units = np.arange(plain.n) if groups is None else groups
    try:
        drawn = bootstrap_ci(statistic, units, n_draws=N_RESAMPLED)
    except ValueError:
        return plain
    method = BOOTSTRAP if is_repeated(units) else RESAMPLED_UNITS
    return replace(plain, low=drawn.low, high=drawn.high, method=method)


def _score_or_nan(score_rows: Callable[[Ints], float], rows: Ints) -> float:
    try:
        return score_rows(rows)
    except (ValueError, ZeroDivisionError):
        return math.nan


# -- differences --------------------------------------------------------------------------------------------------------


def difference(
    value: float, influence: Floats, groups: Ints | None, *, level: float, inflation: float = 1.0
) -> tuple[Estimate, float]:
    """Return a paired difference with its normal interval, and its variance.

    Parameters
    ----------
    influence : ndarray (n,) float64
        Each sample's influence on the difference.
    groups : ndarray (n,) int64 or None
        Patients. Where some have several samples, the variance is that of sums over patients.
    inflation : float
        From `variance_inflation`, where the samples were predicted by the heads of several folds; else 1.

    Returns
    -------
    Estimate
        Without an interval where too few patients have several samples.
    float
    """
    variance, method = float((influence**2).sum()), DELONG
    if groups is not None:
        numbers, n_groups = checked_groups(groups, len(influence))
        if n_groups != len(influence):
            sums = np.bincount(numbers, weights=influence)
            variance, method = float((sums**2).sum() * n_groups / max(n_groups - 1, 1)), CLUSTERED
    if inflation > 1:
        variance, method = variance * inflation, f"{NADEAU}'s variance{', ' + CLUSTERED if method == CLUSTERED else ''}"
    half = normal_quantile(level) * math.sqrt(variance)
    n_patients = count_patients(groups)
    found = Estimate(value, value - half, value + half, method, len(influence), n_patients)
    reason = too_few_patients(groups)
    return found.without_interval(reason) if reason else found, variance
