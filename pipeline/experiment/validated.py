"""What is fitted on validation before a head is used: temperature, operating points, conformal scores; and novelty."""

import numpy as np

from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.conformal import ConformalScores, calibrate
from hoarfrost.evaluation.novelty import NoveltyReference, fit_novelty
from hoarfrost.evaluation.operating import Rule
from hoarfrost.evaluation.units import Units, units_of
from hoarfrost.experiment.assessment import fix
from hoarfrost.experiment.development import Development
from hoarfrost.experiment.task import Task
from hoarfrost.heads.files import IMAGE, Validated
from hoarfrost.training import Rows

MOST_MEASURED = 50_000  # images that novelty is fitted on, and whose distances are kept; more do not change it


def validated_of(task: Task, probabilities: Floats) -> tuple[Validated, ...]:
    """Fit what a head needs in use, from its probabilities (n, C) for all images; only validated images are used.

    Returns
    -------
    tuple of Validated
        For images; and for patients, if they are known and have one class each.
    """
    rows = task.validated
    y, n_classes = task.y[rows], len(task.names)
    patients = None if task.patients is None else task.patients[rows]
    found = [_fixed(IMAGE, units_of(y, n_classes, patients), probabilities[rows], task.rule)]
    if patients is None or task.is_multilabel:
        return tuple(found)
    for how in ("mean", "max"):
        try:
            found.append(_fixed(how, units_of(y, n_classes, patients, how), probabilities[rows], task.rule))
        except ValueError:
            continue  # a patient has images of several classes, or all patients have one class
    return tuple(found)


def _fixed(unit: str, units: Units, probabilities: Floats, rule: Rule) -> Validated:
    fixed = fix(units.y, units.joined(probabilities), units.groups, rule)
    has_points = units.y.ndim == 2 or probabilities.shape[1] == 2
    return Validated(
        unit,
        len(units.y),
        tuple(fit.temperature for fit in fixed.temperatures),
        tuple(tuple(points) for points in fixed.points.values()) if has_points else (),
        fixed.calibrations,
        prevalences=tuple(fixed.prevalences.values()) if has_points else (),
    )


def novelty_of(task: Task, development: Development, view: str) -> tuple[NoveltyReference, ConformalScores]:
    """Describe the training embeddings of a view; return validated images' distances from those they were not among."""
    x = task.looks.mean([view])
    validated = np.concatenate([_at_most(fold.val, len(development.folds)) for fold in development.folds])
    distances: list[Floats] = []
    for fold in development.folds:
        reference = _novelty(x, fold.train)
        found = np.empty(len(rows := _at_most(fold.val, len(development.folds))))
        for places, part in x.blocks(rows):
            found[places] = reference.distances(part.cpu().numpy())
        distances.append(found)
    if len(development.folds) > 1:
        reference = _novelty(x, development.rows)
    patients = None if task.patients is None else task.patients[validated]
    return reference, calibrate(np.concatenate(distances), patients)


def _novelty(x: Rows, rows: Ints) -> NoveltyReference:
    return fit_novelty(part.cpu().numpy() for _, part in x.blocks(_at_most(rows)))


def _at_most(rows: Ints, n_parts: int = 1) -> Ints:
    """Return the rows, or evenly spread ones if there are too many for one of several parts."""
    most = MOST_MEASURED // n_parts
    return rows if len(rows) <= most else rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
