"""The leakage gate: before anything is trained, what the splits of a task share."""

import logging
from dataclasses import replace

import numpy as np

from hoarfrost.evaluation.leakage import Leakage, find_leakage
from hoarfrost.experiment.task import Task
from hoarfrost.features.errors import TrainingError
from hoarfrost.runs import shared_text

MOST_COMPARED = 200_000  # images: a minute on two cores; the time grows with the square of their number

logger = logging.getLogger(__name__)


def check_leakage(task: Task, *, allowed: bool = False) -> Leakage:
    """Look for patients, bytes and near-duplicates that are in two splits.

    Parameters
    ----------
    task : Task
    allowed : bool
        Go on where patients or bytes are shared.

    Returns
    -------
    Leakage

    Raises
    ------
    TrainingError
        If two splits share a patient or an image's bytes, and that is not allowed.
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
            f"The dataset {table.name!r} leaks: {shared_text(leakage)}. What a head scores there says nothing of new "
            "patients. Mend the split column or folders, or go on with --allow-leakage; the report will say so."
        )
    return leakage


def _why_not_compared(task: Task, n_images: int) -> str:
    """Say why no near-duplicates are looked for; nothing where they are."""
    if n_images > MOST_COMPARED:
        return f"{n_images:,} images are too many to compare with one another"
    return "the embeddings do not fit into the memory limit" if task.is_streamed else ""
