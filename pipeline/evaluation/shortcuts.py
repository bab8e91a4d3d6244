"""The shortcut audit: can embeddings tell a scanner, a site, a sex, and does that give the class away? Knows no files."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation import MISSING, banded, macro_roc_auc

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Embeddings = npt.NDArray[np.float32]

N_FOLDS = 5
FEWEST_PATIENTS = 10
"""Patients that a value needs to be told: two in each fold."""
MOST_VALUES = 20
TELLS_AUC = 0.9
UNEVEN_V = 0.2
UNEVEN_P = 0.01
MAX_ITERATIONS = 2_000


@dataclass(frozen=True)
class Association:
    """How unevenly an attribute is spread over the classes, over patients.

    `cramers_v` (bias-corrected) is 0 where it is spread evenly and 1 where one gives the other away;
    `p` is that of the chi-square test.
    """

    cramers_v: float
    p: float


@dataclass(frozen=True)
class AttributeAudit:
    """What the audit says of one attribute.

    Attributes
    ----------
    name : str
    values : tuple of str
        Those that were told apart.
    counts : dict
        Value -> images of each class, or with each label, all values.
    roc_auc : float or None
        Of a linear probe for the attribute, cross-validated by patient; the macro mean of one-vs-rest
        where there are more than two values. None where `reason` says why.
    association : Association or None
        With the class; of several labels, with the one that it goes with most.
    is_shortcut : bool
        The embeddings tell the attribute, and it is unevenly spread over the classes.
    reason : str
    """

    name: str
    values: tuple[str, ...]
    counts: dict[str, tuple[int, ...]]
    roc_auc: float | None
    association: Association | None
    is_shortcut: bool
    reason: str = ""

    @property
    def warning(self) -> str:
        """What to tell the user, with the figures; empty where nothing is wrong."""
        if not self.is_shortcut or self.roc_auc is None or self.association is None:
            return ""
        return (
            f"possible shortcut: the embeddings tell {self.name!r} at a ROC AUC of {self.roc_auc:.2f}, and it is unevenly "
            f"spread over the classes (Cramer's V {self.association.cramers_v:.2f}, p {self.association.p:.1g}): a head "
            "may have learnt it in place of the disease. Look at the subgroups, or balance the dataset."
        )


def audit_shortcuts(
    x: Embeddings, y: Ints, groups: Ints, attributes: Mapping[str, Sequence[str]], *, seed: int = 0
) -> tuple[AttributeAudit, ...]:
    """Ask of each attribute whether embeddings tell it, and whether it goes with the class.

    Parameters
    ----------
    x : ndarray (n, d) float32
    y : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 where a label is unknown
    groups : ndarray (n,) int64
        Patients: in one fold each, and the unit that associations are counted in.
    attributes : mapping of sequences of length n
        Column's name -> values, as `hoarfrost.evaluation.banded` turns them into subgroups: numbers into bands, and
        what is missing ("", "NaN") is not told.
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
    A shortcut needs both: a scanner that embeddings tell is no harm while it says nothing of the
    class, and one that goes with the class is none while the embeddings do not show it. So the warning
    asks for a probe's ROC AUC of 0.9 or more, and a Cramer's V of 0.2 or more (from which effects are
    commonly called moderate: with two classes and two even scanners, 60 to 40 against 40 to 60) that chance
    does not explain (p below 0.01).

    References
    ----------
    Zech et al. (2018), PLoS Medicine 15(11), e1002683. Bergsma (2013), Journal of the Korean
    Statistical Society 42(3), 323-328 (the bias correction).
    """
    n = len(x)
    for name, values in {"y": y, "groups": groups, **attributes}.items():
        if len(values) != n:
            raise ValueError(f"{n} embeddings, but {len(values)} values of {name!r}")
    return tuple(_audit(x, y, groups, name, values, seed) for name, values in attributes.items())


def cramers_v(first: Sequence[object] | Ints, second: Sequence[object] | Ints) -> Association:
    """Give the bias-corrected Cramer's V of two categorical variables, and the p of the chi-square test.

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
    # Of independent variables the plain V is not zero on average: what chance gives is taken off.
    phi2 = max(0.0, float(found.statistic) / n - (r - 1) * (c - 1) / (n - 1))
    largest = min(r - (r - 1) ** 2 / (n - 1), c - (c - 1) ** 2 / (n - 1)) - 1
    return Association(min(1.0, math.sqrt(phi2 / largest)) if largest > 0 else 0.0, float(found.pvalue))


def _audit(x: Embeddings, y: Ints, groups: Ints, name: str, column: Sequence[str], seed: int) -> AttributeAudit:
    values = np.array(banded([str(value) for value in column]))
    counts = {str(v): _counts(y, values == v) for v in sorted(set(values.tolist()))}
    tellable = [v for v in counts if v != MISSING and len(np.unique(groups[values == v])) >= FEWEST_PATIENTS]
    if not 2 <= len(tellable) <= MOST_VALUES:
        few = f"{len(tellable)} of its values are of {FEWEST_PATIENTS} patients or more"
        return AttributeAudit(name, tuple(tellable), counts, None, None, False, f"{few}; 2 to {MOST_VALUES} are needed")
    rows = np.flatnonzero(np.isin(values, tellable))
    numbers = np.searchsorted(tellable, values[rows]).astype(np.int64)
    association = _association_of_patients(numbers, y[rows], groups[rows])
    try:
        auc = _probe_auc(x[rows], numbers, groups[rows], seed)
    except ValueError as error:
        return AttributeAudit(name, tuple(tellable), counts, None, association, False, str(error))
    uneven = association is not None and association.cramers_v >= UNEVEN_V and association.p < UNEVEN_P
    return AttributeAudit(name, tuple(tellable), counts, auc, association, auc >= TELLS_AUC and uneven)


def _counts(y: Ints, rows: "npt.NDArray[np.bool_]") -> tuple[int, ...]:
    if y.ndim == 2:
        return tuple((y[rows] == 1).sum(axis=0).tolist())
    return tuple(np.bincount(y[rows], minlength=int(y.max(initial=0)) + 1).tolist())


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
    """Tell the attribute by logistic regression, cross-validated by patient; the ROC AUC, a mean over folds.

    Over folds, not pooled: scores of different folds' probes need not be comparable.
    """
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
            warnings.simplefilter("ignore")  # of iterations that are used up
            model.fit(wide[learnt], numbers[learnt])
        aucs.append(macro_roc_auc(numbers[held_out], model.predict_proba(wide[held_out])))
    if not aucs:
        raise ValueError("no fold has all of its values: they belong to too few patients")
    return float(np.mean(aucs))
