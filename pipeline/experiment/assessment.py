"""Samples assessed by what was fixed before: operating points, calibration, net benefit, subgroups, prediction sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from hoarfrost.evaluation import (
    OperatingPoint,
    Share,
    TemperatureFit,
    apply_temperature,
    assess_calibration,
    binary_problems,
    confusion_matrix,
    decision_curve,
    evaluate_threshold,
    fit_temperature,
    score_subgroups,
)
from hoarfrost.evaluation.calibration import at_prevalence
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.conformal import COVERAGE, ConformalScores, are_covered, calibrate_classes
from hoarfrost.evaluation.metrics import Decision, Sample
from hoarfrost.evaluation.operating import Rule, operating_points, primary_decision
from hoarfrost.evaluation.shares import share
from hoarfrost.evaluation.subgroup_differences import (
    SubgroupSample,
    calibrate_subgroups,
    heterogeneity,
    subgroup_differences,
)
from hoarfrost.evaluation.units import Units
from hoarfrost.runs import Assessment, ClassAssessment, Confusion, FixedPoint, Recalibration


@dataclass(frozen=True)
class Fixed:
    """What was fixed before samples are scored. Nothing in it depends on these samples.

    Attributes
    ----------
    points : mapping of int to tuple of OperatingPoint
        Of class 1 of two, of each class against the rest, or of each label, by its number.
    decision : Decision
        By the primary operating point.
    temperatures : tuple of TemperatureFit
        One; of several labels one each. Empty for scores that are not probabilities: they are neither calibrated nor
        compared with the probability at which a patient would be treated.
    prevalences : mapping of int to float
        The share of class 1, or of each class or label, for which probabilities are calibrated; empty if it is not known:
        then they are taken to be calibrated for the share among the scored samples.
    calibrations : tuple of ConformalScores
        Empty if there are none.
    limits : mapping of int to ndarray (f, k) float64
        Of cross-fitted thresholds: that of each fold for each operating point, NaN where there is none.
    folds : ndarray (m,) int64 or None
        Of cross-fitted thresholds: the fold of each sample.
    """

    points: Mapping[int, Sequence[OperatingPoint]]
    decision: Decision
    temperatures: tuple[TemperatureFit, ...]
    prevalences: Mapping[int, float]
    calibrations: tuple[ConformalScores, ...]
    limits: Mapping[int, Floats] = field(default_factory=dict)
    folds: Ints | None = None


@dataclass(frozen=True)
class Samples:
    """The units that are scored: `p` are their probabilities (u, C), `attributes` their further columns."""

    split: str
    names: Sequence[str]
    units: Units
    p: Floats
    attributes: Mapping[str, Sequence[str]]


def fix(y: Ints, p: Floats, groups: Ints | None, rule: Rule) -> Fixed:
    """Fix thresholds, temperatures and conformal scores on validated samples.

    Parameters
    ----------
    y : ndarray (n,) int64, values 0 to C-1; or (n, C) int64 of 0, 1 and -1 (unknown)
    p : ndarray (n, C) float64
    groups : ndarray (n,) int64 or None
        Patients.
    rule : Rule
        Of the primary operating point.
    """
    problems = list(binary_problems(y, p.shape[1]))
    if y.ndim == 1:
        fits = [fit_temperature(y, p, groups)]
    else:
        fits = [
            fit_temperature(one, two_columns(p[rows, number]), None if groups is None else groups[rows])
            for number, rows, one in problems
        ]
    return Fixed(
        operating_points(y, p, groups, rule),
        primary_decision(y, p, groups, rule),
        tuple(fits),
        {number: float(one.mean()) for number, _, one in problems},
        calibrate_classes(y, p, groups),
    )


def assess_samples(samples: Samples, fixed: Fixed, head: str, *, prevalence: float | None = None) -> Assessment:
    """Assess a head on some samples. `prevalence` is that of the positive class, or of each label, in use."""
    y, p, groups = samples.units.y, samples.p, samples.units.groups
    is_multilabel, joint = y.ndim == 2, None
    if fixed.temperatures and not is_multilabel:
        joint = _recalibration(fixed.temperatures[0], y, p, groups)
    classes = tuple(_of_class(samples, fixed, number, joint, prevalence) for number in _numbers(samples))
    threshold = _decisive(classes[0].points[0], fixed.folds) if len(classes) == 1 and classes[0].points else None
    subgroups = score_subgroups(y, p, samples.attributes, threshold=threshold, groups=groups)
    parts = SubgroupSample(y, p, samples.attributes, threshold, groups, subgroups)
    has_sets = samples.split == "test" and fixed.calibrations
    return Assessment(
        head,
        samples.split,
        "image" if samples.units.how is None else f"patient, {samples.units.how}",
        classes,
        joint,
        subgroups,
        _confusion(y, p, fixed.decision),
        _held_by_sets(y, p, groups, fixed.calibrations) if has_sets else None,
        calibrate_subgroups(parts) if fixed.temperatures else (),
        subgroup_differences(parts),
        heterogeneity(parts),
    )


def _decisive(first: FixedPoint, folds: Ints | None) -> float | Floats | None:
    """Return the threshold, or each sample's own where they are cross-fitted."""
    return np.array(first.by_fold)[folds] if first.by_fold else first.point.threshold


