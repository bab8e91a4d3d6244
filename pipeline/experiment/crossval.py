"""Nested cross-validation: a head is selected within each training fold; the outer folds' predictions are pooled."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.experiment.splits import carve_validation, class_masks, k_folds
from hoarfrost.experiment.task import Task
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.runs import CrossValidated, CrossValidation, OutOfFold
from hoarfrost.training import Fold, TrainedHead, TrainingConfig, mean_probabilities, train_heads
from hoarfrost.training.references import MAJORITY, fit_references

NESTED = "selected in each fold"
FEWEST_TO_LEARN = 2  # images of a class

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OuterFold:
    """The rows that a fold holds out, and the training and validation rows among the others."""

    held_out: Ints
    inner: Fold


def outer_folds(task: Task, n_folds: int, seed: int) -> list[OuterFold]:
    """Divide a task's images into folds; a test split that the dataset brings is in none.

    Raises
    ------
    TrainingError
        If the images cannot be divided into this many folds.
    """
    rows = np.flatnonzero(task.splits != "test") if task.has_given_test else np.arange(len(task.y))
    places = k_folds(task.y[rows], task.groups[rows], task.names, n_folds, seed=seed)
    try:
        task.units(rows)  # folds also hold out training images, whose patients were not checked yet
    except ValueError as error:
        raise TrainingError(
            f"--per-patient {task.per_patient} with --folds {n_folds}: {error} (--positive), or omit one of the options."
        ) from error
    for fold in range(n_folds):
        masks = class_masks(task.units(rows[places == fold]).y, task.names)
        absent = [which for which, mask in masks.items() if not mask.any()]
        if absent:  # images are divided by class, but a patient may have images of several classes
            raise TrainingError(f"--folds {n_folds}: a fold has no patient with {absent[0]} only. Use fewer folds.")
    return [
        OuterFold(rows[places == fold], _inner_fold(task, rows[places != fold], n_folds, seed))
        for fold in range(n_folds)
    ]


def cross_validate(
    specs: Sequence[HeadSpec],
    task: Task,
    folds: Sequence[OuterFold],
    config: TrainingConfig,
    roc_aucs: Callable[[Ints, Floats], Floats],
    on_epoch: Callable[[str, int], None],
) -> tuple[CrossValidation, OutOfFold]:
    """Train every variant on every fold, select one in each, and score the pooled predictions.

    `roc_aucs` and `on_epoch` are those of `hoarfrost.training.train_heads`.

    Raises
    ------
    TrainingError
        If no head can be trained on all folds.
    """
    trained: dict[tuple[str, int], list[TrainedHead]] = {}
    inner = [fold.inner for fold in folds]
    for head in train_heads(specs, task.labelled(), inner, len(task.names), config, roc_aucs, on_epoch):
        trained.setdefault((head.spec.name, head.fold), []).append(head)
    pooled: dict[str, Floats] = {}
    for spec in specs:
        by_fold = [trained.get((spec.name, fold), []) for fold in range(len(folds))]
        found = _pooled(by_fold, folds, task) if all(len(heads) == config.seeds for heads in by_fold) else None
        if found is None:
            logger.warning(
                "%s: skipped in the cross-validation: its loss or predictions are NaN or infinite", spec.name
            )
        else:
            pooled[spec.name] = found
    if not pooled:
        raise TrainingError("Cross-validation: no head could be trained on all folds. Lower the learning rates (lr=).")
    selected = [_selected(trained, list(pooled), task, fold, rows.inner) for fold, rows in enumerate(folds)]
    pooled = {NESTED: task.unpredicted(), **pooled, **_references(task, folds)}
    for name, fold in zip(selected, folds, strict=True):
        pooled[NESTED][fold.held_out] = pooled[name][fold.held_out]
    rows = np.concatenate([fold.held_out for fold in folds])
    number = np.full(len(task.y), -1)
    for i, fold in enumerate(folds):
        number[fold.held_out] = i
    results = []
    for name, found in pooled.items():
        aucs = tuple(task.roc_auc(fold.held_out, found[fold.held_out]) for fold in folds)
        results.append(CrossValidated(name, task.score(rows, found[rows]), aucs))
    summary = CrossValidation(len(folds), len(rows), tuple(selected), tuple(results))
    return summary, OutOfFold(tuple(number.tolist()), pooled)


def _inner_fold(task: Task, rows: Ints, n_folds: int, seed: int) -> Fold:
    """Divide an outer fold's training rows into training and validation, by patient."""
    try:
        inner = carve_validation(task.y[rows], task.groups[rows], task.names, seed=seed)
    except TrainingError as error:
        raise TrainingError(f"--folds {n_folds}, the training images of a fold: {error}") from error
    fold = Fold(rows[inner == "train"], rows[inner == "val"])
    learnt, validated = task.y[fold.train], task.units(fold.val).y
    for y, fewest, purpose in ((learnt, FEWEST_TO_LEARN, "learn from"), (validated, 1, "validate on")):
        counts = {which: int(mask.sum()) for which, mask in class_masks(y, task.names).items()}
        rarest = min(counts, key=counts.__getitem__)
        if counts[rarest] < fewest:
            raise TrainingError(
                f"--folds {n_folds}: a fold has only {counts[rarest]} image(s) of {rarest} to {purpose}. "
                "Add images, or omit --folds."
            )
    return fold


def _pooled(by_fold: Sequence[Sequence[TrainedHead]], folds: Sequence[OuterFold], task: Task) -> Floats | None:
    """Return the predictions (n, C) for each image by heads that never saw it, the mean over seeds; NaN outside the folds.

    None if a prediction is NaN or infinite.
    """
    pooled = task.unpredicted()
    for heads, fold in zip(by_fold, folds, strict=True):
        found = [task.predicted(head.module, fold.held_out) for head in heads]
        pooled[fold.held_out] = mean_probabilities(found)
        if not np.isfinite(pooled[fold.held_out]).all():
            return None
    return pooled


def _selected(
    trained: Mapping[tuple[str, int], Sequence[TrainedHead]], names: Sequence[str], task: Task, fold: int, inner: Fold
) -> str:
    """Select one fold's variant by the mean over seeds of its inner validation ROC AUC, then by the loss."""

    def validated(name: str) -> tuple[float, float]:
        heads = trained[name, fold]
        found = [task.predicted(head.module, inner.val) for head in heads]
        losses = [head.history[head.best_epoch - 1].val_loss for head in heads]
        return float(np.mean([task.roc_auc(inner.val, p) for p in found])), -float(np.mean(losses))

    return max(names, key=validated)


def _references(task: Task, folds: Sequence[OuterFold]) -> dict[str, Floats]:
    """Fit scikit-learn's classifiers on each fold's training rows, the same as the heads."""
    pooled: dict[str, Floats] = {}
    for fold in folds:
        rows = fold.held_out
        for fit in fit_references(task.x, task.y, [fold.inner], fold.inner.train, rows):
            if fit.name == MAJORITY:
                continue  # its constants differ between folds, so their pooled AUC has no meaning
            pooled.setdefault(fit.name, task.unpredicted())[rows] = fit.probabilities[rows]
    return pooled
