"""Calibration of probabilities: temperature scaling, calibration error, slope and intercept."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import expit, log_softmax, logit, softmax, stdtrit

from hoarfrost.evaluation.calibration_curve import CalibrationCurve, calibration_curve
from hoarfrost.evaluation.calibration_error import bin_starts, error_interval, errors, errors_by_chance
from hoarfrost.evaluation.checks import (
    Floats,
    Ints,
    checked,
    checked_binary,
    checked_groups,
    normal_quantile,
)
from hoarfrost.evaluation.estimates import Share
from hoarfrost.evaluation.intervals import RESAMPLED_UNITS
from hoarfrost.evaluation.shares import BOOTSTRAP, share
from hoarfrost.evaluation.units import count_patients, is_repeated, too_few_of_classes, too_few_patients

N_BINS = 10
COLDEST, HOTTEST = 0.05, 20.0
PRIOR_DEVIATION = 0.5
"""Of the logarithm of a temperature, around 0 (simulated; see `fit_temperature`)."""
N_TEMPERATURE_FOLDS = 5
BEYOND_LIMIT = "the best one is beyond 0.05 or 20, so the classes are separated perfectly, or nothing was learnt"
_JUST_INSIDE = 1.001
_SMALLEST = float(np.finfo(np.float32).tiny)  # a softmax in float32 underflows to zero below this
_MOST_STEPS = 100


@dataclass(frozen=True)
class TemperatureFit:
    """A temperature fitted on validation, and the mean cross-entropy (nats) before and after.

    `at_limit` is True if the likelihood is highest beyond the limits: the classes are perfectly separated, or nothing
    was learnt. `reason` states why a temperature was not used; it is 1 then. A head file does not hold the losses: None.
    """

    temperature: float
    loss_before: float | None
    loss_after: float | None
    at_limit: bool
    reason: str = ""


@dataclass(frozen=True)
class Bin:
    """Samples of similar confidence: their mean confidence, and the observed rate."""

    lowest: float
    highest: float
    confidence: float
    observed: Share


@dataclass(frozen=True)
class CalibrationLine:
    """Logistic recalibration of one class's probability.

    With perfect calibration `slope` is 1 and `intercept` (calibration in the large: the slope fixed to 1) is 0. A slope
    below 1 means overconfidence, an intercept above 0 means probabilities that are too low. Intervals are Wald's; where
    patients have several samples, with the variance of sums over patients.
    Undefined figures are None, and `reason` states why; `why_no_interval` does so where there are no intervals.
    """

    slope: float | None
    slope_interval: tuple[float, float] | None
    intercept: float | None
    intercept_interval: tuple[float, float] | None
    reason: str = ""
    why_no_interval: str = ""


@dataclass(frozen=True)
class Calibration:
    """Calibration on one split.

    Attributes
    ----------
    error : float
        Expected calibration error: the mean gap between confidence and observed rate over bins of equal mass.
    error_by_chance : float
        The mean of this error for perfectly calibrated probabilities in these bins: far from zero with few samples.
    bins : tuple of Bin
        Two classes: of the probability of class 1. More: of the highest probability, and whether it is correct.
    lines : tuple of CalibrationLine
        Two classes: that of class 1. More: one per class, against the rest.
    error_interval : (low, high) or None
        Of `error`, by bootstrap over patients or samples; None with too few, and in runs of earlier versions. `low` is
        0 where perfectly calibrated probabilities have such an error by chance.
    error_method : str
        Of this interval, or why there is none.
    curve : CalibrationCurve or None
        Of what the bins are of; None in runs of earlier versions.
    """

    error: float
    error_by_chance: float
    bins: tuple[Bin, ...]
    lines: tuple[CalibrationLine, ...]
    error_interval: tuple[float, float] | None = None
    error_method: str = ""
    curve: CalibrationCurve | None = None


def fit_temperature(y_true: Ints, probabilities: Floats, groups: Ints | None = None) -> TemperatureFit:
    """Fit the temperature that makes probabilities most likely, shrunken towards 1; on validation, never on test.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1
    probabilities : ndarray (n, C) float64
        Rows sum to one.
    groups : ndarray (n,) int64, optional
        Patients; each counts once against the prior, and is in one fold.

    Returns
    -------
    TemperatureFit
        With the temperature 1 and a reason, if the likelihood alone is highest beyond 0.05 or 20, or if the temperature
        does not lower the log loss in five folds.

    Raises
    ------
    ValueError
        If the shapes differ, or a value is out of range.

    Notes
    -----
    The logarithm of T has a normal prior with mean 0 and standard deviation `PRIOR_DEVIATION`. Of eight strengths it had
    the lowest log loss on new samples in a simulation of 6 to 600 samples and true temperatures of 0.5 to 2. With two
    classes a temperature keeps ranks, and so ROC AUC; with more classes it keeps accuracy.

    References
    ----------
    Guo et al. (2017), On Calibration of Modern Neural Networks, ICML.
    """
    y_true, probabilities = checked(y_true, probabilities, probabilities.shape[1])
    numbers, n_groups = checked_groups(np.arange(len(y_true)) if groups is None else groups, len(y_true))
    logits = log_probabilities(probabilities)
    before = _loss_at(0.0, logits, y_true)
    unscaled = TemperatureFit(1.0, before, before, at_limit=False)
    # The loss has one minimum, so it lies beyond a limit if the loss falls towards it.
    for limit, inside in ((COLDEST, COLDEST * _JUST_INSIDE), (HOTTEST, HOTTEST / _JUST_INSIDE)):
        if _loss_at(math.log(limit), logits, y_true) <= _loss_at(math.log(inside), logits, y_true):
            return replace(unscaled, at_limit=True, reason=BEYOND_LIMIT)
    left_out = _loss_in_folds(logits, y_true, numbers, n_groups)
    if not left_out < before:
        why = f"in {N_TEMPERATURE_FOLDS} folds it made the log loss no better ({left_out:.3f} against {before:.3f})"
        return replace(unscaled, reason=why)
    best = _shrunken(logits, y_true, numbers)
    return TemperatureFit(math.exp(best), before, _loss_at(best, logits, y_true), at_limit=False)


def _loss_at(log_temperature: float, logits: Floats, y_true: Ints) -> float:
    found = log_softmax(logits * math.exp(-log_temperature), axis=1)
    return -float(found[np.arange(len(y_true)), y_true].mean())


def _loss_in_folds(logits: Floats, y_true: Ints, numbers: Ints, n_groups: int) -> float:
    """Return the mean loss of samples with the temperature that patients in other folds ask for."""
    # Dealt out by class, so that each fold has cases of all.
    order = np.argsort(np.bincount(numbers, weights=y_true) / np.bincount(numbers), kind="stable")
    folds = np.empty(n_groups, np.int64)
    folds[order] = np.arange(n_groups) % N_TEMPERATURE_FOLDS
    total = 0.0
    for fold in range(min(N_TEMPERATURE_FOLDS, n_groups)):
        held = folds[numbers] == fold
        found = 0.0 if held.all() else _shrunken(logits[~held], y_true[~held], numbers[~held])
        total += _loss_at(found, logits[held], y_true[held]) * int(held.sum())
    return total / len(y_true)


def _shrunken(logits: Floats, y_true: Ints, numbers: Ints) -> float:
    """Return the logarithm of the temperature, shrunken towards zero by the prior."""
    from scipy.optimize import minimize_scalar

    n_groups = len(np.unique(numbers))

    def penalised(log_temperature: float) -> float:
        return _loss_at(log_temperature, logits, y_true) + (log_temperature / PRIOR_DEVIATION) ** 2 / (2 * n_groups)

    limits = (math.log(COLDEST), math.log(HOTTEST))
    return float(minimize_scalar(penalised, bounds=limits, method="bounded", options={"xatol": 1e-8}).x)


def apply_temperature(probabilities: Floats, temperature: float) -> Floats:
    """Return softmax(log p / T), (n, C) float64.

    Parameters
    ----------
    probabilities : ndarray (n, C) float64
    temperature : float
        Above zero; above one it makes probabilities less extreme.

    Raises
    ------
    ValueError
        If the temperature is not a positive number, or a probability is not finite.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if not np.isfinite(probabilities).all():
        raise ValueError("some probabilities are NaN or infinite")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number, not {temperature}")
    scaled: Floats = softmax(log_probabilities(probabilities) / temperature, axis=1)
    return scaled


