"""Which interval each figure gets: the only place that chooses among the methods, for every output that prints one."""

import math
from collections.abc import Callable
from dataclasses import replace
from enum import Enum

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.bootstrap import bootstrap_auc_ci, bootstrap_ci, bootstrap_share_ci
from hoarfrost.evaluation.checks import Floats, Ints, checked_groups, normal_quantile
from hoarfrost.evaluation.discrimination import macro_auc_ci, newcombe_ci
from hoarfrost.evaluation.estimates import Estimate, Share
from hoarfrost.evaluation.shares import wilson

Bools = npt.NDArray[np.bool_]

FEW = 30
"""Samples of the rarer class below which DeLong's interval was seen to cover too seldom."""
NEAR_ONE = 0.9
"""The ROC AUC from which on it was."""
DELONG, NEWCOMBE, BOOTSTRAP = "DeLong", "Newcombe", "bootstrap over patients"
RESAMPLED_UNITS = "bootstrap"
N_RESAMPLED = 500


class IntervalKind(Enum):
    """The kinds of intervals that a metric may declare."""

    NONE = "none"
    AREA = "area under a ROC curve"
    RESAMPLED = "any figure: scored again on units drawn with replacement"


class SharePlace(Enum):
    """Where a proportion is printed."""

    OPERATING_POINT = "operating point"
    SUBGROUP = "subgroup"
    CALIBRATION_BIN = "calibration bin"
    MODEL_CARD = "operating point in the model card"


OVER_PATIENTS = frozenset({SharePlace.OPERATING_POINT})
"""Where proportions get intervals over patients that have several images. Elsewhere images are taken as independent."""


# -- metrics ------------------------------------------------------------------------------------------------------------


def metric_estimate(
    kind: IntervalKind,
    plain: Estimate,
    y_true: Ints,
    probabilities: Floats,
    groups: Ints | None,
    score_rows: Callable[[Ints], float],
) -> Estimate:
    """Return a metric with the interval of its kind.

    Parameters
    ----------
    kind : IntervalKind
    plain : Estimate
        The metric on all samples, without an interval.
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 where a label is unknown
    probabilities : ndarray (n, C) float64
    groups : ndarray (n,) int64 or None
        Patients, where they are known.
    score_rows : callable
        Takes rows (m,) int64, some more than once, and returns the metric on these samples. Raises ValueError where it
        is undefined there.

    Raises
    ------
    ValueError
        As `area`.
    """
    if kind is IntervalKind.AREA:
        return area(plain, y_true, probabilities, groups)
    return plain if kind is IntervalKind.NONE else _resampled(plain, score_rows, groups)


def area(
    plain: Estimate, y_true: Ints, probabilities: Floats, groups: Ints | None = None, *, seed: int = 0
) -> Estimate:
    """Return a (macro) ROC AUC with its interval.

    Parameters
    ----------
    plain : Estimate
        The area, without an interval.
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 where a label is unknown
    probabilities : ndarray (n, C) float64
    groups : ndarray (n,) int64, optional
        Patients. Where some have several samples, the interval is by bootstrap over patients.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Estimate
        By "DeLong", "bootstrap over patients", or DeLong's with the reason why patients could not be drawn.

    Raises
    ------
    ValueError
        As `macro_auc_ci`.
    """
    method = DELONG
    if groups is not None and _is_repeated(groups):
        try:
            drawn = bootstrap_auc_ci(y_true, probabilities, groups, seed=seed)
        except ValueError as error:
            method = f"{DELONG}, as if images were independent: {error}"
        else:
            return replace(plain, low=drawn.low, high=drawn.high, method=BOOTSTRAP)
    low, high = macro_auc_ci(y_true, probabilities)
    return replace(plain, low=low, high=high, method=method)


def area_beside(found: Estimate, y_true: Ints, probabilities: Floats) -> Estimate | None:
    """Return an area with Newcombe's interval where DeLong's covers too seldom, else None.

    That is with two classes, and fewer than thirty samples of one or an area of 0.9 or more.
    """
    if y_true.ndim == 2 or probabilities.shape[1] != 2 or not found.method.startswith(DELONG):
        return None
    assert found.value is not None
    if min(np.bincount(y_true, minlength=2)) >= FEW and found.value < NEAR_ONE:
        return None
    low, high = newcombe_ci(y_true, probabilities[:, 1])
    return replace(found, low=low, high=high, method=NEWCOMBE)


