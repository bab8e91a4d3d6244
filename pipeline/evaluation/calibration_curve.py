"""A smooth calibration curve with a band, and its distance from perfect calibration: ICI, E50 and E90."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, logit, stdtrit

from hoarfrost.evaluation.bootstrap import drawn_values
from hoarfrost.evaluation.calibration_error import bin_starts
from hoarfrost.evaluation.checks import Floats, Ints, checked_groups
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.intervals import FEW, RESAMPLED_UNITS
from hoarfrost.evaluation.shares import BOOTSTRAP
from hoarfrost.evaluation.units import count_patients, is_repeated

N_POINTS = 51
N_SPIKES = 50
"""Bins of the distribution of probabilities, each 0.02 wide."""
FEWEST_CASES = 10
"""With fewer patients, or samples, of one outcome there is no curve."""
N_CURVES = 500
_MOST_CELLS = 200  # samples of similar probability are counted together
_MARGIN = 1e-6  # probabilities nearer to 0 or 1 count as this near
_FEW_KNOTS, _KNOTS = (0.1, 0.5, 0.9), (0.05, 0.35, 0.65, 0.95)  # quantiles; Harrell's choice
_PENALTY = 0.01  # a coefficient on a column of unit variance has a prior deviation of 10: draws may be separable
_MOST_STEPS, _LONGEST_STEP = 25, 2.0
_ONE_DEVIATION = (0.16, 0.84)  # quantiles: half their distance, which separable draws do not widen


@dataclass(frozen=True)
class CalibrationCurve:
    """The observed share as a smooth function of the probability.

    Attributes
    ----------
    p, observed, low, high : tuple of float
        Points of the curve and of its pointwise 95% band, by ascending probability.
    without, with_outcome : tuple of int
        Samples without and with the outcome, by probability in fifty bins from 0 to 1.
    ici, e50, e90 : Estimate or None
        Mean, median and 90th percentile of the distance between probability and curve, over the samples.
    reason : str
        Why there is no curve.
    """

    p: tuple[float, ...]
    observed: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    without: tuple[int, ...]
    with_outcome: tuple[int, ...]
    ici: Estimate | None = None
    e50: Estimate | None = None
    e90: Estimate | None = None
    reason: str = ""


def calibration_curve(hits: Ints, p: Floats, groups: Ints | None = None, *, level: float = 0.95) -> CalibrationCurve:
    """Return the smooth calibration curve of a probability.

    Parameters
    ----------
    hits : ndarray (n,) int64, values {0, 1}
        Whether a sample has the outcome.
    p : ndarray (n,) float64
        Its probability.
    groups : ndarray (n,) int64, optional
        Patients, which are drawn with all their samples.
    level : float
        Of the band, pointwise, and of the intervals.

    Returns
    -------
    CalibrationCurve
        Without a curve if an outcome has fewer than ten patients (or samples), all probabilities are equal, or they
        separate the outcomes perfectly; `reason` states which.

    Raises
    ------
    ValueError
        If the shapes differ, or `level` is not between 0 and 1.

    Notes
    -----
    Logistic regression of the outcome on a restricted cubic spline of the logit, with knots at the quantiles 0.05, 0.35,
    0.65 and 0.95; 0.1, 0.5 and 0.9 with fewer than thirty patients of an outcome. It is fitted again to 500 draws of
    patients, with the same knots. Beyond 200 different probabilities, neighbouring ones are counted together.
    The band is normal on the scale of the logit; its deviation is half the distance of the draws' quantiles 0.16 and 0.84.
    Chance makes distances too large, and those of draws twice. The upper limit is therefore the draws' quantile, and the
    lower one is their quantile as it is or mirrored at the estimate, which is lower. It is 0 where perfect calibration
    would have such a distance by chance. These rules were chosen by simulation; the interval is cautious.

    References
    ----------
    Austin and Steyerberg (2019), Statistics in Medicine 38(21), 4051-4065 (ICI, E50, E90). Harrell (2015), Regression
    Modeling Strategies, section 2.4.5 (splines).
    """
    hits, p = np.asarray(hits, np.int64), np.asarray(p, np.float64)
    if hits.shape != p.shape or p.ndim != 1:
        raise ValueError(f"hits has the shape {hits.shape}, p {p.shape}; both must be (n,)")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, not {level}")
    numbers, n_units = checked_groups(np.arange(len(p)) if groups is None else groups, len(p))
    spikes = np.minimum((np.clip(p, 0, 1) * N_SPIKES).astype(np.int64), N_SPIKES - 1)
    without, with_outcome = (tuple(np.bincount(spikes[hits == one], minlength=N_SPIKES).tolist()) for one in (0, 1))
    n_cases = min(len(np.unique(numbers[hits == one])) for one in (0, 1))
    reason = _why_none(hits, p, n_cases, "samples" if groups is None else "patients")
    if reason:
        return CalibrationCurve((), (), (), (), without, with_outcome, reason=reason)
    cells = _cells(hits, p, numbers, _KNOTS if n_cases >= FEW else _FEW_KNOTS)
    whole, drawn = cells.counts(np.ones((1, len(p)))), drawn_values(cells.counts, cells.units, n_units, N_CURVES, 0)
    fit, draws = cells.fitted(whole), cells.fitted(drawn)

    at = np.linspace(cells.p[0], cells.p[-1], N_POINTS)
    middle, spread = cells.log_odds(at, fit)[0], cells.log_odds(at, draws)
    below, above = np.quantile(spread, _ONE_DEVIATION, axis=0)
    # Few patients: the deviation is uncertain too.
    half = stdtrit(max(n_units - 1, 1), (1 + level) / 2) * (above - below) / 2
    observed, low, high = (tuple(expit(one).tolist()) for one in (middle, middle - half, middle + half))
    method = RESAMPLED_UNITS if groups is None or not is_repeated(groups) else BOOTSTRAP
    plain = Estimate(None, None, None, method, len(p), count_patients(groups))
    ici, e50, e90 = _distances(cells, (fit, draws), (whole, drawn), plain, level)
    return CalibrationCurve(tuple(at.tolist()), observed, low, high, without, with_outcome, ici, e50, e90)


def restricted_cubic_spline(x: Floats, knots: Floats) -> Floats:
    """Return the terms of a restricted cubic spline, (n, k - 1): x itself, and k - 2 that are linear beyond the knots.

    Parameters
    ----------
    x : ndarray (n,) float64
    knots : ndarray (k,) float64
        Ascending, at least three.
    """
    first, before, last = knots[0], knots[-2], knots[-1]

    def cube(at: float) -> Floats:
        found: Floats = np.maximum(x - at, 0) ** 3
        return found

    curved = [
        cube(at) - (cube(before) * (last - at) - cube(last) * (before - at)) / (last - before) for at in knots[:-2]
    ]
    return np.column_stack([x, *(one / (last - first) ** 2 for one in curved)])


def _why_none(hits: Ints, p: Floats, n_cases: int, units: str) -> str:
    if n_cases < FEWEST_CASES:
        return f"no curve: fewer than {FEWEST_CASES} {units} with one of the outcomes"
    if p.min() == p.max():
        return "no curve: all probabilities are equal"
    ones, zeros = p[hits == 1], p[hits == 0]
    if zeros.max() <= ones.min() or ones.max() <= zeros.min():
        return "no curve: the probabilities separate the outcomes perfectly"
    return ""


# -- the fit, of all draws at once ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cells:
    """Samples by ascending probability, in m cells: their mean probability `p` (m,), and the columns of the regression.

    `hits` and `units` are (n,), `starts` (m,) is where cells begin, and `terms` makes columns (j, k) of log-odds (j,).
    """

    p: Floats
    hits: Floats
    units: Ints
    starts: Ints
    terms: Callable[[Floats], Floats]

    def counts(self, weights: Floats) -> Floats:
        """Return the hits in each cell, and then all samples, (b, 2m), from the samples' weights (b, n)."""
        parts = [np.add.reduceat(one, self.starts, axis=1) for one in (weights * self.hits, weights)]
        return np.hstack(parts)

    def fitted(self, counts: Floats) -> Floats:
        """Return the coefficients (b, k) by Newton's method, from `counts` (b, 2m)."""
        hits, totals = np.hsplit(counts, 2)
        x = _log_odds(self.p)
        terms = self.terms(x)  # (m, k)
        k = terms.shape[1]
        squares = (terms[:, :, None] * terms[:, None, :]).reshape(len(terms), -1)
        penalty = np.diag([_MARGIN, *[_PENALTY] * (k - 1)])
        found = np.zeros((len(counts), k))  # of what is added to the log-odds: 0 is perfect calibration
        for _ in range(_MOST_STEPS):
            q = expit(x + found @ terms.T)  # (b, m)
            gradient = (hits - totals * q) @ terms - found @ penalty
            hessian = ((totals * q * (1 - q)) @ squares).reshape(-1, k, k) + penalty
            step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
            longest = np.abs(step).max(axis=1, keepdims=True)
            found += step * np.minimum(1, _LONGEST_STEP / np.maximum(longest, _LONGEST_STEP / 2))
            if longest.max() < 1e-8:
                break
        return found

    def log_odds(self, p: Floats, coefficients: Floats) -> Floats:
        """Return the curves' log-odds at probabilities (j,) from coefficients (b, k), (b, j)."""
        x = _log_odds(p)
        found: Floats = x + coefficients @ self.terms(x).T
        return found


