"""Variants of a head: trained on every fold of a development set, they predict its images out of fold and others together."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hoarfrost.evaluation import fit_temperature, macro_roc_aucs
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.experiment.development import Development
from hoarfrost.experiment.task import Task
from hoarfrost.experiment.views import ViewSet, looking_at, with_layers
from hoarfrost.features.devices import one_thread
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.committee import weighted_mean
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.heads.layers import cooled, rounded
from hoarfrost.heads.views import places_of
from hoarfrost.training import TrainedHead, TrainingConfig, train_heads

MEAN = "mean"
"""The name of the committee of all kinds of head."""
SELECTIONS = (MEAN, "best")
LARGEST_ROUNDING = 1e-3  # of a probability, by which storing weights as float16 may change it
LEAST_WEIGHT = 0.02  # a kind with less is left out of the mean
# Training images beyond which fewer members are enough, and the most of them in each fold.
FEWER_MEMBERS = ((20_000, 1), (5_000, 2))
SMALLEST_PROBABILITY = 1e-7  # a loss of infinity would hide all others

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A trained head in a committee, with its weight, and its probabilities (m, C) for its fold's validation images."""

    head: TrainedHead
    weight: float
    validated: Ints
    out_of_fold: Floats


@dataclass(frozen=True)
class Variant:
    """A committee: the trainings of one variant, folds times seeds, or those of several kinds.

    Attributes
    ----------
    requested : HeadSpec or None
        What the user specified; None for "mean".
    members : tuple of Member
        Their weights sum to one.
    out_of_fold : ndarray (n, C) float64
        For each validated image the weighted mean of the members that did not learn from it; NaN for other images.
    loss : float
        Mean cross-entropy out of fold, nats.
    shares : mapping of str to float
        Of "mean": the weight of each variant that it is made of.
    """

    requested: HeadSpec | None
    members: tuple[Member, ...]
    out_of_fold: Floats
    loss: float
    shares: Mapping[str, float]

    @property
    def name(self) -> str:
        """The shortest form of what the user specified, or "mean"."""
        return MEAN if self.requested is None else self.requested.name

    @property
    def slug(self) -> str:
        """The name as a file name."""
        return MEAN if self.requested is None else self.requested.slug

    @property
    def specs(self) -> tuple[HeadSpec, ...]:
        """The different specifications of its members, in order."""
        return tuple(dict.fromkeys(member.head.spec for member in self.members))

    def predicted(self, task: Task, rows: Ints) -> Floats:
        """Return the committee's probabilities (m, C) for images that no member learned from."""
        return task.predicted_with(
            [member.head for member in self.members], [member.weight for member in self.members], rows
        )

    def by_seed(self, task: Task, rows: Ints) -> dict[int, tuple[Floats, Floats]]:
        """Return for each seed the probabilities of its members alone: out of fold (n, C), and of other `rows` (m, C)."""
        found = {}
        for seed in dict.fromkeys(member.head.seed for member in self.members):
            members = [member for member in self.members if member.head.seed == seed]
            others = task.predicted_by([member.head for member in members], rows)
            found[seed] = _pooled(members, task), np.mean(others, axis=0)
        return found


def fit_variants(
    specs: Sequence[HeadSpec],
    developments: Sequence[Development],
    task: Task,
    config: TrainingConfig,
    on_epoch: Callable[[str, int], None],
    *,
    sets: Sequence[ViewSet] = (),
) -> list[dict[ViewSet, dict[str, Variant]]]:
    """Train every variant on every fold of every development set in one pass.

    Parameters
    ----------
    sets : sequence of ViewSet
        The sets of views to compare; by default one set, of all views.

    Returns
    -------
    list of dict
        For each development set, and for each set of views, the variants by name. A variant has members for each size and
        geometry of the views. Of those with several candidates (each C of a path, all layers or the last alone) the one
        with the lowest out-of-fold loss is kept. Variants whose loss or predictions are not finite are omitted.

    Raises
    ------
    TrainingError
        If no variant is left on a development set.
    """
    sets = sets or (ViewSet((task.views,)),)
    candidates = _candidates(specs, sets, task)
    each = list(dict.fromkeys(one for several in candidates.values() for one in several))
    fewest = min(len(one.folds) for one in developments)
    largest = max(len(fold.train) for one in developments for fold in one.folds)
    most_units = max(len(one.units) for one in sets)
    n_seeds = {spec: _seeds_in_a_fold(spec, config, fewest * most_units, largest) for spec in each}
    folds = [fold for one in developments for fold in one.folds]
    heads: dict[HeadSpec, dict[int, list[TrainedHead]]] = {}
    for head in train_heads(
        each, task.labelled(), folds, len(task.names), config, macro_roc_aucs, on_epoch, n_seeds=n_seeds
    ):
        heads.setdefault(head.spec, {}).setdefault(head.fold, []).append(head)
    found, first = [], 0
    with one_thread(only_if=task.is_small):
        for development in developments:
            numbers = range(first, first + len(development.folds))
            first = numbers.stop
            best = _best(candidates, heads, numbers, development, task)
            of_sets = {one: _of_set(one, specs, best, task, development) for one in sets}
            found.append({one: variants for one, variants in of_sets.items() if variants})
    return found


