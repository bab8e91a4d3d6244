"""Statistics of predictions, with intervals. NumPy in, floats out."""

from hoarfrost.evaluation.bootstrap import (
    BootstrapInterval,
    PerPatient,
    bootstrap_auc_ci,
    bootstrap_ci,
    bootstrap_share_ci,
    per_patient,
)
from hoarfrost.evaluation.calibration import (
    Bin,
    Calibration,
    CalibrationLine,
    TemperatureFit,
    apply_temperature,
    assess_calibration,
    calibration_line,
    fit_temperature,
)
from hoarfrost.evaluation.checks import UNKNOWN, binary_problems
from hoarfrost.evaluation.comparison import Comparison, compare_heads, holm
from hoarfrost.evaluation.decision import DecisionCurve, decision_curve
from hoarfrost.evaluation.discrimination import (
    delong_ci,
    macro_auc_ci,
    macro_roc_auc,
    macro_roc_aucs,
    newcombe_ci,
    precision_recall_curve,
    roc_auc,
    roc_aucs,
    roc_curve,
)
from hoarfrost.evaluation.estimates import Estimate, Share, wilson
from hoarfrost.evaluation.intervals import FEW
from hoarfrost.evaluation.metrics import Metric, ShownIn, confusion_matrix, registered
from hoarfrost.evaluation.operating import (
    AtPrevalence,
    OperatingPoint,
    PointResult,
    choose_thresholds,
    evaluate_threshold,
)
from hoarfrost.evaluation.scores import Scores, metrics_of, score
from hoarfrost.evaluation.subgroups import MISSING, Subgroup, banded, score_subgroups

__all__ = [
    "FEW", "MISSING", "UNKNOWN", "AtPrevalence", "Bin", "BootstrapInterval", "Calibration", "CalibrationLine",
    "Comparison", "DecisionCurve", "Estimate", "Metric", "OperatingPoint", "PerPatient", "PointResult", "Scores",
    "Share", "ShownIn", "Subgroup", "TemperatureFit", "apply_temperature", "assess_calibration", "banded",
    "binary_problems", "bootstrap_auc_ci", "bootstrap_ci", "bootstrap_share_ci", "calibration_line",
    "choose_thresholds", "compare_heads", "confusion_matrix", "decision_curve", "delong_ci", "evaluate_threshold",
    "fit_temperature", "holm", "macro_auc_ci", "macro_roc_auc", "macro_roc_aucs", "metrics_of", "newcombe_ci",
    "per_patient", "precision_recall_curve", "registered", "roc_auc", "roc_aucs", "roc_curve", "score",
    "score_subgroups", "wilson",
]  # fmt: skip
