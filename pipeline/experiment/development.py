"""Development sets: the images on which everything but the test scores is decided, divided into folds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation.checks import Ints
from hoarfrost.experiment.splits import carve_validation, class_masks, k_folds, most_folds
from hoarfrost.experiment.task import Task
from hoarfrost.features.errors import TrainingError
from hoarfrost.training import Fold

N_FOLDS = 5
FEWEST_TO_LEARN = 2  # images of a class


@dataclass(frozen=True)
class Development:
    """Images to learn from and to validate on, as K folds.

    With cross-fitting each image is in the validation part of one fold. With a validation split there is one fold.
    """

    folds: tuple[Fold, ...]

    @property
    def rows(self) -> Ints:
        """All images that may be learned from, (n,) int64, ascending."""
        return np.unique(np.concatenate([fold.train for fold in self.folds]))

    @property
    def validated(self) -> Ints:
        """The images that are predicted out of fold, (n,) int64, ascending."""
        return np.unique(np.concatenate([fold.val for fold in self.folds]))


def development_of(task: Task, seed: int) -> Development:
    """Return the development set of a task: its training and validation splits, or folds of its training split."""
    if task.is_cross_fitted:
        return Development(_folds(task, task.rows_of("train"), seed, "The training images"))
    return Development((Fold(task.rows_of("train"), task.rows_of("val")),))


def divided_rows(task: Task) -> Ints:
    """Return the images that are divided again for folds, random splits and sites: not a test split given, or locked."""
    keeps_test = task.has_given_test or task.is_locked
    return np.flatnonzero(task.splits != "test") if keeps_test else np.arange(len(task.y))


@dataclass(frozen=True)
class OuterFold:
    """The rows that a fold of nested cross-validation holds out, and the development set that the others form."""

    held_out: Ints
    development: Development


def outer_folds(task: Task, n_folds: int, seed: int, *, option: str = "", first: int | None = None) -> list[OuterFold]:
    """Divide a task's images into folds; a test split that the dataset brings is in none.

    `option` is what the user asked for, for messages; only so many as the `first` folds are returned.

    Raises
    ------
    TrainingError
        If the images cannot be divided into this many folds.
    """
    rows = divided_rows(task)
    option = option or f"--folds {n_folds}"
    places = k_folds(task.y[rows], task.groups[rows], task.names, n_folds, seed=seed, what=option)
    try:
        task.units(rows)  # folds also hold out training images, whose patients were not checked yet
    except ValueError as error:
        raise TrainingError(
            f"--per-patient {task.per_patient} with {option}: {error} (--positive), or omit one of the options."
        ) from error
    wanted = range(n_folds if first is None else first)
    for fold in wanted:
        masks = class_masks(task.units(rows[places == fold]).y, task.names)
        absent = [which for which, mask in masks.items() if not mask.any()]
        if absent:  # images are divided by class, but a patient may have images of several classes
            raise TrainingError(f"{option}: a fold has no patient with {absent[0]} only. Use fewer folds.")
    return [
        OuterFold(rows[places == fold], inner_development(task, rows[places != fold], option, seed)) for fold in wanted
    ]


def inner_development(task: Task, rows: Ints, option: str, seed: int) -> Development:
    """Divide an outer fold's training rows as the task's development set is divided."""
    if task.is_cross_fitted:
        return Development(_folds(task, rows, seed, f"{option}, the training images of a fold"))
    try:
        inner = carve_validation(
            task.y[rows], task.groups[rows], task.names, seed=seed, identities=task.identities[rows]
        )
    except TrainingError as error:
        raise TrainingError(f"{option}, the training images of a fold: {error}") from error
    fold = Fold(rows[inner == "train"], rows[inner == "val"])
    for y, fewest, purpose in (
        (task.y[fold.train], FEWEST_TO_LEARN, "learn from"),
        (task.units(fold.val).y, 1, "validate on"),
    ):
        _check(task, y, fewest, f"{option}: a fold has", purpose, f"or omit {option.split()[0]}.")
    return Development((fold,))


def _folds(task: Task, rows: Ints, seed: int, what: str) -> tuple[Fold, ...]:
    """Divide rows into the folds of cross-fitting, `N_FOLDS` or as many as the rarest class allows."""
    y, groups = task.y[rows], task.groups[rows]
    wanted = min(N_FOLDS, most_folds(y, groups, task.names))
    if wanted < 2:
        masks = class_masks(y, task.names)
        rarest = min(masks, key=lambda which: len(np.unique(groups[masks[which]])))
        raise TrainingError(
            f"{what}: {rarest} is seen in one patient only (or one image, if patients are unknown), so it cannot be both "
            "learned and validated. Add patients, merge classes with --positive, or omit the label."
        )
    for n_folds in range(wanted, 1, -1):
        try:
            places = k_folds(y, groups, task.names, n_folds, seed=seed, what=f"{what}, in {n_folds} folds")
            break
        except TrainingError:
            if n_folds == 2:
                raise
    folds = tuple(Fold(rows[places != fold], rows[places == fold]) for fold in range(n_folds))
    for fold in folds:
        _check(task, task.y[fold.train], 1, f"{what}: without one fold there are", "learn from", "or merge classes.")
    return folds


def _check(task: Task, y: Ints, fewest: int, where: str, purpose: str, way_out: str) -> None:
    counts = {which: int(mask.sum()) for which, mask in class_masks(y, task.names).items()}
    rarest = min(counts, key=counts.__getitem__)
    if counts[rarest] < fewest:
        raise TrainingError(f"{where} only {counts[rarest]} image(s) of {rarest} to {purpose}. Add images, {way_out}")


def fold_numbers(folds: Sequence[Ints], n: int) -> Ints:
    """Return the number of the fold that holds each of n images out, -1 if none does."""
    numbers = np.full(n, -1)
    for number, rows in enumerate(folds):
        numbers[rows] = number
    return numbers
