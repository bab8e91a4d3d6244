"""Splits that stay: those of an earlier run, kept where they are asked for, and compared where they are not."""

import logging
from collections.abc import Iterator, Mapping
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hoarfrost.experiment.splits import Strings
from hoarfrost.features.cache import DatasetTable
from hoarfrost.features.errors import RunError, TrainingError
from hoarfrost.runs import Predictions, RunHeads, read_heads, read_splits

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


def warn_of_moved(directory: Path, cache: Path, dataset: str, seed: int, splits: Mapping[str, str]) -> None:
    """Warn if images that the latest earlier run tested on are no longer test images, or the reverse.

    Parameters
    ----------
    directory : Path
        The new run's folder. Earlier runs are looked for here and beside it.
    cache, dataset, seed
        Those of the new run. An earlier run with others says nothing about this one.
    splits : mapping
        From the path of each image to its split in the new run.
    """
    found = [run for run in runs_beside(directory) if _origin(run) == (str(cache), dataset, seed)]
    if not found:
        return
    earlier = max(found, key=lambda run: run.config.created)
    try:
        known = {path: split for path, split in read_splits(earlier.directory).items() if path in splits}
    except RunError:
        return
    n_left = sum(split == "test" != splits[path] for path, split in known.items())
    n_joined = sum(split != "test" == splits[path] for path, split in known.items())
    if n_left or n_joined:
        logger.warning(
            "The splits differ from those of the run %s of %s: %s of its test images are training images now, and %s of its "
            "training images are test images. What was chosen by that run has seen them. To keep the splits that it drew, "
            "stop, and pass --splits-from %s.",
            earlier.directory, earlier.config.created, f"{n_left:,}", f"{n_joined:,}", earlier.directory,
        )  # fmt: skip


def runs_beside(directory: Path) -> Iterator[RunHeads]:
    """Yield the earlier run in a folder, and the runs in the folders beside it; not those that cannot be read."""
    places = {directory, *(path.parent for path in directory.parent.glob("*/config.json"))}
    return (run for run in map(_run_at, sorted(places)) if run is not None)


def _run_at(directory: Path) -> RunHeads | None:
    try:
        return read_heads(directory)
    except RunError:  # another folder, or a run that cannot be read
        return None


def _origin(run: RunHeads) -> tuple[str, str, int]:
    return run.config.embeddings.cache, run.config.dataset.name, run.config.seed