_Unit = tuple[HeadSpec, tuple[str, ...]]  # what the user specified, and the names of the views that its members look at


def _candidates(specs: Sequence[HeadSpec], sets: Sequence[ViewSet], task: Task) -> dict[_Unit, list[HeadSpec]]:
    """Return the heads to train for each specification and each unit of views, of which the best is kept."""
    found: dict[_Unit, list[HeadSpec]] = {}
    for spec in specs:
        places_of(spec.view_names, task.views)  # refuses a view that is missing
        for unit in dict.fromkeys(unit for one in sets for unit in one.units):
            looking = looking_at(spec, unit, len(task.views))
            if looking is not None:
                layered = with_layers(looking, task.looks.layers)
                found[spec, unit] = [one for some in layered for one in some.candidates()]
    return found


def _best(
    candidates: Mapping[_Unit, Sequence[HeadSpec]],
    heads: Mapping[HeadSpec, Mapping[int, Sequence[TrainedHead]]],
    numbers: range,
    development: Development,
    task: Task,
) -> dict[_Unit, Variant]:
    """Return each specification's variant for each unit of views on one development set, by its best candidate."""
    variants = {}
    for (spec, unit), several in candidates.items():
        trained = [_variant(spec, heads.get(one, {}), numbers, development, task) for one in several]
        sound = [one for one in trained if one is not None]
        if sound:
            variants[spec, unit] = _stored(min(sound, key=lambda one: one.loss), task)
        else:
            logger.warning("%s: skipped, because its loss or predictions became NaN or infinite", several[0].name)
    if not variants:
        raise TrainingError(
            "The loss or the predictions of every head became NaN or infinite. Lower the learning rates (lr=)."
        )
    return variants


def _of_set(
    views: ViewSet, specs: Sequence[HeadSpec], best: Mapping[_Unit, Variant], task: Task, development: Development
) -> dict[str, Variant]:
    """Return the variants that look at a set of views: the members for each of its units, with equal weight."""
    found = {}
    for spec in specs:
        parts = [best[spec, unit] for unit in views.units if (spec, unit) in best]
        if not parts:
            continue
        if len(parts) == 1:
            found[spec.name] = parts[0]
            continue
        members = tuple(replace(one, weight=one.weight / len(parts)) for part in parts for one in part.members)
        pooled, rows = _pooled(members, task), development.validated
        found[spec.name] = Variant(spec, members, pooled, mean_loss(task.y[rows], pooled[rows]), {})
    return found


def _seeds_in_a_fold(spec: HeadSpec, config: TrainingConfig, n_folds: int, n_train: int) -> int:
    """Return how many times a head is trained on each fold; with many images a default committee is smaller."""
    if config.seeds is not None:
        return config.seeds
    wanted = math.ceil(spec.members / n_folds)
    if "members" in spec.options() and spec.members == spec.options()["members"].default:
        wanted = next((min(wanted, most) for images, most in FEWER_MEMBERS if n_train > images), wanted)
    return wanted


def _variant(
    requested: HeadSpec,
    by_fold: Mapping[int, Sequence[TrainedHead]],
    numbers: range,
    development: Development,
    task: Task,
) -> Variant | None:
    """Return a variant from its trainings on one development set, or None if one of them failed."""
    heads = [
        (head, fold)
        for number, fold in zip(numbers, development.folds, strict=True)
        for head in by_fold.get(number, ())
    ]
    n_failed = len(numbers) - len({head.fold for head, _ in heads})
    if n_failed or not heads or len(heads) % len(numbers):
        return None
    members = [Member(head, 1 / len(heads), fold.val, task.predicted_by([head], fold.val)[0]) for head, fold in heads]
    pooled, validated = _pooled(members, task), development.validated
    if not np.isfinite(pooled[validated]).all():
        return None
    return Variant(requested, tuple(members), pooled, mean_loss(task.y[validated], pooled[validated]), {})


def _stored(variant: Variant, task: Task) -> Variant:
    """Return a variant with weights that float16 can hold, in the members where that hardly changes a prediction."""
    members = []
    for one in variant.members:
        smaller = replace(one.head, module=rounded(one.head.module))
        (found,) = task.predicted_by([smaller], one.validated)
        is_close = np.abs(found - one.out_of_fold).max() <= LARGEST_ROUNDING
        members.append(replace(one, head=smaller, out_of_fold=found) if is_close else one)
    return replace(variant, members=tuple(members), out_of_fold=_pooled(members, task))


