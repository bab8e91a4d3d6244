"""A head's probabilities updated to a cohort by its own labels, in folds: what that would bring, beside the frozen ones."""

from collections.abc import Iterator, Mapping

import numpy as np

from hoarfrost.evaluation import apply_temperature, binary_problems
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.updating import Updating, compare_updates, too_few
from hoarfrost.experiment.assessment import Fixed, two_columns
from hoarfrost.experiment.scored import ScoredTask
from hoarfrost.external.thresholds import folds_of


def updates_of(task: ScoredTask, p: Floats, fixed: Fixed, prevalence: float | None) -> tuple[Updating, ...]:
    """Compare the frozen probabilities of a cohort with updated ones, cross-validated by patient.

    Parameters
    ----------
    task : Task
        With the cohort as its test split.
    p : ndarray (n, C) float64
    fixed : Fixed
        With the temperatures, which are applied first; without these, scores are not probabilities.
    prevalence : float or None
        Of the positive class where the head will be used, if it was stated.

    Returns
    -------
    tuple of Updating
        One; of several labels one each; none for scores that are not probabilities.
    """
    if not fixed.temperatures:
        return ()
    units = task.units(task.rows_of("test"))
    p = units.joined(p[task.rows_of("test")])
    groups = units.groups
    if not task.is_multilabel:
        scaled = apply_temperature(p, fixed.temperatures[0].temperature)
        return (_updating("", task.names, units.y, scaled, groups, _shares(fixed.prevalences, task.names), prevalence),)
    return tuple(_of_labels(task, units.y, p, groups, fixed, prevalence))


def _of_labels(
    task: ScoredTask, y: Ints, p: Floats, groups: Ints | None, fixed: Fixed, prevalence: float | None
) -> Iterator[Updating]:
    for number, rows, one in binary_problems(y, len(task.names)):
        scaled = apply_temperature(two_columns(p[rows, number]), fixed.temperatures[number].temperature)
        share = fixed.prevalences.get(number)
        name = task.names[number]
        learnt = None if share is None else (1 - share, share)
        members = None if groups is None else groups[rows]
        yield _updating(name, (f"without {name}", name), one, scaled, members, learnt, prevalence)


def _shares(prevalences: Mapping[int, float], names: tuple[str, ...]) -> tuple[float, ...] | None:
    """Return the share of each class where the head learned; None if it is not known, or a class was missing."""
    known = {0: 1 - prevalences[1], **prevalences} if len(names) == 2 and 1 in prevalences else dict(prevalences)
    if not all(known.get(number, 0.0) > 0 for number in range(len(names))):
        return None
    return tuple(known[number] for number in range(len(names)))


def _updating(
    name: str, names: tuple[str, ...], y: Ints, p: Floats, groups: Ints | None, learnt: tuple[float, ...] | None,
    prevalence: float | None,
) -> Updating:  # fmt: skip
    shown = names if len(names) > 2 else names[1:]
    reason = too_few(y, groups, names)
    if reason:
        return Updating(name, shown, 0, reason=reason)
    members = np.arange(len(y)) if groups is None else groups
    folds = folds_of(y, members, names)
    stated = (1 - prevalence, prevalence) if prevalence is not None and len(names) == 2 else None
    found = compare_updates(y, p, folds, groups, learnt=learnt, stated=stated)
    return Updating(name, shown, int(folds.max()) + 1, found)
