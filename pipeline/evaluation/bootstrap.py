"""Intervals where patients have several images: patients are drawn, not images."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

from hoarfrost.evaluation.checks import (
    Bools,
    Floats,
    Ints,
    binary_problems,
    checked,
    checked_groups,
    normal_quantile,
)

N_DRAWS = 2_000
LARGEST_UNDEFINED_SHARE = 0.5  # of the draws
_MOST_JACKKNIFED = 500
_MOST_KEPT = 1 << 27  # bytes of draws: 2,000 draws of 67,000 patients
_MANY = 1 << 25
_AREA_NUMBERS = 1 << 16  # samples times draws whose weights are gathered at a time: what a processor's cache holds
_BLOCK_BYTES = 1 << 23  # of weights at a time: small enough for the processor's caches

_COUNTED_ALONE = 8_000  # patients: each draw is counted by itself, in the processor's caches; the draws are the same

_Times = npt.NDArray[np.uint8]
Statistic = Callable[[Floats], Floats]
"""Takes weights (b, n) of the samples and returns a value per row (b,), NaN where it is undefined."""


@dataclass(frozen=True)
class BootstrapInterval:
    """An interval by bootstrap over patients.

    In `n_undefined` of the `n_draws` the statistic was undefined (a class was missing); the interval is of the others.
    """

    low: float
    high: float
    n_patients: int
    n_draws: int
    n_undefined: int


@dataclass(frozen=True)
class PerPatient:
    """Samples combined to one row per patient: `groups` (g,), `y_true` (g,) int64, `probabilities` (g, C) float64."""

    groups: Ints
    y_true: Ints
    probabilities: Floats


def bootstrap_auc_ci(
    y_true: Ints, probabilities: Floats, groups: Ints, *, level: float = 0.95, n_draws: int = N_DRAWS, seed: int = 0
) -> BootstrapInterval:
    """Return the interval of the (macro one-vs-rest) ROC AUC by bootstrap over patients.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1, each of two patients or more; or (n, C) of 0, 1 and -1 (unknown)
    probabilities : ndarray (n, C) float64
    groups : ndarray (n,) int64
        Each sample's patient.
    level, n_draws, seed
        See `bootstrap_ci`.

    Raises
    ------
    ValueError
        If a class has fewer than two patients, half of the draws lack a class, or the shapes differ.

    Notes
    -----
    Patients are drawn with replacement, with all their images. Draws without one of the classes are omitted and
    counted: the interval is conditional on both being present, as the estimate itself is. One sort serves all draws:
    a draw's AUC is a weighted Mann-Whitney statistic, by cumulative sums over the sorted scores.

    References
    ----------
    Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 14. Field and Welsh (2007), Journal of the
    Royal Statistical Society B 69(3), 369-390 (clusters).
    """
    y_true, probabilities = checked(y_true, probabilities, probabilities.shape[1])
    numbers, n_patients = checked_groups(groups, len(y_true))
    areas = []
    for c, rows, y in binary_problems(y_true, probabilities.shape[1]):
        for value in (0, 1):
            n_of_class = len(np.unique(numbers[rows][y == value]))
            if n_of_class < 2:
                which = f"class {value if probabilities.shape[1] == 2 else c}"
                raise ValueError(
                    f"a bootstrap over patients needs two patients of each class; {which} has {n_of_class}"
                )
        areas.append(weighted_auc(y == 1, probabilities[rows, c], numbers[rows]))

    def area(weights: Floats) -> Floats:
        mean: Floats = np.mean([of(weights) for of in areas], axis=0)
        return mean

    return bootstrap_ci(area, np.arange(n_patients), level=level, n_draws=n_draws, seed=seed)


def bootstrap_share_ci(
    hits: Ints, counted: Ints, groups: Ints, *, level: float = 0.95, n_draws: int = N_DRAWS, seed: int = 0
) -> BootstrapInterval:
    """Return the interval of a proportion (accuracy, sensitivity, a predictive value) by bootstrap over patients.

    Parameters
    ----------
    hits : ndarray (n,), values {0, 1}
        1 where a counted sample is correct.
    counted : ndarray (n,), values {0, 1}
        1 where the sample is in the denominator: all for accuracy, the positives for sensitivity.
    groups : ndarray (n,) int64
        Each sample's patient.
    level, n_draws, seed
        See `bootstrap_ci`.

    Raises
    ------
    ValueError
        If no sample is counted, or in half of the draws none is, or the lengths differ.
    """
    hit, in_denominator = np.asarray(hits, np.float64), np.asarray(counted, np.float64)
    if in_denominator.shape != hit.shape:
        raise ValueError(f"hits has the shape {hit.shape}, counted {in_denominator.shape}")
    numbers, _ = checked_groups(groups, len(hits))
    if not in_denominator.any():
        raise ValueError("no sample is counted")

    # Sums over patients give the same draws as their samples, and are fewer.
    sums, sizes = (np.bincount(numbers, weights=one) for one in (hit * in_denominator, in_denominator))

    def share(weights: Floats) -> Floats:
        return _quotient(weights @ sums, weights @ sizes)

    return bootstrap_ci(share, np.arange(len(sums)), level=level, n_draws=n_draws, seed=seed)


def bootstrap_ci(
    statistic: Statistic, groups: Ints, *, level: float = 0.95, n_draws: int = N_DRAWS, seed: int = 0
) -> BootstrapInterval:
    """Return the bias-corrected and accelerated interval of any weighted statistic by bootstrap over patients.

    Parameters
    ----------
    statistic : callable
        Takes weights (b, n) and returns values (b,), NaN where it is undefined.
    groups : ndarray (n,) int64
        Each sample's patient.
    level : float
        Coverage, between 0 and 1.

    Raises
    ------
    ValueError
        If there are fewer than two patients, the statistic is undefined for all samples together or for more than half
        of the draws, or `level` is not between 0 and 1.

    Notes
    -----
    BCa, not percentiles: an AUC near one has a skewed distribution, and percentiles miss the truth more often on one
    side. The acceleration comes from the jackknife over patients, where the statistic without a patient is defined.
    Memory does not grow with the draws.

    References
    ----------
    Efron (1987), Journal of the American Statistical Association 82(397), 171-185.
    """
    quantile = normal_quantile(level)
    numbers, n_patients = checked_groups(groups, len(groups))
    if n_patients < 2:
        raise ValueError(f"a bootstrap over patients needs two patients; there are {n_patients}")
    estimate = float(statistic(np.ones((1, len(numbers))))[0])
    values = drawn_values(statistic, numbers, n_patients, n_draws, seed)
    jackknifed = _jackknifed(statistic, numbers, n_patients)
    return _bca(estimate, values, jackknifed, n_patients, quantile)


def bootstrap_shares_ci(
    hits: Bools, counted: Bools, groups: Ints, *, level: float = 0.95
) -> list[BootstrapInterval | None]:
    """Return the intervals of several proportions, as `bootstrap_share_ci` has them; None where it raises.

    Parameters
    ----------
    hits, counted : ndarray (n, t) bool
        A column for each proportion.
    groups : ndarray (n,) int64
    """
    numbers, n_patients = checked_groups(groups, len(hits))
    if n_patients < 2:
        return [None] * hits.shape[1]
    order = np.argsort(numbers, kind="stable")
    starts = np.searchsorted(numbers[order], np.arange(n_patients))
    sums, sizes = (
        np.add.reduceat(one[order], starts, axis=0, dtype=np.float64) for one in (hits & counted, counted)
    )  # (patients, t)

    def shares(weights: Floats) -> Floats:
        return _quotient(weights @ sums, weights @ sizes)

    patients = np.arange(n_patients)
    estimates, values = shares(np.ones((1, n_patients)))[0], drawn_values(shares, patients, n_patients, N_DRAWS, 0)
    jackknifed = _jackknifed(shares, patients, n_patients)
    found: list[BootstrapInterval | None] = []
    for i, estimate in enumerate(estimates.tolist()):
        try:
            found.append(_bca(estimate, values[:, i], jackknifed[:, i], n_patients, normal_quantile(level)))
        except ValueError:
            found.append(None)
    return found


def _bca(estimate: float, values: Floats, jackknifed: Floats, n_patients: int, quantile: float) -> BootstrapInterval:
    """Return BCa's interval from the values of all draws, and those without one patient; NaN where undefined."""
    if not np.isfinite(estimate):
        raise ValueError("the statistic is undefined for these samples")
    n_draws, defined = len(values), values[~np.isnan(values)]
    n_undefined = n_draws - len(defined)
    if n_undefined > LARGEST_UNDEFINED_SHARE * n_draws:
        raise ValueError(
            f"the statistic is undefined in {n_undefined} of {n_draws} draws of patients: too few patients"
        )
    bias = _bias(defined, estimate)
    acceleration = _acceleration(jackknifed)
    ends = bias + np.array([-quantile, quantile])
    shares = ndtr(bias + ends / np.maximum(1 - acceleration * ends, 0.1))
    low, high = np.quantile(defined, shares).tolist()
    return BootstrapInterval(min(low, estimate), max(high, estimate), n_patients, n_draws, n_undefined)


