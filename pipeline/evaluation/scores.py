"""One head on one split: all its scores."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk

from hoarfrost.evaluation.checks import Floats, Ints, checked
from hoarfrost.evaluation.discrimination import roc_auc
from hoarfrost.evaluation.intervals import auc_intervals


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
        **_agreement(confusion_matrix(y_true, predicted, n_classes)),
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
    counts = confusion_matrix(y_true, predicted, 2)
    (n_tn, n_fp), (n_fn, n_tp) = counts.tolist()
    return {
        "n": n_tp + n_fn,
        "roc_auc": roc_auc(y_true, p),
        "average_precision": float(sk.average_precision_score(y_true, p)),
        "brier": float(np.mean((p - y_true) ** 2)),
        "loss": float(sk.log_loss(y_true, p, labels=[0, 1])),
        "sensitivity": n_tp / (n_tp + n_fn),
        "specificity": n_tn / (n_tn + n_fp),
        "precision": n_tp / max(1, n_tp + n_fp),
        "f1": 2 * n_tp / (2 * n_tp + n_fp + n_fn),
        **_agreement(counts),
    }


def _agreement(counts: Ints) -> dict[str, float]:
    """Give what (C, C) counts of decisions say as a whole: the balanced accuracy, and Matthews' correlation.

    Counted here: scikit-learn's functions look at all samples anew for each, which takes most of the time of scoring
    hundreds of heads. They give the same.
    """
    n, n_right = counts.sum(), np.diag(counts)
    n_true, n_predicted = counts.sum(axis=1), counts.sum(axis=0)
    spread = float(n**2 - (n_true**2).sum()) * float(n**2 - (n_predicted**2).sum())
    covariance = float(n * n_right.sum() - n_true @ n_predicted)
    return {
        "balanced_accuracy": float((n_right / n_true).mean()),
        "matthews": covariance / math.sqrt(spread) if spread else 0.0,
    }


def confusion_matrix(y_true: Ints, y_pred: Ints, n_classes: int) -> Ints:
    """Count (C, C) int64: row = true class, column = predicted class."""
    matrix: Ints = np.bincount(y_true * n_classes + y_pred, minlength=n_classes**2).reshape(n_classes, n_classes)
    return matrix
