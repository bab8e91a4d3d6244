"""Nested cross-validation: the whole procedure within each outer fold; the predictions of what it left out are pooled."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation import Comparison, Share, compare_heads
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.conformal import COVERAGE, are_covered, calibrate_classes
from hoarfrost.evaluation.metrics import NO_DECISION, Decision
from hoarfrost.evaluation.shares import share
from hoarfrost.experiment.compared_views import candidates_of
from hoarfrost.experiment.compared_views import of_folds as of_folds_compared
from hoarfrost.experiment.development import OuterFold, fold_numbers
from hoarfrost.experiment.scored import ScoredTask
from hoarfrost.experiment.task import Task
from hoarfrost.experiment.variants import Variant, fit_variants
from hoarfrost.experiment.views import ViewSet
from hoarfrost.features.devices import one_thread
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.runs import ComparedViews, CrossValidated, CrossValidation, OutOfFold
from hoarfrost.training import TrainingConfig
from hoarfrost.training.references import MAJORITY, fit_references

NESTED = "selected in each fold"


@dataclass(frozen=True)
class Folded:
    """The result of cross-validation; empty if there was none.

    `inside` are the out-of-fold probabilities (n, C) of the head that each fold selected, for the fold's development set.
    """

    summary: CrossValidation | None = None
    out_of_fold: OutOfFold | None = None
    views: ComparedViews | None = None
    inside: tuple[Floats, ...] = ()


def cross_validate(
    specs: Sequence[HeadSpec],
    task: Task,
    folds: Sequence[OuterFold],
    config: TrainingConfig,
    selection: str,
    on_epoch: Callable[[str, int], None],
    *,
    sets: Sequence[ViewSet] = (),
) -> Folded:
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
) -> Folded:
    candidates = [
        candidates_of(of_sets, task, fold.development, selection) for of_sets, fold in zip(fitted, folds, strict=True)
    ]
    of_folds = [several[0].variants for several in candidates]
    selected = [several[0].selected for several in candidates]
    views = [several[0].views for several in candidates]
    of_references, inner = _references(task, folds, views)
    pooled = {NESTED: task.unpredicted(), **_pooled(of_folds, folds, task), **of_references}
    for name, variants, fold in zip(selected, of_folds, folds, strict=True):
        pooled[NESTED][fold.held_out] = (
            pooled[name][fold.held_out] if name in pooled else variants[name].predicted(task, fold.held_out)
        )
    rows = np.concatenate([fold.held_out for fold in folds])
    inner[NESTED] = [variants[name].out_of_fold for name, variants in zip(selected, of_folds, strict=True)]
    for name in pooled.keys() - inner.keys():
        inner[name] = [variants[name].out_of_fold for variants in of_folds]
    differences, results = compared_by_folds(task, pooled, rows, len(folds)), []
    for name, found in pooled.items():
        aucs = tuple(task.roc_auc(fold.held_out, found[fold.held_out]) for fold in folds)
        scores = task.score(rows, found[rows], _decision(task, folds, rows, inner[name]), len(folds))
        results.append(CrossValidated(name, scores, aucs, differences.get(name)))
    numbers = fold_numbers([fold.held_out for fold in folds], len(task.y))
    held_by_sets = _held_by_sets(task, folds, pooled[NESTED], inner[NESTED])
    summary = CrossValidation(len(folds), len(rows), tuple(selected), tuple(results), held_by_sets)
    compared = of_folds_compared(candidates, [fold.held_out for fold in folds], task)
    return Folded(summary, OutOfFold(tuple(numbers.tolist()), pooled), compared, tuple(inner[NESTED]))


def _pooled(of_folds: Sequence[Mapping[str, Variant]], folds: Sequence[OuterFold], task: Task) -> dict[str, Floats]:
    """Return the predictions (n, C) of each variant that all folds have, for each image by heads that never saw it."""
    names = [name for name in of_folds[0] if all(name in variants for variants in of_folds)]
    pooled = {name: task.unpredicted() for name in names}
    for variants, fold in zip(of_folds, folds, strict=True):
        for name, found in pooled.items():
            found[fold.held_out] = variants[name].predicted(task, fold.held_out)
    return {name: found for name, found in pooled.items() if np.isfinite(found[folds[0].held_out]).all()}


def _decision(task: Task, folds: Sequence[OuterFold], rows: Ints, inner: Sequence[Floats]) -> Decision:
    """Return the decision on pooled predictions: by the threshold that each fold fixed on its out-of-fold ones, `inner`."""
    found = [task.decision(p, fold.development.validated) for p, fold in zip(inner, folds, strict=True)]
    if not all(one.thresholds for one in found):
        return NO_DECISION
    members, numbers = task.units(rows).members, fold_numbers([fold.held_out for fold in folds], len(task.y))
    firsts = np.arange(len(rows)) if members is None else np.unique(members, return_index=True)[1]
    limits = np.array([one.thresholds for one in found])[numbers[rows[firsts]]]  # a patient is in one fold
    rules = " or ".join(dict.fromkeys(one.rule for one in found))
    return Decision(rule=f"{rules}, fixed in each fold", of_samples=limits)


def _held_by_sets(task: Task, folds: Sequence[OuterFold], pooled: Floats, inner: Sequence[Floats]) -> Share:
    """Return the share of held-out units whose conformal set holds the true class: selection is inside of the folds."""
    hits, known, groups = [], [], []
    for p, fold in zip(inner, folds, strict=True):
        validated, held_out = task.units(fold.development.validated), task.units(fold.held_out)
        fixed = calibrate_classes(validated.y, validated.joined(p[fold.development.validated]), validated.groups)
        hit, is_known = are_covered(held_out.y, held_out.joined(pooled[fold.held_out]), fixed, COVERAGE)
        hits.append(hit)
        known.append(is_known)
        own = np.arange(len(held_out.y)) if held_out.groups is None else held_out.groups
        groups.append(np.repeat(own, len(hit) // len(own)))
    patients = None if task.patients is None or task.per_patient is not None else np.concatenate(groups)
    return share(np.concatenate(hits), np.concatenate(known), patients)


def compared_by_folds(
    task: ScoredTask, pooled: Mapping[str, Floats], rows: Ints, n_folds: int
) -> dict[str, Comparison]:
    """Compare each head, and reference, with the heads that the folds selected, where their predictions differ."""
    units = task.units(rows)
    joined = {name: units.joined(found[rows]) for name, found in pooled.items()}
    others = {name: p for name, p in joined.items() if name == NESTED or not np.array_equal(p, joined[NESTED])}
    return {one.name: one for one in compare_heads(units.y, others, NESTED, groups=units.groups, n_folds=n_folds)}


def _references(
    task: Task, folds: Sequence[OuterFold], views: Sequence[ViewSet]
) -> tuple[dict[str, Floats], dict[str, list[Floats]]]:
    """Fit scikit-learn's classifiers within each outer fold, on the same images as the heads, and the mean of their views.

    Return their pooled predictions (n, C) of held-out images and, by fold, their out-of-fold predictions of the others.
    """
    pooled: dict[str, Floats] = {}
    inside: dict[str, list[Floats]] = {}
    for fold, own in zip(folds, views, strict=True):
        inner = fold.development
        for one in fit_references(task.looks.mean(own.views), task.y, inner.folds, inner.rows, fold.held_out):
            if one.name != MAJORITY:  # its constants differ between folds, so their pooled AUC has no meaning
                pooled.setdefault(one.name, task.unpredicted())[fold.held_out] = one.probabilities[fold.held_out]
                inside.setdefault(one.name, []).append(one.out_of_fold)
    whole = {name: found for name, found in pooled.items() if all(np.isfinite(found[f.held_out]).all() for f in folds)}
    return whole, {name: inside[name] for name in whole}
