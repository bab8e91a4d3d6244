"""Which interval a ROC AUC gets: by images or by patients, and which method covers there."""

from typing import Any

import numpy as np

from hoarfrost.evaluation.bootstrap import bootstrap_auc_ci
from hoarfrost.evaluation.checks import Floats, Ints, binary_problems
from hoarfrost.evaluation.discrimination import macro_auc_ci, newcombe_ci, roc_auc

FEW = 30
"""Samples of the rarer class below which DeLong's interval was seen to cover too seldom."""
NEAR_ONE = 0.9
"""The ROC AUC from which on it was."""
DELONG, BOOTSTRAP = "DeLong", "bootstrap over patients"


def auc_intervals(y_true: Ints, probabilities: Floats, groups: Ints | None = None, *, seed: int = 0) -> dict[str, Any]:
    """Give the 95% interval of `macro_roc_auc`, and by which method.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 where a label is unknown
    probabilities : ndarray (n, C) float64
    groups : ndarray (n,) int64, optional
        Patients. Where some have several samples, the interval is by bootstrap over patients.
    seed : int
        Of the bootstrap.

    Returns
    -------
    dict
        `roc_auc_ci95`, [low, high], and `roc_auc_ci95_method`: "DeLong", "bootstrap over patients", or DeLong's with the
        reason why patients could not be drawn. Where DeLong's covers too seldom (two classes, fewer than thirty samples
        of one or an AUC of 0.9 or more) `roc_auc_ci95_newcombe` too.

    Raises
    ------
    ValueError
        As `macro_auc_ci`.
    """
    method = DELONG
    if groups is not None and len(np.unique(groups)) < len(groups):
        try:
            drawn = bootstrap_auc_ci(y_true, probabilities, groups, seed=seed)
        except ValueError as error:
            method = f"{DELONG}, as if images were independent: {error}"
        else:
            return {"roc_auc_ci95": [drawn.low, drawn.high], "roc_auc_ci95_method": BOOTSTRAP}
    found = {"roc_auc_ci95": list(macro_auc_ci(y_true, probabilities)), "roc_auc_ci95_method": method}
    if y_true.ndim == 1 and probabilities.shape[1] == 2:
        ((_, _, y),) = binary_problems(y_true, 2)
        if min(np.bincount(y, minlength=2)) < FEW or roc_auc(y, probabilities[:, 1]) >= NEAR_ONE:
            found["roc_auc_ci95_newcombe"] = list(newcombe_ci(y, probabilities[:, 1]))
    return found
