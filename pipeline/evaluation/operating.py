"""Operating points: thresholds fixed on validation, and their results on the test split."""

import math
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import (
    Bools,
    Floats,
    Ints,
    binary_problems,
    checked_binary,
    checked_groups,
    normal_quantile,
)
from hoarfrost.evaluation.estimates import Estimate, Share
from hoarfrost.evaluation.intervals import is_repeated, share

REQUIRED = 0.95
YOUDEN = "Youden's index"
LOG, BAYES = "log method", "Bayes' rule on a likelihood ratio"
LOG_CLUSTERED = f"{LOG}, clustered by patient"


@dataclass(frozen=True)
class OperatingPoint:
    """A rule and the threshold that it chose: a sample is predicted positive if its score is at or above the threshold.

    `sensitivity` and `specificity` are those on the samples it was chosen on. `threshold` and both are None where no
    threshold meets the rule; `reason` states why.
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
    """Results of a threshold on a split: counts, proportions, likelihood ratios.

    `ppv` and `npv` are those at the split's own prevalence. `value` and `high` of a likelihood ratio are None where it is
    infinite; all its figures are None where it is undefined.
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


def choose_thresholds(y_true: Ints, y_score: Floats, *, required: float = REQUIRED) -> tuple[OperatingPoint, ...]:
    """Choose thresholds on validation: by Youden's index, a required sensitivity, and a required specificity.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    y_score : ndarray (n,) float64
        Higher means class 1.
    required : float
        Lower limit of the second threshold's sensitivity, and of the third one's specificity; the other measure is then
        the best possible.

    Returns
    -------
    tuple of three OperatingPoint

    Raises
    ------
    ValueError
        As `roc_auc`; or if `required` is not between 0 and 1.

    Notes
    -----
    A sample is positive if its score is at or above the threshold. All thresholds between two neighbouring scores give the
    same result on validation; the middle is used, which favours neither class on new samples. Among equally good ones
    the most sensitive is chosen: a missed disease costs more. A threshold without any positive sample is not an operating
    point, so a required specificity can be out of reach.

    References
    ----------
    Youden (1950), Cancer 3(1), 32-35.
    """
    y_true, y_score = checked_binary(y_true, y_score)
    if not 0 < required < 1:
        raise ValueError(f"required must be between 0 and 1, not {required}")
    thresholds, sensitivity, specificity = _achievable(y_true, y_score)

    def point(name: str, good: Floats, allowed: Bools) -> OperatingPoint:
        if not allowed.any():
            highest = f"the highest specificity is {specificity.max():.3f}"
            reason = f"no threshold with any positive sample reaches {name}; {highest}"
            return OperatingPoint(name, None, None, None, reason)
        # Thresholds descend and sensitivity grows along them: the last is the most sensitive.
        i = np.flatnonzero(allowed & (good >= good[allowed].max() - 1e-12))[-1]
        return OperatingPoint(name, float(thresholds[i]), float(sensitivity[i]), float(specificity[i]))

    everywhere = np.ones(len(thresholds), bool)
    sensitive, specific = (f"{measure} >= {required:g}" for measure in ("sensitivity", "specificity"))
    return (
        point(YOUDEN, sensitivity + specificity, everywhere),
        point(sensitive, specificity, sensitivity >= required),
        point(specific, sensitivity, specificity >= required),
    )


def primary_thresholds(y_true: Ints, probabilities: Floats) -> tuple[float, ...]:
    """Return the threshold of the primary operating point, Youden's index: of class 1 of two, or of each label.

    Empty with more classes, which do not have one, and where the probabilities are the same for all samples.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    probabilities : ndarray (n, C) float64
    """
    if (y_true.ndim == 1 and probabilities.shape[1] > 2) or not np.ptp(probabilities, axis=0).any():
        return ()
    problems = binary_problems(y_true, probabilities.shape[1])
    points = (choose_thresholds(y, probabilities[rows, number])[0] for number, rows, y in problems)
    return tuple(point.threshold for point in points if point.threshold is not None)


