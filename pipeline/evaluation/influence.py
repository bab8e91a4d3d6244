"""Each sample's influence on a metric: how far the metric moves with the sample's weight. Intervals come from its sums."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import Bools, Floats, Ints, tied_groups

Measure = Callable[[Ints], float]
"""Takes counts (C, C), row = true class, column = predicted class, and returns a metric."""


@dataclass(frozen=True)
class Influence:
    """Each sample's influence on a metric, (n,) float64 with a sum of zero.

    `hits` and `counted`, (n,) bool, are those of a metric that is a proportion: the samples that are correct, and the
    samples in the denominator.
    """

    values: Floats
    hits: Bools | None = None
    counted: Bools | None = None


def of_ratio(numerators: Floats, denominators: Floats) -> Influence:
    """Return the influence on a sum (n,) divided by another (n,), as a mean is; none where that is undefined."""
    total = float(denominators.sum())
    if total == 0:
        return Influence(np.zeros(len(numerators)))
    return Influence((numerators - float(numerators.sum()) / total * denominators) / total)


def of_mean(terms: Floats) -> Influence:
    """Return the influence on the mean of a value per sample, (n,) float64."""
    return Influence((terms - float(terms.mean())) / len(terms))


def of_share(hits: Bools, counted: Bools) -> Influence:
    """Return the influence on a proportion of the counted samples."""
    return Influence(of_ratio((hits & counted).astype(np.float64), counted.astype(np.float64)).values, hits, counted)


def of_counts(measure: Measure, counts: Ints, y_true: Ints, y_pred: Ints) -> Influence:
    """Return the influence on a metric of the counts (C, C): its change without one sample, which is one of each cell."""
    whole, by_cell = measure(counts), np.zeros(counts.shape)
    for cell in zip(*np.nonzero(counts), strict=True):
        fewer = counts.copy()
        fewer[cell] -= 1
        if fewer[cell[0]].any():  # a class without samples leaves the metric undefined
            by_cell[cell] = whole - measure(fewer)
    by_cell -= float((by_cell * counts).sum()) / len(y_true)
    return Influence(by_cell[y_true, y_pred])


def of_average_precision(y_true: Ints, y_score: Floats) -> Influence:
    """Return the influence on the average precision of labels of 0 and 1.

    Notes
    -----
    The derivative by a sample's weight: a positive adds its own precision, and each sample changes the precision at all
    thresholds at or below its score.
    """
    order = np.argsort(-y_score, kind="stable")
    _, starts = tied_groups(-y_score[order])
    sizes = np.diff(np.append(starts, len(order)))
    positives = np.add.reduceat(y_true[order].astype(np.float64), starts)
    true, predicted = np.cumsum(positives), np.cumsum(sizes)
    n_positive, precision = true[-1], true / predicted
    whole = float(positives @ precision) / n_positive
    # Summed from the lowest score upwards: a sample is predicted at its own threshold and at all lower ones.
    of_positive = np.cumsum((positives / predicted)[::-1])[::-1]
    of_any = np.cumsum((positives * precision / predicted)[::-1])[::-1]
    found = np.empty(len(order))
    found[order] = np.repeat(-of_any, sizes) + y_true[order] * np.repeat(of_positive + precision - whole, sizes)
    return Influence(found / n_positive)
