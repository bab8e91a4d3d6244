"""What a reviewer asks of a run: its head assessed, attributes that embeddings reveal, and labels that may be wrong."""

import numpy as np

from hoarfrost.evaluation import binary_problems
from hoarfrost.evaluation.checks import Floats
from hoarfrost.evaluation.metrics import Decision
from hoarfrost.evaluation.noisy_labels import SuspectLabel, suspect_labels
from hoarfrost.evaluation.operating import primary_decision
from hoarfrost.evaluation.shortcuts import AttributeAudit, audit_shortcuts
from hoarfrost.experiment.assessment import Samples, assess_samples, fix, two_columns
from hoarfrost.experiment.scored import ScoredTask
from hoarfrost.experiment.splits import k_folds
from hoarfrost.experiment.task import Task
from hoarfrost.features.errors import TrainingError
from hoarfrost.runs import Assessment, OutOfFold, Suspects, optimistic
from hoarfrost.training import Fold
from hoarfrost.training.references import LINEAR, LOGISTIC_REGRESSION, fit_references, fitted_rows

N_SUSPECT_FOLDS = 5
MOST_SUSPECTS = 20


def assess(task: ScoredTask, head: str, probabilities: Floats, *, prevalence: float | None = None) -> Assessment:
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
    split, rows = list(task.scored.items())[-1]
    validated, units = task.units(task.validated), task.units(rows)
    fixed = fix(validated.y, validated.joined(probabilities[task.validated]), validated.groups, task.rule)
    attributes = {name: units.values([cells[i] for i in rows]) for name, cells in task.attributes().items()}
    samples = Samples(split, task.names, units, units.joined(probabilities[rows]), attributes)
    found = assess_samples(samples, fixed, head, prevalence=prevalence)
    return optimistic(found) if split == "val" else found


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
        (fit,) = fit_references(task.x, task.y, parts, everyone, everyone[:0], kinds=(LINEAR,))
        probabilities = fit.out_of_fold
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
        two = two_columns(probabilities[rows, number])  # suspect_labels skips rows of NaN
        found += suspect_labels(y, two, words, *places, most=MOST_SUSPECTS, decision=alone)
    return tuple(sorted(found, key=lambda one: -one.margin)[:MOST_SUSPECTS])
