"""Operating points: thresholds fixed on validation, and their results on the test split."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import betainc

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
from hoarfrost.evaluation.metrics import Decision
from hoarfrost.evaluation.shares import kept_by_chance, shares
from hoarfrost.evaluation.units import is_repeated, too_few_of_classes

REQUIRED = CONFIDENCE = 0.95
YOUDEN = "Youden's index"
RULES = "youden, sensitivity=0.95, sensitivity=0.95,confidence=0.95, specificity=0.95 or threshold=0.3"
"""The texts that `Rule.parse` reads, in words."""
LOG, BAYES = "log method", "Bayes' rule on a likelihood ratio"
LOG_CLUSTERED = f"{LOG}, clustered by patient"


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen: "youden", a least "sensitivity" or "specificity", or a stated "threshold".

    `level` is the least sensitivity or specificity, or the threshold; 0 for Youden's index. With `confidence`, the
    sensitivity or specificity of new cases is at least the level in this share of all draws of validation cases.
    """

    kind: str = "youden"
    level: float = 0.0
    confidence: float | None = None

    @property
    def name(self) -> str:
        """The rule as it is printed."""
        if self.kind == "youden":
            return YOUDEN
        if self.kind == "threshold":
            return f"the stated threshold {self.level:g}"
        assured = "" if self.confidence is None else f" with {self.confidence:.0%} confidence"
        return f"{self.kind} >= {self.level:g}{assured}"

    @classmethod
    def parse(cls, text: str, *, of_scores: bool = False) -> "Rule":
        """Return the rule of a text: "youden", "sensitivity=0.95", "sensitivity=0.95,confidence=0.9", "threshold=0.3".

        Raises
        ------
        ValueError
            If the text is none of these, or its number is not between 0 and 1; with `of_scores` a threshold may be any.
        """
        text = text.strip().lower()
        if text == "youden":
            return cls()
        found = re.fullmatch(r"(sensitivity|specificity|threshold)=(-?[\d.]+)(?:,confidence=([\d.]+))?", text)
        numbers = [] if found is None else [_number(one) for one in found.groups()[1:] if one is not None]
        is_stated = found is not None and found[1] == "threshold" and len(numbers) == 1
        is_good = is_stated or (found is not None and found[1] != "threshold")
        least, most = (-math.inf, math.inf) if of_scores and is_stated else (0, 1)
        if found is None or not is_good or not all(least < one < most for one in numbers):
            raise ValueError(f"{text!r} is not an operating point. Write {RULES}, with numbers between 0 and 1")
        return cls(found[1], *numbers)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


YOUDENS_RULE = Rule()


