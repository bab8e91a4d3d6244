"""One head on one split: all its scores."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk

from pipeline.metrics.checks import Floats, Ints, checked
from pipeline.metrics.discrimination import delong_ci, macro_auc_ci, roc_auc


def score(y_true: Ints, probabilities: Floats, classes: Sequence[str]) -> dict[str, Any]:
    """Score one head on one split.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1
    probabilities : ndarray (n, C) float64
        Rows sum to one.
    classes : sequence of str, length C

    Returns
    -------
    dict
        `n`, `accuracy`, `majority_accuracy` (of always answering the most frequent class), `loss`
        (mean cross-entropy, nats), `roc_auc` with `roc_auc_ci95`; with more than two classes the
        AUC is the macro mean of one-vs-rest, and `roc_auc_per_class` has its terms.

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
    result: dict[str, Any] = {
        "n": len(y_true),
        "accuracy": float(sk.accuracy_score(y_true, probabilities.argmax(axis=1))),
        "majority_accuracy": float(counts.max() / len(y_true)),
        "loss": float(sk.log_loss(y_true, probabilities, labels=np.arange(n_classes))),
    }
    if n_classes == 2:
        result["roc_auc"] = roc_auc(y_true, probabilities[:, 1])
        result["roc_auc_ci95"] = list(delong_ci(y_true, probabilities[:, 1]))
        return result
    per_class = [roc_auc((y_true == c).astype(np.int64), probabilities[:, c]) for c in range(n_classes)]
    result["roc_auc"] = float(np.mean(per_class))
    result["roc_auc_ci95"] = list(macro_auc_ci(y_true, probabilities))
    result["roc_auc_per_class"] = dict(zip(classes, per_class, strict=True))
    return result


def confusion_matrix(y_true: Ints, y_pred: Ints, n_classes: int) -> Ints:
    """Count (C, C) int64: row = true class, column = predicted class."""
    matrix: Ints = sk.confusion_matrix(y_true, y_pred, labels=np.arange(n_classes)).astype(np.int64)
    return matrix
