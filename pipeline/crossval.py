"""Nested cross-validation: selection inside each training fold, the outer folds' predictions pooled."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch

from pipeline.heads import HeadSpec
from pipeline.metrics import macro_roc_auc, score
from pipeline.references import MAJORITY, reference_probabilities
from pipeline.runs import CrossValidated, CrossValidation
from pipeline.splits import carve_validation, k_folds
from pipeline.task import Task
from pipeline.train import Fold, Labelled, TrainedHead, TrainingConfig, predict_probabilities, train_heads

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

NESTED = "selected in each fold"


def cross_validate(
    specs: Sequence[HeadSpec],
    task: Task,
    data: Labelled,
    n_folds: int,
    config: TrainingConfig,
    roc_aucs: Callable[[Ints, Floats], Floats],
    on_epoch: Callable[[str, int], None],
) -> CrossValidation:
    """Train every variant on every fold, select inside each, and score the pooled predictions.

    Parameters
    ----------
    specs : sequence of HeadSpec
    task : Task
        Its given test split, if it has one, stays out of all folds.
    data : Labelled
        The task's embeddings and class numbers as tensors.
    n_folds : int
    config : TrainingConfig
    roc_aucs : callable
        As `pipeline.train.train_heads` takes it.
    on_epoch : callable
        As `pipeline.train.train_heads` takes it.

    Raises
    ------
    TrainingError
        If the images cannot be shared out over so many folds.
    """
    rows = np.flatnonzero(task.splits != "test") if task.has_given_test else np.arange(len(task.y))
    held_out = k_folds(task.y[rows], task.groups[rows], task.names, n_folds, seed=config.seed)
    folds = [_inner_fold(task, rows[held_out != fold], config.seed) for fold in range(n_folds)]
    outer = [rows[held_out == fold] for fold in range(n_folds)]
    trained = train_heads(specs, data, folds, len(task.names), config, roc_aucs, on_epoch)
    complete = [spec for spec in specs if sum(head.spec == spec for head in trained) == n_folds * config.seeds]
    pooled = {
        spec.name: _pooled([[h for h in trained if (h.spec, h.fold) == (spec, f)] for f in range(n_folds)], outer, task, data)
        for spec in complete
    }  # fmt: skip
    selected = [_selected(trained, complete, fold) for fold in range(n_folds)]
    pooled = {NESTED: np.full((len(task.y), len(task.names)), np.nan), **pooled}
    for fold, name in enumerate(selected):
        pooled[NESTED][outer[fold]] = pooled[name][outer[fold]]
    for name, found in _references(task, folds, outer).items():
        pooled[name] = found
    return CrossValidation(
        n_folds=n_folds,
        n_images=len(rows),
        selected=tuple(selected),
        results=tuple(
            CrossValidated(
                name,
                score(task.y[rows], found[rows], task.names),
                tuple(macro_roc_auc(task.y[part], found[part]) for part in outer),
            )
            for name, found in pooled.items()
        ),
    )


def _inner_fold(task: Task, rows: Ints, seed: int) -> Fold:
    """Take a validation split out of an outer fold's training rows, by patient."""
    inner = carve_validation(task.y[rows], task.groups[rows], task.names, seed=seed)
    return Fold(rows[inner == "train"], rows[inner == "val"])


def _pooled(by_fold: Sequence[Sequence[TrainedHead]], outer: Sequence[Ints], task: Task, data: Labelled) -> Floats:
    """Predict each image by the heads that never saw it, the mean over seeds; (n, C), NaN for images of no fold."""
    pooled = np.full((len(task.y), len(task.names)), np.nan)
    for heads, rows in zip(by_fold, outer, strict=True):
        x = data.x[torch.from_numpy(rows).to(data.x.device)]
        pooled[rows] = np.mean([predict_probabilities(head.module, x) for head in heads], axis=0)
    return pooled


def _selected(trained: Sequence[TrainedHead], specs: Sequence[HeadSpec], fold: int) -> str:
    """Select one fold's variant by the mean over seeds of its inner validation ROC AUC at the best epoch."""

    def validated(spec: HeadSpec) -> float:
        heads = [head for head in trained if (head.spec, head.fold) == (spec, fold)]
        return float(np.mean([head.history[head.best_epoch - 1].val_roc_auc for head in heads]))

    return max(specs, key=validated).name


def _references(task: Task, folds: Sequence[Fold], outer: Sequence[Ints]) -> dict[str, Floats]:
    """Fit scikit-learn's classifiers on each fold's training rows, those that the heads learn from."""
    pooled: dict[str, Floats] = {}
    for fold, rows in zip(folds, outer, strict=True):
        for name, found in reference_probabilities(task.x[fold.train], task.y[fold.train], task.x[rows]).items():
            if name == MAJORITY:
                continue  # pooled over folds its constants differ, and their AUC means nothing
            pooled.setdefault(name, np.full((len(task.y), len(task.names)), np.nan))[rows] = found
    return pooled
