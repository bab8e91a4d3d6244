"""Is one head better than another: paired tests on the same samples, corrected for their number."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.discrimination import auc_influence, placements
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.intervals import difference

_ROUNDING = 1e-12  # areas and their influence differ by less where two scores rank all samples alike


@dataclass(frozen=True)
class Comparison:
    """A head's ROC AUC against the selected head's, on the same samples.

    `difference` is the head's minus the selected one's, with its interval. `z`, `p` and `p_holm` (corrected for all
    comparisons of the family) are None where the test is undefined, and `reason` says why.
    """

    name: str
    difference: Estimate
    z: float | None
    p: float | None
    p_holm: float | None
    reason: str = ""


def delong_test(y_true: Ints, score_a: Floats, score_b: Floats) -> tuple[float, float]:
    """Test whether two scores of the same samples have the same ROC AUC (DeLong's paired test).

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    score_a, score_b : ndarray (n,) float64
        Higher means class 1.

    Returns
    -------
    z : float
        Of the AUC of `score_a` minus that of `score_b`.
    p : float
        Two-sided. Scores that rank the samples alike have z = 0 and p = 1.

    Raises
    ------
    ValueError
        As `delong_ci`; or if the estimated variance of the difference is zero though the AUCs
        differ (one score parts the classes perfectly, the other is constant): then it is undefined.

    Notes
    -----
    Assumes independent samples: one image a patient, or one row after `per_patient`. O(n log n).

    References
    ----------
    DeLong et al. (1988), Biometrics 44(3), 837-845.
    """
    a10, a01 = placements(y_true, score_a)
    b10, b01 = placements(y_true, score_b)
    # The variance of the differences, not var + var - 2 cov: that of equal scores is then zero, not rounding.
    d10, d01 = a10 - b10, a01 - b01
    variance = float(d10.var(ddof=1) / len(d10) + d01.var(ddof=1) / len(d01))
    return _z_test(float(a10.mean() - b10.mean()), variance)


def compare_heads(
    y_true: Ints,
    probabilities: Mapping[str, Floats],
    selected: str,
    *,
    groups: Ints | None = None,
    level: float = 0.95,
) -> tuple[Comparison, ...]:
    """Compare every head with the selected one, Holm-corrected.

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

    Returns
    -------
    tuple of Comparison
        All but the selected head, in the given order.

    Raises
    ------
    ValueError
        As `macro_auc_ci`; or if all samples are of one group.

    Notes
    -----
    With two classes and no `groups` this is DeLong's test; with more, its counterpart for the macro
    mean of one-vs-rest, by the samples' influences. With `groups` it is that of clustered data.

    References
    ----------
    DeLong et al. (1988), Biometrics 44(3), 837-845. Obuchowski (1997), Biometrics 53(2), 567-578.
    Holm (1979), Scandinavian Journal of Statistics 6(2), 65-70.
    """
    auc, influence = auc_influence(y_true, probabilities[selected])
    rows: list[tuple[str, Estimate, tuple[float, float] | None, str]] = []
    for name, found in probabilities.items():
        if name == selected:
            continue
        other_auc, other_influence = auc_influence(y_true, found)
        estimate, variance = difference(other_auc - auc, other_influence - influence, groups, level=level)
        try:
            rows.append((name, estimate, _z_test(other_auc - auc, variance), ""))
        except ValueError as error:
            rows.append((name, estimate, None, str(error)))
    corrected = iter(holm([tested[1] for *_, tested, _ in rows if tested is not None]))
    return tuple(
        Comparison(name, estimate, None, None, None, reason)
        if tested is None
        else Comparison(name, estimate, *tested, float(next(corrected)))
        for name, estimate, tested, reason in rows
    )


def holm(p_values: Sequence[float] | Floats) -> Floats:
    """Correct p values of one family for their number, by Holm's step-down.

    Parameters
    ----------
    p_values : sequence of float, length m, each in [0, 1]

    Returns
    -------
    ndarray (m,) float64
        In the given order; comparing them with alpha keeps the chance of any false rejection below alpha.

    Raises
    ------
    ValueError
        If a value is no probability.

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


def _z_test(difference: float, variance: float) -> tuple[float, float]:
    if variance < _ROUNDING**2:
        if abs(difference) < _ROUNDING:
            return 0.0, 1.0
        raise ValueError(
            "the AUCs differ, but the estimated variance of their difference is zero: DeLong's test is undefined"
        )
    z = difference / math.sqrt(variance)
    return z, float(2 * ndtr(-abs(z)))
