"""What is fitted on validation before a head is used: temperature, operating points, conformal scores; and novelty."""

import numpy as np

from hoarfrost.evaluation import binary_problems, choose_thresholds, fit_temperature
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.conformal import ConformalScores, calibrate, calibrate_classes
from hoarfrost.evaluation.novelty import NoveltyReference, fit_novelty
from hoarfrost.evaluation.units import Units, units_of
from hoarfrost.experiment.task import Task
from hoarfrost.heads.files import IMAGE, Validated

MOST_MEASURED = 50_000  # images that novelty is fitted on, and whose distances are kept; more do not change it


def validated_of(task: Task, probabilities: Floats) -> tuple[Validated, ...]:
    """Fit what a head needs in use, from its probabilities (n, C) for all images; only validation images are used.

    Returns
    -------
    tuple of Validated
        For images; and for patients, if they are known and have one class each.
    """
    rows = task.rows_of("val")
    y, n_classes = task.y[rows], len(task.names)
    patients = None if task.patients is None else task.patients[rows]
    found = [_fixed(IMAGE, units_of(y, n_classes, patients), probabilities[rows])]
    if patients is None or task.is_multilabel:
        return tuple(found)
    for how in ("mean", "max"):
        try:
            found.append(_fixed(how, units_of(y, n_classes, patients, how), probabilities[rows]))
        except ValueError:
            continue  # a patient has images of several classes, or all patients have one class
    return tuple(found)


def _fixed(unit: str, units: Units, probabilities: Floats) -> Validated:
    y, p = units.y, units.joined(probabilities)
    groups = units.groups if unit == IMAGE else None
    problems = [(one, p[rows, number]) for number, rows, one in binary_problems(y, p.shape[1])]
    has_points = y.ndim == 2 or p.shape[1] == 2
    points = tuple(choose_thresholds(one, of_class) for one, of_class in problems) if has_points else ()
    if y.ndim == 1:
        temperatures = [fit_temperature(y, p).temperature]
    else:
        temperatures = [fit_temperature(one, np.column_stack([1 - q, q])).temperature for one, q in problems]
    return Validated(unit, len(y), tuple(temperatures), points, calibrate_classes(y, p, groups))


def novelty_of(task: Task) -> tuple[NoveltyReference, ConformalScores]:
    """Describe the training embeddings, and return the distances of validation images, which were not fitted on."""
    train, val = (_at_most(task.rows_of(name)) for name in ("train", "val"))
    reference = fit_novelty(part.cpu().numpy() for _, part in task.x.blocks(train))
    distances = np.empty(len(val))
    for places, part in task.x.blocks(val):
        distances[places] = reference.distances(part.cpu().numpy())
    return reference, calibrate(distances, None if task.patients is None else task.patients[val])


def _at_most(rows: Ints) -> Ints:
    """Return the rows, or evenly spread ones if there are too many."""
    return rows if len(rows) <= MOST_MEASURED else rows[np.linspace(0, len(rows) - 1, MOST_MEASURED).astype(np.int64)]
