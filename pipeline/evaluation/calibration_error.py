"""The expected calibration error over bins of equal mass, by chance, and its interval."""

import numpy as np

from hoarfrost.evaluation.bootstrap import reversed_ci
from hoarfrost.evaluation.checks import Floats, Ints, checked_groups, tied_groups

_N_SIMULATED = 500


def bin_starts(ascending: Floats, n_bins: int) -> Ints:
    """Return where bins of equal mass begin. Ties are in one bin, so the order of samples has no influence."""
    n = len(ascending)
    group, starts = tied_groups(ascending)
    ends = np.append(starts[1:], n)
    middle = (starts + ends - 1) / 2  # the group's mean rank
    bins = np.floor((middle + 0.5) * min(n_bins, n) / n).astype(np.int64)[group]
    return np.flatnonzero(np.diff(bins, prepend=-1))


def errors(confidence: Floats, hits: Ints | Floats, starts: Ints) -> Floats:
    """Return the calibration error for each row of hits (m, n)."""
    gaps = np.abs(np.add.reduceat(hits - confidence, starts, axis=1)).sum(axis=1)
    found: Floats = gaps / len(confidence)
    return found


def error_interval(gaps: Floats, starts: Ints, units: Ints, level: float) -> tuple[float, float] | None:
    """Return the interval of the calibration error by bootstrap in these bins; None with a single patient.

    Chance makes any error larger, and that of draws twice, so their quantiles are mirrored.
    """
    numbers, n_units = checked_groups(units, len(gaps))
    if n_units < 2:
        return None
    in_bin = np.searchsorted(starts, np.arange(len(gaps)), side="right") - 1
    sums = np.zeros((n_units, len(starts)))  # sums over patients give the same draws as their samples, and are fewer
    np.add.at(sums, (numbers, in_bin), gaps)
    sizes = np.bincount(numbers).astype(np.float64)

    def of(weights: Floats) -> Floats:
        found: Floats = np.abs(weights @ sums).sum(axis=1) / (weights @ sizes)
        return found

    low, high = reversed_ci(of, np.arange(n_units), level=level)
    return max(0.0, low), min(1.0, high)


def errors_by_chance(confidence: Floats, starts: Ints) -> Floats:
    """Return the errors of labels drawn from the probabilities themselves (seeded), in blocks."""
    rng = np.random.default_rng(0)
    rows = max(1, min(_N_SIMULATED, (1 << 20) // len(confidence)))
    n_blocks = max(1, min(_N_SIMULATED // rows, 20))
    found = [
        errors(confidence, (rng.random((rows, len(confidence))) < confidence).astype(np.float64), starts)
        for _ in range(n_blocks)
    ]
    return np.concatenate(found)
