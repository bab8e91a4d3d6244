"""Decision curves: the net benefit of a head against treating all patients, or none."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import Bools, Floats, Ints, checked_binary
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.influence import of_mean, of_ratio
from hoarfrost.evaluation.intervals import IntervalKind, linearised


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit per patient at each threshold probability, all of one length; that of treating nobody is zero.

    `low` and `high` are its 95% interval at each threshold by itself, None where it has no variance; empty in runs of
    earlier versions.
    """

    thresholds: tuple[float, ...]
    net_benefit: tuple[float, ...]
    treat_all: tuple[float, ...]
    prevalence: float
    low: tuple[float | None, ...] = ()
    high: tuple[float | None, ...] = ()
    method: str = ""


def decision_curve(
    y_true: Ints,
    p: Floats,
    thresholds: Floats | None = None,
    groups: Ints | None = None,
    *,
    prevalence: float | None = None,
) -> DecisionCurve:
    """Return the net benefit of treating those whose probability is at or above each threshold.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}, both present
    p : ndarray (n,) float64
        Probability of class 1, in [0, 1].
    thresholds : ndarray (k,) float64, optional
        Between 0 and 1, both excluded; 0.01 to 0.99 by default.
    groups : ndarray (n,) int64, optional
        Patients, for intervals where some have several samples.
    prevalence : float, optional
        Of class 1 where the head will be used; the samples' own by default.

    Raises
    ------
    ValueError
        If a class is missing, a probability, threshold or the prevalence is out of range, or the lengths differ.

    Notes
    -----
    True positives per patient, minus false positives weighted by the odds of the threshold. Probabilities must be
    calibrated. Its variance is that of sums over patients of each sample's influence. Without a stated prevalence, it
    includes that of the samples' own.

    References
    ----------
    Vickers and Elkin (2006), Medical Decision Making 26(6), 565-574.
    """
    y_true, p = checked_binary(y_true, p)
    at = np.linspace(0.01, 0.99, 99) if thresholds is None else np.asarray(thresholds, np.float64)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p holds values outside 0 to 1")
    if at.ndim != 1 or not ((at > 0) & (at < 1)).all():
        raise ValueError("thresholds must be between 0 and 1, both excluded")
    if prevalence is not None and not 0 < prevalence < 1:
        raise ValueError(f"prevalence must be between 0 and 1, not {prevalence}")
    share = float(y_true.mean()) if prevalence is None else prevalence
    positives, negatives = np.sort(p[y_true == 1]), np.sort(p[y_true == 0])
    sensitivity = 1 - np.searchsorted(positives, at, "left") / len(positives)
    false_positive_rate = 1 - np.searchsorted(negatives, at, "left") / len(negatives)
    odds = at / (1 - at)
    benefit = share * sensitivity - (1 - share) * false_positive_rate * odds
    treat_all = share - (1 - share) * odds
    parts = tuple(at.tolist()), tuple(benefit.tolist()), tuple(treat_all.tolist()), share
    influence = _influence(y_true, p, at, prevalence)
    plain = (Estimate(value, None, None, n=len(p)) for value in parts[1])
    found = [linearised(one, IntervalKind.BENEFIT, of, groups) for one, of in zip(plain, influence, strict=True)]
    method = next((one.method for one in found if one.method), "")
    return DecisionCurve(*parts, tuple(one.low for one in found), tuple(one.high for one in found), method)


def _influence(y_true: Ints, p: Floats, at: Floats, prevalence: float | None) -> Iterator[Floats]:
    """Yield each sample's influence (n,) on the net benefit at each threshold."""
    for threshold in at.tolist():
        yield net_benefit(y_true, p >= threshold, threshold / (1 - threshold), prevalence)[1]


def net_benefit(
    y_true: Ints, treated: Bools, odds: float | Floats, prevalence: float | None = None
) -> tuple[float, Floats]:
    """Return the net benefit of treating some samples, and each sample's influence on it.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    treated : ndarray (n,) bool
    odds : float or ndarray (n,) float64
        Those of the threshold probability, which may differ between samples.
    prevalence : float, optional
        Of class 1 where the decision is made; the samples' own by default.

    Returns
    -------
    value : float
    influence : ndarray (n,) float64
    """
    if prevalence is None:
        terms = treated.astype(np.float64) * np.where(y_true == 1, 1.0, -np.asarray(odds))
        return float(terms.mean()), of_mean(terms).values
    is_positive = (y_true == 1).astype(np.float64)
    hits: Floats = treated * is_positive
    alarms: Floats = treated * (1 - is_positive) * odds
    value = prevalence * hits.sum() / is_positive.sum() - (1 - prevalence) * alarms.sum() / (1 - is_positive).sum()
    moved = of_ratio(hits, is_positive).values, of_ratio(alarms, 1 - is_positive).values
    return float(value), prevalence * moved[0] - (1 - prevalence) * moved[1]
