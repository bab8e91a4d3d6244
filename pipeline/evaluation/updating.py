"""A model updated to a new cohort: other intercepts, another slope, another prevalence; judged on patients left out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import softmax

from hoarfrost.evaluation.calibration import CalibrationLine, calibration_line, log_probabilities
from hoarfrost.evaluation.calibration_error import bin_starts, errors
from hoarfrost.evaluation.checks import Floats, Ints, checked, n_distinct
from hoarfrost.evaluation.decision import decision_curve
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.intervals import difference

FROZEN, INTERCEPT, SLOPE, PRIOR = "frozen", "intercept", "slope and intercept", "prior shift"
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""The probabilities at which net benefits are compared."""
FEWEST = 20
"""Patients of each class that an update needs. With five folds, 16 of them fit it."""
N_BINS = 10
_MOST_STEPS = 60
_MOST_ROUNDS = 1_000  # of expectation and maximisation
_LEAST = 1e-6  # a prevalence
_EQUAL = 1e-9  # of log-odds


@dataclass(frozen=True)
class UpdatedScores:
    """Probabilities as the head has them, or updated by other folds, and how good they are on the cohort.

    Attributes
    ----------
    method : str
        "frozen", "intercept", "slope and intercept" or "prior shift".
    loss, brier, calibration_error : float or None
        None if the update could not be fitted, for `reason`.
    lines : tuple of CalibrationLine
        Of class 1 of two; else of each class against the rest.
    net_benefit : tuple of tuple of float
        Of these classes at `THRESHOLDS`; None where a class is missing.
    difference : Estimate or None
        The log loss minus that of the frozen probabilities, on the same samples: below zero, the update is better.
    slope : float
        Fitted on the whole cohort: log p is multiplied by it.
    shifts : tuple of float
        Fitted on the whole cohort: what is added to log p of each class. That of the first class is 0.
    reason : str
    """

    method: str
    loss: float | None = None
    brier: float | None = None
    calibration_error: float | None = None
    lines: tuple[CalibrationLine, ...] = ()
    net_benefit: tuple[tuple[float, ...], ...] = ()
    difference: Estimate | None = None
    slope: float = 1.0
    shifts: tuple[float, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Updating:
    """What updates of a head's probabilities would bring on a cohort, the frozen ones first.

    `name` is that of a label, where images may have several; else empty. `names` are the classes of `lines`.
    """

    name: str
    names: tuple[str, ...]
    n_folds: int
    methods: tuple[UpdatedScores, ...] = ()
    reason: str = ""


Update = tuple[float, Floats]
"""A slope, and the shift of each class (C,)."""


def compare_updates(
    y_true: Ints, probabilities: Floats, folds: Ints, groups: Ints | None,
    *, learnt: Sequence[float] | None, stated: Sequence[float] | None = None,
) -> tuple[UpdatedScores, ...]:  # fmt: skip
    """Return how good a head's probabilities are, frozen and updated: each sample by an update that other folds fitted.

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1, all in each fold
    probabilities : ndarray (n, C) float64
        As the head has them.
    folds : ndarray (n,) int64
        A patient's samples are in one fold.
    groups : ndarray (n,) int64 or None
        Patients.
    learnt : sequence of C floats, optional
        The share of each class for which the probabilities are calibrated; without it there is no prior shift.
    stated : sequence of C floats, optional
        The shares in use, if they are known. Else they are estimated, without labels.

    Raises
    ------
    ValueError
        If the shapes differ, or a value is out of range.

    Notes
    -----
    An update turns p into softmax(slope log p + shifts). With two classes these are Cox's: logit p' = a + b logit p. With
    more there is one slope, and an intercept of each class but the first (temperature scaling with bias). They are fitted by
    maximum likelihood. Prior shift multiplies p by the ratio of the classes' shares here and where the head learned. The
    shares here have the highest likelihood of the probabilities alone: the fixed point of Saerens et al.'s iteration.

    References
    ----------
    Cox (1958), Biometrika 45(3/4), 562-565. Janssen et al. (2008), Journal of Clinical Epidemiology 61(1), 76-86. Saerens,
    Latinne and Decaestecker (2002), Neural Computation 14(1), 21-41.
    """
    y_true, probabilities = checked(y_true, probabilities, probabilities.shape[1])
    logs = log_probabilities(probabilities)

    def shifted(rows: Ints) -> Update:
        assert learnt is not None
        shares = estimated_shares(probabilities[rows], learnt) if stated is None else np.asarray(stated, np.float64)
        shift = np.log(shares / np.asarray(learnt))
        return 1.0, shift - shift[0]

    fits: dict[str, Callable[[Ints], Update]] = {
        INTERCEPT: lambda rows: fitted_update(y_true[rows], logs[rows], with_slope=False),
        SLOPE: lambda rows: fitted_update(y_true[rows], logs[rows], with_slope=True),
    }
    frozen = _scored(FROZEN, y_true, probabilities, groups)
    own = _losses(y_true, logs)
    found = [frozen, *(_updated(name, fit, y_true, logs, folds, groups, own) for name, fit in fits.items())]
    if learnt is None:
        return *found, UpdatedScores(PRIOR, reason="the prevalence where the head learned is not known")
    return *found, _updated(PRIOR, shifted, y_true, logs, folds, groups, own)


def _updated(
    method: str,
    fit: Callable[[Ints], Update],
    y_true: Ints,
    logs: Floats,
    folds: Ints,
    groups: Ints | None,
    own: Floats,
) -> UpdatedScores:
    """Score an update on the folds that did not fit it, and fit it once more on all."""
    p = np.empty_like(logs)
    try:
        for fold in np.unique(folds):
            held = folds == fold
            slope, shifts = fit(np.flatnonzero(~held))
            p[held] = softmax(slope * logs[held] + shifts, axis=1)
        slope, shifts = fit(np.arange(len(y_true)))
    except ValueError as error:
        return UpdatedScores(method, reason=str(error))
    gained = _losses(y_true, log_probabilities(p)) - own
    value = float(gained.mean())
    apart = difference(value, (gained - value) / len(gained), groups, level=0.95)[0]
    found = _scored(method, y_true, p, groups)
    return replace(found, difference=apart, slope=float(slope), shifts=tuple(shifts.tolist()))


def _losses(y_true: Ints, logs: Floats) -> Floats:
    """Return each sample's cross-entropy, in nats."""
    found: Floats = -logs[np.arange(len(y_true)), y_true]
    return found


def _scored(method: str, y_true: Ints, p: Floats, groups: Ints | None) -> UpdatedScores:
    n_classes, binary = p.shape[1], p.shape[1] == 2
    confidence = p[:, 1] if binary else p.max(axis=1)
    hits = y_true if binary else (p.argmax(axis=1) == y_true).astype(np.int64)
    order = np.argsort(confidence, kind="stable")
    starts = bin_starts(confidence[order], N_BINS)
    squares = ((p - (y_true[:, None] == np.arange(n_classes))) ** 2).sum(axis=1)
    problems = [((y_true == c).astype(np.int64), np.clip(p[:, c], 0, 1)) for c in ([1] if binary else range(n_classes))]
    return UpdatedScores(
        method,
        float(_losses(y_true, log_probabilities(p)).mean()),
        float(squares.mean() / (2 if binary else 1)),
        float(errors(confidence[order], hits[order][None], starts)[0]),
        tuple(calibration_line(y, likely, groups) for y, likely in problems),
        tuple(decision_curve(y, likely, thresholds=np.array(THRESHOLDS)).net_benefit for y, likely in problems),
    )


def fitted_update(y_true: Ints, logs: Floats, *, with_slope: bool) -> Update:
    """Return the update with the highest likelihood: its slope, 1 unless `with_slope`, and the shifts (C,).

    Parameters
    ----------
    y_true : ndarray (n,) int64, values 0 to C-1
    logs : ndarray (n, C) float64
        Logarithms of probabilities.

    Raises
    ------
    ValueError
        If a class is missing, or no slope is the most likely one: the probabilities separate the classes, or are equal.
    """
    n_classes = logs.shape[1]
    if len(np.unique(y_true)) < n_classes:
        raise ValueError("a class is missing in some folds")
    x = np.ascontiguousarray((logs - logs[:, :1]).T)  # (C, n): sums over few classes are fast along rows
    truth = (y_true == np.arange(n_classes)[:, None]).astype(np.float64)
    at = np.concatenate([[1.0], np.zeros(n_classes - 1)])  # the slope, and the shifts but the first
    free = slice(0 if with_slope else 1, None)

    def loss_at(point: Floats) -> float:
        scores = _shifted(point, x)
        return float((np.logaddexp.reduce(scores, axis=0) - (scores * truth).sum(axis=0)).mean())

    now = loss_at(at)
    for _ in range(_MOST_STEPS):
        gradient, hessian = _derivatives(at, x, truth)
        gradient, hessian = gradient[free], hessian[free, free]
        if float(np.linalg.eigvalsh(hessian)[0]) < 1e-12:
            break
        step = np.zeros_like(at)
        step[free] = np.linalg.solve(hessian, gradient)
        while (after := loss_at(at - step)) > now + 1e-12 * abs(now) and float(np.abs(step).max()) > 1e-12:
            step /= 2  # the loss is convex: a shorter step lowers it
        at, now = at - step, after
        if float(np.abs(step).max()) < 1e-9 * (1 + float(np.abs(at).max())):
            return float(at[0]), np.append(0, at[1:])
    if np.ptp(x, axis=1).max() < _EQUAL:
        raise ValueError("no slope: all probabilities are equal")
    raise ValueError("the probabilities separate the classes in some folds, so that no slope or intercept is the best")


def _shifted(at: Floats, x: Floats) -> Floats:
    found: Floats = at[0] * x + np.append(0, at[1:])[:, None]
    return found


def _derivatives(at: Floats, x: Floats, truth: Floats) -> tuple[Floats, Floats]:
    """Return the gradient (C,) of the mean loss by the slope and the shifts but the first, and its Hessian (C, C)."""
    n_classes, n = x.shape
    q = softmax(_shifted(at, x), axis=0)
    weighted = q * x
    expected = weighted.sum(axis=0)
    gradient = np.append(((q - truth) * x).sum(), (q - truth)[1:].sum(axis=1)) / n
    hessian = np.empty((n_classes, n_classes))
    hessian[0, 0] = float((weighted * x).sum() - (expected**2).sum()) / n
    hessian[0, 1:] = hessian[1:, 0] = (weighted - q * expected)[1:].sum(axis=1) / n
    hessian[1:, 1:] = (np.diag(q.sum(axis=1)) - q @ q.T)[1:, 1:] / n
    return gradient, hessian


def estimated_shares(probabilities: Floats, learnt: Sequence[float]) -> Floats:
    """Return the most likely share of each class (C,), from probabilities that are calibrated for the shares `learnt`.

    No labels are used. See `compare_updates`.

    Parameters
    ----------
    probabilities : ndarray (n, C) float64
    learnt : sequence of C floats, above zero
    """
    from scipy.optimize import brentq

    ratios = probabilities / np.asarray(learnt, np.float64)
    if ratios.shape[1] == 2:

        def slope_at(share: float) -> float:
            return float(((ratios[:, 1] - ratios[:, 0]) / (share * ratios[:, 1] + (1 - share) * ratios[:, 0])).mean())

        # The likelihood has one maximum: at a limit, or where its slope is zero.
        if slope_at(_LEAST) <= 0 or slope_at(1 - _LEAST) >= 0:
            share = _LEAST if slope_at(_LEAST) <= 0 else 1 - _LEAST
        else:
            share = float(brentq(slope_at, _LEAST, 1 - _LEAST, xtol=1e-10))
        return np.array([1 - share, share])
    shares = np.asarray(learnt, np.float64) / np.sum(learnt)
    for _ in range(_MOST_ROUNDS):
        weighted = shares * ratios
        again = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
        if float(np.abs(again - shares).max()) < 1e-8:
            break
        shares = again
    return np.asarray(np.maximum(again, _LEAST) / np.maximum(again, _LEAST).sum())


def too_few(y_true: Ints, groups: Ints | None, names: Sequence[str]) -> str:
    """Return why classes have too few patients, or samples, for an update; empty if there are enough."""
    units = np.arange(len(y_true)) if groups is None else groups
    counts = [(n_distinct(units[y_true == c]), name) for c, name in enumerate(names)]
    n, name = min(counts)
    unit = f"{'sample' if groups is None else 'patient'}{'s' * (n != 1)}"
    return f"{name} has {n} {unit}, and {FEWEST} of each class are needed" if n < FEWEST else ""
