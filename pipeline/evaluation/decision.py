"""Decision curves: the net benefit of a head against treating all patients, or none."""

from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import Floats, Ints, checked_binary


@dataclass(frozen=True)
class DecisionCurve:
    """Net benefit per patient at each threshold probability, all of one length; that of treating nobody is zero."""

    thresholds: tuple[float, ...]
    net_benefit: tuple[float, ...]
    treat_all: tuple[float, ...]
    prevalence: float


def decision_curve(
    y_true: Ints, p: Floats, thresholds: Floats | None = None, *, prevalence: float | None = None
) -> DecisionCurve:
    """Return the net benefit of treating those whose probability is at or above each threshold.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}, both present
    p : ndarray (n,) float64
        Probability of class 1, in [0, 1].
    thresholds : ndarray (k,) float64, optional
        Between 0 and 1, both excluded; 0.01 to 0.99 by default.
    prevalence : float, optional
        Of class 1 where the head will be used; the samples' own by default.

    Raises
    ------
    ValueError
        If a class is missing, a probability, threshold or the prevalence is out of range, or the lengths differ.

    Notes
    -----
    True positives per patient, minus false positives weighted by the odds of the threshold. Probabilities must be
    calibrated.

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
    net_benefit = share * sensitivity - (1 - share) * false_positive_rate * odds
    treat_all = share - (1 - share) * odds
    return DecisionCurve(tuple(at.tolist()), tuple(net_benefit.tolist()), tuple(treat_all.tolist()), share)
