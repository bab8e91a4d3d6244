"""The units of metrics: images, or patients. Knows no files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.bootstrap import per_patient
from hoarfrost.evaluation.checks import Bools, Floats, Ints, binary_problems, n_distinct, numbered
from hoarfrost.evaluation.estimates import TOO_FEW

SEVERAL = "(several)"
"""The value of an attribute for a patient whose images differ in it."""

FEWEST_PATIENTS = 10
"""With fewer patients of several samples, intervals contain the truth too rarely: in 54 to 87% of simulations."""
FEWEST_OF_CLASS = 5
"""With fewer of them in a class, or in the denominator of a proportion, too."""


@dataclass(frozen=True)
class Units:
    """The u samples that metrics count: n images, or their patients.

    Attributes
    ----------
    y : ndarray (u,) int64, or (u, C)
        As the images'; a patient of two classes is of class 1 if any image is.
    groups : ndarray (u,) int64 or None
        Patients, where images are counted and patients are known.
    members : ndarray (n,) int64 or None
        Each image's place among the units, where patients are counted.
    how : str or None
        "mean" or "max", where patients are counted.
    """

    y: Ints
    groups: Ints | None
    members: Ints | None
    how: str | None

    def joined(self, probabilities: Floats) -> Floats:
        """Return the units' probabilities (u, C) from the images' (n, C)."""
        if self.members is None or self.how is None:
            return probabilities
        placeholder = np.zeros(len(probabilities), np.int64)
        return per_patient(placeholder, probabilities, self.members, self.how).probabilities

    def values(self, column: Sequence[str]) -> list[str]:
        """Return an attribute of the units from the images' (n)."""
        if self.members is None:
            return list(column)
        found: dict[int, str] = {}
        for member, value in zip(self.members.tolist(), column, strict=True):
            found[member] = value if found.get(member, value) == value else SEVERAL
        return [found[member] for member in sorted(found)]


def units_of(y: Ints, n_classes: int, patients: Ints | None, how: str | None = None) -> Units:
    """Return the units that metrics count.

    Parameters
    ----------
    y : ndarray (n,) int64, or (n, C)
        The images' class numbers, or labels.
    patients : ndarray (n,) int64 or None
        From `patient_numbers`; None where patients are unknown.
    how : "mean", "max" or None
        How a patient's probabilities are combined; None to count images.

    Raises
    ------
    ValueError
        As `hoarfrost.evaluation.per_patient`: a patient's images are of different classes, of more than two.
    """
    if how is None or patients is None:
        return Units(y, patients, None, None)
    joined = per_patient(y, np.full((len(y), n_classes), 1 / n_classes), patients, how)
    members = np.searchsorted(joined.groups, patients).astype(np.int64)
    return Units(joined.y_true, None, members, how)


def patient_numbers(patients: Sequence[str]) -> Ints:
    """Return each image's patient number, (n,) int64, 0 upwards; images of unknown patients ("") have their own."""
    return numbered([name or (i,) for i, name in enumerate(patients)])


def count_patients(groups: Ints | None) -> int | None:
    """Return the number of patients; None where they are unknown."""
    return None if groups is None else n_distinct(groups)


def is_repeated(groups: Ints) -> bool:
    """Return whether a patient has several samples."""
    return n_distinct(groups) < len(groups)


def too_few_patients(groups: Ints | None, counted: Bools | None = None, n_in_all: int = 0) -> str:
    """Return why there is no interval where patients have several samples; "" if they are enough, or have one each.

    Parameters
    ----------
    groups : ndarray (n,) int64 or None
        Patients, where they are known.
    counted : ndarray (n,) bool, optional
        The samples of a class, or in the denominator of a proportion.
    n_in_all : int
        Patients of a sample of which these are a part, such as a bin.
    """
    if groups is None or not is_repeated(groups):
        return ""
    if max(n := n_distinct(groups), n_in_all) < FEWEST_PATIENTS:
        return f"{TOO_FEW}: {n}"
    n = n if counted is None else n_distinct(groups[counted])
    return f"{TOO_FEW}: {n}" if n < FEWEST_OF_CLASS else ""


def too_few_of_classes(y_true: Ints, n_classes: int, groups: Ints | None) -> str:
    """Return what `too_few_patients` does, for the rarest class, or the rarer answer about a label."""
    if groups is None:
        return ""
    parts = ((groups[rows], y == value) for _, rows, y in binary_problems(y_true, n_classes) for value in (0, 1))
    return next(filter(None, (too_few_patients(groups), *(too_few_patients(*part) for part in parts))), "")
