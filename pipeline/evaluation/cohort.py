"""The images of a study: their characteristics by split and class (a paper's table 1), and how many remain at each step."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import Bools, Floats, Ints
from hoarfrost.evaluation.subgroups import MISSING, MOST_VALUES, in_order, numbers_of, with_missing

COUNT, MEAN, MEDIAN = "count", "mean (SD)", "median (quartiles)"
ALL = "all"
MOST_SKEWED = 1.0
"""Skewness up to which numbers are described by mean and standard deviation."""


@dataclass(frozen=True)
class Flow:
    """The number of images at each step from the files to the splits.

    Attributes
    ----------
    n_listed, n_unreadable : int
        Images that the dataset lists, and those without an embedding.
    n_same_bytes : int
        Readable images with the bytes of an earlier one; they stay in, in the split of the earlier one.
    n_without_split : int
        Readable images in no split.
    n_near_groups, n_near_images : int or None
        Groups of near-identical images that were kept in one split, and their images; None if they were not grouped.
    """

    n_listed: int
    n_unreadable: int
    n_same_bytes: int
    n_without_split: int
    n_near_groups: int | None
    n_near_images: int | None

    @property
    def n_readable(self) -> int:
        """Images with an embedding."""
        return self.n_listed - self.n_unreadable

    @property
    def n_used(self) -> int:
        """Images in a split."""
        return self.n_readable - self.n_without_split


@dataclass(frozen=True)
class CohortGroup:
    """The images of one class in one split, or of "all"; `n_patients` is None where patients are unknown."""

    split: str
    label: str
    n_images: int
    n_patients: int | None


@dataclass(frozen=True)
class Characteristic:
    """One row of table 1: an attribute, and figures for each group.

    Attributes
    ----------
    attribute, value : str
        `value` is empty for numbers.
    kind : str
        What each entry of `figures` has: `COUNT` the images with this value and those with a known one; `MEAN` the mean
        and standard deviation; `MEDIAN` the median and both quartiles. Empty where a group has no known value.
    """

    attribute: str
    value: str
    kind: str
    figures: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Cohort:
    """The images of a study: the steps to the splits, the groups, and the characteristics of each."""

    flow: Flow
    groups: tuple[CohortGroup, ...]
    characteristics: tuple[Characteristic, ...]


def characteristics(attributes: Mapping[str, Sequence[str]], members: Sequence[Bools]) -> tuple[Characteristic, ...]:
    """Describe the attributes of groups of samples.

    Parameters
    ----------
    attributes : mapping of sequences of length n
        Numbers with more than ten different values are summarised. Others are counted by value. Missing ones are counted too.
    members : sequence of ndarray (n,) bool
        The samples of each group.

    Returns
    -------
    tuple of Characteristic
        In the order of the attributes, and of their values. An attribute of more than twenty texts has one row, which
        counts the samples with a known value.

    Raises
    ------
    ValueError
        If the lengths differ.
    """
    found: list[Characteristic] = []
    for name, values in attributes.items():
        if any(len(values) != len(one) for one in members):
            raise ValueError(f"{len(values)} values of {name!r}, but groups of other lengths")
        texts = with_missing(values)
        is_known, numbers = np.array([text != MISSING for text in texts], bool), numbers_of(texts)
        found += _counted(name, texts, is_known, members) if numbers is None else _summarised(name, numbers, members)
        if not is_known.all():
            sizes = tuple((float((one & ~is_known).sum()), float(one.sum())) for one in members)
            found.append(Characteristic(name, MISSING, COUNT, sizes))
    return tuple(found)


def _counted(name: str, texts: Sequence[str], is_known: Bools, members: Sequence[Bools]) -> list[Characteristic]:
    values = [value for value in in_order(texts) if value != MISSING]
    column = np.array(texts)
    rows = {value: column == value for value in values}
    if len(values) > MOST_VALUES:
        rows = {f"({len(values)} different values)": is_known}
    return [
        Characteristic(name, value, COUNT, tuple(_share(has & one, is_known & one) for one in members))
        for value, has in rows.items()
    ]


def _share(has: Bools, known: Bools) -> tuple[float, ...]:
    return (float(has.sum()), float(known.sum())) if known.any() else ()


def _summarised(name: str, numbers: Floats, members: Sequence[Bools]) -> list[Characteristic]:
    known = numbers[~np.isnan(numbers)]
    is_even = abs(float((((known - known.mean()) / known.std()) ** 3).mean())) <= MOST_SKEWED
    summary = _mean if is_even else _median
    parts = [numbers[one & ~np.isnan(numbers)] for one in members]
    return [
        Characteristic(name, "", MEAN if is_even else MEDIAN, tuple(summary(one) if len(one) else () for one in parts))
    ]


def _mean(numbers: Floats) -> tuple[float, ...]:
    return float(numbers.mean()), float(numbers.std(ddof=1)) if len(numbers) > 1 else 0.0


def _median(numbers: Floats) -> tuple[float, ...]:
    low, middle, high = np.quantile(numbers, [0.25, 0.5, 0.75]).tolist()
    return middle, low, high


def cohort_groups(
    splits: Sequence[str], labels: Mapping[str, Bools], present: Sequence[str], patients: Ints | None
) -> tuple[tuple[CohortGroup, ...], tuple[Bools, ...]]:
    """Return the groups of samples by split and class, and which samples each has.

    Parameters
    ----------
    splits : sequence of str, length n
    labels : mapping of str -> ndarray (n,) bool
        The samples of each class, or with each label.
    present : sequence of str
        The splits; "all" follows them.
    patients : ndarray (n,) int64 or None

    Returns
    -------
    groups : tuple of CohortGroup
        For each split all samples, then each class.
    members : tuple of ndarray (n,) bool
    """
    column, everyone = np.array(splits), np.isin(splits, list(present))
    groups, members = [], []
    for split in (*present, ALL):
        here = everyone if split == ALL else column == split
        for label, has in {ALL: here, **labels}.items():
            rows = here & has
            n_patients = None if patients is None else len(np.unique(patients[rows]))
            groups.append(CohortGroup(split, label, int(rows.sum()), n_patients))
            members.append(rows)
    return tuple(groups), tuple(members)


def flow_of(
    n_listed: int, contents: Sequence[int], splits: Sequence[str], present: Sequence[str], near: Ints | None
) -> Flow:
    """Count the images at each step.

    Parameters
    ----------
    n_listed : int
    contents : sequence of int, length n
        Equal for readable images of the same bytes.
    splits : sequence of str, length n
    present : sequence of str
    near : ndarray (n,) int64 or None
        Equal for near-identical images, if they were grouped.
    """
    sizes = [] if near is None else [size for size in Counter(near.tolist()).values() if size > 1]
    n = len(splits)
    return Flow(
        n_listed, n_listed - n, n - len(set(contents)), n - int(np.isin(splits, list(present)).sum()),
        None if near is None else len(sizes), None if near is None else sum(sizes),
    )  # fmt: skip
