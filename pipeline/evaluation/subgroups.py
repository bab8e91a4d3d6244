"""A head's results in each subgroup: scanner, site, sex, age band."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hoarfrost.evaluation.checks import Floats, Ints, binary_problems, checked, class_counts
from hoarfrost.evaluation.discrimination import auc_influence
from hoarfrost.evaluation.estimates import Estimate, Share
from hoarfrost.evaluation.intervals import area
from hoarfrost.evaluation.shares import share
from hoarfrost.evaluation.units import count_patients

FEWEST = 20
"""With fewer samples a subgroup's figures would be meaningless."""
MOST_VALUES = 20
N_BANDS = 4
_NUMBERS_ARE_BANDED = 10  # a column of more distinct numbers is a quantity
_MISSING = frozenset({"", "nan", "na", "n/a", "none", "null"})
MISSING = "(missing)"


@dataclass(frozen=True)
class Subgroup:
    """One value of one attribute, and the head's results there.

    `counts` are samples of each class, or with each label. The value of `roc_auc` or its interval, `sensitivity` and
    `specificity` (two classes, at the chosen threshold) are None where `reason` states why.
    """

    attribute: str
    value: str
    n: int
    counts: tuple[int, ...]
    roc_auc: Estimate
    sensitivity: Share | None
    specificity: Share | None
    reason: str = ""


