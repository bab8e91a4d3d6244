"""DeLong's variance, covariance and paired test, as the product computes them from influences."""

import numpy as np

from hoarfrost.evaluation import compare_heads
from hoarfrost.evaluation.discrimination import auc_influence
from tests.support.samples import Floats, Ints, two_columns


def delong_variance(y_true: Ints, y_score: Floats) -> tuple[float, float]:
    """Return the ROC AUC and the variance of it."""
    auc, influence = auc_influence(y_true, two_columns(y_score))
    return auc, float((influence**2).sum())


def delong_covariance(y_true: Ints, y_scores: Floats) -> tuple[Floats, Floats]:
    """Return the ROC AUCs (m,) of several scores (m, n) of the same samples, and their covariance (m, m)."""
    aucs, influences = zip(*(auc_influence(y_true, two_columns(y_score)) for y_score in y_scores), strict=True)
    influence = np.stack(influences)
    return np.array(aucs), influence @ influence.T


def delong_test(y_true: Ints, score_a: Floats, score_b: Floats) -> tuple[float, float]:
    """Return z and p of the AUC of `score_a` minus that of `score_b`; ValueError where the test is undefined."""
    (found,) = compare_heads(y_true, {"a": two_columns(score_a), "b": two_columns(score_b)}, "b")
    if found.z is None or found.p is None:
        raise ValueError(found.reason)
    return found.z, found.p