@dataclass(frozen=True)
class OperatingPoint:
    """A rule and the threshold that it chose: a sample is predicted positive if its score is at or above the threshold.

    `sensitivity` and `specificity` are those on the samples it was chosen on. `threshold` and both are None where no
    threshold meets the rule; `reason` states why. Of a required sensitivity or specificity, `kept_by` is the share of
    thresholds, chosen in this way on `n_cases` of the class, that reach it in new cases.
    """

    name: str
    threshold: float | None
    sensitivity: float | None
    specificity: float | None
    reason: str = ""
    kept_by: float | None = None
    n_cases: int = 0

    @property
    def promise(self) -> str:
        """How often new cases reach what the rule requires, as a sentence; "" if it requires nothing."""
        if self.kept_by is None:
            return ""
        required = self.name.partition(" with ")[0]
        return f"{self.kept_by:.0%} of thresholds chosen like this, on {self.n_cases:,} cases, reach {required} in new cases."


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
    infinite; all its figures are None where it is undefined. `threshold` is None where samples have different ones.
    """

    threshold: float | None
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


def choose_thresholds(
    y_true: Ints,
    y_score: Floats,
    *,
    required: float = REQUIRED,
    primary: Rule = YOUDENS_RULE,
    confidence: float | None = None,
    groups: Ints | None = None,
) -> tuple[OperatingPoint, ...]:
    """Choose thresholds on validation: by Youden's index, a required sensitivity, and a required specificity.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    y_score : ndarray (n,) float64
        Higher means class 1.
    required : float
        Lower limit of the second threshold's sensitivity, and of the third one's specificity; the other measure is then
        the best possible.
    primary : Rule, optional
        The rule that decides; Youden's index by default.
    confidence : float, optional
        Also choose thresholds that new cases keep with this confidence.
    groups : ndarray (n,) int64, optional
        Patients. Where some have several samples, cases are patients.

    Returns
    -------
    tuple of OperatingPoint
        The primary one first. If no threshold meets its rule, Youden's index is first.

    Raises
    ------
    ValueError
        As `roc_auc`; or if `required` is not between 0 and 1.

    Notes
    -----
    A sample is positive if its score is at or above the threshold. All thresholds between two neighbouring scores give the
    same result on validation; the middle is used, which favours neither class on new samples. Among equally good ones
    the most sensitive is chosen: a missed disease costs more. A threshold that finds no positive sample, or no negative
    one, is not an operating point, so a required specificity or sensitivity can be out of reach.

    A sensitivity that is required on n validation cases, m of which are missed, is reached in new cases with the
    probability that more than m of n binomial trials fail (the distribution of the (m + 1)-th order statistic). With a
    confidence the threshold is the best one for which this probability is at least as high: a one-sided tolerance limit.
    With a confidence, of a patient with several samples the most difficult one counts, which is cautious; without, cases
    are counted by their design effect.

    References
    ----------
    Youden (1950), Cancer 3(1), 32-35. Wilks (1941), Annals of Mathematical Statistics 12(1), 91-96 (tolerance limits).
    """
    y_true, y_score = checked_binary(y_true, y_score)
    if not 0 < required < 1:
        raise ValueError(f"required must be between 0 and 1, not {required}")
    kinds = ("sensitivity", "specificity")
    wanted = [primary, YOUDENS_RULE, *(Rule(kind, required) for kind in kinds)]
    if confidence is not None:
        wanted += [Rule(kind, required, confidence) for kind in kinds]
    return _by_rules(y_true, y_score, groups, wanted)


def operating_points(
    y_true: Ints, probabilities: Floats, groups: Ints | None, primary: Rule
) -> dict[int, tuple[OperatingPoint, ...]]:
    """Return the operating points of class 1 of two, of each class against the rest, or of each label, by its number.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    probabilities : ndarray (n, C) float64
    groups : ndarray (n,) int64 or None
        Patients.
    primary : Rule
        See `choose_thresholds`.
    """
    return {
        number: choose_thresholds(
            y, probabilities[rows, number], primary=primary, confidence=CONFIDENCE,
            groups=None if groups is None else groups[rows],
        )
        for number, rows, y in binary_problems(y_true, probabilities.shape[1])
    }  # fmt: skip


def _by_rules(y_true: Ints, y_score: Floats, groups: Ints | None, rules: Sequence[Rule]) -> tuple[OperatingPoint, ...]:
    """Return a point for each rule; the second is Youden's index, and first if no threshold meets the first rule."""
    data = _Validation(y_true, y_score, groups, *_achievable(y_true, y_score))
    points = [data.chosen(rule) for rule in dict.fromkeys(rules)]
    if points[0].threshold is None:
        points[:2] = points[1::-1]
    return tuple(points)


@dataclass(frozen=True)
class _Validation:
    """Samples, and all thresholds that differ on them, descending, with sensitivity and specificity, each (k,)."""

    y_true: Ints
    y_score: Floats
    groups: Ints | None
    thresholds: Floats
    sensitivity: Floats
    specificity: Floats

    def chosen(self, rule: Rule) -> OperatingPoint:
        """Return the operating point of a rule."""
        if rule.kind == "threshold":
            found = self.y_score >= rule.level
            shares = (float(found[self.y_true == 1].mean()), float((~found)[self.y_true == 0].mean()))
            return OperatingPoint(rule.name, rule.level, *shares)
        if rule.kind == "youden":
            return self._best(rule, self.sensitivity + self.specificity, np.ones(len(self.thresholds), bool))
        own, good = self.sensitivity, self.specificity
        if rule.kind == "specificity":
            own, good = good, own
        other = "specificity" if rule.kind == "sensitivity" else "sensitivity"
        n_cases, n_missed = self._missed(rule.kind)
        # The binomial distribution's upper tail, to the last digit, without scipy.stats, which takes long to import.
        kept_by = np.where(
            n_missed < n_cases, betainc(n_missed + 1, np.maximum(n_cases - n_missed, 1), 1 - rule.level), 0.0
        )
        if rule.confidence is None:
            allowed = (own >= rule.level) & (good > 0)
            highest = f"the highest {rule.kind} with a {other} above 0 is {own[good > 0].max(initial=0):.3f}"
            reason = f"no threshold reaches it; {highest}"
        else:
            allowed = (kept_by >= rule.confidence) & (good > 0)
            fewest = math.ceil(math.log(1 - rule.confidence) / math.log(rule.level) - 1e-9)
            reason = (
                f"at least {fewest:,} cases are needed; there are {n_cases:,}"
                if n_cases < fewest
                else f"no threshold reaches it with a {other} above 0"
            )
        if not allowed.any():
            return OperatingPoint(rule.name, None, None, None, reason)
        point = self._best(rule, good, allowed, kept_by, n_cases)
        if rule.confidence is not None or point.threshold is None:
            return point
        rows = self.y_true == (rule.kind == "sensitivity")
        missed = (self.y_score >= point.threshold)[rows] != (rule.kind == "sensitivity")
        groups = None if self.groups is None else self.groups[rows]
        return replace(point, kept_by=kept_by_chance(missed, groups, rule.level))

    def _best(
        self, rule: Rule, good: Floats, allowed: Bools, kept_by: Floats | None = None, n_cases: int = 0
    ) -> OperatingPoint:
        # Thresholds descend and sensitivity grows along them: the last is the most sensitive.
        i = np.flatnonzero(allowed & (good >= good[allowed].max() - 1e-12))[-1]
        threshold, sensitivity, specificity = (
            float(one[i]) for one in (self.thresholds, self.sensitivity, self.specificity)
        )
        kept = None if kept_by is None else float(kept_by[i])
        return OperatingPoint(rule.name, threshold, sensitivity, specificity, kept_by=kept, n_cases=n_cases)

    def _missed(self, kind: str) -> tuple[int, Ints]:
        """Return the number of cases of a class, and how many of them each threshold misses, (k,)."""
        is_positive = kind == "sensitivity"
        rows = self.y_true == is_positive
        scores = self.y_score[rows] if is_positive else -self.y_score[rows]
        if self.groups is not None and is_repeated(self.groups):
            numbers, n_groups = checked_groups(self.groups[rows], int(rows.sum()))
            hardest = np.full(n_groups, np.inf)
            np.minimum.at(hardest, numbers, scores)
            scores = hardest
        # A positive is missed below the threshold, a negative at or above it.
        side, at = ("left", self.thresholds) if is_positive else ("right", -self.thresholds)
        return len(scores), np.searchsorted(np.sort(scores), at, side).astype(np.int64)  # type: ignore[call-overload]


