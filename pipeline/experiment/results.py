"""From variants to results: the scores of each and of each reference, out of fold and on the test split."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hoarfrost.evaluation import Comparison, Scores
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.experiment.development import Development
from hoarfrost.experiment.scored import compared
from hoarfrost.experiment.task import Task
from hoarfrost.experiment.variants import Variant, select, with_mean
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.heads.specs import count_parameters
from hoarfrost.runs import HeadResult, ReferenceResult, SeedResult, heads_marked, references_marked
from hoarfrost.training.references import MAJORITY, ReferenceFit, fit_references

CONSTANT = 1e-9  # probabilities, or areas, that differ by less are the same

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """The scores of all variants of a run, "mean" included.

    `probabilities[name]` and `of_references[name]` are (n, C) float64: out of fold for validated images, else by the whole
    committee. They are NaN where a reference did not predict.
    """

    variants: Mapping[str, Variant]
    heads: tuple[HeadResult, ...]
    references: tuple[ReferenceResult, ...]
    selected: str
    probabilities: Mapping[str, Floats]
    of_references: Mapping[str, Floats]


def score_variants(
    fitted: Mapping[str, Variant], task: Task, development: Development, selection: str, views: Sequence[str] = ()
) -> Scored:
    """Score every variant and the references, and select a head by what is predicted out of fold.

    The references get the mean embedding of some views, by default of all.

    Raises
    ------
    TrainingError
        If the predictions of every head overflow.
    """
    others = np.setdiff1d(np.arange(len(task.y)), development.validated)
    references, of_references = score_references(task, development, views)
    probabilities = {}
    for name, variant in fitted.items():
        found = _everywhere(variant, task, others)
        if np.isfinite(found).all():
            probabilities[name] = found
        else:
            logger.warning("%s: skipped, because its predictions overflow on some images", name)
    if not probabilities:
        raise TrainingError("The predictions of every head overflow on some images. Lower the learning rates (lr=).")
    variants = with_mean({name: fitted[name] for name in probabilities}, task, development)
    for name, variant in variants.items():
        if name not in probabilities:
            probabilities[name] = _everywhere(variant, task, others)
    rivals = {name: found for name, found in of_references.items() if name != MAJORITY}
    held_out = [fold.val for fold in development.folds]
    results = tuple(_result(one, task, probabilities[name], rivals, held_out) for name, one in variants.items())
    selected = select(variants, selection)
    marked = heads_marked(results, selected)
    return Scored(variants, marked, references, selected, probabilities, of_references)


def score_references(
    task: Task, development: Development, views: Sequence[str] = ()
) -> tuple[tuple[ReferenceResult, ...], dict[str, Floats]]:
    """Fit and score the references; return their scores and their probabilities, as in `Scored`."""
    others = np.setdiff1d(np.arange(len(task.y)), development.validated)
    fits = fit_references(task.looks.mean(views), task.y, development.folds, development.rows, others)
    found = {one.name: _joined(one.out_of_fold, one.probabilities) for one in fits}
    majority = next((one.probabilities[others[0]] for one in fits if one.name == MAJORITY and len(others)), None)
    if majority is not None:  # one constant: the shares of classes differ between folds, and would rank images
        found[MAJORITY][:] = majority
    return references_marked([_reference(one, task, found[one.name]) for one in fits]), found


def _everywhere(variant: Variant, task: Task, others: Ints) -> Floats:
    """Return probabilities (n, C): out of fold, and of the other images by all members."""
    found = variant.out_of_fold.copy()
    found[others] = variant.predicted(task, others)
    return found


def compare(task: Task, scored: Scored) -> tuple[Comparison, ...]:
    """Compare all other heads, and the references, with the selected head on the test split.

    Without one nothing is compared: p values on the images that selected a head are small by chance alone.
    """
    return compare_with(task, scored.probabilities, scored.of_references, scored.selected)


def compare_with(
    task: Task, probabilities: Mapping[str, Floats], of_references: Mapping[str, Floats], selected: str
) -> tuple[Comparison, ...]:
    """Return what `compare` does, from the probabilities (n, C) of heads and of references."""
    if "test" not in task.scored:
        return ()
    return compared(task, {**probabilities, **of_references}, selected, task.scored["test"])


def _joined(out_of_fold: Floats, others: Floats) -> Floats:
    return np.where(np.isnan(out_of_fold), others, out_of_fold)


def _scores(task: Task, probabilities: Floats) -> dict[str, Scores]:
    """Score probabilities (n, C) out of fold, or on the validation split, and on the test split."""
    decision = task.decision(probabilities)
    return {name: task.score(rows, probabilities[rows], decision) for name, rows in task.scored.items()}


def _reference(fit: ReferenceFit, task: Task, probabilities: Floats) -> ReferenceResult:
    scores = _scores(task, probabilities)
    return ReferenceResult(fit.name, fit.n_train, scores["val"], scores.get("test"), fit.setting)


def _result(
    variant: Variant, task: Task, probabilities: Floats, rivals: Mapping[str, Floats], held_out: Sequence[Ints]
) -> HeadResult:
    """Score one variant by its committee, and each seed by its own members; `held_out` are the rows of each fold."""
    heads, scores = [member.head for member in variant.members], _scores(task, probabilities)
    spec = None if variant.shares else common_spec(variant.specs, variant.requested)
    values = {} if spec is None else spec.values()
    return HeadResult(
        name=variant.name,
        n_parameters=sum(count_parameters(head.module) for head in heads),
        learning_rate=values.get("lr"),
        weight_decay=values.get("weight_decay"),
        dropout=values.get("dropout"),
        best_epoch=heads[0].best_epoch if spec is not None else 0,
        epochs=len(heads[0].history) if spec is not None else 0,
        weights_file=f"heads/{variant.slug}.safetensors",
        val=scores["val"],
        test=scores.get("test"),
        seeds=() if spec is None else tuple(_of_seeds(variant, task)),
        alarms=tuple(_alarms(task, variant.name, probabilities, rivals, held_out)),
        n_members=len(heads),
        trained_as="" if spec is None or spec.name == variant.name else spec.name,
        shares=dict(variant.shares),
    )


def common_spec(specs: Sequence[HeadSpec], requested: HeadSpec | None) -> HeadSpec:
    """Return what all members have in common: their options, without views and layers that differ between them."""
    first, *others = specs
    assert requested is not None
    common = replace(first, views=requested.views, layers=requested.layers)
    same = [replace(one, views=common.views, layers=common.layers) == common for one in others]
    return common if all(same) else requested


def _of_seeds(variant: Variant, task: Task) -> list[SeedResult]:
    test = task.scored.get("test")
    first = {member.head.seed: member.head for member in reversed(variant.members)}
    rows = task.validated
    return [
        SeedResult(
            seed,
            task.roc_auc(rows, validated[rows]),
            None if test is None else task.roc_auc(test, tested),
            first[seed].best_epoch,
            len(first[seed].history),
        )
        for seed, (validated, tested) in variant.by_seed(task, test if test is not None else rows[:0]).items()
    ]


def _alarms(
    task: Task, name: str, probabilities: Floats, rivals: Mapping[str, Floats], held_out: Sequence[Ints]
) -> list[str]:
    """List the problems of a head that its validated images show."""
    rows, alarms = task.validated, []
    # By fold: heads that learned nothing but the share of a class differ between folds, as these shares do.
    if max(np.ptp(probabilities[of_fold], axis=0).max() for of_fold in held_out) < CONSTANT:
        alarms.append("collapsed: it predicts the same probabilities for every image")
    what = "out-of-fold" if task.is_cross_fitted else "validation"
    for one in compared(task, {name: probabilities, **rivals}, name, rows):
        # Better only where the whole interval says so; a point estimate is a coin toss.
        if one.difference.low is not None and one.difference.low > CONSTANT and one.p is not None:
            found, own = (task.roc_auc(rows, of[rows]) for of in (rivals[one.name], probabilities))
            alarms.append(
                f"{one.name} is better: {what} ROC AUC {found:.3f} against {own:.3f} "
                f"(difference {one.difference.value:.3f})"
            )
    return alarms
