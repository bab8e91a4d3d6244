"""The tables of a run folder: predictions, those of folds and of repeated splits, training curves; as CSV files."""

import csv
import io
import math
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.runs.records import DatasetFacts, Epoch, OutOfFold, Predictions

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]


def _columns(head: str, dataset: DatasetFacts) -> list[tuple[str, int]]:
    """Return a head's columns in predictions.csv: (name, class number)."""
    if dataset.positive is not None:
        return [(head, 1)]
    return [(f"{head}:{label}", number) for number, label in enumerate(dataset.classes)]


def write_predictions(path: Path, predictions: Predictions, dataset: DatasetFacts) -> None:
    """Write each image's probabilities by each head."""
    truth = predictions.truth
    known = [[_TRUTHS[value] for value in row] for row in truth.tolist()] if truth is not None else repeat([])
    facts = zip(predictions.paths, predictions.patients, predictions.splits, predictions.labels, known, strict=False)
    header = ["path", "patient", "split", "label", *(_truth_columns(dataset) if truth is not None else [])]
    _write_probabilities(path, header, ([*row[:4], *row[4]] for row in facts), predictions.probabilities, dataset)


def write_out_of_fold(path: Path, found: OutOfFold, predictions: Predictions, dataset: DatasetFacts) -> None:
    """Write the probabilities of cross-validation, and the fold that held each image out."""
    rows = [i for i, fold in enumerate(found.folds) if fold >= 0]
    facts = ([predictions.paths[i], predictions.patients[i], found.folds[i], predictions.labels[i]] for i in rows)
    probabilities = {name: scores[rows] for name, scores in found.probabilities.items()}
    _write_probabilities(path, ["path", "patient", "fold", "label"], facts, probabilities, dataset)


def write_attributes(path: Path, attributes: Mapping[str, Sequence[str]], paths: Sequence[str]) -> None:
    """Write the further columns of the images of an evaluation."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(_marked(name) for name in ("path", *attributes))
        writer.writerows(map(_marked, row) for row in zip(paths, *attributes.values(), strict=True))


def write_repeated(path: Path, found: "Floats", predictions: Predictions, dataset: DatasetFacts) -> None:
    """Write the probabilities (R, n, C) of repeated splits; cells are empty where the heads learned from the image."""
    facts = zip(predictions.paths, predictions.patients, predictions.labels, strict=True)
    of_splits = {f"split {number}": probabilities for number, probabilities in enumerate(found, start=1)}
    _write_probabilities(path, ["path", "patient", "label"], facts, of_splits, dataset)


def _write_probabilities(
    path: Path, header: Sequence[str], facts: Iterable[Sequence[object]], probabilities: "Mapping[str, Floats]",
    dataset: DatasetFacts,
) -> None:  # fmt: skip
    columns = {name: p[:, number] for head, p in probabilities.items() for name, number in _columns(head, dataset)}
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *columns])
        for i, row in enumerate(facts):
            writer.writerow(
                [*(_marked(cell) for cell in row), *(_cell(float(scores[i])) for scores in columns.values())]
            )


def _cell(value: float) -> str:
    """Return a number with all digits; nothing for NaN."""
    return "" if math.isnan(value) else repr(value)


# What a spreadsheet runs as a formula, and the mark itself.
_MARKED = ("=", "+", "-", "@", "\t", "\r", "'")


def _marked(cell: object) -> object:
    """Put an apostrophe before a text that a spreadsheet would run; `unmarked` removes it."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_MARKED) else cell