def at_prevalence(p: Floats, study: float, new: float) -> Floats:
    """Return probabilities of class 1, calibrated where its share is `study`, for a population where it is `new`.

    Parameters
    ----------
    p : ndarray (n,) float64
        In [0, 1].
    study, new : float
        Between 0 and 1.

    Raises
    ------
    ValueError
        If a share is not between 0 and 1.

    Notes
    -----
    The log-odds are shifted by logit(new) - logit(study), which is Bayes' rule. It assumes that images of each class look
    alike in both populations, so that sensitivity and specificity at a threshold on the head's own probability stay.

    References
    ----------
    Saerens, Latinne and Decaestecker (2002), Neural Computation 14(1), 21-41.
    """
    for share_of_class in (study, new):
        if not 0 < share_of_class < 1:
            raise ValueError(f"a prevalence must be between 0 and 1, not {share_of_class}")
    pair = log_probabilities(np.column_stack([1 - p, p]))
    shifted: Floats = expit(pair[:, 1] - pair[:, 0] + logit(new) - logit(study))
    return shifted


def assess_calibration(
    y_true: Ints, probabilities: Floats, groups: Ints | None = None, *, n_bins: int = N_BINS, level: float = 0.95
) -> Calibration:
    """Describe how well probabilities are calibrated.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1
    probabilities : ndarray (n, C) float64
        Rows sum to one.
    groups : ndarray (n,) int64, optional
        Patients, for intervals where some have several samples.
    n_bins : int
        Of equal mass; fewer where there are fewer samples, or ties.
    level : float
        Of all intervals.

    Raises
    ------
    ValueError
        If the shapes differ, or `n_bins` is below one.

    References
    ----------
    Nixon et al. (2019), Measuring Calibration in Deep Learning, CVPR workshops (equal mass). Van Calster et al. (2019),
    BMC Medicine 17, 230 (slope and intercept).
    """
    y_true, probabilities = checked(y_true, probabilities, probabilities.shape[1])
    if n_bins < 1:
        raise ValueError(f"n_bins must be at least 1, not {n_bins}")
    binary = probabilities.shape[1] == 2
    confidence = probabilities[:, 1] if binary else probabilities.max(axis=1)
    hits = y_true if binary else (probabilities.argmax(axis=1) == y_true).astype(np.int64)
    curve = calibration_curve(hits, confidence, groups, level=level)
    order = np.argsort(confidence, kind="stable")
    confidence, hits = confidence[order], hits[order]
    starts = bin_starts(confidence, n_bins)
    classes = [1] if binary else range(probabilities.shape[1])

    n_patients = count_patients(groups) or 0

    def observed(c: Floats, h: Ints, rows: Ints) -> Bin:
        patients = None if groups is None else groups[rows]
        rate = share(h == 1, np.ones(len(h), bool), patients, level=level, n_in_all=n_patients)
        return Bin(float(c[0]), float(c[-1]), float(c.mean()), rate)

    parts = (np.split(one, starts[1:]) for one in (confidence, hits, order))
    error, by_chance = float(errors(confidence, hits[None], starts)[0]), errors_by_chance(confidence, starts)
    units = np.arange(len(hits)) if groups is None else groups[order]
    reason = too_few_patients(units)
    ends = None if reason else error_interval(confidence - hits, starts, units, level)
    if ends is not None and error <= float(np.quantile(by_chance, (1 + level) / 2)):
        ends = 0.0, ends[1]
    return Calibration(
        error=error,
        error_by_chance=float(by_chance.mean()),
        error_interval=ends,
        error_method=reason if ends is None else BOOTSTRAP if is_repeated(units) else RESAMPLED_UNITS,
        bins=tuple(map(observed, *parts)),
        lines=tuple(_line_or_none((y_true == c).astype(np.int64), probabilities[:, c], groups, level) for c in classes),
        curve=curve,
    )


