"""Repeated random splits: the whole procedure again and again, to see how much results depend on the draw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation import Estimate
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.discrimination import auc_influence
from hoarfrost.evaluation.stability import instability, mean_over_splits
from hoarfrost.experiment.compared_views import candidates_of
from hoarfrost.experiment.development import OuterFold, divided_rows, outer_folds
from hoarfrost.experiment.splits import most_folds
from hoarfrost.experiment.task import Task
from hoarfrost.experiment.variants import fit_variants
from hoarfrost.experiment.views import ViewSet
from hoarfrost.features.devices import one_thread
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.runs import RepeatedSplits
from hoarfrost.training import TrainingConfig

N_PARTS = 5  # of which a split holds one out, as the test split is one in five
SPLITS_AT_ONCE = 10  # whose heads are held in memory


@dataclass(frozen=True)
class Repeats:
    """What random splits gave: the ROC AUC of each, the head that each selected, and the probabilities (R, n, C).

    These are NaN for what a split's heads learned from, and for a test split that the dataset brings.
    """

    splits: Sequence[OuterFold]
    roc_aucs: Sequence[float]
    selected: Sequence[str]
    probabilities: Floats

    def influences(self, task: Task) -> Floats:
        """Return each image's influence (R, n) on the area of each split; a patient's is that of its first image."""
        pairs = zip(self.splits, self.probabilities, strict=True)
        return np.stack([area_influence(task, one.held_out, found)[1] for one, found in pairs])


def area_influence(task: Task, rows: Ints, probabilities: Floats) -> tuple[float, Floats]:
    """Return the ROC AUC of probabilities (n, C) on some rows, and each image's influence (n,) on it, 0 elsewhere."""
    units, found = task.units(rows), np.zeros(len(probabilities))
    area, influence = auc_influence(units.y, units.joined(probabilities[rows]))
    firsts = slice(None) if units.members is None else np.unique(units.members, return_index=True)[1]
    found[rows[firsts]] = influence
    return area, found


def repeated_splits(task: Task, n_repeats: int, seed: int) -> list[OuterFold]:
    """Draw random splits, each of which holds out a fifth of the patients of each class, whatever the others hold out.

    With few patients of a class more are held out, so that one of them is. A test split that the dataset brings is in none.

    Raises
    ------
    TrainingError
        If the images cannot be divided.
    """
    option = f"--repeats {n_repeats}"
    rows = divided_rows(task)
    n_parts = min(N_PARTS, most_folds(task.y[rows], task.groups[rows], task.names))
    if n_parts < 2:
        raise TrainingError(
            f"{option}: a class is seen in one patient only (or one image, if patients are unknown), so it cannot be in both "
            "parts of a split. Add images, or omit --repeats."
        )
    return [outer_folds(task, n_parts, seed + 1 + number, option=option, first=1)[0] for number in range(n_repeats)]


def repeat(
    specs: Sequence[HeadSpec],
    task: Task,
    splits: Sequence[OuterFold],
    config: TrainingConfig,
    selection: str,
    on_epoch: Callable[[str, int], None],
    *,
    sets: Sequence[ViewSet] = (),
) -> Repeats:
    """Train every variant on each split, select one, and predict what the split holds out.

    `selection` is that of `hoarfrost.experiment.variants.select`; `on_epoch` that of `hoarfrost.training.train_heads`.

    Raises
    ------
    TrainingError
        If no head can be trained on a split.
    """
    areas, selected = [], []
    found = np.full((len(splits), len(task.y), len(task.names)), np.nan)
    for first in range(0, len(splits), SPLITS_AT_ONCE):
        part = splits[first : first + SPLITS_AT_ONCE]
        fitted = fit_variants(specs, [one.development for one in part], task, config, on_epoch, sets=sets)
        with one_thread(only_if=task.is_small):
            for number, (of_sets, one) in enumerate(zip(fitted, part, strict=True), start=first):
                best = candidates_of(of_sets, task, one.development, selection)[0]
                found[number, one.held_out] = best.chosen.predicted(task, one.held_out)
                areas.append(task.roc_auc(one.held_out, found[number, one.held_out]))
                selected.append(best.selected)
    return Repeats(splits, areas, selected, found)


def _mean(repeats: Repeats, task: Task) -> Estimate:
    """Return the mean area; without an interval where a split holds out one of a class."""
    one = repeats.splits[0]
    n_parts = round(1 + len(one.development.rows) / len(one.held_out))
    try:
        return mean_over_splits(repeats.roc_aucs, repeats.influences(task), task.y, task.patients, n_parts)
    except ValueError:
        return Estimate(float(np.mean(repeats.roc_aucs)), None, None)


def summary_of(repeats: Repeats | None, task: Task, of_run: Floats) -> RepeatedSplits | None:
    """Summarise repeated splits, beside the run's own probabilities (n, C); None without repeats."""
    if repeats is None:
        return None
    n_held_out = round(np.mean([len(one.held_out) for one in repeats.splits]))
    n = len(repeats.splits[0].held_out) + len(repeats.splits[0].development.rows)
    return RepeatedSplits(
        n_trained=n - n_held_out,
        n_held_out=n_held_out,
        roc_auc=_mean(repeats, task),
        roc_aucs=tuple(repeats.roc_aucs),
        selected=tuple(repeats.selected),
        instability=instability(task.y, of_run, repeats.probabilities, task.decision(of_run)),
    )
