"""What is scored: the classes, the images and their splits, without embeddings."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation import Comparison, Scores, compare_heads, macro_roc_auc, score
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.metrics import NO_DECISION, Decision
from hoarfrost.evaluation.operating import YOUDENS_RULE, Rule, primary_decision
from hoarfrost.evaluation.units import Units, units_of
from hoarfrost.experiment.splits import Strings
from hoarfrost.features.cache import DatasetTable


@dataclass(frozen=True, kw_only=True)
class ScoredTask:
    """The classes, and the images that are scored by them.

    Attributes
    ----------
    y : ndarray (n,) or (n, C) int64
        Class numbers; or, with several labels per image, 1, 0, and -1 for an unknown label.
    groups : ndarray (n,) int64
        Images of the same patient, or of the same bytes, have the same number.
    splits : ndarray (n,) of "train", "val" or "test"
    is_cross_fitted : bool
        There is no validation split: training images are validated by heads that did not learn from them.
    names : tuple of str
        The names of the class numbers.
    patients : ndarray (n,) int64 or None
        Each image's patient, if patients are known.
    per_patient : str or None
        "mean" or "max": metrics count patients, and this joins the probabilities of their images.
    rule : Rule
        How the primary operating point is chosen.
    """

    table: DatasetTable
    readable: npt.NDArray[np.bool_]
    y: Ints
    groups: Ints
    splits: Strings
    split_by: str
    classes: tuple[str, ...]
    positive: tuple[str, ...] | None
    names: tuple[str, ...]
    patients: Ints | None
    per_patient: str | None = None
    is_cross_fitted: bool = False
    rule: Rule = YOUDENS_RULE

    @property
    def is_multilabel(self) -> bool:
        """Whether an image may have several labels."""
        return self.y.ndim == 2

    @property
    def has_given_test(self) -> bool:
        """Whether the dataset itself states which images are in the test split."""
        return self.table.splits is not None and bool((self.splits == "test").any())

    @property
    def validated(self) -> Ints:
        """The rows that decide: those of the validation split, or with cross-fitting of the training split."""
        return self.rows_of("train" if self.is_cross_fitted else "val")

    @property
    def scored(self) -> "dict[str, Ints]":
        """The rows that heads are scored on: "val", those of `validated`, and "test" if there is a test split."""
        test = self.rows_of("test")
        return {"val": self.validated} | ({"test": test} if len(test) else {})

    @property
    def near_groups(self) -> Ints | None:
        """The groups (n,) of near-identical images that are kept together; None if none were searched."""
        return None

    def rows_of(self, *splits: str) -> Ints:
        """Return the rows of the images in some splits."""
        return np.flatnonzero(np.isin(self.splits, splits))

    def unpredicted(self) -> Floats:
        """Return probabilities (n, C) of NaN, to be filled in for some rows."""
        return np.full((len(self.y), len(self.names)), np.nan)

    def labels(self) -> list[str]:
        """Return the dataset's own labels of the readable images; of several labels those that an image has, "a|b"."""
        if self.is_multilabel:
            return ["|".join(self.names[i] for i in np.flatnonzero(row == 1)) for row in self.y]
        return list(compress(self.table.labels, self.readable))

    def units(self, rows: Ints) -> Units:
        """Return what metrics of some rows count: the images, or their patients."""
        patients = None if self.patients is None else self.patients[rows]
        return units_of(self.y[rows], len(self.names), patients, self.per_patient)

    def score(self, rows: Ints, probabilities: Floats, decision: Decision = NO_DECISION, n_folds: int = 1) -> Scores:
        """Score probabilities (m, C) of some rows, by the heads of `n_folds` folds, with thresholds fixed on validation."""
        units = self.units(rows)
        return score(units.y, units.joined(probabilities), self.names, units.groups, decision, n_folds=n_folds)

    def decision(self, probabilities: Floats, rows: Ints | None = None) -> Decision:
        """Return the primary operating point of probabilities (n, C) for all images, fixed on `rows`: the validated ones."""
        validated = self.validated if rows is None else rows
        units = self.units(validated)
        return primary_decision(units.y, units.joined(probabilities[validated]), units.groups, self.rule)

    def roc_auc(self, rows: Ints, probabilities: Floats) -> float:
        """Return the ROC AUC alone, as in `score`."""
        units = self.units(rows)
        return macro_roc_auc(units.y, units.joined(probabilities))

    def attributes(self) -> dict[str, list[str]]:
        """Return the readable images' further columns, without those that are labels."""
        labels, columns = self.classes if self.is_multilabel else (), self.table.attributes
        return {name: list(compress(cells, self.readable)) for name, cells in columns.items() if name not in labels}


def compared(
    task: ScoredTask, probabilities: Mapping[str, Floats], selected: str, rows: Ints, *, n_folds: int = 1
) -> tuple[Comparison, ...]:
    """Compare probabilities (n, C) with those of one head on some rows."""
    units = task.units(rows)
    joined = {name: units.joined(found[rows]) for name, found in probabilities.items()}
    return compare_heads(units.y, joined, selected, groups=units.groups, n_folds=n_folds)
