"""Which row of a file of embeddings belongs to which image of a dataset."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np

from hoarfrost.features.datasets import Dataset
from hoarfrost.features.errors import DatasetError

Ints = np.ndarray[tuple[int], np.dtype[np.int64]]
SHOWN = 3


@dataclass(frozen=True)
class Matched:
    """For each image of the dataset its row in the file, (n,) int64, -1 if there is none; and the rule, for people.

    `unused` are the names in the file that no image has.
    """

    rows: Ints
    rule: str
    unused: tuple[str, ...]


def matched(source: str, ids: Sequence[str], dataset: Dataset, id_column: str | None) -> Matched:
    """Match names in a file with a dataset's images, by the rule that matches most of them.

    Parameters
    ----------
    ids : sequence of str
        Unique.
    id_column : str, optional
        The dataset's column of these names; by default paths, then file names, then file names without suffix.

    Raises
    ------
    DatasetError
        If nothing matches, or the column is missing.
    """
    names: Sequence[str] = list(dataset.paths)
    if id_column is not None:
        if id_column.lower() not in dataset.attributes:
            known = ", ".join(dataset.attributes) or "none"
            raise DatasetError(
                f"--id-column {id_column}: {dataset.source} has no such column. Its further columns: {known}."
            )
        names = list(dataset.attributes[id_column.lower()])
    found = [_by(rule, how, ids, names) for rule, how in _RULES.items()]
    best = max((one for one in found if one is not None), key=lambda one: int((one.rows >= 0).sum()), default=None)
    if best is None or not (best.rows >= 0).any():
        raise DatasetError(
            f"{source}: none of its {len(ids):,} names is an image of {dataset.source}. The first name in the file: "
            f"{ids[0]!r}; the first image: {names[0]!r}. Correct the paths in the CSV, or name the CSV's column of ids "
            "with --id-column."
        )
    return best


def _by(rule: str, how: Callable[[str], str], ids: Sequence[str], names: Sequence[str]) -> Matched | None:
    """Match by one rule; None if two names in the file, or two images, are one by this rule."""
    row_of = {how(one): row for row, one in enumerate(ids)}
    keys = [how(name) for name in names]
    if len(row_of) < len(ids) or len(set(keys)) < len(keys):
        return None
    rows = np.array([row_of.get(key, -1) for key in keys], np.int64)
    unused = row_of.keys() - set(keys)
    return Matched(rows, rule, tuple(one for one in ids if how(one) in unused))


def _normal(path: str) -> str:
    return os.path.normpath(path.replace("\\", "/"))


_RULES: dict[str, Callable[[str], str]] = {
    "paths": _normal,
    "file names": lambda path: PurePosixPath(_normal(path)).name,
    "file names without suffix": lambda path: PurePosixPath(_normal(path)).stem,
}


def check_complete(source: str, found: Matched, dataset: Dataset) -> None:
    """Raise DatasetError if an image has no embedding, or an embedding no image."""
    missing = [dataset.paths[row] for row in np.flatnonzero(found.rows < 0).tolist()]
    problems = []
    if missing:
        problems.append(
            f"{len(missing):,} of {len(dataset):,} images have no embedding in the file ({_first(missing)})"
        )
    if found.unused:
        problems.append(f"{len(found.unused):,} embeddings belong to no image ({_first(found.unused)})")
    if problems:
        raise DatasetError(
            f"{source} and {dataset.source} do not fit, matched by {found.rule}: {'; '.join(problems)}. Correct the "
            "CSV or the file; or continue with --on-error skip, which lists images without an embedding as unreadable "
            "and ignores embeddings without an image."
        )


def _first(names: Sequence[str]) -> str:
    return f"first: {', '.join(names[:SHOWN])}"