def reversed_ci(statistic: Statistic, groups: Ints, *, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Return the reversed percentile interval of a weighted statistic whose draws are all too high, or all too low.

    The quantiles of the draws are mirrored at the estimate, which removes the bias of the draws. BCa's interval does not
    cover where the estimate is beyond all draws.

    Raises
    ------
    ValueError
        If there are fewer than two patients, or `level` is not between 0 and 1.

    References
    ----------
    Davison and Hinkley (1997), Bootstrap Methods and their Application, section 5.2.
    """
    numbers, n_patients = checked_groups(groups, len(groups))
    if n_patients < 2:
        raise ValueError(f"a bootstrap over patients needs two patients; there are {n_patients}")
    tail = float(ndtr(-normal_quantile(level)))
    estimate = float(statistic(np.ones((1, len(numbers))))[0])
    low, high = np.quantile(drawn_values(statistic, numbers, n_patients, N_DRAWS, seed), [tail, 1 - tail]).tolist()
    return 2 * estimate - high, 2 * estimate - low


def weighted_auc(positive: Bools, y_score: Floats, patients: Ints | None = None) -> Statistic:
    """Return the ROC AUC (b,) as a function of the samples' weights (b, n); the sorting is done once, here.

    Parameters
    ----------
    positive : ndarray (n,) bool
    y_score : ndarray (n,) float64
    patients : ndarray (n,) int64, optional
        Each sample's patient, 0 upwards; then weights are those of patients, (b, n_patients).

    Returns
    -------
    callable
        Ties count one half; NaN where a class has no weight.
    """
    positives, negatives = np.flatnonzero(positive), np.flatnonzero(~positive)
    positives = positives[np.argsort(y_score[positives], kind="stable")]
    negatives = negatives[np.argsort(y_score[negatives], kind="stable")]
    below, upto = (np.searchsorted(y_score[negatives], y_score[positives], side) for side in ("left", "right"))
    ties = np.flatnonzero(below != upto)
    if patients is not None:
        positives, negatives = patients[positives], patients[negatives]
    rows = max(1, _AREA_NUMBERS // len(y_score))

    def areas(weights: Floats) -> Floats:
        return np.concatenate([of_rows(weights[start : start + rows]) for start in range(0, len(weights), rows)])

    def of_rows(weights: Floats) -> Floats:
        of_positives = weights.take(positives, axis=1)
        beaten = np.zeros((len(weights), len(negatives) + 1))  # the weight of the negatives below each place
        np.cumsum(weights.take(negatives, axis=1), axis=1, out=beaten[:, 1:])
        ordered = np.einsum("ij,ij->i", of_positives, beaten.take(below, axis=1))
        if len(ties):
            equal = beaten.take(upto[ties], axis=1) - beaten.take(below[ties], axis=1)
            ordered += np.einsum("ij,ij->i", of_positives[:, ties], equal) / 2
        return _quotient(ordered, of_positives.sum(axis=1) * beaten[:, -1])

    return areas


def per_patient(y_true: Ints, probabilities: Floats, groups: Ints, how: str = "mean") -> PerPatient:
    """Combine each patient's samples to one: the unit that a clinician decides on.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1
    probabilities : ndarray (n, C) float64
        Rows sum to one.
    groups : ndarray (n,) int64
        Each sample's patient.
    how : "mean" or "max"
        The mean of the probabilities; or the largest: with two classes that of class 1 (one suspicious image is
        enough), with more the largest of each class, scaled to sum to one.

    Returns
    -------
    PerPatient
        In ascending order of the groups.

    Raises
    ------
    ValueError
        If `how` is neither, a patient's images are of different classes where there are more than two (with two the
        patient is of class 1 if any image is), or the shapes differ.
    """
    y_true, probabilities = checked(y_true, probabilities, probabilities.shape[1])
    numbers, n_patients = checked_groups(groups, len(y_true))
    names = np.unique(groups)
    order = np.argsort(numbers, kind="stable")
    starts = np.searchsorted(numbers[order], np.arange(n_patients))
    highest = np.maximum.reduceat(y_true[order], starts)
    lowest = np.minimum.reduceat(y_true[order], starts)
    mixed = np.flatnonzero(highest != lowest)
    if probabilities.shape[1] > 2 and len(mixed):
        raise ValueError(
            f"some patients have images of different classes ({len(mixed)}; first: group {names[mixed[0]]}, classes "
            f"{lowest[mixed[0]]} and {highest[mixed[0]]}). Score images, or make the task binary"
        )
    if how == "mean":
        first = probabilities[order[starts]]  # from which equal probabilities differ by nothing, however many they are
        rest = np.add.reduceat(probabilities[order] - first[numbers[order]], starts)
        joined = first + rest / np.bincount(numbers)[:, None]
    elif how == "max":
        joined = np.maximum.reduceat(probabilities[order], starts)
        if probabilities.shape[1] == 2:
            joined[:, 0] = 1 - joined[:, 1]
        else:
            joined /= joined.sum(axis=1, keepdims=True)
    else:
        raise ValueError(f"how must be 'mean' or 'max', not {how!r}")
    return PerPatient(names.astype(np.int64), highest, joined)


def drawn_values(statistic: Statistic, numbers: Ints, n_patients: int, n_draws: int, seed: int) -> Floats:
    """Return the statistic's values for draws of patients with replacement, in blocks."""
    block = _block_rows(len(numbers))
    if n_draws * n_patients <= _MOST_KEPT:
        keep = _of_many_patients if n_draws * n_patients > _MANY else _of_few_patients
        times = keep(n_patients, n_draws, seed)
        blocks: Iterable[_Times] = (times[start : start + block] for start in range(0, n_draws, block))
    else:
        rng = np.random.default_rng(seed)
        blocks = (_draw(rng, n_patients, min(block, n_draws - start)) for start in range(0, n_draws, block))
    is_each = len(numbers) == n_patients and bool((numbers == np.arange(n_patients)).all())
    return np.concatenate([statistic((times if is_each else times[:, numbers]).astype(np.float64)) for times in blocks])


