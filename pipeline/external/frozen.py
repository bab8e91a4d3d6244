"""What a saved head brings along, so that nothing is fitted on a cohort: thresholds, temperatures, conformal scores."""

from collections.abc import Sequence

import numpy as np

from hoarfrost.evaluation import OperatingPoint, TemperatureFit
from hoarfrost.evaluation.metrics import NO_DECISION, Decision
from hoarfrost.evaluation.operating import Rule, operating_points
from hoarfrost.evaluation.units import Units, patient_numbers, units_of
from hoarfrost.experiment.assessment import Fixed
from hoarfrost.heads.files import IMAGE, SavedHead
from hoarfrost.runs import Run

EVEN = Rule("threshold", 0.5)


def frozen_of(head: SavedHead, run: Run | None) -> Fixed:
    """Return what validation fixed for a head, for what it scores: images, or patients.

    A head file has no thresholds of more than two classes: these are chosen on the run's own predictions of validated
    images, or without the run are 0.5.
    """
    unit = head.per_patient or IMAGE
    validated = next(one for one in head.validated if one.unit == unit)
    is_binary = len(head.names) == 2 and not head.is_multilabel
    numbers = (1,) if is_binary else range(len(head.names))
    points = dict(zip(numbers, validated.points, strict=True)) if validated.points else _of_classes(head, run)
    return Fixed(
        points,
        _decision(validated.points),
        tuple(_fit(temperature, run, head.name) for temperature in validated.temperatures),
        dict(zip(numbers, validated.prevalences, strict=False)),
        validated.calibrations,
    )


def _decision(points: Sequence[Sequence[OperatingPoint]]) -> Decision:
    """Return the decision by the primary points; the most probable class where there are none."""
    primary = [of_class[0] for of_class in points]
    if not primary:
        return NO_DECISION
    thresholds = tuple(point.threshold for point in primary if point.threshold is not None)
    return Decision(thresholds, " or ".join(dict.fromkeys(point.name for point in primary)))


def _fit(temperature: float, run: Run | None, head: str) -> TemperatureFit:
    """Return the run's own record of a temperature, which has the losses and the reason; a head file has the number."""
    assessed = None if run is None or run.assessment is None or run.assessment.head != head else run.assessment
    own = [] if assessed is None else [assessed.calibration, *(one.calibration for one in assessed.classes)]
    recorded = (one.temperature for one in own if one is not None)
    return next(
        (one for one in recorded if one.temperature == temperature), TemperatureFit(temperature, None, None, False)
    )


def _of_classes(head: SavedHead, run: Run | None) -> dict[int, tuple[OperatingPoint, ...]]:
    """Return operating points of each of more than two classes against the rest."""
    if run is None:
        even = (OperatingPoint(EVEN.name, EVEN.level, None, None),)
        return dict.fromkeys(range(len(head.names)), even)
    rows = run.rows_of("val")
    units = run_units(run, rows)
    p = units.joined(run.predictions.probabilities[head.name][rows])
    return operating_points(units.y, p, units.groups, Rule.parse(run.config.operating_point))


def run_units(run: Run, rows: "np.typing.NDArray[np.int64]") -> Units:
    """Return what the metrics of some rows of a run count."""
    patients = None
    if run.config.dataset.n_patients is not None:
        patients = patient_numbers([run.predictions.patients[i] for i in rows])
    n_classes = next(iter(run.predictions.probabilities.values())).shape[1]
    return units_of(run.y_true()[rows], n_classes, patients, run.config.per_patient)