def primary_decision(y_true: Ints, probabilities: Floats, groups: Ints | None, rule: Rule) -> Decision:
    """Return the decision by the primary operating point: the threshold of class 1 of two, or of each label.

    The decision has no thresholds with more classes, and where the probabilities are the same for all samples.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    probabilities : ndarray (n, C) float64
    groups : ndarray (n,) int64 or None
        Patients.
    rule : Rule
        Where no threshold meets it, Youden's index is used.
    """
    if (y_true.ndim == 1 and probabilities.shape[1] > 2) or not np.ptp(probabilities, axis=0).any():
        return Decision()
    points = [
        _by_rules(y, probabilities[rows, number], None if groups is None else groups[rows], (rule, YOUDENS_RULE))[0]
        for number, rows, y in binary_problems(y_true, probabilities.shape[1])
    ]
    names = " or ".join(dict.fromkeys(point.name for point in points))
    return Decision(tuple(point.threshold for point in points if point.threshold is not None), names)


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
    positive, negative = (likelihood_ratio(hits, diseased, groups, level) for hits in (found, ~found))

    hits, counted = (found, ~found, diseased, ~diseased), (diseased, ~diseased, found, ~found)
    sensitivity, specificity, ppv, npv = shares(np.column_stack(hits), np.column_stack(counted), groups, level=level)
    return PointResult(
        float(threshold), tp, fp, tn, fn,
        sensitivity=sensitivity, specificity=specificity, ppv=ppv, npv=npv,
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


def likelihood_ratio(hits: Bools, diseased: Bools, groups: Ints | None, level: float) -> Estimate:
    """Return the ratio of the shares of hits among the diseased and the others, with the log method's interval."""
    if (reason := too_few_of_classes(diseased.astype(np.int64), 2, groups)) and hits.any():
        value = None if not hits[~diseased].any() else float(hits[diseased].mean() / hits[~diseased].mean())
        return Estimate(value, None, None, reason, len(hits))
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
    low, upper = (math.exp(centre + sign * z * math.sqrt(variance)) for sign in (-1, 1))
    value, high = (None, None) if p[1] == 0 else (float(p[0] / p[1]), upper)
    return Estimate(value, 0.0 if p[0] == 0 else low, high, method, n)


def _predictive_value(ratio: Estimate, prevalence: float, *, of_disease: bool) -> Estimate | None:
    """Return the probability of disease, or of no disease, that follows from a likelihood ratio by Bayes' rule."""
    odds = prevalence / (1 - prevalence)
    if ratio.low is None and not ratio.why_none:
        return None
    ends = ratio.value, ratio.low, ratio.high  # an infinite ratio makes disease certain
    value, low, high = (1.0 if one is None else odds * one / (1 + odds * one) for one in ends)
    found = Estimate(value, low, high, BAYES) if of_disease else Estimate(1 - value, 1 - high, 1 - low, BAYES)
    return found.without_interval(ratio.method) if ratio.why_none else found
