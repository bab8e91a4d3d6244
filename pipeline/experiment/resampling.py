"""The whole procedure on other parts of the data, as a run asks for: folds, random splits, sites held out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from hoarfrost.experiment.crossval import Folded, cross_validate
from hoarfrost.experiment.development import OuterFold, outer_folds
from hoarfrost.experiment.left_out import SitePlan, leave_out, site_plan
from hoarfrost.experiment.repeats import Repeats, repeat, repeated_splits, summary_of
from hoarfrost.experiment.results import Scored
from hoarfrost.experiment.task import Task
from hoarfrost.experiment.views import ViewSet
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.runs import LeftOut, OutOfFold, Run
from hoarfrost.training import TrainingConfig

InStage = Callable[[str], Callable[[str, int], None]]
"""From the name of a stage to what is called after each epoch."""


@dataclass(frozen=True)
class Parts:
    """The parts, chosen before any training: what cannot be divided is refused early."""

    folds: Sequence[OuterFold]
    splits: Sequence[OuterFold]
    sites: SitePlan | None


def parts_of(task: Task, seed: int, n_folds: int | None, n_repeats: int | None, leave_out: str | None) -> Parts:
    """Return the parts that a run asks for; raise TrainingError if the images cannot be divided so."""
    return Parts(
        outer_folds(task, n_folds, seed) if n_folds else [],
        repeated_splits(task, n_repeats, seed) if n_repeats else [],
        site_plan(task, leave_out, seed) if leave_out else None,
    )


@dataclass(frozen=True)
class Resampled:
    """What the parts gave; None where a run does not ask for them."""

    folded: Folded
    repeats: Repeats | None = None
    left_out: LeftOut | None = None
    by_site: OutOfFold | None = None


def resample(
    heads: Sequence[HeadSpec],
    task: Task,
    parts: Parts,
    training: TrainingConfig,
    selection: str,
    in_stage: InStage,
    sets: Sequence[ViewSet],
) -> Resampled:
    """Train and select on all parts, see `cross_validate`, `repeat` and `leave_out`."""
    folded, repeats, left_out, by_site = Folded(), None, None, None
    if parts.folds:
        folded = cross_validate(heads, task, parts.folds, training, selection, in_stage("folds"), sets=sets)
    if parts.splits:
        repeats = repeat(heads, task, parts.splits, training, selection, in_stage("repeats"), sets=sets)
    if parts.sites is not None:
        left_out, by_site = leave_out(heads, task, parts.sites, training, selection, in_stage("sites"), sets=sets)
    return Resampled(folded, repeats, left_out, by_site)


def with_resampled(run: Run, task: Task, found: Resampled, scored: Scored) -> Run:
    """Return a run with what the parts gave; views are compared by nested folds, where there are some."""
    return replace(
        run,
        cross_validation=found.folded.summary,
        out_of_fold=found.folded.out_of_fold,
        views=found.folded.views or run.views,
        repeats=summary_of(found.repeats, task, scored.probabilities[scored.selected]),
        repeated=None if found.repeats is None else found.repeats.probabilities,
        left_out=found.left_out,
        by_site=found.by_site,
    )
