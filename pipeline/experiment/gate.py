"""The leakage check: what the splits of a task share, found before anything is trained."""

import logging
from dataclasses import replace

import numpy as np

from hoarfrost.evaluation.leakage import Leakage, find_leakage
from hoarfrost.experiment.task import Task
from hoarfrost.features.errors import TrainingError
from hoarfrost.runs import leakage_warnings, shared_text

MOST_COMPARED = 200_000  # images: a minute on two cores; the time grows with the square of their number

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
    not_compared = _why_not_compared(task, len(places))
    x = None if not_compared else task.embeddings(np.arange(len(places)))
    paths = [table.paths[i] for i in places]
    found = find_leakage(x, task.splits, table.rows[places].tolist(), paths, patients)
    leakage = replace(found, allowed=allowed and found.refused, not_compared=not_compared)
    if found.refused and not allowed:
        raise TrainingError(
            f"The splits of the dataset {table.name!r} leak: {shared_text(leakage)}. Such test scores do not show how a head "
            "does on new patients. Fix the split column or the folders, or continue with --allow-leakage. The report will "
            "then state it."
        )
    for warning in leakage_warnings(leakage):
        logger.warning("%s", warning)
    return leakage


def _why_not_compared(task: Task, n_images: int) -> str:
    """Return why near-duplicates are not searched; an empty text if they are."""
    if n_images > MOST_COMPARED:
        return f"{n_images:,} images are too many to compare with one another"
    return "the embeddings do not fit into the memory limit" if task.is_streamed else ""
