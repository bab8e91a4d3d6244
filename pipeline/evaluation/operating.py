"""Operating points: thresholds fixed on validation, and what they do on the test split."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import Floats, Ints, checked_binary, normal_quantile
from hoarfrost.evaluation.estimates import Estimate, Share
from hoarfrost.evaluation.intervals import SharePlace, share

DEMANDED = 0.95
YOUDEN = "Youden's index"
LOG, BAYES = "log method", "Bayes' rule on a likelihood ratio"

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class OperatingPoint:
    """A rule and the threshold that it chose: a sample counts as positive if its score is at or above it.

    `sensitivity` and `specificity` are those on the samples it was chosen on. `threshold` and both are None where
    no threshold meets the rule, and `reason` says why.
    """

    name: str
    threshold: float | None
    sensitivity: float | None
    specificity: float | None
    reason: str = ""


@dataclass(frozen=True)
class AtPrevalence:
    """Predictive values where `prevalence` of the patients have the disease; None where they are undefined."""

    prevalence: float
    ppv: Estimate | None
    npv: Estimate | None


@dataclass(frozen=True)
class PointResult:
    """What a threshold does on a split: counts, proportions, likelihood ratios.

    `ppv` and `npv` are those at the split's own prevalence. Of a likelihood ratio `value` and `high` are None where it is
    infinite; all are where it is undefined.
    """

    threshold: float
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    sensitivity: Share
    specificity: Share
    ppv: Share
    npv: Share
    lr_positive: Estimate
    lr_negative: Estimate
    at_prevalence: AtPrevalence | None


def choose_thresholds(y_true: Ints, y_score: Floats, *, demanded: float = DEMANDED) -> tuple[OperatingPoint, ...]:
    """Choose thresholds on validation: Youden's, a demanded sensitivity, a demanded specificity.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    y_score : ndarray (n,) float64
        Higher means class 1.
    demanded : float
        What the second keeps sensitivity, and the third specificity, at or above; the other measure is
        then the best there is.

    Returns
    -------
    tuple of three OperatingPoint

    Raises
    ------
    ValueError
        As `roc_auc`; or if `demanded` is not between 0 and 1.

    Notes
    -----
    A sample is positive if its score is at or above the threshold. Between two scores any threshold does
    the same on validation; the middle is taken, which favours neither class on new samples. Of equally
    good ones, the more sensitive: a missed disease costs more. That no sample is positive is no
    operating point, so a demanded specificity can be out of reach.

    References
    ----------
    Youden (1950), Cancer 3(1), 32-35.
    """
    y_true, y_score = checked_binary(y_true, y_score)
    if not 0 < demanded < 1:
        raise ValueError(f"demanded must be between 0 and 1, not {demanded}")
    thresholds, sensitivity, specificity = _achievable(y_true, y_score)

    def point(name: str, good: Floats, allowed: Bools) -> OperatingPoint:
        if not allowed.any():
            return OperatingPoint(name, None, None, None, _out_of_reach(name, float(specificity.max())))
        best = np.flatnonzero(allowed & (good >= good[allowed].max() - 1e-12))
        # Thresholds descend and sensitivity grows along them: the last is the most sensitive.
        i = int(best[-1])
        return OperatingPoint(name, float(thresholds[i]), float(sensitivity[i]), float(specificity[i]))

    everywhere = np.ones(len(thresholds), bool)
    sensitive, specific = (f"{measure} >= {demanded:g}" for measure in ("sensitivity", "specificity"))
    return (
        point(YOUDEN, sensitivity + specificity, everywhere),
        point(sensitive, specificity, sensitivity >= demanded),
        point(specific, sensitivity, specificity >= demanded),
    )


def evaluate_threshold(
    y_true: Ints,
    y_score: Floats,
    threshold: float,
    *,
    groups: Ints | None = None,
    prevalence: float | None = None,
    level: float = 0.95,
) -> PointResult:
    """Return what a threshold that was fixed beforehand does.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}, both there
    y_score : ndarray (n,) float64
    threshold : float
        A sample is positive if its score is at or above it.
    groups : ndarray (n,) int64, optional
        Patients, for the intervals of proportions where some have several samples.
    prevalence : float, optional
        Of the disease where the head is to be used, between 0 and 1: predictive values for there.
    level : float

    Returns
    -------
    PointResult

    Raises
    ------
    ValueError
        As `roc_auc`; or if `prevalence` or `level` is not between 0 and 1.

    Notes
    -----
    Proportions have the interval that `hoarfrost.evaluation.intervals` decides. Likelihood ratios have the log method's;
    where one of their two proportions is zero, or both are one, one half is added to all four counts for the interval; a
    ratio of zero has the lower limit zero, and an infinite one is None with no upper limit. Predictive values at a
    prevalence follow from the likelihood ratios by Bayes' rule, and so do their intervals. These assume independent
    samples.

    References
    ----------
    Simel, Samsa and Matchar (1991), Journal of Clinical Epidemiology 44(8), 763-770. Mercaldo, Lau and
    Zhou (2007), Statistics in Medicine 26(10), 2170-2183.
    """
    y_true, y_score = checked_binary(y_true, y_score)
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, not {threshold}")
    if prevalence is not None and not 0 < prevalence < 1:
        raise ValueError(f"prevalence must be between 0 and 1, not {prevalence}")
    found, diseased = y_score >= threshold, y_true == 1
    tp, fp = int((found & diseased).sum()), int((found & ~diseased).sum())
    fn, tn = int(diseased.sum()) - tp, int((~diseased).sum()) - fp
    positive = _ratio(tp, tp + fn, fp, fp + tn, level)
    negative = _ratio(fn, tp + fn, tn, fp + tn, level)

    def of(hits: Bools, counted: Bools) -> Share:
        return share(hits, counted, groups, SharePlace.OPERATING_POINT, level=level)

    return PointResult(
        float(threshold), tp, fp, tn, fn,
        sensitivity=of(found, diseased), specificity=of(~found, ~diseased), ppv=of(diseased, found),
        npv=of(~diseased, ~found),
        lr_positive=positive,
        lr_negative=negative,
        at_prevalence=None if prevalence is None else AtPrevalence(
            prevalence,
            ppv=_posterior(positive, prevalence, is_defined=tp + fp > 0),
            npv=_complement(_posterior(negative, prevalence, is_defined=fn + tn > 0)),
        ),
    )  # fmt: skip


def _achievable(y_true: Ints, y_score: Floats) -> tuple[Floats, Floats, Floats]:
    """Give all thresholds that differ on the samples, descending, with sensitivity and specificity, each (k,)."""
    distinct = np.unique(y_score)[::-1]
    lower = np.append(distinct[1:], distinct[-1])
    middle = distinct / 2 + lower / 2  # halved first: the sum of two large scores overflows
    # Of two neighbouring floats the middle rounds to one of them; the lower would count as positive.
    thresholds = np.where(middle > lower, middle, distinct)
    positives, negatives = np.sort(y_score[y_true == 1]), np.sort(y_score[y_true == 0])
    sensitivity = 1 - np.searchsorted(positives, thresholds, "left") / len(positives)
    specificity = np.searchsorted(negatives, thresholds, "left") / len(negatives)
    return thresholds, sensitivity, specificity


def _out_of_reach(name: str, best: float) -> str:
    return f"no threshold that finds any sample has {name}; the highest specificity is {best:.3f}"


def _ratio(k1: int, n1: int, k0: int, n0: int, level: float) -> Estimate:
    """Return the ratio of two proportions k1/n1 and k0/n0 with the log method's interval."""
    z = normal_quantile(level)
    if k1 == 0 and k0 == 0:
        return Estimate(None, None, None, n=n1 + n0)
    added = 0.5 if 0 in {k1, k0} or (k1, k0) == (n1, n0) else 0.0
    a, na, b, nb = k1 + added, n1 + 2 * added, k0 + added, n0 + 2 * added
    deviation = math.sqrt(1 / a - 1 / na + 1 / b - 1 / nb)
    centre = math.log((a / na) / (b / nb))
    low, high = math.exp(centre - z * deviation), math.exp(centre + z * deviation)
    if k0 == 0:
        return Estimate(None, low, None, LOG, n1 + n0)
    return Estimate((k1 / n1) / (k0 / n0), 0.0 if k1 == 0 else low, high, LOG, n1 + n0)


def _posterior(ratio: Estimate, prevalence: float, *, is_defined: bool) -> Estimate | None:
    """Turn a likelihood ratio into the probability of disease; an infinite one into certainty."""
    if not is_defined:
        return None
    odds = prevalence / (1 - prevalence)

    def probability(likelihood: float | None) -> float:
        return 1.0 if likelihood is None else odds * likelihood / (1 + odds * likelihood)

    assert ratio.low is not None
    return Estimate(probability(ratio.value), probability(ratio.low), probability(ratio.high), BAYES)


def _complement(found: Estimate | None) -> Estimate | None:
    if found is None or found.value is None or found.interval is None:
        return None
    low, high = found.interval
    return replace(found, value=1 - found.value, low=1 - high, high=1 - low)