def _cells(hits: Ints, p: Floats, numbers: Ints, quantiles: tuple[float, ...]) -> _Cells:
    order = np.argsort(p, kind="stable")
    p = np.clip(p[order], _MARGIN, 1 - _MARGIN)
    starts = bin_starts(p, _MOST_CELLS)
    sizes = np.diff(np.append(starts, len(p)))
    knots = np.unique(np.quantile(_log_odds(p), quantiles))

    def columns(x: Floats) -> Floats:
        return restricted_cubic_spline(x, knots) if len(knots) > 2 else x[:, None]

    at = np.add.reduceat(p, starts) / sizes
    of_cells = columns(_log_odds(at))  # (m, k - 1)
    means = np.average(of_cells, axis=0, weights=sizes)
    # Uncorrelated columns of unit variance, so that one penalty suits all; those without variance are left out.
    _, deviations, axes = np.linalg.svd((of_cells - means) * np.sqrt(sizes / len(p))[:, None], full_matrices=False)
    kept = deviations > 1e-6 * deviations[0]
    turned = axes[kept].T / deviations[kept]

    def terms(x: Floats) -> Floats:
        return np.column_stack([np.ones(len(x)), (columns(x) - means) @ turned])

    return _Cells(at, hits[order].astype(np.float64), numbers[order], starts, terms)