def _pooled(members: Sequence[Member], task: Task) -> Floats:
    """Return the weighted mean (n, C) of the out-of-fold probabilities of each image; NaN where there is none."""
    of_folds: dict[int, list[Member]] = {}
    for member in members:
        of_folds.setdefault(member.head.fold, []).append(member)
    pooled = task.unpredicted()
    for of_fold in of_folds.values():
        total = math.fsum(member.weight for member in of_fold)
        # With one fold the weights are left as they are: the last digit is then that of the saved head.
        weights = [member.weight / total if len(of_folds) > 1 else member.weight for member in of_fold]
        pooled[of_fold[0].validated] = weighted_mean([member.out_of_fold for member in of_fold], weights)
    return pooled


def of_truth(y: Ints, probabilities: Floats) -> Floats:
    """Return the probability that each known label has: (n,), or (k,) over the k known labels of a multi-label task."""
    if y.ndim == 1:
        found: Floats = probabilities[np.arange(len(y)), y]
    else:
        known = y >= 0
        found = np.where(y == 1, probabilities, 1 - probabilities)[known]
    return found.clip(min=SMALLEST_PROBABILITY)


def mean_loss(y: Ints, probabilities: Floats) -> float:
    """Return the mean cross-entropy of probabilities (n, C), nats."""
    return float(-np.log(of_truth(y, probabilities)).mean())


# -- the committee of all kinds -------------------------------------------------------------------------------------------


def with_mean(variants: Mapping[str, Variant], task: Task, development: Development) -> dict[str, Variant]:
    """Add the committee of all kinds, if there are several: of each kind the variant with the lowest out-of-fold loss.

    Each kind's temperature is fitted first, so that kinds trained with and without label smoothing are weighed alike. The
    weights are those that minimise the out-of-fold loss of the mean: non-negative, with sum one.

    References
    ----------
    Breiman (1996), Stacked regressions, Machine Learning 24(1), 49-64.
    """
    best: dict[str, Variant] = {}
    for variant in variants.values():
        kind = variant.specs[0].KIND
        if kind not in best or variant.loss < best[kind].loss:
            best[kind] = variant
    if len(best) < 2:
        return dict(variants)
    rows = development.validated
    y = task.y[rows]
    parts = [_tempered(one, task, rows) for one in best.values()]
    weights = stacking_weights([of_truth(y, one.out_of_fold[rows]) for one in parts])
    members: list[Member] = []
    shares: dict[str, float] = {}
    for part, weight in zip(parts, weights.tolist(), strict=True):
        if weight:
            members += [Member(one.head, weight * one.weight, one.validated, one.out_of_fold) for one in part.members]
            shares[part.name] = weight
    pooled = _pooled(members, task)
    mean = Variant(None, tuple(members), pooled, mean_loss(y, pooled[rows]), shares)
    return {**variants, MEAN: mean}


def _tempered(variant: Variant, task: Task, rows: Ints) -> Variant:
    """Return a variant whose logits are divided by the temperature that its out-of-fold predictions ask for."""
    y, p, groups = task.y[rows], variant.out_of_fold[rows], task.groups[rows]
    if task.is_multilabel:
        known = y >= 0
        y, p, groups = y[known], np.column_stack([1 - p[known], p[known]]), groups[known.nonzero()[0]]
    temperature = fit_temperature(y, p, groups).temperature
    if temperature == 1:
        return variant
    members = []
    for one in variant.members:
        module = cooled(one.head.module, temperature)
        if module is None:
            return variant
        head = replace(one.head, module=module)
        (found,) = task.predicted_by([head], one.validated)
        members.append(replace(one, head=head, out_of_fold=found))
    return _stored(replace(variant, members=tuple(members)), task)


def stacking_weights(of_truths: Sequence[Floats]) -> Floats:
    """Return the weights (V,) of V models that minimise the loss of their mean, from their probabilities of the truth.

    The loss is convex in the weights; the steps are those of the EM algorithm for a mixture's shares, which stay
    non-negative with sum one. Weights below `LEAST_WEIGHT` become zero.
    """
    p = np.stack(of_truths)  # (V, n)
    weights = np.full(len(p), 1 / len(p))
    for _ in range(1_000):
        before = weights
        weights = (weights[:, None] * p / (weights @ p)).mean(axis=1)
        if np.abs(weights - before).max() < 1e-6:
            break
    weights[weights < LEAST_WEIGHT] = 0
    return np.asarray(weights / weights.sum())


def select(variants: Mapping[str, Variant], selection: str) -> str:
    """Return the name of the selected head: the mean of all kinds if there is one, or the single one with the lowest loss."""
    if selection == MEAN and MEAN in variants:
        return MEAN
    return min((name for name in variants if name != MEAN), key=lambda name: variants[name].loss)