def calibration_line(y_true: Ints, p: Floats, groups: Ints | None = None, *, level: float = 0.95) -> CalibrationLine:
    """Return calibration slope and intercept of one class's probability.

    The slope is None where the classes are perfectly separated, or all probabilities are equal.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values {0, 1}
    p : ndarray (n,) float64
        Probability of class 1, in [0, 1].
    groups : ndarray (n,) int64, optional
        Patients.

    Raises
    ------
    ValueError
        As `roc_auc`; or if a probability is out of range.

    Notes
    -----
    Slope: b of logit P(y = 1) = a + b logit(p), by Newton's method. Intercept: a with b fixed to 1.

    References
    ----------
    Cox (1958), Biometrika 45(3/4), 562-565. Van Calster et al. (2019), BMC Medicine 17, 230. Liang and Zeger (1986),
    Biometrika 73(1), 13-22 (clusters).
    """
    y_true, p = checked_binary(y_true, p)
    if ((p < 0) | (p > 1)).any():
        raise ValueError("p holds values outside 0 to 1")
    numbers, reach, reason = None, normal_quantile(level), too_few_of_classes(y_true, 2, groups)
    if groups is not None and is_repeated(groups):
        numbers, n_groups = checked_groups(groups, len(y_true))
        reach = float(stdtrit(max(n_groups - 1, 1), (1 + level) / 2))  # few patients: the variance is uncertain too
    pair = log_probabilities(np.column_stack([1 - p, p]))
    x = pair[:, 1] - pair[:, 0]
    intercept, deviation = _calibration_in_the_large(y_true, x, numbers)
    ends = None if reason else (intercept - reach * deviation, intercept + reach * deviation)
    without_slope = CalibrationLine(None, None, intercept, ends, why_no_interval=reason)
    if x.min() == x.max():
        return replace(without_slope, reason="no slope: all probabilities are equal")
    ones, zeros = x[y_true == 1], x[y_true == 0]
    if zeros.max() <= ones.min() or ones.max() <= zeros.min():
        return replace(without_slope, reason="no slope: the probabilities separate the classes perfectly")
    found = _slope(y_true, x, numbers)
    if found is None:
        return replace(without_slope, reason="no slope: Newton's method did not converge")
    slope, deviation = found
    ends = None if reason else (slope - reach * deviation, slope + reach * deviation)
    return replace(without_slope, slope=slope, slope_interval=ends)


