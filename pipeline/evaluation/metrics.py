"""The metrics, each declared once. Everything that scores, writes or prints metrics loops over them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import cached_property

import numpy as np

from hoarfrost.evaluation.checks import UNKNOWN, Bools, Floats, Ints, binary_problems
from hoarfrost.evaluation.discrimination import average_precision, roc_auc
from hoarfrost.evaluation.influence import (
    Influence,
    Measure,
    of_average_precision,
    of_counts,
    of_mean,
    of_ratio,
    of_share,
)
from hoarfrost.evaluation.intervals import IntervalKind

THRESHOLD = 0.5
"""Where no thresholds were chosen, a label is predicted if its probability is at or above this."""


class ShownIn(IntEnum):
    """Where a metric is shown; each place includes those before it."""

    FILE = 0
    """Only `metrics.json`."""
    WIDE = 1
    """Tables with enough room: the report's comparison of heads, tables for a paper."""
    EVERYWHERE = 2
    """The terminal, the report's first screen and the model card too."""


@dataclass(frozen=True)
class OneAgainstRest:
    """One class against all others, or one label: `y` and `predicted` (m,) int64 of 0 and 1, `p` (m,) its probability.

    `rows` (m,) are the samples for which it is known.
    """

    y: Ints
    predicted: Ints
    p: Floats
    rows: Ints

    @cached_property
    def counts(self) -> Ints:
        """Counts (2, 2): row = true, column = predicted. Counted once, for all metrics."""
        return confusion_matrix(self.y, self.predicted, 2)

    @cached_property
    def cells(self) -> tuple[int, int, int, int]:
        """True negatives, false positives, false negatives, true positives."""
        (n_tn, n_fp), (n_fn, n_tp) = self.counts.tolist()
        return n_tn, n_fp, n_fn, n_tp

    @property
    def sensitivity(self) -> float:
        """The share of its samples that are predicted as it."""
        _, _, n_fn, n_tp = self.cells
        return n_tp / (n_tp + n_fn)

    @property
    def specificity(self) -> float:
        """The share of all other samples that are not predicted as it."""
        n_tn, n_fp, _, _ = self.cells
        return n_tn / (n_tn + n_fp)

    def drawn(self, rows: Ints) -> "OneAgainstRest":
        """Return some of its samples, by their places; a sample may occur several times."""
        return OneAgainstRest(self.y[rows], self.predicted[rows], self.p[rows], self.rows[rows])


@dataclass(frozen=True)
class Decision:
    """How probabilities become predictions.

    `thresholds` has one number for class 1 of two, or one for each label; `rule` is the name of the operating point that
    they are. `of_samples`, (n, 1) or (n, C), are thresholds that differ between samples, as those of folds do. Without
    thresholds the most probable class is predicted, or the labels with a probability of `THRESHOLD` or more.
    """

    thresholds: tuple[float, ...] = ()
    rule: str = ""
    of_samples: Floats | None = None

    @property
    def limits(self) -> Floats | None:
        """The thresholds, (1, k) or (n, k); None if there are none."""
        if self.of_samples is not None:
            return self.of_samples
        return np.array([self.thresholds]) if self.thresholds else None

    def drawn(self, rows: Ints) -> "Decision":
        """Return the decision on some of the samples."""
        return self if self.of_samples is None else replace(self, of_samples=self.of_samples[rows])


NO_DECISION = Decision()


def three_digits(threshold: float) -> str:
    """Return a threshold as it is printed."""
    return f"{threshold:z.3f}"


def across_folds(thresholds: Sequence[float], number: Callable[[float], str] = three_digits) -> str:
    """Return the range of the folds' thresholds: "cross-fitted thresholds, 0.409 to 0.524 in 5 folds"."""
    ends = dict.fromkeys((number(min(thresholds)), number(max(thresholds))))
    return f"cross-fitted thresholds, {' to '.join(ends)} in {len(thresholds)} folds"


