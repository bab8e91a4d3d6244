"""How thresholds are fixed for predictions that come without any: on validated rows, as stated, or cross-fitted."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hoarfrost.evaluation import OperatingPoint, TemperatureFit, binary_problems
from hoarfrost.evaluation.checks import Floats, Ints, class_counts, n_distinct
from hoarfrost.evaluation.metrics import NO_DECISION, Decision, across_folds
from hoarfrost.evaluation.operating import Rule, operating_points
from hoarfrost.experiment.assessment import Fixed, fix
from hoarfrost.experiment.scored import ScoredTask
from hoarfrost.experiment.splits import strata_of_groups
from hoarfrost.external.table import CALL, PROBABILITY, ModelColumn
from hoarfrost.features.errors import TrainingError
from hoarfrost.runs.external import Scale

N_FOLDS = 5
NOT_FITTED = "there are no validated rows to fit it on"
USELESS = "no threshold finds samples of both classes"
CALLS = OperatingPoint("the calls", 0.5, None, None)


def fixed_for(task: ScoredTask, model: ModelColumn, rule: Rule, *, validation: str = "val") -> Fixed:
    """Fix thresholds, and temperatures where there are validated rows, for the predictions of a model.

    Parameters
    ----------
    task : Task
        With the rows to score as its test split, and maybe validated rows.
    model : ModelColumn
    rule : Rule
        Of the primary operating point.
    validation : str
        What the file calls the split of validated rows.

    Raises
    ------
    TrainingError
        If there are too few rows of a class.
    """
    if model.kind == CALL:
        return Fixed({1: (CALLS,)}, Decision((0.5,), CALLS.name), (), {}, ())
    try:
        found = _fixed(task, model, rule)
    except ValueError as error:
        raise TrainingError(f"{task.table.source}: {_unfixed(task, validation, str(error))}") from error
    return found if model.kind == PROBABILITY else replace(found, temperatures=(), prevalences={}, calibrations=())


def _unfixed(task: ScoredTask, validation: str, error: str) -> str:
    """Return why thresholds cannot be fixed, and what can be done."""
    reason, elsewhere = f"thresholds cannot be cross-fitted: {error}", ""
    if len(task.validated):
        counts = class_counts(task.units(task.validated).y, len(task.names))
        lacking = " or ".join(name for name, n in zip(task.names, counts, strict=True) if not n)
        rows = f"the {len(task.validated):,} rows of the split {validation}, which fix thresholds,"
        reason = f"none of {rows} is {lacking}" if lacking else f"{rows} do not suffice: {error}"
        elsewhere = ", name another split with --validation-split"
    return f"{reason}. State a threshold with --operating-point threshold=0.3{elsewhere}, or add rows of this class."


def _fixed(task: ScoredTask, model: ModelColumn, rule: Rule) -> Fixed:
    p, share = model.p, _share(rule, model.scale)
    if len(task.validated):
        units, own = task.units(task.validated), replace(rule, level=share)
        found = fix(units.y, units.joined(p[task.validated]), units.groups, own)
        points = {number: _offered(_renamed(of_class, own, rule)) for number, of_class in found.points.items()}
        is_decided = all(of_class[0].threshold is not None for of_class in points.values())
        decision = replace(found.decision, rule=found.decision.rule.replace(own.name, rule.name))
        return replace(found, points=points, decision=decision if is_decided else NO_DECISION)
    numbers = [number for number, _, _ in binary_problems(task.y, len(task.names))]
    n_fits = len(task.names) if task.is_multilabel else 1
    unfitted = (TemperatureFit(1.0, None, None, at_limit=False, reason=NOT_FITTED),) * n_fits
    if rule.kind == "threshold":
        stated = OperatingPoint(rule.name, share, None, None)
        thresholds = (share,) * len(numbers) if _decides(task) else ()
        decision = Decision(thresholds, rule.name) if thresholds else NO_DECISION
        return Fixed(dict.fromkeys(numbers, (stated,)), decision, unfitted, {}, ())
    return _cross_fitted(task, p, rule, unfitted)


def _decides(task: ScoredTask) -> bool:
    """Return whether thresholds decide; of more than two classes, the most probable one is predicted."""
    return task.is_multilabel or len(task.names) == 2


def _cross_fitted(task: ScoredTask, p: Floats, rule: Rule, fits: tuple[TemperatureFit, ...]) -> Fixed:
    """Judge each sample by thresholds that the other folds chose; state the thresholds that all samples choose."""
    units = task.units(task.rows_of("test"))
    p, y = units.joined(p[task.rows_of("test")]), units.y
    groups = np.arange(len(y)) if units.groups is None else units.groups
    folds = folds_of(y, groups, task.names)
    whole = {number: _offered(points) for number, points in operating_points(y, p, units.groups, rule).items()}
    n_folds = int(folds.max()) + 1
    limits = {number: np.full((n_folds, len(points)), np.nan) for number, points in whole.items()}
    for fold in range(n_folds):
        others = folds != fold
        found = operating_points(y[others], p[others], None if units.groups is None else units.groups[others], rule)
        for number, points in whole.items():
            thresholds = {point.name: point.threshold for point in found[number]}
            own = [thresholds.get(point.name) for point in points]
            limits[number][fold] = [np.nan if one is None else one for one in own]
    reached = {number: _reached(points, limits[number]) for number, points in whole.items()}
    return Fixed(reached, _decision(task, reached, limits, folds), fits, {}, (), limits, folds)


def folds_of(y: Ints, groups: Ints, names: Sequence[str]) -> Ints:
    """Return each sample's fold: groups are dealt out class by class, in a random order, which takes no time."""
    n_folds = _n_folds(y, groups, names)
    units, stratum, _ = strata_of_groups(y, groups, names, n_folds)
    order = np.random.default_rng(0).permutation(len(units))
    fold = np.empty(len(units), np.int64)
    fold[order[np.argsort(stratum[order], kind="stable")]] = np.arange(len(units)) % n_folds
    return fold[np.searchsorted(units, groups)]


