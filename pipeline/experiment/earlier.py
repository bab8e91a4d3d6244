"""Splits that stay: those of an earlier run, kept where they are asked for, and compared where they are not."""

import logging
from collections.abc import Mapping, Sequence
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hoarfrost.experiment.splits import Strings
from hoarfrost.features.cache import DatasetTable
from hoarfrost.features.errors import RunError, TrainingError
from hoarfrost.runs import Predictions, RunConfig, read_splits

logger = logging.getLogger(__name__)


def kept_splits(earlier: Predictions, table: DatasetTable, readable: npt.NDArray[np.bool_]) -> Strings:
    """Return the splits that an earlier run had for the same images, else for their patients; "" for all others.

    Raises
    ------
    TrainingError
        If the dataset has splits of its own, or the run has none of its images.
    """
    if table.splits is not None:
        raise TrainingError(
            f"--splits-from: the dataset {table.name!r} has splits of its own, which do not change. Omit the option."
        )
    of_patients = {patient: split for patient, split in zip(earlier.patients, earlier.splits, strict=True) if patient}
    of_paths: Mapping[str, str] = dict(zip(earlier.paths, earlier.splits, strict=True))
    paths = list(compress(table.paths, readable))
    patients = [""] * len(paths) if table.patients is None else list(compress(table.patients, readable))
    kept = [of_paths.get(path) or of_patients.get(patient, "") for path, patient in zip(paths, patients, strict=True)]
    if not any(kept):
        raise TrainingError(
            f"--splits-from: that run has none of the images of the dataset {table.name!r} (their paths are compared). Name "
            "a run of this dataset, or omit the option."
        )
    return np.array(kept, dtype="<U5")


def warn_of_moved(directory: Path, earlier: RunConfig, paths: Sequence[str], splits: Strings) -> None:
    """Warn if images that an earlier run tested on are no longer test images, or the reverse.

    Parameters
    ----------
    directory : Path
        The earlier run.
    earlier : RunConfig
        Its configuration.
    paths : sequence of str, length n
    splits : ndarray (n,) of "train", "val" or "test"
        Those of the new run.
    """
    try:
        found = read_splits(directory)
    except RunError:  # it is about to be replaced
        return
    was_test = {path: split == "test" for path, split in found.items()}
    n_left = sum(was_test.get(path, False) and split != "test" for path, split in zip(paths, splits, strict=True))
    n_joined = sum(not was_test.get(path, True) and split == "test" for path, split in zip(paths, splits, strict=True))
    if n_left or n_joined:
        logger.warning(
            "The splits differ from those of the run %s of %s: %s of its test images are training images now, and %s of its "
            "training images are test images. Heads that were chosen by that run have seen them. To keep its splits, pass "
            "--splits-from with a copy of that run.",
            directory, earlier.created, f"{n_left:,}", f"{n_joined:,}",
        )  # fmt: skip
