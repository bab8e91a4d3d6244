"""The assessment of the selected head: operating points, calibration, net benefit, subgroups, shortcuts, labels."""

from collections.abc import Mapping, Sequence

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
from hoarfrost.evaluation.conformal import COVERAGE, are_covered, calibrate_classes
from hoarfrost.evaluation.metrics import Decision, Sample
from hoarfrost.evaluation.noisy_labels import SuspectLabel, suspect_labels
from hoarfrost.evaluation.operating import operating_points, primary_decision
from hoarfrost.evaluation.shares import share
from hoarfrost.evaluation.shortcuts import AttributeAudit, audit_shortcuts
from hoarfrost.evaluation.subgroup_differences import (
    SubgroupSample,
    calibrate_subgroups,
    heterogeneity,
    subgroup_differences,
)
from hoarfrost.evaluation.units import Units
from hoarfrost.experiment.splits import k_folds
from hoarfrost.experiment.task import Task
from hoarfrost.features.errors import TrainingError
from hoarfrost.runs import Assessment, ClassAssessment, Confusion, FixedPoint, OutOfFold, Recalibration, Suspects
from hoarfrost.training import Fold
from hoarfrost.training.references import LOGISTIC_REGRESSION, fit_references, fitted_rows

N_SUSPECT_FOLDS = 5
MOST_SUSPECTS = 20


def assess(task: Task, head: str, probabilities: Floats, *, prevalence: float | None = None) -> Assessment:
    """Assess a head on the test split, or else on validation; thresholds and temperature are from validated images.

    Parameters
    ----------
    task : Task
    head : str
    probabilities : ndarray (n, C) float64
        For all images.
    prevalence : float, optional
        Prevalence of the positive class, or of each label, where the head will be used.
    """
    places = task.scored
    split = list(places)[-1]
    units = {name: task.units(rows) for name, rows in places.items()}
    p = {name: units[name].joined(probabilities[rows]) for name, rows in places.items()}
    y, groups, val_groups = {name: units[name].y for name in places}, units[split].groups, units["val"].groups
    joint = None
    if not task.is_multilabel:
        joint = _recalibration(fit_temperature(y["val"], p["val"], val_groups), y[split], p[split], groups)
    calibrated = p[split] if joint is None else apply_temperature(p[split], joint.temperature.temperature)
    validated = {number: (rows, one) for number, rows, one in binary_problems(y["val"], len(task.names))}
    chosen = operating_points(y["val"], p["val"], val_groups, task.rule)
    classes = []
    for number, rows, one in binary_problems(y[split], len(task.names)):
        val_rows, val_one = validated[number]
        val_p, found, likely = p["val"][val_rows, number], p[split][rows, number], calibrated[rows, number]
        alone, members = None, None if groups is None else groups[rows]
        if joint is None:
            fit = fit_temperature(val_one, _two_columns(val_p), None if val_groups is None else val_groups[val_rows])
            alone = _recalibration(fit, one, _two_columns(found), members)
            likely = apply_temperature(_two_columns(found), alone.temperature.temperature)[:, 1]
        points = _fixed_points(chosen[number], one, found, members, prevalence)
        likely = np.clip(likely, 0, 1)
        if prevalence is not None:  # probabilities are calibrated for the share of the class among validated images
            likely = at_prevalence(likely, float(val_one.mean()), prevalence)
        benefit = decision_curve(one, likely, groups=members, prevalence=prevalence)
        classes.append(ClassAssessment(task.names[number], len(one), int(one.sum()), points, benefit, alone))
    threshold = classes[0].points[0].point.threshold if len(classes) == 1 else None
    attributes = {
        name: units[split].values([cells[i] for i in places[split]]) for name, cells in task.attributes().items()
    }
    subgroups = score_subgroups(y[split], p[split], attributes, threshold=threshold, groups=groups)
    parts = SubgroupSample(y[split], p[split], attributes, threshold, groups, subgroups)
    return Assessment(
        head,
        split,
        "image" if task.per_patient is None else f"patient, {task.per_patient}",
        tuple(classes),
        joint,
        subgroups,
        _confusion(y[split], p[split], task.decision(probabilities)),
        _held_by_sets(units, p) if split == "test" else None,
        calibrate_subgroups(parts),
        subgroup_differences(parts),
        heterogeneity(parts),
    )


def _confusion(y_true: Ints, p: Floats, decision: Decision) -> Confusion | None:
    """Count the classes that are predicted: by the primary operating point of two, else the most probable ones."""
    if y_true.ndim == 2:
        return None
    counts = confusion_matrix(y_true, Sample(y_true, p, decision).predicted, p.shape[1])
    shares = [[n / sum(row) if sum(row) else None for n in row] for row in counts.tolist()]
    return Confusion(tuple(tuple(row) for row in counts.tolist()), tuple(tuple(row) for row in shares))