@dataclass(frozen=True)
class Sample:
    """Labels (n,) or (n, C) and probabilities (n, C), as `score` takes them, and the predictions (n,) or (n, C)."""

    y_true: Ints
    probabilities: Floats
    decision: Decision = NO_DECISION

    @property
    def is_multilabel(self) -> bool:
        """Whether a sample may have several labels."""
        return self.y_true.ndim == 2

    @cached_property
    def predicted(self) -> Ints:
        """The predicted class, or labels, of each sample."""
        limits = self.decision.limits
        if self.is_multilabel:
            return np.asarray(self.probabilities >= (THRESHOLD if limits is None else limits), np.int64)
        if limits is not None:
            return np.asarray(self.probabilities[:, 1] >= limits[:, 0], np.int64)
        return np.asarray(self.probabilities.argmax(axis=1), np.int64)

    @cached_property
    def counts(self) -> Ints:
        """Counts (C, C) of the classes, which exclude each other."""
        return confusion_matrix(self.y_true, self.predicted, self.probabilities.shape[1])

    @cached_property
    def known(self) -> Bools:
        """Which of several labels are known, (n, C)."""
        return np.asarray(self.y_true != UNKNOWN)

    @cached_property
    def problems(self) -> tuple[OneAgainstRest, ...]:
        """Class 1 of two; each of more classes; each label."""
        found = []
        for number, rows, y in binary_problems(self.y_true, self.probabilities.shape[1]):
            predicted = self.predicted[rows, number] if self.is_multilabel else self.predicted == number
            p = self.probabilities[rows, number] if self.is_multilabel else self.probabilities[:, number]
            found.append(OneAgainstRest(y, predicted.astype(np.int64), p, rows))
        return tuple(found)

    def drawn(self, rows: Ints) -> "Sample":
        """Return some of the samples; a sample may occur several times."""
        return Sample(self.y_true[rows], self.probabilities[rows], self.decision.drawn(rows))


@dataclass(frozen=True)
class Metric:
    """One metric: its names, its scorer, its interval, and where it is shown.

    Attributes
    ----------
    key : str
        In `metrics.json`, and in the columns of tables.
    title : str
        In the report.
    unit : str
        Unit or range, in words.
    of_class : callable, optional
        Scores one class against the rest, or one label. May raise ValueError where it is undefined.
    overall : callable, optional
        Scores all classes together; by default the mean of `of_class` over classes, or labels.
    influence_of_class, influence : callable, optional
        Each sample's influence on `of_class` and on `overall`, for the interval.
    is_overall : bool
        False for a metric that is only scored by class.
    short : str
        The title in the terminal's narrow columns, where it differs.
    baseline : str
        The key of the metric that states what a guess reaches. Empty if there is none.
    """

    key: str
    title: str
    unit: str
    higher_is_better: bool
    of_class: Callable[[OneAgainstRest], float] | None = None
    overall: Callable[[Sample], float] | None = None
    influence_of_class: Callable[[OneAgainstRest], Influence] | None = None
    influence: Callable[[Sample], Influence] | None = None
    is_overall: bool = True
    interval: IntervalKind = IntervalKind.NONE
    shown: ShownIn = ShownIn.EVERYWHERE
    short: str = ""
    baseline: str = ""

    @property
    def hint(self) -> str:
        """Unit and direction in words."""
        return f"{self.unit}; {'higher' if self.higher_is_better else 'lower'} is better"

    @property
    def is_wide(self) -> bool:
        """Whether only tables with enough room show it."""
        return self.shown == ShownIn.WIDE

    @property
    def is_mean(self) -> bool:
        """Whether it is the mean over classes, or labels."""
        return self.overall is None

    def score(self, sample: Sample) -> float:
        """Return its value over all classes, or labels, together."""
        if self.overall is not None:
            return self.overall(sample)
        assert self.of_class is not None
        return float(np.mean([self.of_class(one) for one in sample.problems]))

    def influence_on(self, sample: Sample) -> Influence:
        """Return each sample's influence on `score`."""
        if self.influence is not None:
            return self.influence(sample)
        assert self.influence_of_class is not None
        return _mean_influence(self.influence_of_class, sample)


def _mean_influence(of_class: Callable[[OneAgainstRest], Influence], sample: Sample) -> Influence:
    """Return the influence on the mean over classes, or labels; a sample has none on a label that it lacks."""
    total = np.zeros(len(sample.y_true))
    for one in sample.problems:
        total[one.rows] += of_class(one).values
    return Influence(total / len(sample.problems))


def confusion_matrix(y_true: Ints, y_pred: Ints, n_classes: int) -> Ints:
    """Return counts (C, C) int64: row = true class, column = predicted class."""
    matrix: Ints = np.bincount(y_true * n_classes + y_pred, minlength=n_classes**2).reshape(n_classes, n_classes)
    return matrix


