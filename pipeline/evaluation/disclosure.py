"""Counts that may leave a hospital: no cell has one to four patients, and none can be found by subtraction."""

from collections.abc import Iterable, Sequence
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


@dataclass(frozen=True)
class Histogram:
    """Samples of one class by their probability: `edges` (k + 1) from 0 to 1 as those of `Cells`, and `counts` (k)."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


def shareable_count(n: int | None) -> int | None:
    """Return a number of patients or images; None for one to four, and where it is not known."""
    return None if n is None or 0 < n < FEWEST else n


def shareable_cells(
    y_true: Ints, p: Floats, groups: Ints | None, grid: Sequence[float], *, kept: float | None = None
) -> Cells:
    """Return the samples by outcome and probability, in bins none of which is too small to share.

    Because every bin can be shared, so can all sums and differences of bins: nothing is found by subtraction.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    p : ndarray (n,) float64
        In [0, 1].
    groups : ndarray (n,) int64 or None
        Patients, who are what is counted; without them, samples are.
    grid : sequence of float
        Edges between 0 and 1 in the order in which they are tried: those that divide too few patients are left out. Sites
        that try the same edges in the same order have most of the first ones in common.
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
    first = () if kept is None or not 0 < kept < 1 else (kept,)
    edges = _divided(y_true, p, units, (0.0, 1.0), (*first, *grid))
    place = np.searchsorted(edges[1:-1], p, side="right")
    bins = range(len(edges) - 1)
    return Cells(
        tuple(edges),
        tuple(int(((place == b) & (y_true == 1)).sum()) for b in bins),
        tuple(int(((place == b) & (y_true == 0)).sum()) for b in bins),
        tuple(round(float(p[place == b].mean()), 4) if (place == b).any() else None for b in bins),
    )


def shareable_histogram(p: Floats, groups: Ints | None, cells: Cells, grid: Sequence[float]) -> Histogram:
    """Return the samples of one class in bins that divide those of `cells` further, none of them too small to share.

    Parameters
    ----------
    p : ndarray (n,) float64
        In [0, 1].
    groups : ndarray (n,) int64 or None
        Patients, who are what is counted; without them, samples are.
    cells : Cells
        Of all samples. Their edges stay, so that no difference between the two is too small either.
    grid : sequence of float
        As that of `shareable_cells`.
    """
    units = np.arange(len(p)) if groups is None else groups
    edges = _divided(np.ones(len(p), np.int64), p, units, cells.edges, grid)
    place = np.searchsorted(edges[1:-1], p, side="right")
    return Histogram(tuple(edges), tuple(np.bincount(place, minlength=len(edges) - 1).tolist()))


def area_bounds(sites: Iterable[tuple[Histogram, Histogram, float]]) -> tuple[float, float]:
    """Return the lowest and the highest ROC AUC that all samples of several sites together can have.

    Parameters
    ----------
    sites : iterable of (Histogram, Histogram, float)
        Positives, negatives, and the ROC AUC of each site.

    Notes
    -----
    The area is the share of pairs of a positive and a negative in which the positive has the higher probability. Pairs
    of one site are known from its area. Pairs of two sites are known where the bins do not overlap.
    """
    found, low, high, n_pairs = list(sites), 0.0, 0.0, 0
    for i, (positives, _, own_area) in enumerate(found):
        for j, (_, negatives, _) in enumerate(found):
            pairs = np.outer(positives.counts, negatives.counts)
            (at, up_to), (from_, to) = (
                (np.array(one.edges[:-1]), np.array(one.edges[1:])) for one in (positives, negatives)
            )
            is_surely_higher, may_be_higher = at[:, None] >= to, up_to[:, None] > from_
            n_pairs += int(pairs.sum())
            low += own_area * pairs.sum() if i == j else pairs[is_surely_higher].sum()
            high += own_area * pairs.sum() if i == j else pairs[may_be_higher].sum()
    return float(low / n_pairs), float(high / n_pairs)


def _divided(y_true: Ints, p: Floats, units: Ints, edges: Sequence[float], wanted: Iterable[float]) -> list[float]:
    """Return edges, and with them those of the wanted ones that leave no bin too small to share."""
    found = list(edges)
    for edge in wanted:
        place = int(np.searchsorted(found, edge))
        if found[place] == edge:
            continue
        own = np.flatnonzero((p >= found[place - 1]) & ((p < found[place]) | (found[place] == 1)))
        if all(_is_shareable(y_true[own], units[own], side) for side in (p[own] < edge, p[own] >= edge)):
            found.insert(place, edge)
    return found


def _is_shareable(y_true: Ints, units: Ints, rows: Bools) -> bool:
    return all(shareable_count(n_distinct(units[rows & (y_true == value)])) is not None for value in (0, 1))