def _numbers(samples: Samples) -> list[int]:
    return [number for number, _, _ in binary_problems(samples.units.y, len(samples.names))]


def _of_class(
    samples: Samples, fixed: Fixed, number: int, joint: Recalibration | None, prevalence: float | None
) -> ClassAssessment:
    """Assess one class against the rest, or one label; `joint` is the calibration that classes have in common."""
    problems = binary_problems(samples.units.y, len(samples.names))
    rows, one = next((rows, one) for which, rows, one in problems if which == number)
    groups, found = samples.units.groups, samples.p[rows, number]
    members, alone = None if groups is None else groups[rows], None
    folds, chosen = None if fixed.folds is None else fixed.folds[rows], fixed.points.get(number, ())
    points = _fixed_points(chosen, one, found, members, prevalence, fixed.limits.get(number), folds)
    benefit, study = None, None
    if fixed.temperatures:
        if joint is None:
            alone = _recalibration(fixed.temperatures[number], one, two_columns(found), members)
            likely = apply_temperature(two_columns(found), alone.temperature.temperature)[:, 1]
        else:
            likely = apply_temperature(samples.p, joint.temperature.temperature)[rows, number]
        likely = np.clip(likely, 0, 1)
        if prevalence is not None:
            # Probabilities are calibrated for the share of the class among validated images; without these, among the
            # scored ones, which is what an observed calibration of them refers to.
            study = fixed.prevalences.get(number, float(one.mean()))
            likely = at_prevalence(likely, study, prevalence)
        benefit = decision_curve(one, likely, groups=members, prevalence=prevalence)
    return ClassAssessment(samples.names[number], len(one), int(one.sum()), points, benefit, alone, study)


def _confusion(y_true: Ints, p: Floats, decision: Decision) -> Confusion | None:
    """Count the classes that are predicted: by the primary operating point of two, else the most probable ones."""
    if y_true.ndim == 2:
        return None
    counts = confusion_matrix(y_true, Sample(y_true, p, decision).predicted, p.shape[1])
    shares = [[n / sum(row) if sum(row) else None for n in row] for row in counts.tolist()]
    return Confusion(tuple(tuple(row) for row in counts.tolist()), tuple(tuple(row) for row in shares))


def _held_by_sets(y_true: Ints, p: Floats, groups: Ints | None, calibrations: tuple[ConformalScores, ...]) -> Share:
    """Return the share of units whose conformal set, calibrated on validated ones, holds the true class."""
    hits, known = are_covered(y_true, p, calibrations, COVERAGE)
    return share(hits, known, None if groups is None else np.repeat(groups, len(hits) // len(groups)))


def two_columns(p: Floats) -> Floats:
    """Return probabilities (n, 2) from those of class 1 (n,)."""
    return np.column_stack([1 - p, p])


def _recalibration(fit: TemperatureFit, y_true: Ints, p: Floats, groups: Ints | None) -> Recalibration:
    before = assess_calibration(y_true, p, groups)
    if fit.temperature == 1:  # the same probabilities
        return Recalibration(fit, before, before)
    return Recalibration(fit, before, assess_calibration(y_true, apply_temperature(p, fit.temperature), groups))


def _fixed_points(
    chosen: Sequence[OperatingPoint], y_true: Ints, p: Floats, groups: Ints | None, prevalence: float | None,
    limits: Floats | None, folds: Ints | None,
) -> tuple[FixedPoint, ...]:  # fmt: skip
    """Return the result of each threshold; of cross-fitted ones, (f, k) `limits`, by that of each sample's fold."""

    def of_point(place: int, point: OperatingPoint) -> FixedPoint:
        if point.threshold is None:
            return FixedPoint(point, None)
        if limits is None:
            return FixedPoint(
                point, evaluate_threshold(y_true, p, point.threshold, groups=groups, prevalence=prevalence)
            )
        by_fold = limits[:, place]
        is_positive = (p >= by_fold[folds]).astype(np.float64)
        result = evaluate_threshold(y_true, is_positive, 0.5, groups=groups, prevalence=prevalence)
        return FixedPoint(point, replace(result, threshold=None), tuple(by_fold.tolist()))

    return tuple(of_point(place, point) for place, point in enumerate(chosen))
