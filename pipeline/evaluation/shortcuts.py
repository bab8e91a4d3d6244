"""The shortcut audit: whether embeddings predict a scanner, a site, a sex, and whether that goes with the class."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import Ints, class_counts
from hoarfrost.evaluation.discrimination import macro_roc_auc
from hoarfrost.evaluation.subgroups import MISSING, banded

Embeddings = npt.NDArray[np.float32]

N_FOLDS = 5
FEWEST_PATIENTS = 10
"""A value is predicted if it has this many patients: two in each fold."""
MOST_VALUES = 20
PREDICTED_AUC = 0.9
UNEVEN_V = 0.2
UNEVEN_P = 0.01
MAX_ITERATIONS = 2_000


@dataclass(frozen=True)
class Association:
    """How unevenly an attribute is distributed over the classes, counted in patients.

    `cramers_v` (bias-corrected) is 0 where it is distributed evenly and 1 where one determines the other; `p` is that of
    the chi-square test.
    """

    cramers_v: float
    p: float

    @property
    def is_uneven(self) -> bool:
        """Whether the association is strong enough to matter, and not explained by chance."""
        return self.cramers_v >= UNEVEN_V and self.p < UNEVEN_P


@dataclass(frozen=True)
class AttributeAudit:
    """The audit's results for one attribute.

    Attributes
    ----------
    values : tuple of str
        Those that the probe predicts.
    counts : dict
        Value -> images of each class, or with each label, all values.
    roc_auc : float or None
        Of a linear probe for the attribute, cross-validated by patient; the macro mean of one-vs-rest with more than
        two values. None where `reason` states why.
    association : Association or None
        With the class; of several labels, with the one of the strongest association.
    is_shortcut : bool
        Embeddings predict the attribute, and it is unevenly distributed over the classes.
    """

    name: str
    values: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    roc_auc: float | None
    association: Association | None
    is_shortcut: bool
    reason: str = ""

    @property
    def is_revealed(self) -> bool:
        """Whether the embeddings predict the attribute."""
        return self.roc_auc is not None and self.roc_auc >= PREDICTED_AUC

    @property
    def warning(self) -> str:
        """The message for the user, with the figures; empty if there is no shortcut."""
        if not self.is_shortcut or self.roc_auc is None or self.association is None:
            return ""
        return (
            f"possible shortcut: the embeddings predict {self.name!r} with a ROC AUC of {self.roc_auc:.2f}, and it is "
            f"unevenly distributed over the classes (Cramer's V {self.association.cramers_v:.2f}, p "
            f"{self.association.p:.1g}). A head may have learnt it instead of the disease. Look at the subgroups, or balance "
            "the dataset."
        )


def audit_shortcuts(
    x: Embeddings, y: Ints, groups: Ints, attributes: Mapping[str, Sequence[str]], *, seed: int = 0
) -> tuple[AttributeAudit, ...]:
    """Check for each attribute whether embeddings predict it, and whether it is associated with the class.

    Parameters
    ----------
    x : ndarray (n, d) float32
    y : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    groups : ndarray (n,) int64
        Patients: each is in one fold, and associations count patients.
    attributes : mapping of sequences of length n
        Column's name -> values, made into subgroups by `hoarfrost.evaluation.banded`: numbers become bands, and missing
        values ("", "NaN") are not predicted.
    seed : int
        Of the folds.

    Returns
    -------
    tuple of AttributeAudit
        In the given order.

    Raises
    ------
    ValueError
        If the lengths differ.

    Notes
    -----
    A shortcut needs both: a scanner that embeddings predict does no harm without an association with the class, and one
    that is associated with the class does no harm while embeddings do not show it. So the warning requires a probe's ROC
    AUC of 0.9 or more, and a Cramer's V of 0.2 or more (commonly a moderate effect: with two classes and two even
    scanners, 60 to 40 against 40 to 60) that chance does not explain (p below 0.01).

    References
    ----------
    Zech et al. (2018), PLoS Medicine 15(11), e1002683.
    """
    n = len(x)
    for name, values in {"y": y, "groups": groups, **attributes}.items():
        if len(values) != n:
            raise ValueError(f"{n} embeddings, but {len(values)} values of {name!r}")
    return tuple(_audit(x, y, groups, name, values, seed) for name, values in attributes.items())


def cramers_v(first: Sequence[object] | Ints, second: Sequence[object] | Ints) -> Association:
    """Return the bias-corrected Cramer's V of two categorical variables, and the p of the chi-square test.

    Parameters
    ----------
    first, second : sequences of length n
        Of two or more values each.

    Raises
    ------
    ValueError
        If one has a single value.

    References
    ----------
    Bergsma (2013), Journal of the Korean Statistical Society 42(3), 323-328.
    """
    from scipy.stats import chi2_contingency

    rows, columns = (np.unique(np.asarray(values), return_inverse=True) for values in (first, second))
    r, c, n = len(rows[0]), len(columns[0]), len(rows[1])
    if min(r, c) < 2:
        raise ValueError("an association needs two values of each variable")
    table = np.bincount(rows[1] * c + columns[1], minlength=r * c).reshape(r, c)
    found = chi2_contingency(table, correction=False)
    # The plain V of independent variables is not zero on average: subtract what chance contributes.
    phi2 = max(0.0, float(found.statistic) / n - (r - 1) * (c - 1) / (n - 1))
    largest = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)) - 1
    return Association(min(1.0, math.sqrt(phi2 / largest)) if largest > 0 else 0.0, float(found.pvalue))


def _audit(x: Embeddings, y: Ints, groups: Ints, name: str, column: Sequence[str], seed: int) -> AttributeAudit:
    values = np.array(banded([str(value) for value in column]))
    n_classes = y.shape[1] if y.ndim == 2 else int(y.max(initial=0)) + 1
    counts = {str(v): class_counts(y[values == v], n_classes) for v in sorted(set(values.tolist()))}
    predicted = [v for v in counts if v != MISSING and len(np.unique(groups[values == v])) >= FEWEST_PATIENTS]
    if not 2 <= len(predicted) <= MOST_VALUES:
        reason = (
            f"{len(predicted)} of its values have {FEWEST_PATIENTS} patients or more; 2 to {MOST_VALUES} are needed"
        )
        return AttributeAudit(name, tuple(predicted), counts, None, None, False, reason)
    rows = np.flatnonzero(np.isin(values, predicted))
    numbers = np.searchsorted(predicted, values[rows]).astype(np.int64)
    association = _association_of_patients(numbers, y[rows], groups[rows])
    try:
        auc = _probe_auc(x[rows], numbers, groups[rows], seed)
    except ValueError as error:
        return AttributeAudit(name, tuple(predicted), counts, None, association, False, str(error))
    uneven = association is not None and association.is_uneven
    return AttributeAudit(name, tuple(predicted), counts, auc, association, auc >= PREDICTED_AUC and uneven)


def _association_of_patients(numbers: Ints, y: Ints, groups: Ints) -> Association | None:
    """Count each patient once for each value and class: images of one patient are no independent evidence."""
    if y.ndim == 2:
        known = [(label, label >= 0) for label in y.T]
        found = [_association_of_patients(numbers[rows], label[rows], groups[rows]) for label, rows in known]
        return max((one for one in found if one is not None), key=lambda one: one.cramers_v, default=None)
    once = np.unique(np.column_stack([groups, numbers, y]), axis=0)
    if len(np.unique(once[:, 1])) < 2 or len(np.unique(once[:, 2])) < 2:
        return None
    return cramers_v(once[:, 1], once[:, 2])


def _probe_auc(x: Embeddings, numbers: Ints, groups: Ints, seed: int) -> float:
    """Return a linear probe's ROC AUC, cross-validated by patient: the mean over folds, whose scores are not comparable."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_values = int(numbers.max()) + 1
    aucs = []
    splitter = StratifiedGroupKFold(N_FOLDS, shuffle=True, random_state=seed % 2**32)
    wide = x.astype(np.float64)
    for learnt, held_out in splitter.split(wide, numbers, groups):
        if min(len(np.unique(numbers[rows])) for rows in (learnt, held_out)) < n_values:
            continue
        model: Any = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=MAX_ITERATIONS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about too few iterations
            model.fit(wide[learnt], numbers[learnt])
        aucs.append(macro_roc_auc(numbers[held_out], model.predict_proba(wide[held_out])))
    if not aucs:
        raise ValueError("no fold has all of its values: too few patients have them")
    return float(np.mean(aucs))
