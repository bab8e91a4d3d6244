"""The classes of a dataset, of its label column or of several columns of 0 and 1, and each image's."""

from collections.abc import Sequence
from difflib import get_close_matches
from itertools import compress
from unicodedata import normalize

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import Ints
from hoarfrost.features.cache import DatasetTable
from hoarfrost.features.columns.labels import LABEL_VALUES, is_label_column
from hoarfrost.features.errors import TrainingError
from hoarfrost.runs import class_numbers


def classes_of(
    table: DatasetTable, readable: npt.NDArray[np.bool_], positive: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...] | None, Ints]:
    """Return the classes, the positive ones, and each readable image's class number."""
    labels = list(compress(table.labels, readable))
    if not any(labels):
        columns = _columns_of_labels(table)
        raise TrainingError(
            f"The dataset {table.name!r} has no label column. Its columns {', '.join(columns)} contain 0 and 1: use "
            "--multilabel to train on them."
        )
    classes = tuple(sorted(set(labels), key=label_order))
    positive_labels = _positive_labels(classes, tuple(normalize("NFC", label) for label in positive), table.name)
    return classes, positive_labels, class_numbers(labels, classes, positive_labels)


def label_matrix(
    table: DatasetTable, readable: npt.NDArray[np.bool_], wanted: Sequence[str], positive: Sequence[str]
) -> tuple[tuple[str, ...], Ints]:
    """Read columns of labels, (n, C) int64."""
    if positive:
        raise TrainingError(
            "--positive is for one label per image. With --multilabel each column is a label. Omit one."
        )
    names = tuple(dict.fromkeys(column_named(table, name, "--label") for name in wanted)) or _columns_of_labels(table)
    if not names:
        raise TrainingError(
            f"--multilabel: the dataset {table.name!r} has no column with both 0 and 1 and nothing else. "
            f"Its columns: {', '.join(table.attributes) or '(none)'}."
        )
    return names, np.column_stack([_label_column(table, name) for name in names])[readable]


def column_named(table: DatasetTable, wanted: str, option: str) -> str:
    """Return the attribute of this name; case, and whether umlauts are composed, make no difference.

    Raises
    ------
    TrainingError
        If there is none; `option` is what the user passed the name to.
    """

    def spelled(name: str) -> str:
        return normalize("NFC", name).lower().replace("/", "\N{DIVISION SLASH}")  # as the cache keeps it

    for name in table.attributes:
        if spelled(name) == spelled(wanted):
            return name
    alike = get_close_matches(spelled(wanted), {spelled(name): name for name in table.attributes}, 1)
    nearest = next((name for name in table.attributes if spelled(name) in alike), None)
    raise TrainingError(
        f"{option} {wanted}: the dataset {table.name!r} has no such column. "
        + ("" if nearest is None else f"Did you mean {nearest}? ")
        + f"It has: {', '.join(table.attributes) or '(none)'}."
    )


def _label_column(table: DatasetTable, name: str) -> Ints:
    cells = table.attributes[name]
    for path, cell in zip(table.paths, cells, strict=True):
        if cell.lower() not in LABEL_VALUES:
            raise TrainingError(
                f"--label {name}: {path} has {cell!r}. Expected 1, 0, or an empty cell (or -1) for unknown. "
                "Fix the column, or omit it."
            )
    return np.array([LABEL_VALUES[cell.lower()] for cell in cells], np.int64)


def _columns_of_labels(table: DatasetTable) -> tuple[str, ...]:
    """List the columns that contain 0 and 1 and nothing else."""
    return tuple(name for name, cells in table.attributes.items() if is_label_column(cells))


def label_order(label: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers (10 after 9), and before texts."""
    number = label.isascii() and label.isdigit()
    return (not number, int(label) if number else 0, label)


def _positive_labels(classes: tuple[str, ...], positive: tuple[str, ...], dataset: str) -> tuple[str, ...] | None:
    if len(classes) < 2:
        raise TrainingError(
            f"The dataset {dataset!r} has readable images of one class only ({', '.join(classes)}). A head needs at least "
            "two. Fix the unreadable images or add others, and extract again."
        )
    for label in positive:
        if label not in classes:
            raise TrainingError(
                f"--positive {label}: the dataset {dataset!r} has no such label. Its labels: {', '.join(classes)}."
            )
    if set(positive) == set(classes):
        raise TrainingError(f"--positive names all labels ({', '.join(classes)}). At least one must be class 0.")
    if positive:
        return tuple(label for label in classes if label in positive)
    return classes[1:] if len(classes) == 2 else None


def class_names(classes: tuple[str, ...], positive: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the name of each class number: labels that count as one are joined by " + "."""
    if positive is None:
        return classes
    return " + ".join(label for label in classes if label not in positive), " + ".join(positive)
