"""How much results depend on which samples were learned from: areas and probabilities over random splits."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.intervals import NEWCOMBE, by_logit, of_perfect_areas, variance_inflation
from hoarfrost.evaluation.metrics import Decision, Sample

FEWEST_SPLITS = 2  # of which a sample's probability is known, to say how much it varies


@dataclass(frozen=True)
class Instability:
    """How much single predictions vary between heads that learned from different samples.

    Attributes
    ----------
    n : int
        Samples that the heads of at least two splits predicted.
    n_splits : int
        For how many splits a sample was predicted, the median.
    spread : float
        Mean over samples of the standard deviation of the probability of the true class, or of each label.
    most_spread : float
        The 95th percentile of these standard deviations.
    difference : float
        Mean absolute difference from the probability that the run itself predicted ("MAPE").
    changed : float
        Mean over samples of the share of splits in which another class is predicted than by the run itself ("CII"); with
        several labels the mean over labels.

    References
    ----------
    Riley and Collins (2023), Stability of clinical prediction models developed using statistical or machine learning
    methods, Biometrical Journal 65(8), 2200302.
    """

    n: int
    n_splits: int
    spread: float
    most_spread: float
    difference: float
    changed: float


def mean_over_splits(
    areas: Sequence[float], influences: Floats, y_true: Ints, groups: Ints | None, n_parts: int, *, level: float = 0.95
) -> Estimate:
    """Return the mean (macro) ROC AUC over random splits, with an interval of the average area of such heads.

    Parameters
    ----------
    areas : sequence of float
        The area on what each split held out.
    influences : ndarray (R, n) float64
        Each sample's influence on the area of each split, see `auc_influence`; 0 where it was not held out.
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    groups : ndarray (n,) int64 or None
        Patients, whose samples are summed.
    n_parts : int
        A split holds out one in so many.

    Returns
    -------
    Estimate
        As `hoarfrost.evaluation.intervals.pooled_area`: samples are in many training sets and in several held-out parts, so
        more splits make the mean steadier, but do not tell more of new samples.

    Notes
    -----
    In simulations of ridge regression it covers in 94 to 99% (`statistics.splits_coverage`), where Student's t interval
    with Nadeau and Bengio's variance of the areas covers in 83 to 93%.
    """
    centre, total = float(np.mean(areas)), influences.mean(axis=0)
    was_held_out = influences.any(axis=0)
    n_patients = None if groups is None else len(np.unique(groups[was_held_out]))
    plain = Estimate(centre, None, None, n=int(was_held_out.sum()), n_patients=n_patients)
    inflation = variance_inflation(n_parts)
    if 0 < centre < 1:
        return by_logit(plain, total, groups, inflation, level=level)
    truth = np.eye(int(y_true.max()) + 1)[y_true] if y_true.ndim == 1 else y_true.astype(np.float64)
    low, high = of_perfect_areas(y_true, truth if centre else -truth, groups, level, inflation)
    return replace(plain, n=len(y_true), low=low, high=high, method=NEWCOMBE)


def instability(y_true: Ints, of_run: Floats, of_splits: Floats, decision: Decision) -> Instability | None:
    """Describe how much the predictions of single samples vary between splits.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    of_run : ndarray (n, C) float64
        The run's own probabilities, by heads that did not learn from the sample.
    of_splits : ndarray (R, n, C) float64
        Those of each split's heads; NaN for what they learned from.
    decision : Decision
        How the run predicts a class.

    Returns
    -------
    Instability or None
        None where no sample was predicted for two splits.
    """
    known = np.isfinite(of_splits[:, :, 0])  # (R, n)
    rows = np.flatnonzero((known.sum(0) >= FEWEST_SPLITS) & np.isfinite(of_run).all(1))
    if not len(rows):
        return None
    known, y, own, fixed = known[:, rows], y_true[rows], of_run[rows], decision.drawn(rows)
    predicted, shown, counts = Sample(y, own, fixed).predicted, watched(y, own), known.sum(0)
    differences, sums, squares = (np.zeros(shown.shape) for _ in range(3))
    n_changed = np.zeros(len(rows))
    for places, probabilities in zip(known, of_splits, strict=True):
        found = np.where(places[:, None], probabilities[rows], own)
        change = watched(y, found) - shown  # none where the split's heads learned from the sample
        differences += np.abs(change)
        sums += change
        squares += change**2
        n_changed += (Sample(y, found, fixed).predicted != predicted).reshape(len(rows), -1).mean(1)
    times = counts[:, None]
    spreads = np.sqrt(np.maximum(squares - sums**2 / times, 0) / (times - 1)).mean(1)
    return Instability(
        len(rows), int(np.median(counts)), float(spreads.mean()), float(np.quantile(spreads, 0.95)),
        float((differences / times).mean()), float((n_changed / counts).mean()),
    )  # fmt: skip


def watched(y_true: Ints, probabilities: Floats) -> Floats:
    """Return the probabilities whose changes are looked at, (n, 1) or (n, C): of the true class, or of each label."""
    if y_true.ndim == 2:
        return probabilities
    return np.take_along_axis(probabilities, y_true[:, None], axis=1)
