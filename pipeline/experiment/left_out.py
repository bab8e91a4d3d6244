"""Leave one site out: the whole procedure without each site, scored there, next to the same procedure with sites mixed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hoarfrost.evaluation import Estimate
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.intervals import by_logit, difference, variance_inflation
from hoarfrost.evaluation.meta_analysis import RandomEffects, random_effects_of_areas
from hoarfrost.evaluation.subgroups import MISSING, in_order, with_missing
from hoarfrost.experiment.development import OuterFold, divided_rows, fold_numbers, inner_development, outer_folds
from hoarfrost.experiment.repeats import area_influence, repeat
from hoarfrost.experiment.splits import class_masks, most_folds
from hoarfrost.experiment.task import Task
from hoarfrost.experiment.views import ViewSet
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.runs import LeftOut, LeftOutSite, OutOfFold
from hoarfrost.runs.left_out import HELD_OUT, MIXED
from hoarfrost.training import TrainingConfig

FEWEST = 5  # patients of each class that a site needs, or images where patients are unknown
MOST_SITES = 50
MOST_FOLDS = 10  # of the mixed split
LEVEL = 0.95


@dataclass(frozen=True)
class SitePlan:
    """How sites are held out.

    Attributes
    ----------
    column : str
    rows : dict
        The images of each site.
    sites : dict
        The sites that are scored: what is held out, and the development set without them.
    reasons : dict
        Why the others are not.
    mixed : list of OuterFold
        The same images in as many folds, whatever their site: heads learn from about as many images.
    """

    column: str
    rows: Mapping[str, Ints]
    sites: Mapping[str, OuterFold]
    reasons: Mapping[str, str]
    mixed: Sequence[OuterFold]

    @property
    def splits(self) -> list[OuterFold]:
        """All parts: each site, then the folds of the mixed split."""
        return [*self.sites.values(), *self.mixed]


def site_plan(task: Task, column: str, seed: int) -> SitePlan:
    """Return what is held out for each site; a test split that the dataset brings is neither learned from nor scored.

    A patient with images in several sites is scored in each of them, by heads that learned from none of these images: the
    other sites' images of the patient are left out of the training too.

    Raises
    ------
    TrainingError
        If the dataset does not have the column, or fewer than two of its values can be scored.
    """
    option, attributes = f"--leave-out {column}", task.attributes()
    if column not in attributes:
        known = f"Its columns: {', '.join(attributes)}." if attributes else "It has no further columns."
        raise TrainingError(f"{option}: the dataset {task.table.name!r} does not have this column. {known}")
    rows = divided_rows(task)
    values = np.array(with_missing(attributes[column]), dtype=object)[rows]
    names = in_order(values.tolist())
    if len(names) > MOST_SITES:
        raise TrainingError(
            f"{option}: the column has {len(names):,} different values. Choose a column with at most {MOST_SITES}."
        )
    of_sites = {name: rows[values == name] for name in names}
    folds, reasons = {}, {}
    for name, own in of_sites.items():
        try:
            folds[name] = _held_out(task, name, own, rows, option, seed)
        except TrainingError as error:
            reasons[name] = str(error).rstrip(".")
    if len(folds) < 2:
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
        raise TrainingError(f"{option}: {len(folds)} of its values can be scored, two are needed. {why}.")
    n_mixed = min(len(folds), MOST_FOLDS, most_folds(task.y[rows], task.groups[rows], task.names))
    return SitePlan(column, of_sites, folds, reasons, outer_folds(task, n_mixed, seed, option=option))


def _held_out(task: Task, name: str, own: Ints, rows: Ints, option: str, seed: int) -> OuterFold:
    """Return a site as a fold; raise TrainingError with the reason if it cannot be scored."""
    if name == MISSING:
        raise TrainingError("not a site")
    try:
        units = task.units(own)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    groups = task.groups[own] if task.per_patient is None else np.arange(len(units.y))
    counted = "image" if task.patients is None else "patient"
    for which, mask in class_masks(units.y, task.names).items():
        n = len(np.unique(groups[mask]))
        if n < FEWEST:
            few = f"{n} {counted}{'' if n == 1 else 's'}" if n else f"no {counted}"
            raise TrainingError(f"{few} of {which}; {FEWEST} are needed")
    others = rows[~np.isin(task.groups[rows], task.groups[own])]
    if not len(others):
        raise TrainingError("no other image to learn from")
    return OuterFold(own, inner_development(task, others, option, seed))


def leave_out(
    specs: Sequence[HeadSpec],
    task: Task,
    plan: SitePlan,
    config: TrainingConfig,
    selection: str,
    on_epoch: Callable[[str, int], None],
    *,
    sets: Sequence[ViewSet] = (),
) -> tuple[LeftOut, OutOfFold]:
    """Train every variant without each site, and on the folds of the mixed split; select one in each, and score.

    Returns
    -------
    LeftOut
    OutOfFold
        The probabilities of both, by the number of the site; -1 for images that are not scored.

    Raises
    ------
    TrainingError
        If no head can be trained without a site.
    """
    found = repeat(specs, task, plan.splits, config, selection, on_epoch, sets=sets)
    held_out, mixed = task.unpredicted(), task.unpredicted()
    for number, one in enumerate(plan.splits):
        target = held_out if number < len(plan.sites) else mixed
        target[one.held_out] = found.probabilities[number, one.held_out]
    selected = dict(zip(plan.sites, found.selected, strict=False))
    sites = tuple(_site(task, plan, name, held_out, mixed, selected.get(name, "")) for name in plan.rows)
    numbers = fold_numbers([one.held_out for one in plan.sites.values()], len(task.y))
    return _summarised(task, plan, sites, held_out, mixed), OutOfFold(
        tuple(numbers.tolist()), {HELD_OUT: held_out, MIXED: mixed}
    )


def _site(task: Task, plan: SitePlan, name: str, held_out: Floats, mixed: Floats, selected: str) -> LeftOutSite:
    rows = plan.rows[name]
    if name in plan.reasons:
        unknown = Estimate(None, None, None, n=len(rows))
        return LeftOutSite(name, len(rows), unknown, unknown, reason=plan.reasons[name])
    there = task.score(rows, held_out[rows]).auc
    return LeftOutSite(name, len(rows), there, task.score(rows, mixed[rows], n_folds=len(plan.mixed)).auc, selected)


def _summarised(task: Task, plan: SitePlan, sites: tuple[LeftOutSite, ...], held_out: Floats, mixed: Floats) -> LeftOut:
    """Return the figures over all scored sites. Areas of the same patients are compared, so the drop is paired."""
    each = [one.held_out for one in plan.sites.values()]
    rows = np.unique(np.concatenate(each))
    _, of_pooled = area_influence(task, rows, mixed)
    (held, of_held), (within, of_within) = (
        _mean([area_influence(task, own, p) for own in each]) for p in (held_out, mixed)
    )
    pooled = task.score(rows, mixed[rows], n_folds=len(plan.mixed)).auc
    patients, inflation = None if task.patients is None else task.patients[rows], variance_inflation(len(plan.mixed))
    drop, _ = difference(
        (pooled.value or 0.0) - held, (of_pooled - of_held)[rows], patients, level=LEVEL, inflation=inflation
    )

    def mean_of(value: float, influence: Floats, factor: float) -> Estimate:
        plain = Estimate(value, None, None, n=len(rows), n_patients=pooled.n_patients)
        return by_logit(plain, influence[rows], patients, factor, level=LEVEL) if 0 < value < 1 else plain

    summary, reason = _random_effects([one.held_out for one in sites if not one.reason])
    return LeftOut(
        column=plan.column,
        sites=sites,
        n_folds=len(plan.mixed),
        n_shared=None if task.patients is None else _n_shared(task.patients, plan.rows),
        mixed=pooled,
        within=mean_of(within, of_within, inflation),
        held_out=mean_of(held, of_held, 1.0),
        drop=drop if drop.low is None or drop.low != drop.high else replace(drop, low=None, high=None, method=""),
        summary=summary,
        reason=reason,
    )


def _mean(found: Sequence[tuple[float, Floats]]) -> tuple[float, Floats]:
    """Return the mean of areas, and its influence (n,): each site counts the same."""
    return float(np.mean([area for area, _ in found])), np.mean([influence for _, influence in found], axis=0)


def _random_effects(areas: Sequence[Estimate]) -> tuple[RandomEffects | None, str]:
    try:
        return random_effects_of_areas(areas), ""
    except ValueError as error:
        return None, str(error)


def _n_shared(patients: Ints, rows: Mapping[str, Ints]) -> int:
    """Return the number of patients with images in several sites."""
    once = np.concatenate([np.unique(patients[own]) for own in rows.values()])
    return int((np.unique(once, return_counts=True)[1] > 1).sum())
