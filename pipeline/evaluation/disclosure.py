"""Counts that may leave a hospital: no cell has one to four patients, and none can be found by subtraction."""

from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import Bools, Floats, Ints, n_distinct

FEWEST = 5
"""Patients of a cell that has any."""


@dataclass(frozen=True)
class Cells:
    """Samples by their probability, in bins that are coarse enough to share.

    Attributes
    ----------
    edges : tuple of k + 1 floats
        From 0 to 1. A bin has its lower edge, and the last one 1 too.
    positives, negatives : tuple of k int
        Samples of each class: none, or of `FEWEST` patients or more.
    mean_probability : tuple of k floats or None
        None of an empty bin.
    """

    edges: tuple[float, ...]
    positives: tuple[int, ...]
    negatives: tuple[int, ...]
    mean_probability: tuple[float | None, ...]


def shareable_count(n: int | None) -> int | None:
    """Return a number of patients or images; None for one to four, and where it is not known."""
    return None if n is None or 0 < n < FEWEST else n


def shareable_cells(y_true: Ints, p: Floats, groups: Ints | None, grid: Floats, *, kept: float | None = None) -> Cells:
    """Return the samples by outcome and probability, with neighbouring bins joined until none is too small to share.

    Because every bin can be shared, so can all sums and differences of bins: nothing is found by subtraction.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    p : ndarray (n,) float64
        In [0, 1].
    groups : ndarray (n,) int64 or None
        Patients, who are what is counted; without them, samples are.
    grid : ndarray (m,) float64
        The edges of the finest bins, from 0 to 1.
    kept : float, optional
        A threshold that stays an edge, if both sides can be shared.

    Raises
    ------
    ValueError
        If one of the classes has fewer than five patients.
    """
    units = np.arange(len(p)) if groups is None else groups
    for value, name in ((1, "positive"), (0, "negative")):
        n = n_distinct(units[y_true == value])
        if n < FEWEST:
            unit = "samples" if groups is None else "patients"
            raise ValueError(f"there are {n} {name} {unit}; fewer than {FEWEST} cannot be shared")
    sides = [(0.0, 1.0)]
    if kept is not None and 0 < kept < 1:
        lower = p < kept
        if _is_shareable(y_true, units, lower) and _is_shareable(y_true, units, ~lower):
            sides = [(0.0, kept), (kept, 1.0)]
    edges = [0.0]
    for low, high in sides:
        inner = grid[(grid > low) & (grid < high)].tolist()
        edges += _joined(y_true, p, units, [low, *inner, high])[1:]
    place = np.searchsorted(edges[1:-1], p, side="right")
    bins = range(len(edges) - 1)
    return Cells(
        tuple(edges),
        tuple(int(((place == b) & (y_true == 1)).sum()) for b in bins),
        tuple(int(((place == b) & (y_true == 0)).sum()) for b in bins),
        tuple(round(float(p[place == b].mean()), 4) if (place == b).any() else None for b in bins),
    )


def _joined(y_true: Ints, p: Floats, units: Ints, edges: list[float]) -> list[float]:
    """Return the edges that remain: from the left, a bin ends as soon as it and all that follows can be shared."""
    found = [edges[0]]
    of_side = (p >= edges[0]) & ((p < edges[-1]) | (edges[-1] == 1))
    for edge in edges[1:-1]:
        own = of_side & (p >= found[-1]) & (p < edge)
        rest = of_side & (p >= edge)
        if _is_shareable(y_true, units, own) and _is_shareable(y_true, units, rest):
            found.append(edge)
    return [*found, edges[-1]]


def _is_shareable(y_true: Ints, units: Ints, rows: Bools) -> bool:
    return all(shareable_count(n_distinct(units[rows & (y_true == value)])) is not None for value in (0, 1))