def score_subgroups(
    y_true: Ints,
    probabilities: Floats,
    attributes: Mapping[str, Sequence[str]],
    *,
    threshold: float | Floats | None = None,
    groups: Ints | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Subgroup, ...]:
    """Score each value of each attribute.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    probabilities : ndarray (n, C) float64
    attributes : mapping of sequences of length n
        Column's name -> values. Numbers with more than ten different values are banded by quartiles.
    threshold : float or ndarray (n,) float64, optional
        Fixed on validation, or each sample's own; with two classes, a sample is positive if its probability of class 1 is
        at or above it.
    groups : ndarray (n,) int64, optional
        Patients. Where one has several samples in a subgroup, its interval is by bootstrap over patients.
    seed : int
        Of the bootstrap.

    Returns
    -------
    tuple of Subgroup
        In the order of the columns, and of their values. A subgroup of fewer than twenty samples has its counts and the
        reason only; one of fewer than two of a class has no ROC AUC, and what can be said of the other class. Of a column
        with more than twenty values the most frequent twenty are scored, and one entry states the number of the others. If
        none of them has twenty samples (an identifier, a free text), one entry represents all.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    y_true, probabilities = checked(y_true, probabilities, probabilities.shape[1])
    found: list[Subgroup] = []
    for name, values in attributes.items():
        if len(values) != len(y_true):
            raise ValueError(f"{len(y_true)} samples, but {len(values)} values of {name!r}")
        names = banded(values)
        column, order, sizes = np.array(names), in_order(names), Counter(names)
        if len(order) > MOST_VALUES and max(sizes.values()) < FEWEST:
            counts, reason = class_counts(y_true, probabilities.shape[1]), f"none of them has {FEWEST} samples"
            found.append(_without_figures(name, f"({len(order)} values)", counts, groups, reason))
            continue
        scored = set(sorted(order, key=lambda value: -sizes[value])[:MOST_VALUES])
        for value in (value for value in order if value in scored):
            rows = column == value
            at = None if threshold is None else np.broadcast_to(threshold, len(y_true))[rows]
            members = None if groups is None else np.asarray(groups)[rows]
            found.append(_subgroup(name, value, y_true[rows], probabilities[rows], at, members, level, seed))
        if len(order) > len(scored):
            rows = ~np.isin(column, sorted(scored))
            counts = class_counts(y_true[rows], probabilities.shape[1])
            reason = f"only the {MOST_VALUES} most frequent values are scored"
            further = f"({len(order) - len(scored)} further values)"
            members = None if groups is None else np.asarray(groups)[rows]
            found.append(_without_figures(name, further, counts, members, reason))
    return tuple(found)


def banded(values: Sequence[str]) -> list[str]:
    """Return the names of the subgroups of a column.

    Returns
    -------
    list of str
        Numbers with more than ten different values become bands, "40 to 52": the quartiles, each with its smallest and
        largest value. Empty texts and NaN become "(missing)"; other texts stay.
    """
    texts = with_missing(values)
    numbers = numbers_of(texts)
    if numbers is None:
        return texts
    known = numbers[~np.isnan(numbers)]
    edges = np.unique(np.quantile(known, np.arange(1, N_BANDS) / N_BANDS))
    bands = np.searchsorted(edges, known, "left")  # an edge belongs to the band below it
    ends = [end for b in np.unique(bands) for end in (known[bands == b].min(), known[bands == b].max())]
    texts_of_ends = _short(ends)
    starts = zip(np.unique(bands).tolist(), texts_of_ends[::2], texts_of_ends[1::2], strict=True)
    names = {band: f"{low} to {high}" for band, low, high in starts}
    return [text if text == MISSING else names[int(np.searchsorted(edges, x, "left"))] for x, text in
            zip(numbers, texts, strict=True)]  # fmt: skip


def _short(ends: Sequence[float]) -> list[str]:
    """Return ascending numbers as texts, each with the digits that tell all of them apart; of at most six digits, all.

    Two bands of dates (20240131) or of identifiers must not get one name.
    """
    exact = [f"{end:.15g}" for end in ends]
    if all(float(end).is_integer() or float(f"{end:.6g}") == end for end in ends):
        return exact
    spread = min(ends[-1] - ends[0], 1e300)  # that of the largest numbers overflows
    least = max(0, 3 - math.ceil(math.log10(spread)))
    for decimals in range(least, 16):
        texts = [f"{end:z.{decimals}f}" for end in ends]
        if len(set(texts)) == len(set(ends)):
            return texts
    return exact


def with_missing(values: Sequence[str]) -> list[str]:
    """Return the values of a column, with "(missing)" for empty texts and NaN."""
    return [MISSING if value.strip().lower() in _MISSING else value for value in values]


def numbers_of(texts: Sequence[str]) -> Floats | None:
    """Return the numbers of a column, NaN for "(missing)"; None if it has texts, or at most ten different numbers."""
    numbers = all_numbers_of(texts)
    if numbers is None or len(np.unique(numbers[np.isfinite(numbers)])) <= _NUMBERS_ARE_BANDED:
        return None
    return numbers


def all_numbers_of(texts: Sequence[str]) -> Floats | None:
    """Return the numbers of a column, however few differ, NaN for "(missing)"; None if it has texts or no known value."""
    numbers = np.array([math.nan if text == MISSING else _number(text) for text in texts])
    known = np.array([x for x, text in zip(numbers, texts, strict=True) if text != MISSING])
    return numbers if len(known) and np.isfinite(known).all() else None


def _subgroup(
    name: str, value: str, y_true: Ints, probabilities: Floats, threshold: Floats | None, groups: Ints | None,
    level: float, seed: int,
) -> Subgroup:  # fmt: skip
    counts = class_counts(y_true, probabilities.shape[1])
    if len(y_true) < FEWEST:
        return _without_figures(name, value, counts, groups, f"fewer than {FEWEST} samples")
    found_area = Estimate(None, None, None, n=len(y_true), n_patients=count_patients(groups))
    if min(min(np.bincount(y, minlength=2)) for _, _, y in binary_problems(y_true, len(counts))) < 2:
        reason = "fewer than two samples of a class"
    else:
        plain = replace(found_area, value=auc_influence(y_true, probabilities)[0])
        found_area, reason = area(plain, y_true, probabilities, groups, level=level, seed=seed), ""
    sensitivity, specificity = None, None
    if threshold is not None and y_true.ndim == 1 and len(counts) == 2:
        found, of_class = probabilities[:, 1] >= threshold, y_true == 1
        sensitivity = share(found, of_class, groups, level=level) if of_class.any() else None
        specificity = share(~found, ~of_class, groups, level=level) if not of_class.all() else None
    return Subgroup(name, value, len(y_true), counts, found_area, sensitivity, specificity, reason)


def _without_figures(name: str, value: str, counts: tuple[int, ...], groups: Ints | None, reason: str) -> Subgroup:
    n = sum(counts)
    area = Estimate(None, None, None, n=n, n_patients=count_patients(groups))
    return Subgroup(name, value, n, counts, area, None, None, reason)


def in_order(names: Sequence[str]) -> list[str]:
    """Return the distinct values: numbers and bands by their start, then texts, the missing last."""

    def key(name: str) -> tuple[bool, float, str]:
        start = _number(name.split(" to ")[0])
        return name == MISSING, start if math.isfinite(start) else math.inf, name

    return sorted(set(names), key=key)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
