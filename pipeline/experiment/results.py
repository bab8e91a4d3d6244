"""From trained heads to results: each variant's and each reference's scores, and which head validation selects."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hoarfrost.evaluation import Comparison, Scores, compare_heads
from hoarfrost.evaluation.checks import Floats
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.experiment.task import Task
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.specs import count_parameters
from hoarfrost.runs import HeadResult, ReferenceResult, SeedResult
from hoarfrost.training import Fold, TrainedHead, mean_probabilities
from hoarfrost.training.references import LOGISTIC_REGRESSION, ReferenceFit, fit_references

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """The scores of all variants of a run.

    `probabilities[head]` and `of_references[name]` are (n, C) float64 for all images, the mean over seeds. They are NaN
    where a reference did not predict. Variants whose predictions overflow are skipped.
    """

    heads: tuple[HeadResult, ...]
    references: tuple[ReferenceResult, ...]
    selected: str
    probabilities: Mapping[str, Floats]
    of_references: Mapping[str, Floats]


def score_variants(variants: Mapping[str, Sequence[TrainedHead]], task: Task) -> Scored:
    """Score every variant, with its heads of all seeds, and the references; select a head by validation alone.

    Raises
    ------
    TrainingError
        If the predictions of every head overflow.
    """
    fits = _references(task)
    of_references = {fit.name: fit.probabilities for fit in fits}
    references = []
    for fit in fits:
        scores = _scores(task, fit.probabilities)
        references.append(ReferenceResult(fit.name, fit.n_train, scores["val"], scores.get("test")))
    probabilities, results = {}, []
    for name, trained in variants.items():
        of_seeds = [task.predicted(head.module) for head in trained]  # S times (n, C)
        if not all(np.isfinite(found).all() for found in of_seeds):
            logger.warning("%s: skipped, because its predictions overflow on some images", name)
            continue
        probabilities[name] = mean_probabilities(of_seeds)
        results.append(_result(trained, task, of_seeds, references))
    if not results:
        raise TrainingError("The predictions of every head overflow on some images. Lower the learning rates (lr=).")
    selected = max(results, key=_selection_order).name
    return Scored(tuple(results), tuple(references), selected, probabilities, of_references)


def compare(task: Task, scored: Scored) -> tuple[Comparison, ...]:
    """Compare all other heads, and the references, with the selected head on the split that is reported.

    With a single patient nothing can be tested. The intervals then treat images as independent, as the reason states.
    """
    rows = task.rows_of(task.scored_splits[-1])
    units = task.units(rows)
    everyone = {**scored.probabilities, **scored.of_references}
    joined = {name: units.joined(found[rows]) for name, found in everyone.items()}
    if units.groups is None or len(np.unique(units.groups)) > 1:
        return compare_heads(units.y, joined, scored.selected, groups=units.groups)
    reason = "all images show one patient, so this does not extend to others; the interval treats images as independent"
    untested = compare_heads(units.y, joined, scored.selected)
    return tuple(replace(one, z=None, p=None, p_holm=None, reason=reason) for one in untested)


def _selection_order(result: HeadResult) -> tuple[float, float]:
    """Select by validation alone: the mean ROC AUC over seeds, then the loss."""
    return float(np.mean([seed.val_roc_auc for seed in result.seeds])), -result.val.value("loss")


def _references(task: Task) -> list[ReferenceFit]:
    train, scored = task.rows_of("train"), task.rows_of(*task.scored_splits)
    return fit_references(task.x, task.y, [Fold(train, task.rows_of("val"))], train, scored)


def _scores(task: Task, probabilities: Floats) -> dict[str, Scores]:
    """Score probabilities (n, C) on each split that heads are scored on."""
    rows = {name: task.rows_of(name) for name in task.scored_splits}
    return {name: task.score(which, probabilities[which]) for name, which in rows.items()}


def _result(
    trained: Sequence[TrainedHead], task: Task, of_seeds: Sequence[Floats], references: Sequence[ReferenceResult]
) -> HeadResult:
    """Score one variant, by the mean of its seeds' probabilities, and each seed by its own."""
    first, spec = trained[0], trained[0].spec
    probabilities = mean_probabilities(of_seeds)
    scores = _scores(task, probabilities)
    rows = {name: task.rows_of(name) for name in task.scored_splits}
    aucs = [{name: task.roc_auc(which, found[which]) for name, which in rows.items()} for found in of_seeds]
    seeds = tuple(
        SeedResult(head.seed, auc["val"], auc.get("test"), head.best_epoch, len(head.history))
        for head, auc in zip(trained, aucs, strict=True)
    )
    return HeadResult(
        name=spec.name,
        n_parameters=count_parameters(first.module),
        learning_rate=spec.lr,
        weight_decay=spec.weight_decay,
        dropout=spec.values().get("dropout", 0.0),
        best_epoch=first.best_epoch,
        epochs=len(first.history),
        weights_file=f"heads/{spec.slug}.safetensors",
        val=scores["val"],
        test=scores.get("test"),
        seeds=seeds,
        alarms=tuple(_alarms(task, probabilities, seeds, references)),
    )


def _alarms(
    task: Task, probabilities: Floats, seeds: Sequence[SeedResult], references: Sequence[ReferenceResult]
) -> list[str]:
    """List the problems of a head that its validation split shows."""
    alarms = []
    answers = np.unique(task.answers(probabilities[task.splits == "val"]))
    if len(answers) == 1:
        alarms.append(f"collapsed: it predicts {answers[0]} for every validation image")
    found = float(np.mean([seed.val_roc_auc for seed in seeds]))
    to_beat = next(reference.val.value(ROC_AUC) for reference in references if reference.name == LOGISTIC_REGRESSION)
    if found < to_beat:
        alarms.append(f"loses to {LOGISTIC_REGRESSION}: validation ROC AUC {found:.3f} against {to_beat:.3f}")
    return alarms
