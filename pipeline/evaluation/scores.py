"""One head on one split: all its scores."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hoarfrost.evaluation.checks import Floats, Ints, checked
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.intervals import area_beside, count_patients, metric_estimate
from hoarfrost.evaluation.metrics import ROC_AUC, Metric, OneAgainstRest, Sample, ShownIn, registered


@dataclass(frozen=True)
class Scores:
    """The metrics of one head on one split.

    Attributes
    ----------
    n : int
        Units scored; of a class or label, those that are of it.
    n_patients : int or None
        Patients of the units scored; None where they are unknown, or are the units.
    estimates : mapping of str -> Estimate
        By the metric's key.
    beside : mapping of str -> Estimate
        The same with the interval of another method, where two are to be printed.
    per_class : mapping of str -> Scores
        Each class against the rest, or each label; empty with two classes.
    """

    n: int
    n_patients: int | None
    estimates: Mapping[str, Estimate]
    beside: Mapping[str, Estimate] = field(default_factory=dict)
    per_class: "Mapping[str, Scores]" = field(default_factory=dict)

    def __getitem__(self, key: str) -> Estimate:
        return self.estimates[key]

    def __contains__(self, key: object) -> bool:
        return key in self.estimates

    @property
    def auc(self) -> Estimate:
        """The ROC AUC, which heads are selected and compared by."""
        return self.estimates[ROC_AUC]

    def printed(self, key: str) -> Estimate | None:
        """Return a metric with the one interval that is printed: by the method of `area_beside` where that covers better."""
        return self.beside.get(key) or self.estimates.get(key)

    def value_or_none(self, key: str) -> float | None:
        """Return the value of a metric; None where the run has no such metric, or it is undefined."""
        found = self.estimates.get(key)
        return None if found is None else found.value

    def value(self, key: str) -> float:
        """Return the value of a metric that is defined; KeyError where it is not."""
        value = self.estimates[key].value
        if value is None:
            raise KeyError(key)
        return value


def metrics_of(results: Iterable[Scores], least: ShownIn) -> tuple[Metric, ...]:
    """Return the metrics that are shown at least there, and that one of the results has: earlier runs lack later ones."""
    found = {key for scores in results for key in scores.estimates}
    return tuple(metric for metric in registered(least) if metric.key in found)


def score(y_true: Ints, probabilities: Floats, classes: Sequence[str], groups: Ints | None = None) -> Scores:
    """Score one head on one split by all metrics, each with its interval.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 1, 0 and -1 where a label is unknown
    probabilities : ndarray (n, C) float64
        Rows sum to one; or each is that of having a label.
    classes : sequence of str, length C
        The classes, or the labels.
    groups : ndarray (n,) int64, optional
        Patients, for the intervals where some have several samples.

    Returns
    -------
    Scores
        What needs a decision takes the most probable class, or the labels that are more probable than not. What is
        unknown of a label is left out of its scores.

    Raises
    ------
    ValueError
        If a class has fewer than two samples, or a label is there, or absent, in fewer than two (ROC AUC or its
        interval is undefined then), or the arrays do not fit one another.
    """
    sample = Sample(*checked(y_true, probabilities, len(classes)))
    _check_cases(sample, classes)
    per_class = {}
    if sample.is_multilabel or len(classes) > 2:
        per_class = {
            name: _of_class(one, groups, has_intervals=sample.is_multilabel)
            for name, one in zip(classes, sample.problems, strict=True)
        }
    n_patients = count_patients(groups)
    found = {
        metric.key: _overall(metric, sample, per_class, groups, n_patients)
        for metric in registered()
        if metric.is_overall
    }
    area = found.get(ROC_AUC)
    second = None if area is None else area_beside(area, sample.y_true, sample.probabilities)
    return Scores(len(sample.y_true), n_patients, found, {} if second is None else {ROC_AUC: second}, per_class)


def _overall(
    metric: Metric, sample: Sample, per_class: Mapping[str, Scores], groups: Ints | None, n_patients: int | None
) -> Estimate:
    """Score all classes together; what is known of each class is not computed again for their mean."""
    if metric.is_mean and per_class:
        value = float(np.mean([one.value(metric.key) for one in per_class.values()]))
    else:
        value = metric.score(sample)
    plain = Estimate(value, None, None, n=len(sample.y_true), n_patients=n_patients)

    def score_rows(rows: Ints) -> float:
        return metric.score(sample.drawn(rows))

    return metric_estimate(metric.interval, plain, sample.y_true, sample.probabilities, groups, score_rows)


def _of_class(one: OneAgainstRest, groups: Ints | None, *, has_intervals: bool) -> Scores:
    """Score one class against the rest, or one label."""
    members = None if groups is None else groups[one.rows]
    n_patients = count_patients(members)
    found = {}
    for metric in registered():
        if metric.of_class is not None:
            plain = Estimate(metric.of_class(one), None, None, n=len(one.y), n_patients=n_patients)
            found[metric.key] = _with_interval(metric, plain, one, members) if has_intervals else plain
    return Scores(int(one.y.sum()), n_patients, found)


def _with_interval(metric: Metric, plain: Estimate, one: OneAgainstRest, members: Ints | None) -> Estimate:
    def score_rows(rows: Ints) -> float:
        assert metric.of_class is not None
        return metric.of_class(one.drawn(rows))

    return metric_estimate(metric.interval, plain, one.y, np.column_stack([1 - one.p, one.p]), members, score_rows)


def _check_cases(sample: Sample, classes: Sequence[str]) -> None:
    """Refuse samples that lack what a ROC AUC and its interval need."""
    if sample.is_multilabel:
        for label, one in zip(classes, sample.problems, strict=True):
            n_with = int(one.y.sum())
            if min(n_with, len(one.y) - n_with) < 2:
                raise ValueError(
                    f"ROC AUC and its interval need two samples with and two without a label; {label!r} has {n_with} "
                    f"and {len(one.y) - n_with}"
                )
        return
    counts = np.bincount(sample.y_true, minlength=len(classes))
    if counts.min() < 2:
        rarest = classes[int(counts.argmin())]
        raise ValueError(f"ROC AUC and its interval need two samples of each class; {rarest!r} has {counts.min()}")
