"""The learning curve: how scores grow with the number of training patients."""

import logging
from collections.abc import Callable

import numpy as np

from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.experiment.splits import class_masks, strata_of_groups
from hoarfrost.experiment.task import Task
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.runs import LearningPoint
from hoarfrost.training import Fold, TrainingConfig, train_heads

SHARES = (0.05, 0.1, 0.2, 0.5, 1.0)
N_DRAWS = 5
FEWEST_OF_A_CLASS = 1  # images

logger = logging.getLogger(__name__)


def learning_curve(
    spec: HeadSpec,
    task: Task,
    config: TrainingConfig,
    roc_aucs: Callable[[Ints, Floats], Floats],
    on_epoch: Callable[[str, int], None],
) -> tuple[LearningPoint, ...]:
    """Train a head on growing shares of the training patients, several draws of each; score it on the test split.

    Without a test split, the validation split is scored. Shares for which a draw has no image of a class or label are
    skipped. `roc_aucs` and `on_epoch` are those of `hoarfrost.training.train_heads`.
    """
    scored = task.rows_of(task.scored_splits[-1])
    val = task.rows_of("val")
    points = []
    for share in SHARES:
        draws = [_draw(task, share, config.seed + draw) for draw in range(N_DRAWS if share < 1 else 1)]
        n_rarest = min(_rarest(task, rows) for rows in draws)
        if n_rarest < FEWEST_OF_A_CLASS:
            logger.warning(
                "learning curve: %.0f%% of the training patients is skipped, because a draw has %d image(s) of a class",
                *(100 * share, n_rarest),
            )
            continue
        folds = [Fold(rows, val) for rows in draws]
        trained = train_heads([spec], task.labelled(), folds, len(task.names), config, roc_aucs, on_epoch)
        aucs = [task.roc_auc(scored, task.predicted(head.module, scored)) for head in trained]
        n_patients = int(np.mean([len(np.unique(task.groups[rows])) for rows in draws]))
        points.append(LearningPoint(share, n_patients, int(np.mean([len(rows) for rows in draws])), tuple(aucs)))
    return tuple(points)


def _draw(task: Task, share: float, seed: int) -> Ints:
    """Draw a share of each class's, or label's, training patients; return the rows of their images."""
    train = task.rows_of("train")
    groups, classes, _ = strata_of_groups(task.y[train], task.groups[train], task.names, 1)
    rng = np.random.default_rng(seed)
    drawn = []
    for number in np.unique(classes):
        of_class = rng.permutation(groups[classes == number])
        drawn.append(of_class[: max(1, round(share * len(of_class)))])
    return train[np.isin(task.groups[train], np.concatenate(drawn))]


def _rarest(task: Task, rows: Ints) -> int:
    return min(int(mask.sum()) for mask in class_masks(task.y[rows], task.names).values())