def _held_by_sets(units: Mapping[str, Units], p: Mapping[str, Floats]) -> Share:
    """Return the share of test units whose conformal set, calibrated on validated ones, holds the true class."""
    fixed = calibrate_classes(units["val"].y, p["val"], units["val"].groups)
    hits, known = are_covered(units["test"].y, p["test"], fixed, COVERAGE)
    groups = units["test"].groups
    return share(hits, known, None if groups is None else np.repeat(groups, len(hits) // len(groups)))


def _two_columns(p: Floats) -> Floats:
    return np.column_stack([1 - p, p])


def _recalibration(fit: TemperatureFit, y_true: Ints, p: Floats, groups: Ints | None) -> Recalibration:
    after = assess_calibration(y_true, apply_temperature(p, fit.temperature), groups)
    return Recalibration(fit, assess_calibration(y_true, p, groups), after)


def _fixed_points(
    chosen: Sequence[OperatingPoint], y_true: Ints, p: Floats, groups: Ints | None, prevalence: float | None
) -> tuple[FixedPoint, ...]:
    return tuple(
        FixedPoint(
            point,
            None
            if point.threshold is None
            else evaluate_threshold(y_true, p, point.threshold, groups=groups, prevalence=prevalence),
        )
        for point in chosen
    )


# -- the dataset itself -----------------------------------------------------------------------------------------------


def audit(task: Task, seed: int) -> tuple[AttributeAudit, ...]:
    """Check for each attribute whether the embeddings predict it, and whether it is associated with the class."""
    attributes = task.attributes()
    if not attributes:
        return ()
    rows = fitted_rows(task.y, np.arange(len(task.y)))
    columns = {name: [cells[i] for i in rows] for name, cells in attributes.items()}
    return audit_shortcuts(task.embeddings(rows), task.y[rows], task.groups[rows], columns, seed=seed)


def find_suspects(
    task: Task, nested: str, out_of_fold: OutOfFold | None, selected: Floats, seed: int, *, in_test: bool = False
) -> Suspects:
    """List the images whose labels are contradicted by heads that never saw these images.

    Parameters
    ----------
    task : Task
    nested : str
        The name in `out_of_fold` of the predictions by the heads that each fold selected.
    out_of_fold : OutOfFold or None
        The predictions of a cross-validation. If None, logistic regression is cross-validated.
    selected : ndarray (n, C) float64
        The selected head's probabilities for all images. It never saw a given test split, which is in no fold.
    seed : int
        Seed of the folds.
    in_test : bool
        List images of the test split too. Labels that are moved towards predictions make its scores too high.
    """
    if out_of_fold is not None:
        probabilities, source = out_of_fold.probabilities[nested].copy(), f"cross-validation, {nested}"
        left_out = np.flatnonzero((np.array(out_of_fold.folds) < 0) & (task.splits == "test"))
        probabilities[left_out] = selected[left_out]
    elif task.is_cross_fitted:
        probabilities, source = selected, "out-of-fold predictions of the selected head"
    else:
        source = f"{N_SUSPECT_FOLDS}-fold cross-validation of {LOGISTIC_REGRESSION}"
        try:
            folds = k_folds(task.y, task.groups, task.names, N_SUSPECT_FOLDS, seed=seed)
        except TrainingError:
            few = f"a class has patients (or images) for fewer than {N_SUSPECT_FOLDS} folds"
            return Suspects(source, 0, (), few)
        parts = [Fold(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in range(N_SUSPECT_FOLDS)]
        everyone = np.arange(len(task.y))
        fits = fit_references(task.x, task.y, parts, everyone, everyone[:0])
        probabilities = next(fit.out_of_fold for fit in fits if fit.name == LOGISTIC_REGRESSION)
    if not in_test:
        probabilities = np.where((task.splits == "test")[:, None], np.nan, probabilities)
    known = np.isfinite(probabilities).all(axis=1)
    # Single images are judged, by the rule of the run, with a threshold for these predictions.
    decision = primary_decision(task.y[known], probabilities[known], None, task.rule)
    return Suspects(source, int(known.sum()), _suspects(task, probabilities, decision), has_test=in_test)


def _suspects(task: Task, probabilities: Floats, decision: Decision) -> tuple[SuspectLabel, ...]:
    paths, splits = [task.table.paths[i] for i in np.flatnonzero(task.readable)], task.splits.tolist()
    if not task.is_multilabel:
        return suspect_labels(task.y, probabilities, task.names, paths, splits, most=MOST_SUSPECTS, decision=decision)
    found: list[SuspectLabel] = []
    for number, rows, y in binary_problems(task.y, len(task.names)):
        words = (f"no {task.names[number]}", task.names[number])
        places = [paths[i] for i in rows], [splits[i] for i in rows]
        alone = Decision(decision.thresholds[number : number + 1], decision.rule)
        two = _two_columns(probabilities[rows, number])  # suspect_labels skips rows of NaN
        found += suspect_labels(y, two, words, *places, most=MOST_SUSPECTS, decision=alone)
    return tuple(sorted(found, key=lambda one: -one.margin)[:MOST_SUSPECTS])