def evaluate_threshold(
    y_true: Ints, y_score: Floats, threshold: float,
    *, groups: Ints | None = None, prevalence: float | None = None, level: float = 0.95,
) -> PointResult:  # fmt: skip
    """Return the results of a threshold that was fixed beforehand.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}, both present
    y_score : ndarray (n,) float64
    threshold : float
        A sample is positive if its score is at or above it.
    groups : ndarray (n,) int64, optional
        Patients, for the intervals of proportions where some have several samples.
    prevalence : float, optional
        Of the disease where the head will be used, between 0 and 1, for predictive values there.

    Raises
    ------
    ValueError
        As `roc_auc`; or if `prevalence` or `level` is not between 0 and 1.

    Notes
    -----
    `hoarfrost.evaluation.intervals` decides the intervals of proportions. Likelihood ratios have the log method's; where
    patients have several samples, its variance is that of sums over patients. Where one of their two proportions is zero,
    or both are one, one half is added to all four counts for the interval, which are then patients'. A ratio of zero has
    the lower limit zero; an infinite ratio is None and has no upper limit. Predictive values at a prevalence and their
    intervals follow from the likelihood ratios by Bayes' rule.

    References
    ----------
    Simel, Samsa and Matchar (1991), Journal of Clinical Epidemiology 44(8), 763-770. Mercaldo, Lau and Zhou (2007),
    Statistics in Medicine 26(10), 2170-2183.
    """
    y_true, y_score = checked_binary(y_true, y_score)
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be a finite number, not {threshold}")
    if prevalence is not None and not 0 < prevalence < 1:
        raise ValueError(f"prevalence must be between 0 and 1, not {prevalence}")
    found, diseased = y_score >= threshold, y_true == 1
    tp, fp = int((found & diseased).sum()), int((found & ~diseased).sum())
    fn, tn = int(diseased.sum()) - tp, int((~diseased).sum()) - fp
    positive, negative = (_ratio(hits, diseased, groups, level) for hits in (found, ~found))

    def of(hits: Bools, counted: Bools) -> Share:
        return share(hits, counted, groups, level=level)

    return PointResult(
        float(threshold), tp, fp, tn, fn,
        sensitivity=of(found, diseased), specificity=of(~found, ~diseased), ppv=of(diseased, found),
        npv=of(~diseased, ~found),
        lr_positive=positive, lr_negative=negative,
        at_prevalence=None if prevalence is None else AtPrevalence(
            prevalence,
            ppv=_predictive_value(positive, prevalence, of_disease=True),
            npv=_predictive_value(negative, prevalence, of_disease=False),
        ),
    )  # fmt: skip


def _achievable(y_true: Ints, y_score: Floats) -> tuple[Floats, Floats, Floats]:
    """Return all thresholds that differ on the samples, descending, with sensitivity and specificity, each (k,)."""
    distinct = np.unique(y_score)[::-1]
    lower = np.append(distinct[1:], distinct[-1])
    middle = distinct / 2 + lower / 2  # halved first: the sum of two large scores overflows
    # The middle of two neighbouring floats rounds to one of them; at the lower one both would be positive.
    thresholds = np.where(middle > lower, middle, distinct)
    positives, negatives = np.sort(y_score[y_true == 1]), np.sort(y_score[y_true == 0])
    sensitivity = 1 - np.searchsorted(positives, thresholds, "left") / len(positives)
    specificity = np.searchsorted(negatives, thresholds, "left") / len(negatives)
    return thresholds, sensitivity, specificity


def _ratio(hits: Bools, diseased: Bools, groups: Ints | None, level: float) -> Estimate:
    """Return the ratio of the shares of hits among the diseased and the others, with the log method's interval."""
    z, sizes = normal_quantile(level), np.array([diseased.sum(), (~diseased).sum()], np.float64)
    p = np.array([hits[diseased].mean(), hits[~diseased].mean()])
    n, numbers, method = len(hits), None, LOG
    if groups is not None and is_repeated(groups):
        numbers, method = checked_groups(groups, n)[0], LOG_CLUSTERED
    if not p.any():
        return Estimate(None, None, None, n=n)
    if (p == 0).any() or (p == 1).all():
        if numbers is not None:
            sizes = np.array([len(np.unique(numbers[diseased])), len(np.unique(numbers[~diseased]))], np.float64)
        shares, added = (p * sizes + 0.5) / (sizes + 1), sizes + 1
        variance, centre = float(((1 - shares) / (shares * added)).sum()), math.log(shares[0] / shares[1])
    else:
        centre = math.log(p[0] / p[1])
        variance = float(((1 - p) / (p * sizes)).sum())
        if numbers is not None:
            # The influence of each sample on the logarithm of the ratio; independent ones have the variance above.
            influence = np.where(diseased, (hits - p[0]) / (sizes[0] * p[0]), -(hits - p[1]) / (sizes[1] * p[1]))
            sums = np.bincount(numbers, weights=influence)
            variance = float((sums**2).sum()) * len(sums) / max(len(sums) - 1, 1)
    low, high = (math.exp(centre + sign * z * math.sqrt(variance)) for sign in (-1, 1))
    if p[1] == 0:
        return Estimate(None, low, None, method, n)
    return Estimate(float(p[0] / p[1]), 0.0 if p[0] == 0 else low, high, method, n)


def _predictive_value(ratio: Estimate, prevalence: float, *, of_disease: bool) -> Estimate | None:
    """Return the probability of disease, or of no disease, that follows from a likelihood ratio by Bayes' rule."""
    if ratio.low is None:
        return None
    odds = prevalence / (1 - prevalence)
    # An infinite ratio makes disease certain.
    value, low, high = (
        1.0 if one is None else odds * one / (1 + odds * one) for one in (ratio.value, ratio.low, ratio.high)
    )
    return Estimate(value, low, high, BAYES) if of_disease else Estimate(1 - value, 1 - high, 1 - low, BAYES)
