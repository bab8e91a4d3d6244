"""Conformal prediction: sets of classes that hold the true one as often as stated. NumPy in and out, knows no files."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation import UNKNOWN

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ROUNDING = 1e-9  # a share such as 0.7 of 10 patients is 7, though in binary it is a little more


@dataclass(frozen=True)
class ConformalScores:
    """Scores of held-out samples, against which those of new ones are held.

    Attributes
    ----------
    scores : ndarray (n,) float64, ascending
        The larger, the less does a sample conform.
    weights : ndarray (n,) float64
        Each sample's share of its patient; those of a patient sum to one.
    """

    scores: Floats
    weights: Floats

    @property
    def n_groups(self) -> int:
        """Count the patients; samples of unknown ones are each for itself."""
        return round(float(self.weights.sum()))

    def quantile(self, coverage: float) -> float:
        """Give the score that a new sample stays at or below with at least this probability.

        Parameters
        ----------
        coverage : float
            Between 0 and 1.

        Returns
        -------
        float
            Infinite where there are too few patients: K of them bear a coverage of at most K / (K + 1).

        Raises
        ------
        ValueError
            If `coverage` is not between 0 and 1.

        Notes
        -----
        The guarantee is exact for any number of patients, if these and the new one are exchangeable; images of
        one patient need not be. With an image a patient it is the usual split conformal quantile, the
        ceil(coverage (n + 1))-th smallest score. With several, each patient weighs 1 / (K + 1), spread evenly over his
        images, and the rest stands at infinity for the new one. It holds on average over patients and
        classes, not for each class, and not where the new images are of another kind.

        References
        ----------
        Vovk, Gammerman and Shafer (2005), Algorithmic Learning in a Random World. Lee, Barber and Willett (2023),
        Distribution-free inference with hierarchical data, arXiv:2306.06342.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must be between 0 and 1, not {coverage}")
        reached = np.cumsum(self.weights) >= coverage * (self.n_groups + 1) - _ROUNDING
        return float(self.scores[np.argmax(reached)]) if reached.any() else float("inf")


def calibrate(scores: Floats, groups: Ints | None = None) -> ConformalScores:
    """Sort the scores of held-out samples, and weigh them by patient.

    Parameters
    ----------
    scores : ndarray (n,) float64
    groups : ndarray (n,) int64, optional
        Each sample's patient; None where each is for itself.

    Raises
    ------
    ValueError
        If a score is NaN, or the arrays do not fit one another.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise ValueError("scores must be (n,) numbers")
    weights = np.ones(len(scores))
    if groups is not None:
        if np.shape(groups) != scores.shape:
            raise ValueError(f"groups has the shape {np.shape(groups)}; there are {len(scores)} scores")
        _, number, counts = np.unique(groups, return_inverse=True, return_counts=True)
        weights = 1 / counts[number]
    order = np.argsort(scores, kind="stable")
    return ConformalScores(scores[order], weights[order])


def calibrate_classes(y_true: Ints, probabilities: Floats, groups: Ints | None = None) -> tuple[ConformalScores, ...]:
    """Calibrate prediction sets on held-out samples.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 1, 0 and -1 where a label is unknown
    probabilities : ndarray (n, C) float64
    groups : ndarray (n,) int64, optional
        Patients.

    Returns
    -------
    tuple of ConformalScores
        One; with several labels an image one a label, of the samples that it is known of.

    Notes
    -----
    The score is one minus the probability of the true class (least ambiguous sets): of all sets with this coverage
    these are the smallest on average, if probabilities are right.

    References
    ----------
    Sadinle, Lei and Wasserman (2019), Journal of the American Statistical Association 114(525), 223-234.
    """
    if y_true.ndim == 1:
        return (calibrate(1 - probabilities[np.arange(len(y_true)), y_true], groups),)
    found = []
    for y, p in zip(y_true.T, probabilities.T, strict=True):
        known = np.flatnonzero(y != UNKNOWN)
        scores = np.where(y[known] == 1, 1 - p[known], p[known])
        found.append(calibrate(scores, None if groups is None else groups[known]))
    return tuple(found)


def prediction_sets(probabilities: Floats, calibrations: tuple[ConformalScores, ...], coverage: float) -> Bools:
    """Give the classes that cannot be excluded.

    Parameters
    ----------
    probabilities : ndarray (n, C) float64
    calibrations : tuple of ConformalScores
        As `calibrate_classes` gives them.
    coverage : float
        Between 0 and 1.

    Returns
    -------
    ndarray (n, C) bool; or with several labels an image (n, C, 2) bool
        Whether each class is in the set; or whether it may be that a label is absent, and present. A set may be
        empty: no class is as probable as the true one is in such a share of the held-out samples. Where these are too
        few, all classes are in all sets.
    """
    if len(calibrations) == 1 and probabilities.shape[1] > 1:
        return 1 - probabilities <= calibrations[0].quantile(coverage)
    limits = np.array([calibration.quantile(coverage) for calibration in calibrations])
    return np.stack([probabilities <= limits, 1 - probabilities <= limits], axis=2)
