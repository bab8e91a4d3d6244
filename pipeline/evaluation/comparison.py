"""Is one head better than another: paired tests on the same samples, corrected for their number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr

from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.discrimination import auc_influence
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.intervals import difference, variance_inflation
from hoarfrost.evaluation.units import too_few_of_classes

UNDEFINED = "the AUCs differ, but the estimated variance of their difference is zero: DeLong's test is undefined"
NO_INTERVAL = "the estimated variance of the difference in ROC AUC is zero, so it has no interval"
_ROUNDING = 1e-12  # areas and their influence differ by less where two scores rank all samples alike


@dataclass(frozen=True)
class Comparison:
    """The difference between a head's ROC AUC and the selected head's, on the same samples.

    `difference` is the head's minus the selected one's, with its interval. `z`, `p` and `p_holm` (corrected for all
    comparisons of the family) are None where the test is undefined; `reason` states why.
    """

    name: str
    difference: Estimate
    z: float | None
    p: float | None
    p_holm: float | None
    reason: str = ""


def compare_heads(
    y_true: Ints,
    probabilities: Mapping[str, Floats],
    selected: str,
    *,
    groups: Ints | None = None,
    level: float = 0.95,
    n_folds: int = 1,
) -> tuple[Comparison, ...]:
    """Compare every head with the selected one by paired tests, with Holm's correction.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1
    probabilities : mapping of ndarray (n, C) float64, by the head's name
    selected : str
        One of the names.
    groups : ndarray (n,) int64, optional
        Patients. Where some have several samples, variances are those of sums over patients.
    level : float
        Of the intervals, which are not corrected for their number.
    n_folds : int
        Number of folds whose heads predicted the samples; 1 if each head predicted them all. With several, variances are
        inflated, see `hoarfrost.evaluation.intervals.variance_inflation`.

    Returns
    -------
    tuple of Comparison
        All but the selected head, in the given order. Heads that rank the samples alike have z = 0 and p = 1. There is
        no interval if the estimated variance of the difference is zero because heads separate the classes perfectly. The
        test is undefined if the AUCs differ then: the other head is constant. With too few patients of several samples
        there is neither.

    Raises
    ------
    ValueError
        As `macro_auc_ci`.

    Notes
    -----
    With two classes and no `groups` this is DeLong's test; with more classes, its counterpart for the macro mean of
    one-vs-rest, by the samples' influences. With `groups` it is the test for clustered data. Without them it assumes
    independent samples. O(n log n).

    References
    ----------
    DeLong et al. (1988), Biometrics 44(3), 837-845. Obuchowski (1997), Biometrics 53(2), 567-578.
    """
    inflation = 1.0 if n_folds < 2 else variance_inflation(n_folds)
    auc, influence = auc_influence(y_true, probabilities[selected])
    why = too_few_of_classes(y_true, probabilities[selected].shape[1], groups)
    rows: list[tuple[str, Estimate, tuple[float, float] | None]] = []
    for name, found in probabilities.items():
        if name == selected:
            continue
        other_auc, other_influence = auc_influence(y_true, found)
        estimate, variance = difference(
            other_auc - auc, other_influence - influence, groups, level=level, inflation=inflation
        )
        if variance < _ROUNDING**2 and {auc, other_auc} & {0, 1}:  # perfect on these samples, which is no certainty
            estimate = replace(estimate, low=None, high=None)
        if why:
            estimate = estimate.without_interval(why)
        rows.append((name, estimate, None if why else _z_test(other_auc - auc, variance)))
    corrected = iter(holm([tested[1] for *_, tested in rows if tested is not None]).tolist())
    return tuple(
        Comparison(name, estimate, None, None, None, why or UNDEFINED)
        if tested is None
        else Comparison(name, estimate, *tested, next(corrected))
        for name, estimate, tested in rows
    )


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """Return the p values of one family corrected for their number, by Holm's step-down method.

    Parameters
    ----------
    p_values : sequence of float, length m, each in [0, 1]

    Returns
    -------
    ndarray (m,) float64
        In the given order. Comparing them with alpha keeps the chance of any false rejection below alpha.

    Raises
    ------
    ValueError
        If a value is not a probability.

    References
    ----------
    Holm (1979), Scandinavian Journal of Statistics 6(2), 65-70.
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError("p values must be a sequence of numbers from 0 to 1")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1)
    return adjusted


def _z_test(difference: float, variance: float) -> tuple[float, float] | None:
    """Return z and the two-sided p, or None where they are undefined."""
    if variance < _ROUNDING**2:
        return (0.0, 1.0) if abs(difference) < _ROUNDING else None
    z = difference / math.sqrt(variance)
    return z, float(2 * ndtr(-abs(z)))