def _log_odds(p: Floats) -> Floats:
    found: Floats = logit(np.clip(p, _MARGIN, 1 - _MARGIN))
    return found


# -- distances from perfect calibration -----------------------------------------------------------------------------------


def _distances(
    cells: _Cells, fits: tuple[Floats, Floats], counts: tuple[Floats, Floats], plain: Estimate, level: float
) -> list[Estimate]:
    """Return ICI, E50 and E90; `fits` and `counts` are those of all samples, and of the draws."""
    (fit, draws), (whole, drawn) = fits, (np.hsplit(one, 2)[1] for one in counts)
    curve, curves = (cells.log_odds(cells.p, one) for one in (fit, draws))
    found = _mean_and_quantiles(np.abs(expit(curve) - cells.p), whole)[:, 0]
    of_draws = _mean_and_quantiles(np.abs(expit(curves) - cells.p), drawn)
    # What is left of the draws when the curve itself is moved to perfect calibration.
    by_chance = _mean_and_quantiles(np.abs(expit(_log_odds(cells.p) + curves - curve) - cells.p), drawn)
    tail = (1 - level) / 2
    estimates = []
    for value, values, chance in zip(found.tolist(), of_draws, by_chance, strict=True):
        below, above = np.quantile(values, (tail, 1 - tail)).tolist()
        high = max(value, above)
        low = 0.0 if value <= float(np.quantile(chance, 1 - tail)) else max(0.0, min(value, below, 2 * value - above))
        estimates.append(replace(plain, value=value, low=low, high=high))
    return estimates


def _mean_and_quantiles(distances: Floats, weights: Floats) -> Floats:
    """Return the weighted mean, median and 90th percentile of each row of distances (b, m), (3, b)."""
    total = weights.sum(axis=1)
    order = np.argsort(distances, axis=1)
    ascending = np.take_along_axis(distances, order, axis=1)
    reached = np.cumsum(np.take_along_axis(weights, order, axis=1), axis=1)
    places = [(reached >= share * total[:, None] * (1 - 1e-12)).argmax(axis=1) for share in (0.5, 0.9)]
    quantiles = [np.take_along_axis(ascending, place[:, None], axis=1)[:, 0] for place in places]
    return np.stack([(distances * weights).sum(axis=1) / total, *quantiles])
