"""One head on one split: all its scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk

from pipeline.metrics.checks import Floats, Ints, checked
from pipeline.metrics.discrimination import roc_auc
from pipeline.metrics.intervals import auc_intervals


def score(y_true: Ints, probabilities: Floats, classes: Sequence[str], groups: Ints | None = None) -> dict[str, Any]:
    """Score one head on one split.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1
    probabilities : ndarray (n, C) float64
        Rows sum to one.
    classes : sequence of str, length C
    groups : ndarray (n,) int64, optional
        Patients, for the interval where some have several samples.

    Returns
    -------
    dict
        `n`, `accuracy`, `majority_accuracy` (of always answering the most frequent class), `loss` (mean
        cross-entropy, nats), `brier` (two classes: mean squared error of the probability of class 1, 0 to 1;
        more: summed over the classes, 0 to 2), `balanced_accuracy` (mean sensitivity over the classes),
        `f1` (of class 1; more classes: the mean), `matthews` (-1 to 1), `average_precision`, `roc_auc` with
        what `auc_intervals` gives. With more than two classes `average_precision` and `roc_auc` are macro means of
        one-vs-rest; `roc_auc_per_class` has the latter's terms, and `per_class` maps each class to what
        `one_against_rest` gives. What needs a decision takes the most probable class.

    Raises
    ------
    ValueError
        If a class has fewer than two samples (ROC AUC or its interval is undefined then), or the
        arrays do not fit one another.
    """
    n_classes = len(classes)
    y_true, probabilities = checked(y_true, probabilities, n_classes)
    counts = np.bincount(y_true, minlength=n_classes)
    if counts.min() < 2:
        rarest = classes[int(counts.argmin())]
        raise ValueError(f"ROC AUC and its interval need two samples of each class; {rarest!r} has {counts.min()}")
    predicted = probabilities.argmax(axis=1)
    result: dict[str, Any] = {
        "n": len(y_true),
        "accuracy": float(sk.accuracy_score(y_true, predicted)),
        "majority_accuracy": float(counts.max() / len(y_true)),
        "loss": float(sk.log_loss(y_true, probabilities, labels=np.arange(n_classes))),
        "balanced_accuracy": float(sk.balanced_accuracy_score(y_true, predicted)),
        "matthews": float(sk.matthews_corrcoef(y_true, predicted)),
    }
    if n_classes == 2:
        one = one_against_rest(y_true, predicted, probabilities[:, 1])
        result |= {name: one[name] for name in ("brier", "f1", "average_precision", "roc_auc")}
        return result | auc_intervals(y_true, probabilities, groups)
    each = [
        one_against_rest((y_true == c).astype(np.int64), (predicted == c).astype(np.int64), probabilities[:, c])
        for c in range(n_classes)
    ]
    result["brier"] = float(np.sum([one["brier"] for one in each]))
    for name in ("f1", "average_precision", "roc_auc"):
        result[name] = float(np.mean([one[name] for one in each]))
    result |= auc_intervals(y_true, probabilities, groups)
    result["roc_auc_per_class"] = {label: one["roc_auc"] for label, one in zip(classes, each, strict=True)}
    result["per_class"] = dict(zip(classes, each, strict=True))
    return result


def one_against_rest(y_true: Ints, predicted: Ints, p: Floats) -> dict[str, Any]:
    """Score one class against all others, or one label.

    Parameters
    ----------
    y_true, predicted : ndarray (n,) int64, values {0, 1}
    p : ndarray (n,) float64
        Its probability.

    Returns
    -------
    dict
        `n` (that are of it), `roc_auc`, `average_precision`, `brier` (0 to 1), `loss` (binary cross-entropy, nats),
        `sensitivity` (recall), `specificity`, `precision` (0 where nothing is predicted as it), `balanced_accuracy`,
        `f1` and `matthews`.
    """
    return {
        "n": int(y_true.sum()),
        "roc_auc": roc_auc(y_true, p),
        "average_precision": float(sk.average_precision_score(y_true, p)),
        "brier": float(np.mean((p - y_true) ** 2)),
        "loss": float(sk.log_loss(y_true, p, labels=[0, 1])),
        "sensitivity": float(sk.recall_score(y_true, predicted, zero_division=0)),
        "specificity": float(sk.recall_score(y_true, predicted, pos_label=0, zero_division=0)),
        "precision": float(sk.precision_score(y_true, predicted, zero_division=0)),
        "balanced_accuracy": float(sk.balanced_accuracy_score(y_true, predicted)),
        "f1": float(sk.f1_score(y_true, predicted, zero_division=0)),
        "matthews": float(sk.matthews_corrcoef(y_true, predicted)),
    }


def confusion_matrix(y_true: Ints, y_pred: Ints, n_classes: int) -> Ints:
    """Count (C, C) int64: row = true class, column = predicted class."""
    matrix: Ints = sk.confusion_matrix(y_true, y_pred, labels=np.arange(n_classes)).astype(np.int64)
    return matrix
