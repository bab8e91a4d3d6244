"""All scores of one head on one split."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hoarfrost.evaluation.checks import Floats, Ints, checked
from hoarfrost.evaluation.estimates import OPTIMISTIC, Estimate
from hoarfrost.evaluation.intervals import IntervalKind, metric_estimate, pooled_area, variance_inflation
from hoarfrost.evaluation.metrics import (
    NO_DECISION,
    ROC_AUC,
    Decision,
    Metric,
    OneAgainstRest,
    Sample,
    ShownIn,
    registered,
)
from hoarfrost.evaluation.units import count_patients


@dataclass(frozen=True)
class Scores:
    """The metrics of one head on one split.

    Attributes
    ----------
    n : int
        Units scored; for a class or label, the units that have it.
    n_patients : int or None
        Patients of the units scored; None where they are unknown, or are the units.
    estimates : mapping of str -> Estimate
        By the metric's key.
    per_class : mapping of str -> Scores
        Each class against the rest, or each label; empty with two classes.
    thresholds : tuple of float
        Of class 1, or of each label, by which accuracy and all other metrics of decisions decide. Empty if they take the
        most probable class, or labels that are more probable than not; or if each fold has its own.
    rule : str
        The name of the operating point that decides; "" where none does. Runs of earlier versions have Youden's index.
    """

    n: int
    n_patients: int | None
    estimates: Mapping[str, Estimate]
    per_class: "Mapping[str, Scores]" = field(default_factory=dict)
    thresholds: tuple[float, ...] = ()
    rule: str = ""

    def __getitem__(self, key: str) -> Estimate:
        return self.estimates[key]

    def __contains__(self, key: object) -> bool:
        return key in self.estimates

    @property
    def auc(self) -> Estimate:
        """The ROC AUC, by which heads are selected and compared."""
        return self.estimates[ROC_AUC]

    def printed(self, key: str) -> Estimate | None:
        """Return a metric with its interval; None where the run does not have it."""
        return self.estimates.get(key)

    def optimistic(self) -> "Scores":
        """Return the scores of samples that also selected the head: they have no intervals, and say so."""
        estimates = {
            key: one if one.interval is None and not one.why_none else one.without_interval(OPTIMISTIC)
            for key, one in self.estimates.items()
        }
        per_class = {name: one.optimistic() for name, one in self.per_class.items()}
        return replace(self, estimates=estimates, per_class=per_class)

    def value_or_none(self, key: str) -> float | None:
        """Return the value of a metric; None where the run does not have it, or it is undefined."""
        found = self.estimates.get(key)
        return None if found is None else found.value

    def value(self, key: str) -> float:
        """Return the value of a metric that is defined; raise KeyError where it is not."""
        value = self.estimates[key].value
        if value is None:
            raise KeyError(key)
        return value


def metrics_of(results: Iterable[Scores], least: ShownIn) -> tuple[Metric, ...]:
    """Return the metrics that are shown in this place and that a result has; earlier runs do not have later metrics."""
    found = {key for scores in results for key in scores.estimates}
    return tuple(metric for metric in registered(least) if metric.key in found)


def score(
    y_true: Ints,
    probabilities: Floats,
    classes: Sequence[str],
    groups: Ints | None = None,
    decision: Decision = NO_DECISION,
    *,
    n_folds: int = 1,
) -> Scores:
    """Score one head on one split by all metrics, each with its interval.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 1, 0 and -1 (unknown)
    probabilities : ndarray (n, C) float64
        Rows sum to one; with several labels, each is that of having a label.
    classes : sequence of str, length C
        The classes, or the labels.
    groups : ndarray (n,) int64, optional
        Patients, for the intervals where some have several samples.
    decision : Decision, optional
        Thresholds that were fixed on validation: of class 1 of two, or of each label.
    n_folds : int
        Number of folds whose heads predicted the samples; 1 if one head predicted them all.

    Returns
    -------
    Scores
        Metrics of decisions use the decision; without thresholds the most probable class, or the labels that are more
        probable than not. The scores of a label omit samples for which it is unknown.

    Raises
    ------
    ValueError
        If a class has fewer than two samples, or a label is present, or absent, in fewer than two (ROC AUC or its
        interval is undefined then), or the shapes differ.
    """
    sample = Sample(*checked(y_true, probabilities, len(classes)), decision)
    _check_cases(sample, classes)
    inflation = 1.0 if n_folds < 2 else variance_inflation(n_folds)
    per_class = {}
    n_patients = count_patients(groups)
    if n_patients == len(sample.y_true):  # one sample each: intervals need not sum over patients
        groups = None
    if sample.is_multilabel or len(classes) > 2:
        per_class = {
            name: _of_class(one, groups, n_patients, inflation, is_label=sample.is_multilabel)
            for name, one in zip(classes, sample.problems, strict=True)
        }
    metrics = [metric for metric in registered() if metric.is_overall]
    found = {metric.key: _overall(metric, sample, per_class, groups, n_patients, inflation) for metric in metrics}
    return Scores(len(sample.y_true), n_patients, found, per_class, decision.thresholds, decision.rule)


def _overall(
    metric: Metric,
    sample: Sample,
    per_class: Mapping[str, Scores],
    groups: Ints | None,
    n_patients: int | None,
    inflation: float,
) -> Estimate:
    """Score all classes together; the scores of single classes are reused for their mean."""
    if metric.is_mean and per_class:
        value = float(np.mean([one.value(metric.key) for one in per_class.values()]))
    else:
        value = metric.score(sample)
    plain = Estimate(value, None, None, n=len(sample.y_true), n_patients=n_patients)
    y_true, probabilities = sample.y_true, sample.probabilities
    return metric_estimate(
        metric.interval, plain, y_true, probabilities, groups,
        lambda rows: metric.score(sample.drawn(rows)), inflation, lambda: metric.influence_on(sample),
    )  # fmt: skip


def _of_class(
    one: OneAgainstRest, groups: Ints | None, n_patients: int | None, inflation: float, *, is_label: bool
) -> Scores:
    """Score one class against the rest, or one label; without `groups` each of `n_patients` has one sample."""
    members, probabilities = None if groups is None else groups[one.rows], np.column_stack([1 - one.p, one.p])
    if n_patients is not None and len(one.rows) != n_patients:
        n_patients = len(one.rows) if members is None else count_patients(members)

    def estimate(metric: Metric, scorer: Callable[[OneAgainstRest], float]) -> Estimate:
        plain = Estimate(scorer(one), None, None, n=len(one.y), n_patients=n_patients)
        if metric.interval is IntervalKind.AREA and not is_label:
            # Not drawn again for each class: the mean over classes takes as long as everything else.
            return pooled_area(plain, one.y, probabilities, members, inflation)
        influence_of = metric.influence_of_class
        return metric_estimate(
            metric.interval, plain, one.y, probabilities, members, lambda rows: scorer(one.drawn(rows)), inflation,
            None if influence_of is None else lambda: influence_of(one),
        )  # fmt: skip

    found = {metric.key: estimate(metric, metric.of_class) for metric in registered() if metric.of_class is not None}
    return Scores(int(one.y.sum()), n_patients, found)


def _check_cases(sample: Sample, classes: Sequence[str]) -> None:
    """Raise ValueError if there are too few samples for a ROC AUC and its interval."""
    if sample.is_multilabel:
        for label, one in zip(classes, sample.problems, strict=True):
            n_without, n_with = np.bincount(one.y, minlength=2).tolist()
            if min(n_with, n_without) < 2:
                raise ValueError(
                    f"ROC AUC and its interval need two samples with and two without a label; {label!r} has {n_with} "
                    f"and {n_without}"
                )
        return
    counts = np.bincount(sample.y_true, minlength=len(classes))
    if counts.min() < 2:
        rarest = classes[int(counts.argmin())]
        raise ValueError(f"ROC AUC and its interval need two samples of each class; {rarest!r} has {counts.min()}")
