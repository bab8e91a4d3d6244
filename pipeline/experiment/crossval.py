"""Nested cross-validation: the whole procedure within each outer fold; the predictions of what it left out are pooled."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from hoarfrost.evaluation.checks import Floats
from hoarfrost.experiment.compared_views import candidates_of
from hoarfrost.experiment.compared_views import of_folds as of_folds_compared
from hoarfrost.experiment.development import OuterFold, fold_numbers
from hoarfrost.experiment.task import Task
from hoarfrost.experiment.variants import Variant, fit_variants
from hoarfrost.experiment.views import ViewSet
from hoarfrost.features.devices import one_thread
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.runs import ComparedViews, CrossValidated, CrossValidation, OutOfFold
from hoarfrost.training import TrainingConfig
from hoarfrost.training.references import MAJORITY, fit_references

NESTED = "selected in each fold"


def cross_validate(
    specs: Sequence[HeadSpec],
    task: Task,
    folds: Sequence[OuterFold],
    config: TrainingConfig,
    selection: str,
    on_epoch: Callable[[str, int], None],
    *,
    sets: Sequence[ViewSet] = (),
) -> tuple[CrossValidation, OutOfFold, ComparedViews | None]:
    """Train every variant within every outer fold, select one in each, and score the pooled predictions.

    `selection` is that of `hoarfrost.experiment.variants.select`; `on_epoch` that of `hoarfrost.training.train_heads`. Of
    the `sets` of views each fold uses the one with the lowest out-of-fold loss.

    Raises
    ------
    TrainingError
        If no head can be trained on a fold.
    """
    fitted = fit_variants(specs, [fold.development for fold in folds], task, config, on_epoch, sets=sets)
    with one_thread(only_if=task.is_small):
        return _scored(fitted, task, folds, selection)


def _scored(
    fitted: Sequence[Mapping[ViewSet, Mapping[str, Variant]]], task: Task, folds: Sequence[OuterFold], selection: str
) -> tuple[CrossValidation, OutOfFold, ComparedViews | None]:
    candidates = [
        candidates_of(of_sets, task, fold.development, selection) for of_sets, fold in zip(fitted, folds, strict=True)
    ]
    of_folds = [several[0].variants for several in candidates]
    selected = [several[0].selected for several in candidates]
    views = [several[0].views for several in candidates]
    pooled = {NESTED: task.unpredicted(), **_pooled(of_folds, folds, task), **_references(task, folds, views)}
    for name, variants, fold in zip(selected, of_folds, folds, strict=True):
        pooled[NESTED][fold.held_out] = (
            pooled[name][fold.held_out] if name in pooled else variants[name].predicted(task, fold.held_out)
        )
    rows = np.concatenate([fold.held_out for fold in folds])
    results = []
    for name, found in pooled.items():
        aucs = tuple(task.roc_auc(fold.held_out, found[fold.held_out]) for fold in folds)
        results.append(CrossValidated(name, task.score(rows, found[rows]), aucs))
    numbers = fold_numbers([fold.held_out for fold in folds], len(task.y))
    summary = CrossValidation(len(folds), len(rows), tuple(selected), tuple(results))
    compared = of_folds_compared(candidates, [fold.held_out for fold in folds], task)
    return summary, OutOfFold(tuple(numbers.tolist()), pooled), compared


def _pooled(of_folds: Sequence[Mapping[str, Variant]], folds: Sequence[OuterFold], task: Task) -> dict[str, Floats]:
    """Return the predictions (n, C) of each variant that all folds have, for each image by heads that never saw it."""
    names = [name for name in of_folds[0] if all(name in variants for variants in of_folds)]
    pooled = {name: task.unpredicted() for name in names}
    for variants, fold in zip(of_folds, folds, strict=True):
        for name, found in pooled.items():
            found[fold.held_out] = variants[name].predicted(task, fold.held_out)
    return {name: found for name, found in pooled.items() if np.isfinite(found[folds[0].held_out]).all()}


def _references(task: Task, folds: Sequence[OuterFold], views: Sequence[ViewSet]) -> dict[str, Floats]:
    """Fit scikit-learn's classifiers within each outer fold, on the same images as the heads, and the mean of their views."""
    pooled: dict[str, Floats] = {}
    for fold, own in zip(folds, views, strict=True):
        inner = fold.development
        for one in fit_references(task.looks.mean(own.views), task.y, inner.folds, inner.rows, fold.held_out):
            if one.name != MAJORITY:  # its constants differ between folds, so their pooled AUC has no meaning
                pooled.setdefault(one.name, task.unpredicted())[fold.held_out] = one.probabilities[fold.held_out]
    return {name: found for name, found in pooled.items() if all(np.isfinite(found[f.held_out]).all() for f in folds)}
