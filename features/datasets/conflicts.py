"""The same bytes under two labels: at least one of the labels is wrong."""

import logging
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
import numpy.typing as npt

from hoarfrost.features.datasets.table import Dataset

_SHOWN = 3

logger = logging.getLogger(__name__)


def conflicts(labels: Sequence[Hashable], keys: Sequence[Hashable]) -> list[tuple[int, ...]]:
    """Return the groups of rows, ascending, whose images have the same bytes and not the same label.

    Parameters
    ----------
    labels : sequence
    keys : sequence
        The images' keys, or what else is equal for the same bytes; b"" where an image could not be read.
    """
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key != b"":
            groups[key].append(row)
    return [tuple(rows) for rows in groups.values() if len(rows) > 1 and len({labels[row] for row in rows}) > 1]


def conflict_text(dataset: Dataset, found: Sequence[tuple[int, ...]]) -> str:
    """Return what is said of conflicts; empty if there are none."""
    if not found:
        return ""
    first = [
        " and ".join(f"{dataset.paths[row]} ({dataset.labels[row]})" for row in rows[:2]) for rows in found[:_SHOWN]
    ]
    images = f"{len(found):,} image{'s' * (len(found) != 1)}"
    return (
        f"{sum(map(len, found)):,} files are {images} under different labels: the same bytes, as in "
        f"{'; '.join(first)}. At least one label of each is wrong. Correct the labels, or remove these images."
    )


def warn_of_conflicts(dataset: Dataset, keys: npt.NDArray[np.uint8], readable: npt.NDArray[np.bool_]) -> None:
    """Warn of images with the same bytes and different labels; `keys` (n, 32) count where `readable` (n,)."""
    _, firsts, counts = np.unique(keys[readable], axis=0, return_index=True, return_counts=True)
    if len(firsts) == int(readable.sum()) or not counts.size:
        return
    found = conflicts(dataset.labels, [key.tobytes() if ok else b"" for key, ok in zip(keys, readable, strict=True)])
    if text := conflict_text(dataset, found):
        logger.warning("%s", text)