def area_of_subgroup(
    plain: Estimate, y_true: Ints, probabilities: Floats, groups: Ints | None, *, level: float, seed: int
) -> tuple[Estimate, str]:
    """Return a subgroup's ROC AUC with its interval, and the reason where patients cannot be drawn; as `area`.

    Raises
    ------
    ValueError
        As `macro_auc_ci`.
    """
    if groups is None or not _is_repeated(groups):
        low, high = macro_auc_ci(y_true, probabilities, level=level)
        return replace(plain, low=low, high=high, method=DELONG), ""
    try:
        drawn = bootstrap_auc_ci(y_true, probabilities, groups, level=level, seed=seed)
    except ValueError as error:
        return replace(plain, method=BOOTSTRAP), f"no interval: {error}"
    return replace(plain, low=drawn.low, high=drawn.high, method=BOOTSTRAP), ""


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
    method = BOOTSTRAP if _is_repeated(units) else RESAMPLED_UNITS
    return replace(plain, low=drawn.low, high=drawn.high, method=method)


def _score_or_nan(score_rows: Callable[[Ints], float], rows: Ints) -> float:
    try:
        return score_rows(rows)
    except (ValueError, ZeroDivisionError):
        return math.nan


# -- proportions --------------------------------------------------------------------------------------------------------


def share(hits: Bools, counted: Bools, groups: Ints | None, place: SharePlace, *, level: float = 0.95) -> Share:
    """Return a proportion with the interval that it gets where it is printed.

    Parameters
    ----------
    hits : ndarray (n,) bool
        Whether a sample is right.
    counted : ndarray (n,) bool
        Whether it is in the denominator: all for accuracy, the positives for sensitivity.
    groups : ndarray (n,) int64 or None
        Patients, where they are known.
    place : SharePlace
    level : float

    Returns
    -------
    Share
        With Wilson's interval; or, where patients have several samples and `place` is in `OVER_PATIENTS`, as
        `over_patients`.
    """
    found = wilson(int((hits & counted).sum()), int(counted.sum()), level=level)
    if groups is None:
        return found
    found = replace(found, n_patients=count_patients(groups[counted]))
    if place not in OVER_PATIENTS or not _is_repeated(groups):
        return found
    try:
        drawn = bootstrap_share_ci(hits.astype(np.int64), counted.astype(np.int64), groups, level=level)
    except ValueError:  # nothing is counted, or of too few patients: no interval is the answer
        return over_patients(found, None)
    return over_patients(found, (drawn.low, drawn.high))


def share_at(found: Share, place: SharePlace) -> Share:
    """Return a proportion that was counted already with the interval that it gets where it is printed, see `share`."""
    return found if place in OVER_PATIENTS else replace(wilson(found.n_hits, found.n), n_patients=found.n_patients)


def over_patients(found: Share, ends: tuple[float, float] | None) -> Share:
    """Return a proportion with the interval by bootstrap over patients, or none where that is undefined.

    Where all draws find all, or none, they have no spread: that is no certainty, and Wilson's interval stays.
    """
    if ends is not None and ends[0] == ends[1]:
        return found
    low, high = (None, None) if ends is None else ends
    return replace(found, low=low, high=high, method=BOOTSTRAP)


# -- differences --------------------------------------------------------------------------------------------------------


def difference(value: float, influence: Floats, groups: Ints | None, *, level: float) -> tuple[Estimate, float]:
    """Return a paired difference with its normal interval, and its variance.

    Parameters
    ----------
    value : float
    influence : ndarray (n,) float64
        Each sample's on the difference.
    groups : ndarray (n,) int64 or None
        Patients. Where some have several samples, the variance is that of sums over patients.
    level : float

    Raises
    ------
    ValueError
        If all samples are of one patient.
    """
    variance, method = float((influence**2).sum()), DELONG
    if groups is not None:
        numbers, n_groups = checked_groups(groups, len(influence))
        if n_groups < 2 and n_groups != len(influence):
            raise ValueError("all samples are of one patient; nothing can be said of others")
        if n_groups != len(influence):
            sums = np.bincount(numbers, weights=influence)
            variance, method = float((sums**2).sum() * n_groups / (n_groups - 1)), "clustered by patient"
    half = normal_quantile(level) * math.sqrt(variance)
    n_patients = count_patients(groups)
    return Estimate(value, value - half, value + half, method, len(influence), n_patients), variance


def count_patients(groups: Ints | None) -> int | None:
    """Count the patients; None where they are unknown."""
    return None if groups is None else len(np.unique(groups))


def _is_repeated(groups: Ints) -> bool:
    return len(np.unique(groups)) < len(groups)
