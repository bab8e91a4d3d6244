"""The figures of a run, computed again from its predictions, its head files and what validation fixed."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from hoarfrost.evaluation import Comparison
from hoarfrost.evaluation.checks import Floats
from hoarfrost.experiment.assessment import Fixed
from hoarfrost.experiment.crossval import compared_by_folds
from hoarfrost.experiment.review import assess
from hoarfrost.experiment.scored import ScoredTask, compared
from hoarfrost.external.drops import drops_of
from hoarfrost.external.evaluation import assessed, bare_result, scored
from hoarfrost.external.frozen import frozen_of
from hoarfrost.external.predictions import OF_PROBABILITIES, kept_scores
from hoarfrost.external.table import CALL, PROBABILITY, SCORE, ModelColumn
from hoarfrost.external.thresholds import CALLS, fixed_for
from hoarfrost.external.updating import updates_of
from hoarfrost.heads.files import SavedHead
from hoarfrost.replay.findings import RETRAIN, Findings
from hoarfrost.replay.rebuilding import of_file
from hoarfrost.runs import Drop, HeadResult, Run, heads_marked, read_run
from hoarfrost.runs.external import ALL

OF_COLUMNS = tuple(
    f"assessment.{part}" for part in ("subgroups", "subgroup_calibration", "subgroup_differences", "heterogeneity")
)
"""The places in `metrics.json` of what is computed from the dataset's further columns."""
_OF_DECISIONS = (
    "accuracy", "balanced_accuracy", "f1", "matthews", "sensitivity", "specificity", "precision", "thresholds", "decided_by",
)  # fmt: skip
_OF_RUN = ("val", "best_epoch", "epochs", "learning_rate", "weight_decay", "dropout", "trained_as", "shares")


def is_of_predictions(run: Run) -> bool:
    """Return whether a run is an evaluation of predictions, which has neither head nor embeddings."""
    return bool(run.config.evaluates) and not run.config.embeddings.backbone


def figures_again(
    run: Run, task: ScoredTask, heads: Mapping[str, SavedHead], probabilities: Mapping[str, Floats], found: Findings, *,
    has_columns: bool,
) -> Run:  # fmt: skip
    """Return the run with figures that were computed again; `found` notes the others, which are those that were recorded.

    Parameters
    ----------
    run : Run
    task : ScoredTask
    heads : mapping of str to SavedHead
        Empty for an evaluation of predictions, and of a head that is no longer there.
    probabilities : mapping of str to ndarray (n, C) float64
        By head.
    found : Findings
    has_columns : bool
        Whether `task` has the dataset's further columns.
    """
    again = replace(run, predictions=replace(run.predictions, probabilities=probabilities))
    if not run.config.evaluates:
        return _of_folds(_of_training(again, task, heads, found), task, found)
    return _of_evaluation(again, task, heads, found, has_columns=has_columns)


# -- a training ---------------------------------------------------------------------------------------------------------


def _of_training(run: Run, task: ScoredTask, heads: Mapping[str, SavedHead], found: Findings) -> Run:
    results, probabilities = [], run.predictions.probabilities
    for one in run.heads:
        p = probabilities[one.name]
        decision = task.decision(p)
        scores = {name: task.score(rows, p[rows], decision) for name, rows in task.scored.items()}
        results.append(of_file(replace(one, val=scores["val"], test=scores.get("test")), heads[one.name]))
    found.skip(
        f"seeds and alarms of heads: they need each member's predictions, by fold. {RETRAIN}",
        "heads[*].seeds", "heads[*].alarms",
    )  # fmt: skip
    found.skip(f"epochs of heads: the training itself has them. {RETRAIN}", "heads[*].best_epoch", "heads[*].epochs")
    comparisons = _compared(run, task) if run.comparisons else ()
    chosen = assess(task, run.selected, probabilities[run.selected], prevalence=run.config.prevalence)
    return replace(run, heads=heads_marked(results, run.selected), comparisons=comparisons, assessment=chosen)


def _compared(run: Run, task: ScoredTask) -> tuple[Comparison, ...]:
    """Compare the heads again; Holm's correction over references, whose predictions are not saved, is the recorded one."""
    of_heads = {one.name: one for one in compared(
        task, run.predictions.probabilities, run.selected, task.rows_of("test")
    )}  # fmt: skip
    if all(one.name in of_heads for one in run.comparisons):
        return tuple(of_heads[one.name] for one in run.comparisons)
    return tuple(
        replace(of_heads[one.name], p_holm=one.p_holm) if one.name in of_heads else one for one in run.comparisons
    )


