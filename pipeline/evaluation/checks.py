"""Checks of the arrays that metrics take, and small steps that several metrics share."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

UNKNOWN = -1  # a label of which it is not known whether the image has it


def checked(y_true: Ints, probabilities: Floats, n_classes: int) -> tuple[Ints, Floats]:
    """Return labels (n,) or (n, C) int64 and probabilities (n, C) float64; raise ValueError if they do not fit."""
    y_true, probabilities = np.asarray(y_true), np.asarray(probabilities, np.float64)
    if probabilities.shape != (len(y_true), n_classes):
        raise ValueError(
            f"{len(y_true)} labels of {n_classes} classes, but probabilities of shape {probabilities.shape}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError("some probabilities are NaN or infinite")
    if y_true.ndim == 2 and (y_true.shape != probabilities.shape or not np.isin(y_true, (UNKNOWN, 0, 1)).all()):
        raise ValueError(f"y_true of several labels must be {probabilities.shape} of 0, 1 and {UNKNOWN} (unknown)")
    if y_true.ndim == 1 and not np.isin(y_true, np.arange(n_classes)).all():
        raise ValueError(f"y_true holds values other than 0 to {n_classes - 1}")
    if not len(y_true):
        raise ValueError("there are no samples")
    return y_true.astype(np.int64), probabilities


def checked_binary(y_true: Ints, y_score: Floats) -> tuple[Ints, Floats]:
    """Return labels (n,) int64 of 0 and 1, and finite scores (n,) float64; raise ValueError if a class is missing."""
    y_true, y_score = np.asarray(y_true), np.asarray(y_score, np.float64)
    if y_true.shape != y_score.shape or y_true.ndim != 1:
        raise ValueError(f"y_true has the shape {y_true.shape}, y_score {y_score.shape}; both must be (n,)")
    if not ((y_true == 0) | (y_true == 1)).all():
        raise ValueError("y_true holds values other than 0 and 1")
    if not np.isfinite(y_score).all():
        raise ValueError("y_score holds NaN or infinite values")
    n_pos = int((y_true == 1).sum())
    if n_pos in {0, len(y_true)}:
        raise ValueError(f"ROC AUC needs both classes; there are {n_pos} positive and {len(y_true) - n_pos} negative")
    return y_true.astype(np.int64), y_score


def binary_problems(y_true: Ints, n_classes: int) -> Iterator[tuple[int, Ints, Ints]]:
    """Yield the binary problems of a task: class 1 of two, each of more classes against the rest, or each label.

    Parameters
    ----------
    y_true : ndarray (n,) int64, class numbers; or (n, C) int64 of 0, 1 and -1 (unknown)

    Yields
    ------
    number : int
        Of the class or label.
    rows : ndarray (m,) int64
        The samples for which it is known.
    y : ndarray (m,) int64, values {0, 1}
    """
    for number in [1] if y_true.ndim == 1 and n_classes == 2 else range(n_classes):
        if y_true.ndim == 1:
            yield number, np.arange(len(y_true)), (y_true == number).astype(np.int64)
        else:
            rows = np.flatnonzero(y_true[:, number] != UNKNOWN)
            yield number, rows, y_true[rows, number]


def checked_groups(groups: Ints, n: int) -> tuple[Ints, int]:
    """Return group numbers (n,) int64, 0 to n_groups - 1 without gaps, and n_groups; raise ValueError if not n."""
    groups = np.asarray(groups)
    if groups.shape != (n,):
        raise ValueError(f"groups has the shape {groups.shape}; there are {n} samples")
    if is_numbered(groups):
        return groups.astype(np.int64, copy=False), int(groups.max()) + 1
    names, numbers = np.unique(groups, return_inverse=True)
    return numbers.astype(np.int64), len(names)


def is_numbered(groups: Ints) -> bool:
    """Return whether groups are numbers from 0 without gaps already, which takes less time than to number them."""
    if not len(groups) or groups.dtype.kind != "i" or groups.min() != 0 or groups.max() >= len(groups):
        return False
    return bool(np.bincount(groups).all())


def n_distinct(values: Ints) -> int:
    """Return the number of different values; of small ones without sorting, which takes a tenth of the time."""
    if len(values) and values.min() >= 0 and values.max() <= 8 * len(values):
        return int(np.count_nonzero(np.bincount(values)))
    return len(np.unique(values))


def normal_quantile(level: float) -> float:
    """Return half the width of a two-sided normal interval in standard deviations; raise ValueError for a bad level."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    return float(ndtri((1 + level) / 2))


def normal_interval(estimate: float, variance: float, level: float) -> tuple[float, float]:
    """Return the normal interval (low, high) of an estimate in [0, 1], clipped to it."""
    half = normal_quantile(level) * math.sqrt(variance)
    return max(0.0, estimate - half), min(1.0, estimate + half)


def tied_groups(ascending: Floats) -> tuple[Ints, Ints]:
    """Return the groups of equal values in a sorted array.

    Parameters
    ----------
    ascending : ndarray (n,) float64, n at least 1

    Returns
    -------
    group : ndarray (n,) int64
        Each value's group, 0 upwards.
    starts : ndarray (n_groups,) int64
        Where each group begins.
    """
    starts_here = np.concatenate([[True], ascending[1:] != ascending[:-1]])
    return np.cumsum(starts_here) - 1, np.flatnonzero(starts_here)


def class_counts(y: Ints, n_classes: int) -> tuple[int, ...]:
    """Return the number of samples of each class, or with each label."""
    return tuple((np.bincount(y, minlength=n_classes) if y.ndim == 1 else (y == 1).sum(axis=0)).tolist())


def numbered(values: Sequence[object]) -> Ints:
    """Return a number for each value, (n,) int64, 0 upwards in order of first occurrence."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return np.fromiter(map(numbers.__getitem__, values), np.int64, len(values))
