"""The leakage check: what the splits of a task share, found before anything is trained."""

import logging
from dataclasses import replace

import numpy as np

from hoarfrost.evaluation.leakage import Leakage, find_leakage
from hoarfrost.experiment.duplicates import kept_together
from hoarfrost.experiment.task import Task
from hoarfrost.features.errors import TrainingError
from hoarfrost.runs import leakage_warnings, shared_text

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
    x = task.embeddings(np.arange(len(places))) if is_searched else None
    paths = [table.paths[i] for i in places]
    found = find_leakage(x, task.splits, table.rows[places].tolist(), paths, patients, near=near.pairs)
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