def unmarked(cell: str) -> str:
    """Return a text of a table without the apostrophe that marks it for spreadsheets."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(_MARKED) else cell


_TRUTHS = {1: "1", 0: "0", -1: ""}


def _truth_columns(dataset: DatasetFacts) -> list[str]:
    """Return the columns that state which labels an image has."""
    return [f"label:{label}" for label in dataset.classes]


def read_predictions(
    path: Path | zipfile.Path, heads: Sequence[str], dataset: DatasetFacts, *, may_lack: bool = False
) -> Predictions:
    """Read the probabilities of each head, NaN for empty cells if some `may_lack`; raise ValueError if they are none."""
    rows = read_table(path)
    if not rows:
        raise ValueError("it has no rows")
    probabilities = {head: _read_probabilities(rows, head, dataset, may_lack=may_lack) for head in heads}
    paths, patients, splits, labels = (tuple(row[key] for row in rows) for key in ("path", "patient", "split", "label"))
    truth = None
    if dataset.is_multilabel:
        values = {text: value for value, text in _TRUTHS.items()}
        truth = np.array([[values[row[name]] for name in _truth_columns(dataset)] for row in rows], np.int64)
    return Predictions(paths, patients, splits, labels, probabilities, truth)


def read_out_of_fold(path: Path, names: Sequence[str], dataset: DatasetFacts, paths: Sequence[str]) -> OutOfFold:
    """Read the probabilities of cross-validation, in the order of `paths`."""
    rows = read_table(path)
    place = {name: i for i, name in enumerate(paths)}
    places = [place[row["path"]] for row in rows]
    folds = np.full(len(paths), -1)
    folds[places] = [int(row["fold"]) for row in rows]
    probabilities = {}
    for name in names:
        found = _read_probabilities(rows, name, dataset)
        probabilities[name] = np.full((len(paths), found.shape[1]), np.nan)
        probabilities[name][places] = found
    return OutOfFold(tuple(folds.tolist()), probabilities)


def read_attributes(path: Path, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read the further columns of the images, in the order of `paths`; raise ValueError if they are those of others."""
    with path.open("r", encoding="utf-8", errors="surrogateescape", newline="") as file:
        columns = [tuple(map(unmarked, column)) for column in zip(*csv.reader(file), strict=True)]
    own, *others = columns
    if own[1:] != tuple(paths):
        raise ValueError("its images are not those of predictions.csv")
    return {name: tuple(cells) for name, *cells in others}


def read_repeated(path: Path, n_splits: int, dataset: DatasetFacts, paths: Sequence[str]) -> "Floats":
    """Read the probabilities (R, n, C) of repeated splits; NaN for empty cells."""
    rows = read_table(path)
    if [row["path"] for row in rows] != [*paths]:
        raise ValueError("its images are not those of predictions.csv")
    names = [f"split {number}" for number in range(1, n_splits + 1)]
    return np.stack([_read_probabilities(rows, name, dataset, may_lack=True) for name in names])


def _read_probabilities(
    rows: Sequence[Mapping[str, str]], head: str, dataset: DatasetFacts, *, may_lack: bool = False
) -> "Floats":
    empty = {"": "nan"} if may_lack else {}
    scores = np.array([[float(empty.get(row[name], row[name])) for name, _ in _columns(head, dataset)] for row in rows])
    if not ((scores >= 0) & (scores <= 1) | (np.isnan(scores) & may_lack)).all():
        raise ValueError(f"the column of {head} contains values that are not probabilities")
    return scores if dataset.positive is None else np.column_stack([1 - scores[:, 0], scores[:, 0]])


def read_table(path: Path | zipfile.Path) -> list[dict[str, str]]:
    """Read the rows of a table; raise ValueError if its last line is incomplete."""
    with path.open("r", encoding="utf-8", errors="surrogateescape", newline="") as file:
        content = file.read()
    if not content.endswith("\n"):
        raise ValueError("its last line is incomplete")
    rows = list(csv.DictReader(io.StringIO(content, newline="")))
    for row in rows:
        row |= {name: unmarked(row[name]) for name in ("path", "patient", "label") if row.get(name)}
    return rows


def write_history(path: Path, history: Iterable[Epoch]) -> None:
    """Write the training curves."""
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Epoch)])
        writer.writerows(astuple(epoch) for epoch in history)


def read_history(path: Path) -> tuple[Epoch, ...]:
    """Read the training curves."""
    numbers = ("train_loss", "val_loss", "val_roc_auc", "learning_rate")
    return tuple(
        Epoch(row["head"], int(row["seed"]), int(row["epoch"]), *(float(row[name]) for name in numbers))
        for row in read_table(path)
    )
