"""The learning curve: how scores grow with the number of training patients."""

import logging
from collections.abc import Callable, Sequence

import numpy as np

from hoarfrost.evaluation import macro_roc_aucs
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.experiment.development import Development
from hoarfrost.experiment.splits import class_masks, strata_of_groups
from hoarfrost.experiment.task import Task
from hoarfrost.experiment.variants import Variant
from hoarfrost.runs import LearningPoint
from hoarfrost.training import Fold, TrainedHead, TrainingConfig, train_heads

SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)
N_DRAWS = 5
FEWEST_OF_A_CLASS = 1  # images

logger = logging.getLogger(__name__)


def learning_curve(
    variant: Variant,
    task: Task,
    development: Development,
    config: TrainingConfig,
    on_epoch: Callable[[str, int], None],
) -> tuple[LearningPoint, ...]:
    """Train a variant on growing shares of the training patients, several draws of each; score it on the test split.

    Without a test split the images that a fold holds out are scored, and shares are of that fold's training patients.
    The kinds in a committee keep their weights. Shares for which a draw has no image of a class or label are skipped.
    """
    points = []
    for share in SHARES:
        n_draws = N_DRAWS if share < 1 or "test" not in task.scored else 1
        places = [_place(task, development, draw) for draw in range(n_draws)]
        draws = [_draw(task, train, share, config.seed + i) for i, (train, _) in enumerate(places)]
        n_rarest = min(_rarest(task, rows) for rows in draws)
        if n_rarest < FEWEST_OF_A_CLASS:
            logger.warning(
                "learning curve: %.0f%% of the training patients is skipped, because a draw has %d image(s) of a class",
                *(100 * share, n_rarest),
            )
            continue
        validated = None if config.patience is None else development.folds[0].val
        folds = [Fold(rows, rows if validated is None else validated) for rows in draws]
        trained = train_heads(variant.specs, task.labelled(), folds, len(task.names), config, macro_roc_aucs, on_epoch)
        by_draw = _areas(variant, task, trained, [scored for _, scored in places])
        n_patients = int(np.mean([len(np.unique(task.groups[rows])) for rows in draws]))
        n_images, aucs = int(np.mean([len(rows) for rows in draws])), tuple(auc for one in by_draw for auc in one)
        points.append(LearningPoint(share, n_patients, n_images, aucs, tuple(float(np.mean(one)) for one in by_draw)))
    return tuple(points)


def _place(task: Task, development: Development, draw: int) -> tuple[Ints, Ints]:
    """Return the rows that a draw takes its training images from, and those it is scored on."""
    fold = development.folds[draw % len(development.folds)]
    return (development.rows, task.scored["test"]) if "test" in task.scored else (fold.train, fold.val)


def _areas(variant: Variant, task: Task, trained: Sequence[TrainedHead], scored: Sequence[Ints]) -> list[list[float]]:
    """Return the ROC AUC of each seed, for each draw; kinds that are trained once count for every seed."""
    weights: dict[object, float] = {}
    for member in variant.members:
        weights[member.head.spec] = weights.get(member.head.spec, 0) + member.weight
    found: dict[tuple[int, object], list[Floats]] = {}
    for head in trained:
        (of_head,) = task.predicted_by([head], scored[head.fold])
        found.setdefault((head.fold, head.spec), []).append(of_head)
    areas: list[list[float]] = []
    for draw, rows in enumerate(scored):
        of_specs = [found[draw, spec] for spec in weights if (draw, spec) in found]
        if len(of_specs) < len(weights):
            continue  # a head of this draw failed
        areas.append([])
        for seed in range(max(map(len, of_specs))):
            mixed = sum(
                weight * of_spec[min(seed, len(of_spec) - 1)]
                for weight, of_spec in zip(weights.values(), of_specs, strict=True)
            )
            areas[-1].append(task.roc_auc(rows, np.asarray(mixed)))
    return areas


def _draw(task: Task, train: Ints, share: float, seed: int) -> Ints:
    """Draw a share of each class's, or label's, training patients; return the rows of their images."""
    groups, classes, _ = strata_of_groups(task.y[train], task.groups[train], task.names, 1)
    rng = np.random.default_rng(seed)
    drawn = []
    for number in np.unique(classes):
        of_class = rng.permutation(groups[classes == number])
        drawn.append(of_class[: max(1, round(share * len(of_class)))])
    return train[np.isin(task.groups[train], np.concatenate(drawn))]


def _rarest(task: Task, rows: Ints) -> int:
    return min(int(mask.sum()) for mask in class_masks(task.y[rows], task.names).values())