def _of_folds(run: Run, task: ScoredTask, found: Findings) -> Run:
    """Return the run with what the recorded predictions of its folds determine: all but what needs their thresholds."""
    folded, out_of_fold = run.cross_validation, run.out_of_fold
    if folded is None or out_of_fold is None:
        return run
    numbers = np.array(out_of_fold.folds)
    n_folds = int(numbers.max()) + 1
    folds = [np.flatnonzero(numbers == fold) for fold in range(n_folds)]
    rows, results = np.concatenate(folds), []
    differences = compared_by_folds(task, out_of_fold.probabilities, rows, n_folds)
    for one in folded.results:
        p = out_of_fold.probabilities[one.name]
        areas = tuple(task.roc_auc(fold, p[fold]) for fold in folds)
        pooled = task.score(rows, p[rows], n_folds=n_folds)
        results.append(replace(one, pooled=pooled, fold_roc_aucs=areas, difference=differences.get(one.name)))
    places = [
        f"cross_validation.results[{i}].pooled{inside}.{key}*"
        for i, one in enumerate(folded.results)
        if one.pooled.rule
        for inside in ("", ".per_class.*")
        for key in _OF_DECISIONS
    ]
    found.skip(
        "folds: their heads are not saved. Areas, losses and paired differences are computed from out_of_fold.csv. The "
        f"selected heads, prediction sets, and what needs the folds' thresholds are not. {RETRAIN}",
        "cross_validation.selected", "cross_validation.held_by_sets", *places,
    )  # fmt: skip
    folded = replace(folded, n_folds=n_folds, n_images=len(rows), results=tuple(results))
    return replace(run, cross_validation=folded)


# -- an evaluation ------------------------------------------------------------------------------------------------------


def _of_evaluation(
    run: Run, task: ScoredTask, heads: Mapping[str, SavedHead], found: Findings, *, has_columns: bool
) -> Run:
    assert run.external is not None
    if run.external.differences or run.external.overlap:
        found.skip(
            "differences from the training images, and overlap with them: they need the other run's cache.",
            "external.differences", "external.overlap", "external.shared",
        )  # fmt: skip
    if not heads and not is_of_predictions(run):
        return run
    if not (has_columns or run.config.embeddings.cache) and run.assessment is not None and run.assessment.subgroups:
        found.skip(
            "subgroups, and drops by site: an evaluation of an earlier version does not hold the columns.", *OF_COLUMNS
        )
    fixed = {one.name: _fixed(run, task, heads, one) for one in run.heads}
    results = tuple(_rescored(run, task, heads, one, fixed[one.name], found) for one in run.heads)
    p, chosen = run.predictions.probabilities[run.selected], fixed[run.selected]
    again = replace(
        run, heads=results,
        comparisons=compared(task, run.predictions.probabilities, run.selected, task.rows_of("test"))
        if len(results) > 1
        else (),
        assessment=assessed(task, run.selected, p, chosen, prevalence=run.config.prevalence),
    )  # fmt: skip
    drops = _drops(again, found, has_columns=has_columns)
    if run.external.scales:
        found.skip("scales of scores: predictions.csv has the scores as 0 to 1.", "external.scales")
    return replace(
        again, external=replace(run.external, updates=updates_of(task, p, chosen, run.config.prevalence), drops=drops)
    )


def _drops(run: Run, found: Findings, *, has_columns: bool) -> tuple[Drop, ...]:
    """Return the drops from the recorded internal figures; those by site need the cohort's columns."""
    assert run.external is not None
    assert run.assessment is not None
    recorded = run.external.drops
    internal = {one.metric: one.internal for one in recorded if one.site == ALL}
    again = drops_of(internal, run.head(run.selected), run.assessment, run.external.site_column)
    if has_columns:
        return again
    of_all = {one.metric: one for one in again if one.site == ALL}
    found.places += [f"external.drops[{i}]" for i, one in enumerate(recorded) if one.site != ALL]
    return tuple(of_all.get(one.metric, one) if one.site == ALL else one for one in recorded)


def _fixed(run: Run, task: ScoredTask, heads: Mapping[str, SavedHead], one: HeadResult) -> Fixed:
    """Return what was fixed before the cohort was scored: by the head, or by the rules for predictions of any model."""
    if one.name in heads:
        place = place_of_head(run)
        return frozen_of(heads[one.name], read_run(place) if place.is_dir() else None)
    return fixed_for(task, _model(run, one), task.rule)


def place_of_head(run: Run) -> Path:
    """Return where the head was that an evaluation is of: a run folder, or a head file."""
    return Path(run.config.evaluates.removeprefix(f"the head {run.selected} of "))


def _model(run: Run, one: HeadResult) -> ModelColumn:
    """Return the predictions of a model, of the kind that its scores show."""
    assert one.test is not None
    kind = SCORE if not any(key in one.test for key in OF_PROBABILITIES) else PROBABILITY
    if one.test.rule == CALLS.name:
        kind = CALL
    p, scale = run.predictions.probabilities[one.name], run.scale_of(one.name)
    return ModelColumn(one.name, kind, p, scale=scale)


def _rescored(
    run: Run, task: ScoredTask, heads: Mapping[str, SavedHead], one: HeadResult, fixed: Fixed, found: Findings
) -> HeadResult:
    """Return a head with its scores on the cohort; those that scores and calls do not have stay away."""
    if one.name not in heads:
        model = _model(run, one)
        return kept_scores(model, scored(task, bare_result(one.name), model.p, fixed))
    own = of_file(bare_result(one.name), heads[one.name])
    bare = bare_result(one.name, n_parameters=own.n_parameters, n_members=own.n_members)
    if place_of_head(run).is_dir():
        found.skip(
            "validation scores and settings of the head, and internal figures of the drops: they are those of another run. "
            "Replay that run as well.",
            "external.drops[*].internal", *(f"heads[*].{name}" for name in _OF_RUN),
        )  # fmt: skip
    return scored(task, bare, run.predictions.probabilities[one.name], fixed)
