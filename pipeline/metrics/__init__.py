"""How good predictions are, with intervals. NumPy in, floats out; the sole user of scikit-learn's metrics."""

from pipeline.metrics.checks import binary_problems
from pipeline.metrics.discrimination import (
    delong_ci,
    delong_variance,
    macro_auc_ci,
    macro_roc_auc,
    macro_roc_aucs,
    roc_auc,
    roc_aucs,
    roc_curve,
)
from pipeline.metrics.multilabel import score_labels
from pipeline.metrics.scores import confusion_matrix, score

__all__ = [
    "binary_problems",
    "confusion_matrix",
    "delong_ci",
    "delong_variance",
    "macro_auc_ci",
    "macro_roc_auc",
    "macro_roc_aucs",
    "roc_auc",
    "roc_aucs",
    "roc_curve",
    "score",
    "score_labels",
]