def _all_draws(n_patients: int, n_draws: int, seed: int) -> _Times:
    """Return how often each patient is drawn; kept, because all metrics and heads have the same draws."""
    rng, rows, times = np.random.default_rng(seed), _block_rows(n_patients), np.empty((n_draws, n_patients), np.uint8)
    for start in range(0, n_draws, rows):
        times[start : start + rows] = _draw(rng, n_patients, min(rows, n_draws - start))
    times.flags.writeable = False
    return times


_of_few_patients = lru_cache(maxsize=2)(_all_draws)
_of_many_patients = lru_cache(maxsize=1)(_all_draws)  # not evicted by the draws of a bin or of a subgroup


def _draw(rng: np.random.Generator, n_patients: int, n_draws: int) -> _Times:
    """Return how often each patient is drawn, (n_draws, n_patients): never 256 times, by any chance that matters."""
    if n_patients >= _COUNTED_ALONE:
        times = np.empty((n_draws, n_patients), np.uint8)
        for row in times:
            row[:] = np.bincount(rng.integers(0, n_patients, n_patients), minlength=n_patients)
        return times
    drawn = rng.integers(0, n_patients, (n_draws, n_patients))
    drawn += np.arange(n_draws)[:, None] * n_patients
    return np.bincount(drawn.ravel(), minlength=n_draws * n_patients).reshape(n_draws, n_patients).astype(np.uint8)


