"""What stops a training before it begins: what the splits of a task share, and the same bytes under two labels."""

import logging
from dataclasses import replace
from itertools import chain, compress, islice

import numpy as np

from hoarfrost.evaluation.leakage import MOST_LISTED, Conflicting, DifferentLabels, Leakage, find_leakage
from hoarfrost.experiment.duplicates import has_mirror_images, kept_together, pairs_among
from hoarfrost.experiment.task import Task
from hoarfrost.features.datasets.conflicts import conflicts
from hoarfrost.features.errors import TrainingError
from hoarfrost.runs import SPLITS, leakage_warnings, shared_text
from hoarfrost.training.rows import gathered

MOST_CONFLICTING = 0.005  # a share of the images; BUSI has 0.0026

logger = logging.getLogger(__name__)


def check_leakage(task: Task, *, allowed: bool = False) -> Leakage:
    """Look for patients, bytes and near-duplicates that are in two splits, and log what is found.

    Raises
    ------
    TrainingError
        If two splits share a patient or an image's bytes, unless that is `allowed`.
    """
    table, places = task.table, np.flatnonzero(task.readable)
    patients = None if table.patients is None else [table.patients[i] for i in places]
    near = task.near
    is_searched = not near.not_compared and (near.pairs is None or not near.pairs.is_complete)
    pairs = near.pairs
    if is_searched and has_mirror_images(task.looks):  # without them those of two splits are enough
        pairs = pairs_among(task.looks, np.arange(len(places)))
    x = gathered(task.looks.first(task.looks.last_layer), np.arange(len(places))) if is_searched else None
    paths = [table.paths[i] for i in places]
    found = find_leakage(x, task.splits, task.files.tolist(), paths, patients, near=pairs)
    leakage = replace(
        found,
        allowed=allowed and found.refused,
        not_compared=near.not_compared,
        near_duplicates_mode=near.mode,
        together=kept_together(near, paths, task.labels()),
    )
    if found.refused and not allowed:
        raise TrainingError(
            f"The splits of the dataset {table.name!r} leak: {shared_text(leakage)}. Such test scores do not show how a head "
            "does on new patients. Fix the split column or the folders, or continue with --allow-leakage. The report will "
            "then state it."
        )
    for warning in leakage_warnings(leakage):
        logger.warning("%s", warning)
    return leakage


def check_conflicts(task: Task, *, allowed: bool = False) -> Conflicting | None:
    """Look for images with the same bytes that would be learnt as different classes; None if there are none.

    Labels that --positive joins are one class, and an unknown label conflicts with none. Few are only logged: large public
    data sets have some.

    Raises
    ------
    TrainingError
        If they are more than a share `MOST_CONFLICTING` of the images, unless that is `allowed`.
    """
    contents, found = task.table.rows[task.readable], set[tuple[int, ...]]()
    for y in task.y.reshape(len(task.y), -1).T:
        known = np.flatnonzero(y >= 0)
        found |= {tuple(known[list(rows)].tolist()) for rows in conflicts(y[known].tolist(), contents[known].tolist())}
    if not found:
        return None
    paths, labels = list(compress(task.table.paths, task.readable)), task.labels()
    groups = sorted(found)
    pairs = ((first, next(row for row in others if (task.y[row] != task.y[first]).any())) for first, *others in groups)
    listed = tuple(DifferentLabels(paths[a], labels[a], paths[b], labels[b]) for a, b in islice(pairs, MOST_LISTED))
    conflicting = Conflicting(len(set(chain.from_iterable(groups))), len(groups), listed)
    if conflicting.n_images > MOST_CONFLICTING * len(task.y) and not allowed:
        raise TrainingError(
            f"The dataset {task.table.name!r} contradicts itself: {conflicting.text} Correct the labels or remove these "
            "images, and extract again; or continue with --allow-conflicts. The report will then state it."
        )
    logger.warning("%s", conflicting.warning)
    return conflicting


def state_mixed_patients(task: Task) -> None:
    """State how the images are divided where patients have images of several classes and the splits are drawn here."""
    if task.patients is None or task.is_multilabel or task.table.splits is not None:
        return
    pairs = np.unique(np.stack([task.patients, task.y]), axis=1)  # (2, pairs of patient and class)
    n_mixed = int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
    if n_mixed:
        parts = {name: np.bincount(task.y[task.splits == name], minlength=len(task.names)) for name in SPLITS}
        sizes = (
            f"{name} " + ", ".join(f"{n:,} {label}" for n, label in zip(counts, task.names, strict=True))
            for name, counts in parts.items()
            if counts.any()
        )
        text = (
            "%s of %s patients have images of several classes. They are not divided, so the classes' shares differ: %s"
        )
        logger.info(text, f"{n_mixed:,}", f"{len(np.unique(pairs[0])):,}", "; ".join(sizes))