def _accuracy(sample: Sample) -> float:
    return float((sample.predicted == sample.y_true)[sample.known].mean())  # all class numbers are known


def _accuracy_influence(sample: Sample) -> Influence:
    right = sample.predicted == sample.y_true
    if sample.is_multilabel:
        return of_ratio((right & sample.known).sum(axis=1) * 1.0, sample.known.sum(axis=1) * 1.0)
    return of_share(right, sample.known)


def _majority_accuracy(sample: Sample) -> float:
    if sample.is_multilabel:
        return sum(int(np.bincount(one.y).max()) for one in sample.problems) / int(sample.known.sum())
    return float(np.bincount(sample.y_true).max() / len(sample.y_true))


# From the terms: scikit-learn's function, with the same result, takes most of the time of scoring several classes.


def _nats_of_class(one: OneAgainstRest) -> Floats:
    return _nats(np.where(one.y == 1, one.p, 1 - one.p))


def _nats_of(sample: Sample) -> Floats:
    """Return the cross-entropy of each sample, or label; 0 where a label is unknown."""
    y, p = sample.y_true, sample.probabilities
    if sample.is_multilabel:
        return _nats(np.where(y == 1, p, 1 - p)) * sample.known
    return _nats(p[np.arange(len(y)), y])


def _nats(p: Floats) -> Floats:
    """Return the cross-entropy of the probability of what was true; never infinite."""
    least = np.finfo(np.float64).eps
    found: Floats = -np.log(np.clip(p, least, 1 - least))
    return found


def _loss(sample: Sample) -> float:
    return float(_nats_of(sample).sum()) / int(sample.known.sum())


def _loss_influence(sample: Sample) -> Influence:
    if not sample.is_multilabel:
        return of_mean(_nats_of(sample))
    return of_ratio(_nats_of(sample).sum(axis=1), sample.known.sum(axis=1) * 1.0)


def _brier_of_class(one: OneAgainstRest) -> float:
    return float(np.mean((one.p - one.y) ** 2))


def _brier(sample: Sample) -> float:
    each = [_brier_of_class(one) for one in sample.problems]
    return float(np.mean(each) if sample.is_multilabel else np.sum(each))


def _brier_influence_of_class(one: OneAgainstRest) -> Influence:
    return of_mean((one.p - one.y) ** 2)


def _brier_influence(sample: Sample) -> Influence:
    mean = _mean_influence(_brier_influence_of_class, sample)
    return mean if sample.is_multilabel else Influence(mean.values * len(sample.problems))


def _f1(counts: Ints) -> float:
    (_, n_fp), (n_fn, n_tp) = counts.tolist()
    return float(2 * n_tp / (2 * n_tp + n_fp + n_fn))


def _precision(one: OneAgainstRest) -> float:
    _, n_fp, _, n_tp = one.cells
    return n_tp / max(1, n_tp + n_fp)


# From the counts: scikit-learn's functions, with the same results, read all samples again for each metric. With hundreds
# of heads this takes most of the time of scoring.


def _balanced_accuracy(counts: Ints) -> float:
    return float((np.diag(counts) / counts.sum(axis=1)).mean())


def _matthews(counts: Ints) -> float:
    n, n_right = counts.sum(), np.diag(counts)
    n_true, n_predicted = counts.sum(axis=1), counts.sum(axis=0)
    spread = float(n**2 - (n_true**2).sum()) * float(n**2 - (n_predicted**2).sum())
    covariance = float(n * n_right.sum() - n_true @ n_predicted)
    return covariance / math.sqrt(spread) if spread else 0.0


def _of_decisions(measure: Measure) -> Callable[[Sample], float]:
    """Return a scorer of the predictions for all classes together, or of the mean over labels."""

    def overall(sample: Sample) -> float:
        if sample.is_multilabel:
            return float(np.mean([measure(one.counts) for one in sample.problems]))
        return measure(sample.counts)

    return overall


def _influence_of_class(measure: Measure) -> Callable[[OneAgainstRest], Influence]:
    """Return the influence on a metric of one class's counts."""
    return lambda one: of_counts(measure, one.counts, one.y, one.predicted)