def _quotient(numerators: Floats, denominators: Floats) -> Floats:
    """Return the quotients, NaN where the denominator is zero."""
    found: Floats = np.full(denominators.shape, np.nan)
    np.divide(numerators, denominators, out=found, where=denominators > 0)
    return found


def _block_rows(n: int) -> int:
    return max(1, _BLOCK_BYTES // (8 * n))


def _bias(values: Floats, estimate: float) -> float:
    """Return BCa's bias correction: the distance of the draws' median from the estimate in normal units; ties one half."""
    below = ((values < estimate).sum() + (values == estimate).sum() / 2) / len(values)
    margin = 0.5 / len(values)
    return float(ndtri(np.clip(below, margin, 1 - margin)))


def _jackknifed(statistic: Statistic, numbers: Ints, n_patients: int) -> Floats:
    """Return the statistic's values without each patient.

    With very many patients, over blocks of them: third and second moments of independent patients add up, so blocks
    estimate the same.
    """
    blocks = numbers % min(n_patients, _MOST_JACKKNIFED)
    n_blocks = int(blocks.max()) + 1
    rows = _block_rows(len(numbers))
    return np.concatenate(
        [
            statistic((blocks != np.arange(start, min(start + rows, n_blocks))[:, None]).astype(np.float64))
            for start in range(0, n_blocks, rows)
        ]
    )


def _acceleration(jackknifed: Floats) -> float:
    """Return BCa's acceleration: the skewness of the statistic's jackknife over patients."""
    found = jackknifed[~np.isnan(jackknifed)]
    influence = found.mean() - found if len(found) else found
    squares = float((influence**2).sum())
    return float((influence**3).sum()) / (6 * squares**1.5) if squares > 0 else 0.0
