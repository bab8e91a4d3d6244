"""Conformal prediction: sets of classes that contain the true one as often as stated. NumPy in and out, knows no files."""

from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import UNKNOWN, Bools, Floats, Ints, checked_groups

COVERAGE = 0.9
"""Of prediction sets, where none is stated."""
_ROUNDING = 1e-9  # a share such as 0.7 of 10 patients is 7, although in binary it is slightly more


@dataclass(frozen=True)
class ConformalScores:
    """Scores of held-out samples, with which those of new samples are compared.

    Attributes
    ----------
    scores : ndarray (n,) float64, ascending
        The larger, the more unusual is a sample.
    weights : ndarray (n,) float64
        Each sample's share of its patient; those of a patient sum to one.
    """

    scores: Floats
    weights: Floats

    @property
    def n_groups(self) -> int:
        """The number of patients; a sample of an unknown patient counts as a patient."""
        return round(float(self.weights.sum()))

    def quantile(self, coverage: float) -> float:
        """Return the score that a new sample does not exceed with at least this probability.

        Parameters
        ----------
        coverage : float
            Between 0 and 1.

        Returns
        -------
        float
            Infinite where there are too few patients: K of them allow a coverage of at most K / (K + 1).

        Raises
        ------
        ValueError
            If `coverage` is not between 0 and 1.

        Notes
        -----
        The guarantee is exact for any number of patients, if these and the new one are exchangeable; images of one
        patient need not be. With one image per patient it is the usual split conformal quantile, the
        ceil(coverage (n + 1))-th smallest score. With several, each patient has weight 1 / (K + 1), spread evenly over
        the patient's images, and the rest is at infinity for the new one. It holds on average over patients and
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
    """Return the scores of held-out samples, sorted, with weights by patient.

    Parameters
    ----------
    scores : ndarray (n,) float64
    groups : ndarray (n,) int64, optional
        Each sample's patient; by default each sample has its own.

    Raises
    ------
    ValueError
        If a score is NaN, or the shapes differ.
    """
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or np.isnan(scores).any():
        raise ValueError("scores must be (n,) numbers, none of them NaN")
    weights = np.ones(len(scores))
    if groups is not None:
        numbers, _ = checked_groups(groups, len(scores))
        weights = 1 / np.bincount(numbers)[numbers]
    order = np.argsort(scores, kind="stable")
    return ConformalScores(scores[order], weights[order])


def calibrate_classes(y_true: Ints, probabilities: Floats, groups: Ints | None = None) -> tuple[ConformalScores, ...]:
    """Calibrate prediction sets on held-out samples.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 1, 0 and -1 (unknown)
    probabilities : ndarray (n, C) float64
    groups : ndarray (n,) int64, optional
        Patients.

    Returns
    -------
    tuple of ConformalScores
        One; in a multi-label task one per label, of the samples for which it is known.

    Notes
    -----
    The score is one minus the probability of the true class (least ambiguous sets): of all sets with this coverage
    these are the smallest on average, if probabilities are correct.

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


def are_covered(
    y_true: Ints, probabilities: Floats, calibrations: tuple[ConformalScores, ...], coverage: float
) -> tuple[Bools, Bools]:
    """Return whether the sets hold the true class, and which of the answers are known, each (n,) or (n * C,) bool.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 1, 0 and -1 (unknown)
    probabilities, calibrations, coverage
        See `prediction_sets`.
    """
    sets = prediction_sets(probabilities, calibrations, coverage)
    if y_true.ndim == 1:
        return sets[np.arange(len(y_true)), y_true], np.ones(len(y_true), bool)
    hits = np.take_along_axis(sets, np.maximum(y_true, 0)[:, :, None], axis=2)[:, :, 0]
    return hits.ravel(), (y_true != UNKNOWN).ravel()


def prediction_sets(probabilities: Floats, calibrations: tuple[ConformalScores, ...], coverage: float) -> Bools:
    """Return the classes that cannot be excluded.

    Parameters
    ----------
    probabilities : ndarray (n, C) float64
    calibrations : tuple of ConformalScores
        From `calibrate_classes`.
    coverage : float
        Between 0 and 1.

    Returns
    -------
    ndarray (n, C) bool; in a multi-label task (n, C, 2) bool
        Whether each class is in the set; or whether each label may be absent, and may be present. A set may be empty: no
        class is as probable as the true one is in this share of the held-out samples. With too few of these, all sets
        have all classes.
    """
    if len(calibrations) == 1 and probabilities.shape[1] > 1:
        return 1 - probabilities <= calibrations[0].quantile(coverage)
    limits = np.array([calibration.quantile(coverage) for calibration in calibrations])
    return np.stack([probabilities <= limits, 1 - probabilities <= limits], axis=2)
