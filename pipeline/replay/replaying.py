"""A run computed again: digests, the predictions of its heads from the cache, and the figures from the predictions."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from hoarfrost.evaluation import Comparison
from hoarfrost.evaluation.checks import Floats
from hoarfrost.evaluation.drops import drop_between
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.experiment.assessment import Fixed
from hoarfrost.experiment.review import assess
from hoarfrost.experiment.scored import ScoredTask, compared
from hoarfrost.external.evaluation import assessed
from hoarfrost.external.frozen import frozen_of
from hoarfrost.external.table import CALL, PROBABILITY, SCORE, ModelColumn
from hoarfrost.external.thresholds import CALLS, fixed_for
from hoarfrost.external.updating import updates_of
from hoarfrost.features.errors import CacheError, HoarfrostError, RunError
from hoarfrost.heads.files import SavedHead, read_head
from hoarfrost.inference.sources import RunSource, opened_source
from hoarfrost.replay.comparing import Difference, as_written_now, differences, n_numbers
from hoarfrost.replay.rebuilding import predicted_again, task_of
from hoarfrost.replay.retraining import FITTED_AGAIN, fitted_again, trained_again
from hoarfrost.runs import HeadResult, Run, heads_marked, hidden, metrics_document, read_heads, read_run
from hoarfrost.runs.digests import changed_files
from hoarfrost.runs.external import ALL
from hoarfrost.runs.folder import METRICS
from hoarfrost.runs.sealed import SEALED

CLOSE = 1e-6
"""By which a probability may differ: heads are trained in float32, on any number of threads."""
_RETRAIN = "--retrain trains them again."
_PARTS = {
    "learning_curve": f"The heads of the learning curve are not saved. {_RETRAIN}",
    "left_out": f"The heads without a site are not saved. {_RETRAIN}",
    "covariates": f"The models with covariates need heads of folds. {_RETRAIN}",
    "views": f"The heads of other views are not saved. {_RETRAIN}",
    "repeats": f"The heads of repeated splits are not saved. {_RETRAIN}",
}
_OTHER_IMAGES = "The dataset has other images in the cache now than the run has."
_OF_POOLED = ("roc_auc", "loss", "brier")  # they need no threshold; those of the folds are not recorded


@dataclass(frozen=True)
class Replay:
    """What a replay found.

    Attributes
    ----------
    directory : Path
    changed : tuple of str
        Files that are missing, or whose digest is not the recorded one. Nothing else was compared then.
    n_probabilities, n_figures : int
        How many were computed again.
    largest : float
        The largest difference of a probability.
    differing : tuple of Difference
    skipped : tuple of str
        What could not be computed again, and why, in sentences.
    """

    directory: Path
    changed: tuple[str, ...] = ()
    n_probabilities: int = 0
    n_figures: int = 0
    largest: float = 0.0
    differing: tuple[Difference, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def is_equal(self) -> bool:
        """Whether all that could be computed again is what was recorded."""
        return not self.changed and not self.differing


@dataclass
class _Findings:
    """What is found while a run is computed again."""

    n_probabilities: int = 0
    largest: float = 0.0
    differing: list[Difference] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    parts: dict[str, str] = field(default_factory=dict)
    """The parts of `metrics.json` that are not computed again, with the reason."""
    is_sealed: bool = False
    """Nobody has looked at the locked test split yet: its predictions are counted, not listed."""

    def compare_predictions(self, run: Run, name: str, again: Floats, recorded: Floats) -> bool:
        """Compare the probabilities (n, C) of a head, and return whether some differ."""
        apart = np.abs(again - recorded).max(axis=1)
        self.n_probabilities += len(apart)
        self.largest = max(self.largest, float(apart.max()))
        wrong = np.flatnonzero(~(apart <= CLOSE))
        is_hidden = (np.array(run.predictions.splits) == "test") & self.is_sealed
        n_hidden = int(is_hidden[wrong].sum())
        if n_hidden:
            place = f"predictions.csv, {name}, locked test split"
            self.differing.append(Difference(place, f"{is_hidden.sum():,} predictions", f"{n_hidden:,} differ", None))
        for i in wrong[~is_hidden[wrong]]:
            place = f"predictions.csv, {name}, {run.predictions.paths[i]}"
            c = int(np.abs(again[i] - recorded[i]).argmax())
            self.differing.append(Difference(place, f"{recorded[i, c]:g}", f"{again[i, c]:g}", float(apart[i])))
        return len(wrong) > 0


def replay(directory: Path, *, retrain: bool = False) -> Replay:
    """Compute the predictions and figures of a run again, from its cache and its heads, and compare them.

    Parameters
    ----------
    directory : Path
        A run folder of `train` or `evaluate`.
    retrain : bool
        Train everything again in place of using the heads, with the recorded settings and seeds.

    Returns
    -------
    Replay

    Raises
    ------
    RunError
        If `directory` is not a run; or to retrain, if it is an evaluation or does not record its settings.
    CacheError
        To retrain, as `opened_source`.

    Notes
    -----
    Figures are computed from the recorded predictions where these are within `CLOSE` of what the heads predict now, so that
    a last digit changes no rank; otherwise from the new ones.
    """
    changed = changed_files(directory)
    if changed:
        return Replay(directory, changed)
    run, found = read_run(directory, before_look=True), _Findings()
    found.is_sealed = (directory / SEALED).is_file()
    again = _trained_again(run, found) if retrain else _computed_again(run, found)
    if found.is_sealed:
        again = hidden(again)
        found.skipped.append("Scores of the locked test split: nobody has looked at them yet. Replay again afterwards.")
    parts = [name for name in found.parts if getattr(run, name)]
    recorded = json.loads((directory / "metrics.json").read_text(encoding="utf-8", errors="surrogateescape"))
    as_read, document = (
        json.loads(json.dumps(metrics_document(one))) for one in (hidden(run) if found.is_sealed else run, again)
    )
    recorded |= {
        name: as_written_now(recorded[name], as_read[name]) for name in (*METRICS, "precision") if name in recorded
    }
    compared_parts = [name for name in document if name in recorded and name not in parts]
    for name in compared_parts:
        found.differing += differences(recorded[name], document[name], name)
    found.skipped += [f"{name}: {found.parts[name]}" for name in parts]
    n = sum(n_numbers(recorded[name]) for name in compared_parts)
    return Replay(directory, (), found.n_probabilities, n, found.largest, tuple(found.differing), tuple(found.skipped))


def _trained_again(run: Run, found: _Findings) -> Run:
    """Train a run again, and compare the predictions of its heads."""
    asked = run.config.options
    if run.config.evaluates:
        raise RunError(
            f"--retrain: {run.directory} is an evaluation, which trained nothing. Replay the run it evaluated."
        )
    if asked is None:
        raise RunError(
            f"--retrain: {run.directory} does not record all its settings: an earlier version wrote it. Omit --retrain, or "
            "train it again."
        )
    with opened_source(run) as source:
        if _has_other_images(run, source):
            raise RunError(
                f"--retrain: {run.directory}: {_OTHER_IMAGES} Restore the cache that it was trained from, or omit --retrain."
            )
        again = trained_again(run, asked, source.cache)
    for name, recorded in run.predictions.probabilities.items():
        if name in again.predictions.probabilities:
            found.compare_predictions(run, name, again.predictions.probabilities[name], recorded)
    return again


def _computed_again(run: Run, found: _Findings) -> Run:
    """Compute a run again from its cache and its heads, as far as these are there."""
    found.parts |= _PARTS
    with ExitStack() as stack:
        source = _source(run, stack, found)
        heads = dict(_heads(run, found))
        probabilities = _predictions(run, heads, source, found)
        again = _figures(run, task_of(run, source), heads, probabilities, found, has_columns=source is not None)
        if run.config.evaluates:
            found.parts |= dict.fromkeys(FITTED_AGAIN, "It needs the images that the head learned from.")
        elif source is None:
            found.parts |= dict.fromkeys(FITTED_AGAIN, "It needs the cache.")
        elif _has_other_images(run, source):
            found.parts |= dict.fromkeys(FITTED_AGAIN, _OTHER_IMAGES)
        elif run.config.options is None:
            found.parts |= dict.fromkeys(
                FITTED_AGAIN, "An earlier version wrote the run, and did not record its settings."
            )
        else:
            return fitted_again(again, run.config.options, source.cache)
    others = [one.name for one in run.comparisons if one.name not in run.predictions.probabilities]
    if others:
        found.skipped.append(
            f"comparisons with {', '.join(others)}, and Holm's correction over them: predictions not saved."
        )
    return again


# -- predictions --------------------------------------------------------------------------------------------------------


def _source(run: Run, stack: ExitStack, found: _Findings) -> RunSource | None:
    if not run.config.embeddings.cache:
        found.skipped.append(
            "predictions.csv: the embeddings were not kept. Figures are computed from the predictions."
        )
        return None
    try:
        return stack.enter_context(opened_source(run))
    except CacheError as error:
        found.skipped.append(f"predictions.csv and subgroups: {error}")
        return None


def _has_other_images(run: Run, source: RunSource) -> bool:
    """Return whether the dataset in the cache has other images than the run, or another order: rows are compared by place."""
    table = source.table
    return tuple(compress(table.paths, table.rows >= 0)) != tuple(run.predictions.paths)


def _heads(run: Run, found: _Findings) -> Iterator[tuple[str, SavedHead]]:
    """Yield the heads of a run; of an evaluation, the head that it evaluated, from where that was."""
    if not run.config.evaluates:
        for one in run.heads:
            yield one.name, read_head(run.directory / one.weights_file)
        return
    place = Path(run.config.evaluates.removeprefix(f"the head {run.selected} of "))
    try:
        yield run.selected, read_head(place if place.is_file() else read_heads(place).file_of(run.selected))
    except (HoarfrostError, StopIteration):
        if not _is_of_predictions(run):
            found.skipped.append(
                f"predictions.csv, operating points and updates: {run.config.evaluates} is not at {place} now. Start the "
                "command in the folder where `evaluate` ran."
            )


def _is_of_predictions(run: Run) -> bool:
    return bool(run.config.evaluates) and not run.config.embeddings.backbone


def _predictions(
    run: Run, heads: Mapping[str, SavedHead], source: RunSource | None, found: _Findings
) -> dict[str, Floats]:
    """Return the probabilities that figures are computed from: the recorded ones, or new ones where these differ."""
    result: dict[str, Floats] = {}
    for name, recorded in run.predictions.probabilities.items():
        result[name] = recorded
        if source is None or name not in heads:
            continue
        again = predicted_again(run, heads[name], source)
        if found.compare_predictions(run, name, again, recorded):
            result[name] = again
    return result


# -- figures ------------------------------------------------------------------------------------------------------------


def _figures(
    run: Run, task: ScoredTask, heads: Mapping[str, SavedHead], probabilities: Mapping[str, Floats], found: _Findings, *,
    has_columns: bool,
) -> Run:  # fmt: skip
    """Return the run with figures that were computed again, and the recorded ones where that is not possible."""
    again = replace(run, predictions=replace(run.predictions, probabilities=probabilities))
    again = (_of_evaluation if run.config.evaluates else _of_training)(again, task, heads, found)
    if not has_columns and run.assessment is not None and again.assessment is not None:
        names = ("subgroups", "subgroup_calibration", "subgroup_differences", "heterogeneity")
        of_columns = {name: getattr(run.assessment, name) for name in names}
        again = replace(again, assessment=replace(again.assessment, **of_columns))
    return _of_folds(again, task, found)


def _of_training(run: Run, task: ScoredTask, _: Mapping[str, SavedHead], found: _Findings) -> Run:
    results, probabilities = [], run.predictions.probabilities
    for one in run.heads:
        p = probabilities[one.name]
        decision = task.decision(p)
        scores = {name: task.score(rows, p[rows], decision) for name, rows in task.scored.items()}
        results.append(replace(one, val=scores["val"], test=scores.get("test")))
    found.skipped.append(f"seeds and alarms of heads: they need each member's predictions, by fold. {_RETRAIN}")
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


def _of_evaluation(run: Run, task: ScoredTask, heads: Mapping[str, SavedHead], found: _Findings) -> Run:
    assert run.external is not None
    if not heads and not _is_of_predictions(run):
        return run
    fixed = {one.name: _fixed(run, task, heads, one) for one in run.heads}
    results = tuple(_rescored(one, task, run.predictions.probabilities[one.name], fixed[one.name]) for one in run.heads)
    p = run.predictions.probabilities[run.selected]
    chosen = fixed[run.selected]
    external = replace(
        run.external,
        updates=updates_of(task, p, chosen, run.config.prevalence),
        drops=tuple(
            replace(one, drop=drop_between(one.internal, results[0].test[ROC_AUC]))
            if one.site == ALL and one.metric == ROC_AUC and results[0].test is not None
            else one
            for one in run.external.drops
        ),
    )
    if run.external.drops:
        found.skipped.append("internal figures of the drops: they are those of another run. Replay that run as well.")
    if run.external.differences or run.external.overlap:
        found.skipped.append(
            "differences from the training images, and overlap with them: they need the other run's cache."
        )
    return replace(
        run, heads=results, external=external,
        comparisons=compared(task, run.predictions.probabilities, run.selected, task.rows_of("test"))
        if len(results) > 1
        else (),
        assessment=assessed(task, run.selected, p, chosen, prevalence=run.config.prevalence),
    )  # fmt: skip


def _fixed(run: Run, task: ScoredTask, heads: Mapping[str, SavedHead], one: HeadResult) -> Fixed:
    """Return what was fixed before the cohort was scored: by the head, or by the rules for predictions of any model."""
    if one.name in heads:
        place = Path(run.config.evaluates.removeprefix(f"the head {one.name} of "))
        return frozen_of(heads[one.name], read_run(place) if place.is_dir() else None)
    assert run.assessment is not None
    first = run.assessment.classes[0]
    kind = SCORE if first.net_benefit is None else PROBABILITY
    if first.points and first.points[0].point.name == CALLS.name:
        kind = CALL
    return fixed_for(task, ModelColumn(one.name, kind, run.predictions.probabilities[one.name]), task.rule)


def _rescored(one: HeadResult, task: ScoredTask, p: Floats, fixed: Fixed) -> HeadResult:
    """Return a head with its scores on the cohort; those that scores and calls do not have stay away."""
    rows = task.rows_of("test")
    test = task.score(rows, p[rows], fixed.decision)
    assert one.test is not None
    kept = {key: test.estimates[key] for key in one.test.estimates if key in test.estimates}
    return replace(one, test=replace(test, estimates=kept))


def _of_folds(run: Run, task: ScoredTask, found: _Findings) -> Run:
    """Return the run with the areas and losses of its folds, from their recorded predictions."""
    folded, out_of_fold = run.cross_validation, run.out_of_fold
    if folded is None or out_of_fold is None:
        return run
    found.skipped.append(
        f"folds: their heads are not saved. {', '.join(_OF_POOLED)} are computed from out_of_fold.csv; what needs the folds' "
        f"thresholds is not. {_RETRAIN}"
    )
    numbers = np.array(out_of_fold.folds)
    folds: Sequence[Any] = [np.flatnonzero(numbers == fold) for fold in range(folded.n_folds)]
    rows, results = np.concatenate(folds), []
    for one in folded.results:
        p = out_of_fold.probabilities[one.name]
        areas = tuple(task.roc_auc(fold, p[fold]) for fold in folds)
        again = task.score(rows, p[rows], n_folds=folded.n_folds)
        estimates = {**one.pooled.estimates, **{key: again[key] for key in _OF_POOLED if key in one.pooled.estimates}}
        results.append(replace(one, pooled=replace(one.pooled, estimates=estimates), fold_roc_aucs=areas))
    return replace(run, cross_validation=replace(folded, results=tuple(results)))
