"""One head on one split, where an image may have several labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk

from hoarfrost.evaluation.checks import UNKNOWN, Floats, Ints, binary_problems, checked
from hoarfrost.evaluation.intervals import auc_intervals
from hoarfrost.evaluation.scores import one_against_rest

THRESHOLD = 0.5
_MEANS = ("roc_auc", "average_precision", "brier", "balanced_accuracy", "f1", "matthews")


def score_labels(
    y_true: Ints, probabilities: Floats, labels: Sequence[str], groups: Ints | None = None
) -> dict[str, Any]:
    """Score one head on one split, each label for itself; what is unknown is left out.

    Parameters
    ----------
    y_true : ndarray (n, C) int64
        1, 0, and -1 where a label is unknown.
    probabilities : ndarray (n, C) float64
        Of having each label.
    labels : sequence of str, length C
    groups : ndarray (n,) int64, optional
        Patients, for the intervals where some have several samples.

    Returns
    -------
    dict
        `n`; `accuracy` at a probability of 0.5, `majority_accuracy` (of always giving each label's more frequent
        answer) and `loss` (binary cross-entropy, nats), each over all known labels; `roc_auc`, the mean over labels,
        with what `auc_intervals` gives; the means over labels of `brier`, `balanced_accuracy`, `f1`, `matthews` and
        `average_precision`; and by label `roc_auc_per_class`, `roc_auc_ci95_per_class`, `n_known_per_class`, and
        `per_class` with what `one_against_rest` gives at a probability of 0.5.

    Raises
    ------
    ValueError
        If a label is there, or absent, in fewer than two samples, or the arrays do not fit one another.
    """
    y_true, probabilities = checked(y_true, probabilities, len(labels))
    each, intervals, n_known, n_majority = {}, {}, {}, 0
    for number, rows, y in binary_problems(y_true, len(labels)):
        label, n_with = labels[number], int(y.sum())
        if min(n_with, len(y) - n_with) < 2:
            raise ValueError(
                f"ROC AUC and its interval need two samples with and two without a label; {label!r} has {n_with} and "
                f"{len(y) - n_with}"
            )
        p = probabilities[rows, number]
        each[label] = one_against_rest(y, (p >= THRESHOLD).astype(np.int64), p)
        members = None if groups is None else groups[rows]
        intervals[label] = auc_intervals(y, np.column_stack([1 - p, p]), members)["roc_auc_ci95"]
        n_known[label] = len(y)
        n_majority += max(n_with, len(y) - n_with)
    known = y_true != UNKNOWN
    return {
        "n": len(y_true),
        "accuracy": float(((probabilities >= THRESHOLD) == (y_true == 1))[known].mean()),
        "majority_accuracy": n_majority / int(known.sum()),
        "loss": float(sk.log_loss(y_true[known], probabilities[known], labels=[0, 1])),
        **{name: float(np.mean([one[name] for one in each.values()])) for name in _MEANS},
        **auc_intervals(y_true, probabilities, groups),
        "roc_auc_per_class": {label: one["roc_auc"] for label, one in each.items()},
        "roc_auc_ci95_per_class": intervals,
        "n_known_per_class": n_known,
        "per_class": each,
    }
