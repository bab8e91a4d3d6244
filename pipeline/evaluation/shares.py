"""Proportions and their intervals: Wilson's, or by bootstrap where patients have several samples."""

from dataclasses import replace

import numpy as np
from scipy.special import betainc

from hoarfrost.evaluation.bootstrap import bootstrap_share_ci, bootstrap_shares_ci
from hoarfrost.evaluation.checks import Bools, Ints, checked_groups
from hoarfrost.evaluation.estimates import Share, wilson
from hoarfrost.evaluation.units import count_patients, is_repeated, too_few_patients

BOOTSTRAP = "bootstrap over patients"


def share(hits: Bools, counted: Bools, groups: Ints | None, *, level: float = 0.95, n_in_all: int = 0) -> Share:
    """Return a proportion with its interval.

    Parameters
    ----------
    hits : ndarray (n,) bool
        Whether a sample is correct.
    counted : ndarray (n,) bool
        Whether it is in the denominator: all for accuracy, the positives for sensitivity.
    groups : ndarray (n,) int64 or None
        Patients, where they are known.
    n_in_all : int
        Patients of a sample of which these are a part, such as a bin.

    Returns
    -------
    Share
        With Wilson's interval; or, where patients have several samples, see `over_patients`. Without one where they are too
        few.
    """
    found = wilson(int((hits & counted).sum()), int(counted.sum()), level=level)
    if groups is None:
        return found
    found = replace(found, n_patients=count_patients(groups[counted]))
    if not is_repeated(groups):
        return found
    if counted.any() and (reason := too_few_patients(groups, counted, n_in_all)):
        return found.without_interval(reason)
    try:
        drawn = bootstrap_share_ci(hits.astype(np.int64), counted.astype(np.int64), groups, level=level)
    except ValueError:  # nothing is counted, or too few patients: it has no interval
        return over_patients(found, None, level=level)
    return over_patients(found, (drawn.low, drawn.high), level=level)


def shares(hits: Bools, counted: Bools, groups: Ints | None, *, level: float = 0.95) -> list[Share]:
    """Return several proportions, each column of `hits` and `counted` (n, t) as by `share`, all at once."""
    if groups is None or not is_repeated(groups):
        return [share(*columns, groups, level=level) for columns in zip(hits.T, counted.T, strict=True)]
    totals = zip((hits & counted).sum(axis=0).tolist(), counted.sum(axis=0).tolist(), counted.T, strict=True)
    plain = [replace(wilson(*two, level=level), n_patients=count_patients(groups[column])) for *two, column in totals]
    drawn = bootstrap_shares_ci(hits, counted, groups, level=level)
    reasons = [too_few_patients(groups, column) if column.any() else "" for column in counted.T]
    return [
        one.without_interval(reason)
        if reason
        else over_patients(one, None if ends is None else (ends.low, ends.high), level=level)
        for one, ends, reason in zip(plain, drawn, reasons, strict=True)
    ]


def over_patients(found: Share, ends: tuple[float, float] | None, *, level: float = 0.95) -> Share:
    """Return a proportion with the interval by bootstrap over patients, or none where that is undefined.

    A proportion of 0 or 1 is the same in all draws. This is no certainty, so it gets Wilson's interval, from the number
    of patients: their images are not independent.
    """
    if ends is not None and ends[0] == ends[1]:
        n = found.n if found.n_patients is None else found.n_patients
        plain = wilson(n if found.n_hits else 0, n, level=level)
        return replace(found, low=plain.low, high=plain.high)
    low, high = (None, None) if ends is None else ends
    return replace(found, low=low, high=high, method=BOOTSTRAP)


def kept_by_chance(missed: Bools, groups: Ints | None, level: float) -> float:
    """Return how often a share of at least `level` is kept in new cases, if `missed` (n,) are those of a threshold.

    The tail of the binomial distribution, at so many independent cases; patients with several samples count by their
    design effect, so the number of cases need not be whole.
    """
    share, n_cases = float(missed.mean()), float(len(missed))
    if groups is not None and is_repeated(groups) and 0 < share < 1:
        numbers, n_groups = checked_groups(groups, len(missed))
        sums = np.bincount(numbers, weights=missed - share)
        design_effect = float((sums**2).sum()) * n_groups / max(1, n_groups - 1) / (n_cases * share * (1 - share))
        n_cases = max(float(n_groups), n_cases / max(1.0, design_effect))
    return float(betainc(share * n_cases + 1, (1 - share) * n_cases, 1 - level))
