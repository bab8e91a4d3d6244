"""What more looks gave: the sets of views, each with the head that it selects, and their scores side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.experiment.development import Development
from hoarfrost.experiment.scored import compared
from hoarfrost.experiment.task import Task
from hoarfrost.experiment.variants import Variant, of_truth, select, with_mean
from hoarfrost.experiment.views import ViewSet
from hoarfrost.features.decoding.views import parse_views
from hoarfrost.features.encoder.registry import EncoderSpec
from hoarfrost.runs import ComparedViews, ViewsResult, optimistic


@dataclass(frozen=True)
class Candidate:
    """A set of views with its variants, "mean" included, and the selected one's name."""

    views: ViewSet
    variants: Mapping[str, Variant]
    selected: str

    @property
    def chosen(self) -> Variant:
        """The selected variant."""
        return self.variants[self.selected]


def candidates_of(
    fitted: Mapping[ViewSet, Mapping[str, Variant]], task: Task, development: Development, selection: str
) -> list[Candidate]:
    """Return a candidate for each set of views, the chosen one first, then by out-of-fold loss.

    All views are chosen, unless another set has a lower out-of-fold loss by more than two standard errors of the difference:
    the mean over more views varies less from one sample of training images to the next.
    """
    found = []
    for views, variants in fitted.items():
        mixed = with_mean(variants, task, development)
        found.append(Candidate(views, mixed, select(mixed, selection)))
    ordered = sorted(found, key=lambda one: one.chosen.loss)  # stable: of equal ones the smaller set
    largest = max(found, key=lambda one: len(one.views.views))
    if _is_clearly_better(ordered[0].chosen, largest.chosen, task, development):
        return ordered
    return [largest, *(one for one in ordered if one is not largest)]


def _is_clearly_better(one: Variant, other: Variant, task: Task, development: Development) -> bool:
    """Return whether a variant's out-of-fold loss is lower by more than two standard errors of the difference."""
    rows = development.validated
    ours, theirs = (np.log(of_truth(task.y[rows], each.out_of_fold[rows])) for each in (one, other))
    gains = ours - theirs
    return bool(gains.mean() >= 2 * gains.std() / np.sqrt(len(gains)))  # equal ones: the smaller set


def choose_views(
    fitted: Mapping[ViewSet, Mapping[str, Variant]], task: Task, development: Development, selection: str
) -> tuple[ViewSet, ComparedViews | None]:
    """Return the chosen set of views, see `candidates_of`, and a comparison of all if there are several."""
    if len(fitted) == 1:
        return next(iter(fitted)), None
    candidates = candidates_of(fitted, task, development, selection)
    return candidates[0].views, _of_run(candidates, task)


def _of_run(candidates: Sequence[Candidate], task: Task) -> ComparedViews:
    """Compare the sets of views on the test split, or without one on what selected them."""
    rows = task.scored.get("test")
    if rows is None:
        pooled = {one.views: one.chosen.out_of_fold for one in candidates}
        return _compared(task, task.validated, pooled, [candidates[0].views], "val")
    pooled = {}
    for one in candidates:
        pooled[one.views] = task.unpredicted()
        pooled[one.views][rows] = one.chosen.predicted(task, rows)
    return _compared(task, rows, pooled, [candidates[0].views], "test")


def of_folds(by_fold: Sequence[Sequence[Candidate]], held_out: Sequence[Ints], task: Task) -> ComparedViews | None:
    """Compare the sets of views by nested cross-validation; None if there is one set, or a fold lacks one."""
    sets = [one.views for one in by_fold[0]]
    if len(sets) < 2 or any({one.views for one in candidates} != {*sets} for candidates in by_fold):
        return None
    pooled = {views: task.unpredicted() for views in sets}
    for candidates, rows in zip(by_fold, held_out, strict=True):
        for one in candidates:
            pooled[one.views][rows] = one.chosen.predicted(task, rows)
    chosen = [candidates[0].views for candidates in by_fold]
    return _compared(task, np.concatenate(held_out), pooled, chosen, "folds")


def _compared(
    task: Task,
    rows: Ints,
    pooled: Mapping[ViewSet, Floats],
    chosen: Sequence[ViewSet],
    basis: str,
) -> ComparedViews:
    """Score each set, and compare it with the smallest one on the same images."""
    ordered = sorted(pooled, key=lambda views: _work(views, task.encoder))
    named = {views.name: pooled[views] for views in ordered}
    differences = {
        one.name: one.difference for one in compared(task, named, ordered[0].name, rows, n_folds=len(chosen))
    }
    results = []
    for views in ordered:
        scores = task.score(rows, pooled[views][rows])
        results.append(
            ViewsResult(
                views.views, _work(views, task.encoder), float(scores.value("roc_auc")), float(scores.value("loss")),
                differences.get(views.name), sum(one == views for one in chosen),
            )
        )  # fmt: skip
    found = ComparedViews(basis, len(chosen), tuple(results))
    return optimistic(found) if basis == "val" else found


def _work(views: ViewSet, encoder: EncoderSpec) -> float:
    """Return the work of the encoder, in looks at its own size."""
    return sum(one.n_looks * one.size**2 for one in parse_views(views.name, encoder)) / encoder.size**2
