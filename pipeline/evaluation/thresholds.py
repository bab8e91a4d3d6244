"""The results of many thresholds of patients with several images, with the intervals that one threshold gets."""

import numpy as np

from hoarfrost.evaluation.checks import Bools, Floats, Ints
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.influence import of_share
from hoarfrost.evaluation.intervals import IntervalKind, linearised, share, shares
from hoarfrost.evaluation.operating import likelihood_ratio


def evaluate_thresholds(
    y_true: Ints, y_score: Floats, thresholds: Floats, groups: Ints, *, by_draws: bool = True
) -> dict[str, list[Estimate]]:
    """Return what `evaluate_threshold` has for several thresholds, by its names, all at once.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}, both present
    y_score : ndarray (n,) float64
    thresholds : ndarray (t,) float64
    groups : ndarray (n,) int64
        Patients, some with several samples.
    by_draws : bool
        False takes the delta method for proportions, which is faster with many patients.

    Returns
    -------
    dict of str -> list of Estimate, of length t
        "sensitivity", "specificity", "ppv", "npv", "lr_positive" and "lr_negative".
    """
    found = y_score[:, None] >= thresholds  # (n, t)
    diseased = np.broadcast_to((y_true == 1)[:, None], found.shape)
    of = {
        "sensitivity": (found, diseased),
        "specificity": (~found, ~diseased),
        "ppv": (diseased, found),
        "npv": (~diseased, ~found),
    }
    ratios = {
        name: [likelihood_ratio(hits, y_true == 1, groups, 0.95) for hits in columns.T]
        for name, columns in (("lr_positive", found), ("lr_negative", ~found))
    }
    if by_draws:
        return {**{name: list(shares(*columns, groups)) for name, columns in of.items()}, **ratios}
    return {
        name: [_linearised(*column, groups) for column in zip(hits.T, counted.T, strict=True)]
        for name, (hits, counted) in of.items()
    } | ratios


def _linearised(hits: Bools, counted: Bools, groups: Ints) -> Estimate:
    n = int(counted.sum())
    plain = Estimate((hits & counted).sum() / n if n else None, None, None, n=n)
    found = linearised(plain, IntervalKind.SHARE, of_share(hits, counted).values, groups)
    return found if found.interval is not None else share(hits, counted, groups)