def _influence_on_decisions(measure: Measure) -> Callable[[Sample], Influence]:
    """Return the influence on what `_of_decisions` scores."""

    def influence(sample: Sample) -> Influence:
        if sample.is_multilabel:
            return _mean_influence(_influence_of_class(measure), sample)
        return of_counts(measure, sample.counts, sample.y_true, sample.predicted)

    return influence


ROC_AUC = "roc_auc"
"""The key of the metric that heads are selected and compared by."""
AVERAGE_PRECISION = "average_precision"

METRICS = (
    Metric(
        ROC_AUC, "ROC AUC", "0.5 is chance, 1 is perfect", True,
        of_class=lambda one: roc_auc(one.y, one.p), interval=IntervalKind.AREA, short="AUC",
    ),
    Metric(
        "accuracy", "accuracy", "share of correct decisions", True, overall=_accuracy, baseline="majority_accuracy",
        interval=IntervalKind.SHARE, influence=_accuracy_influence,
    ),
    Metric(
        "majority_accuracy", "accuracy of the most frequent class", "share of correct decisions", True,
        overall=_majority_accuracy, shown=ShownIn.FILE,
    ),
    Metric(
        "loss", "loss", "mean cross-entropy, nats", False, shown=ShownIn.WIDE, overall=_loss,
        of_class=lambda one: float(_nats_of_class(one).mean()),
        interval=IntervalKind.LOSS, influence_of_class=lambda one: of_mean(_nats_of_class(one)), influence=_loss_influence,
    ),
    Metric(
        "brier", "Brier score", "mean squared error, 0 to 1; summed over several classes, 0 to 2", False,
        of_class=_brier_of_class, overall=_brier, shown=ShownIn.FILE,
        interval=IntervalKind.LOSS, influence_of_class=_brier_influence_of_class, influence=_brier_influence,
    ),
    Metric(
        AVERAGE_PRECISION, "average precision", "area under precision over recall", True,
        of_class=lambda one: average_precision(one.y, one.p), shown=ShownIn.FILE,
        interval=IntervalKind.UNIT, influence_of_class=lambda one: of_average_precision(one.y, one.p),
    ),
    Metric(
        "balanced_accuracy", "balanced accuracy", "mean sensitivity over the classes", True, shown=ShownIn.FILE,
        of_class=lambda one: _balanced_accuracy(one.counts), overall=_of_decisions(_balanced_accuracy),
        interval=IntervalKind.UNIT, influence_of_class=_influence_of_class(_balanced_accuracy),
        influence=_influence_on_decisions(_balanced_accuracy),
    ),
    Metric(
        "f1", "F1", "harmonic mean of precision and sensitivity", True, of_class=lambda one: _f1(one.counts),
        shown=ShownIn.FILE, interval=IntervalKind.UNIT, influence_of_class=_influence_of_class(_f1),
    ),
    Metric(
        "matthews", "Matthews' correlation", "-1 to 1", True, shown=ShownIn.FILE,
        of_class=lambda one: _matthews(one.counts), overall=_of_decisions(_matthews),
        interval=IntervalKind.CORRELATION, influence_of_class=_influence_of_class(_matthews),
        influence=_influence_on_decisions(_matthews),
    ),
    Metric(
        "sensitivity", "sensitivity", "share of the class's samples that are predicted as it", True,
        of_class=lambda one: one.sensitivity, is_overall=False, shown=ShownIn.FILE,
        interval=IntervalKind.SHARE, influence_of_class=lambda one: of_share(one.predicted == 1, one.y == 1),
    ),
    Metric(
        "specificity", "specificity", "share of the other samples that are not predicted as it", True,
        of_class=lambda one: one.specificity, is_overall=False, shown=ShownIn.FILE,
        interval=IntervalKind.SHARE, influence_of_class=lambda one: of_share(one.predicted == 0, one.y == 0),
    ),
    Metric(
        "precision", "precision", "share of the samples predicted as the class that belong to it; 0 if there are none", True,
        of_class=_precision, is_overall=False, shown=ShownIn.FILE,
        interval=IntervalKind.SHARE, influence_of_class=lambda one: of_share(one.y == 1, one.predicted == 1),
    ),
)  # fmt: skip


def registered(least: ShownIn = ShownIn.FILE) -> tuple[Metric, ...]:
    """Return the metrics that are shown in this place, in their order."""
    return tuple(metric for metric in METRICS if metric.shown >= least)