def _n_folds(y: Ints, groups: Ints, names: Sequence[str]) -> int:
    """Return five, or fewer where a class has fewer groups."""
    others = [f"not {name}" for name in names] if y.ndim == 2 or len(names) > 2 else [names[0]] * 2
    fewest, name = min(
        (n_distinct(groups[rows][one == value]), names[number] if value else others[number])
        for number, rows, one in binary_problems(y, len(names))
        for value in (0, 1)
    )
    if fewest < 2:
        unit = "row" if n_distinct(groups) == len(groups) else "patient"
        raise ValueError(f"{name} has {fewest} {unit}{'' if fewest == 1 else 's'}, and two are needed")
    return min(N_FOLDS, fewest)


def _share(rule: Rule, scale: Scale | None) -> float:
    """Return the level of a rule; a stated threshold of scores as 0 to 1."""
    if rule.kind != "threshold":
        return rule.level
    low, high = (0.0, 1.0) if scale is None else (scale.low, scale.high)
    if not low < rule.level <= high:
        raise TrainingError(
            f"--operating-point threshold={rule.level:g}: the threshold must be between {low:g} and {high:g}."
        )
    return rule.level if scale is None else scale.share(rule.level)


def _renamed(points: Sequence[OperatingPoint], own: Rule, rule: Rule) -> tuple[OperatingPoint, ...]:
    """Return the points with the name of the rule as it was stated."""
    return tuple(replace(one, name=rule.name) if one.name == own.name else one for one in points)


def _offered(points: "tuple[OperatingPoint, ...]") -> tuple[OperatingPoint, ...]:
    """Return the points, without a threshold where it finds no positive sample, or no negative one."""
    return tuple(
        point
        if point.threshold is None or (point.sensitivity and point.specificity)
        else OperatingPoint(point.name, None, None, None, USELESS, n_cases=point.n_cases)
        for point in points
    )


def _reached(points: "tuple[OperatingPoint, ...]", limits: Floats) -> tuple[OperatingPoint, ...]:
    """Return the points, without a threshold where it is out of reach in a fold."""
    in_all = [not np.isnan(column).any() for column in limits.T]
    reason = "no threshold reaches it in one of the folds"
    return tuple(
        point
        if is_there or point.threshold is None
        else OperatingPoint(point.name, None, None, None, reason, n_cases=point.n_cases)
        for point, is_there in zip(points, in_all, strict=True)
    )


def _decision(
    task: ScoredTask, points: Mapping[int, tuple[OperatingPoint, ...]], limits: Mapping[int, Floats], folds: Ints
) -> Decision:
    if not _decides(task):
        return NO_DECISION
    places = {
        number: next((i for i, point in enumerate(of_class) if point.threshold is not None), None)
        for number, of_class in points.items()
    }
    if any(place is None for place in places.values()):
        return NO_DECISION
    names = dict.fromkeys(points[number][place].name for number, place in places.items() if place is not None)
    columns = np.column_stack([limits[number][:, place] for number, place in places.items()])  # (f, 1) or (f, C)
    how = across_folds(columns[:, 0].tolist()) if columns.shape[1] == 1 else f"cross-fitted in {len(columns)} folds"
    return Decision(rule=f"{' or '.join(names)}, {how}", of_samples=columns[folds])