def _line_or_none(y_true: Ints, p: Floats, groups: Ints | None, level: float) -> CalibrationLine:
    if y_true.min() == y_true.max():
        return CalibrationLine(None, None, None, None, "only one class is present")
    return calibration_line(y_true, np.clip(p, 0, 1), groups, level=level)


def log_probabilities(probabilities: Floats) -> Floats:
    """Return the logarithms of probabilities; of 0 that of the smallest one that float32 has."""
    logs: Floats = np.log(np.maximum(probabilities, _SMALLEST))
    return logs


def _calibration_in_the_large(y_true: Ints, x: Floats, numbers: Ints | None) -> tuple[float, float]:
    """Return the intercept that makes the mean probability the observed share, and its standard error."""
    from scipy.optimize import brentq

    share = float(y_true.mean())
    at = math.log(share / (1 - share))
    low, high = at - float(x.max()), at - float(x.min())
    # The mean of expit(a + x) grows with a, and lies around the share at these two.
    a = low if low == high else float(brentq(lambda a: float(expit(a + x).mean()) - share, low - 1e-9, high + 1e-9))
    return a, math.sqrt(float(_covariance(np.ones((len(x), 1)), y_true, expit(a + x), numbers)[0, 0]))


def _covariance(design: Floats, y_true: Ints, q: Floats, numbers: Ints | None) -> Floats:
    """Return the covariance (k, k) of a logistic regression's coefficients; with patients, of sums over them."""
    information = design.T @ (design * (q * (1 - q))[:, None])
    inverse = np.linalg.inv(np.maximum(information, _SMALLEST) if len(information) == 1 else information)
    if numbers is None:
        return np.asarray(inverse)
    sums = np.stack([np.bincount(numbers, weights=one) for one in (design * (y_true - q)[:, None]).T])  # (k, patients)
    n_groups = sums.shape[1]
    return np.asarray(inverse @ (sums @ sums.T) @ inverse * (n_groups / max(n_groups - 1, 1)))


def _slope(y_true: Ints, x: Floats, numbers: Ints | None) -> tuple[float, float] | None:
    """Return the slope of the logistic regression on x and its standard error; None if it does not converge."""
    centre, scale = float(x.mean()), float(x.std())
    design = np.column_stack([np.ones(len(x)), (x - centre) / scale])
    beta = np.zeros(2)

    def loss(b: Floats) -> float:
        z = design @ b
        return float(np.logaddexp(0, z).sum() - z[y_true == 1].sum())

    for _ in range(_MOST_STEPS):
        q = expit(design @ beta)
        hessian = design.T @ (design * (q * (1 - q))[:, None])
        gradient = design.T @ (q - y_true)
        if float(np.linalg.det(hessian)) < 1e-12 * len(x):
            return None
        step = np.linalg.solve(hessian, gradient)
        before = loss(beta)
        while loss(beta - step) > before + 1e-12 * abs(before) and float(np.abs(step).max()) > 1e-12:
            step /= 2  # the loss is convex: a shorter step lowers it
        beta = beta - step
        if float(np.abs(step).max()) < 1e-10 * (1 + float(np.abs(beta).max())):
            covariance = _covariance(design, y_true, expit(design @ beta), numbers)
            return float(beta[1]) / scale, math.sqrt(float(covariance[1, 1])) / scale
    return None
