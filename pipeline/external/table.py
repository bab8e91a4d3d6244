"""A CSV of predictions by any model: which columns are what, and whether their cells can be that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hoarfrost.evaluation.checks import Bools, Floats, Ints
from hoarfrost.experiment.classes import label_order
from hoarfrost.features.columns.labels import LABEL_VALUES
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.header import renamed
from hoarfrost.features.datasets.manifest import read_columns
from hoarfrost.features.datasets.options import TableOptions
from hoarfrost.features.datasets.spellings import check_spellings, labels_named, normal_form
from hoarfrost.features.errors import DatasetError
from hoarfrost.runs import class_numbers
from hoarfrost.runs.external import Scale
from hoarfrost.runs.tables import unmarked

PROBABILITY, SCORE, CALL = "probability", "score", "call"
OWN = ("path", "patient", "split", "label")  # how predictions.csv of a run begins
MEAN = "mean"
_YES, _NO = ("1", "yes", "true", "positive"), ("0", "no", "false", "negative")
ROUNDED = 0.02  # how far probabilities that were rounded may be from a sum of one
EXACT = 1e-6
_NEEDED = (
    "Needed are path or id, label, and one of: probability (of the positive class), probability:CLASS for each class, score "
    "(any numbers), call (the predicted class). --probability-column names another column. patient, split and further "
    "columns are optional."
)


@dataclass(frozen=True)
class ModelColumn:
    """What one model predicts: probabilities (n, C). `kind` is one of the three above; `scale` is that of scores."""

    name: str
    kind: str
    p: Floats
    note: str = ""
    scale: Scale | None = None


@dataclass(frozen=True)
class PredictionTable:
    """One file of predictions: n rows, with the classes of their labels as a head would know them.

    `y` is (n,) int64, or (n, C) of 1, 0 and -1 where a row may have several labels. `ignored` are columns of predictions
    that were not asked for: none of them is an attribute.
    """

    file: Path
    ids: list[str]
    labels: list[str]
    y: Ints
    classes: tuple[str, ...]
    positive: tuple[str, ...] | None
    names: tuple[str, ...]
    patients: list[str] | None
    splits: list[str] | None
    models: tuple[ModelColumn, ...]
    attributes: Mapping[str, list[str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    @property
    def is_multilabel(self) -> bool:
        """Whether a row may have several labels."""
        return self.y.ndim == 2


@dataclass(frozen=True)
class ColumnOptions:
    """Which columns are what. `probability_columns` are those of the models; by default they are found by their names."""

    positive: Sequence[str] = ()
    probability_columns: Sequence[str] = ()
    table: TableOptions = field(default_factory=TableOptions)


def read_predictions(file: Path, options: ColumnOptions) -> PredictionTable:
    """Read a CSV of predictions.

    Raises
    ------
    DatasetError
        If a column is missing, a cell is not what its column needs, an id occurs twice, or the labels are of one class.
    """
    found, lines = read_columns(str(file))
    is_own = tuple(found)[: len(OWN)] == OWN
    reader = _Reader(file, renamed(str(file), found, options.table), lines, options, is_own=is_own)
    return reader.table()


class _Reader:
    """Takes the columns of a file one by one; what remains are attributes."""

    def __init__(
        self, file: Path, columns: dict[str, Texts], lines: Ints, options: ColumnOptions, *, is_own: bool
    ) -> None:
        self._file, self._columns, self._lines, self._options, self._is_own = (
            file,
            dict(columns),
            lines,
            options,
            is_own,
        )

    def table(self) -> PredictionTable:
        """Return the table."""
        ids = self._taken("path" if "path" in self._columns else "id")
        labels = self._labels()
        self._check_ids(ids)
        patients, splits = (self._taken(name) if name in self._columns else None for name in ("patient", "split"))
        classes, positive, y = self._truth(labels)
        names = classes
        if positive is not None:
            negative = [label for label in classes if label not in positive]
            names = (" + ".join(negative), " + ".join(positive))
        models = tuple(self._models(classes, names, positive, is_multilabel=y.ndim == 2))
        known = None if patients is None or not any(patients) else patients
        further = {} if self._is_own else self._columns
        ignored = tuple(name for name in further if name.partition(":")[0] in (PROBABILITY, SCORE, CALL))
        attributes = {name: list(cells) for name, cells in further.items() if name not in ignored}
        return PredictionTable(
            self._file, ids, labels, y, classes, positive, names, known, splits, models, attributes, ignored
        )

    def _labels(self) -> list[str]:
        """Return the labels, named as the options say; refuse those that are one label in several spellings."""
        cells = self._taken("label")
        if self._is_own:
            return cells
        labels = labels_named(Texts.of(cells), self._options.table, str(self._file))
        check_spellings(labels, str(self._file))
        return list(labels)

    def _taken(self, name: str) -> list[str]:
        if name not in self._columns:
            there = ", ".join(self._columns) or "no columns"
            raise DatasetError(f"{self._file}: the column {name!r} is missing; there are {there}. {_NEEDED}")
        cells = list(self._columns.pop(name))
        return [unmarked(cell) for cell in cells] if self._is_own else cells

    def _check_ids(self, ids: Sequence[str]) -> None:
        if not ids:
            raise DatasetError(f"{self._file}: there are no rows.")
        seen: dict[str, int] = {}
        for place, one in enumerate(ids):
            first = seen.setdefault(one, place)
            if first != place or not one:
                problem = f"the id {one!r} is also in line {self._lines[first]}" if one else "the id is empty"
                raise DatasetError(
                    f"{self._file} line {self._lines[place]}: {problem}. Each row needs an id of its own. Remove the row, or "
                    "name another column with --path-column."
                )

    # -- labels ---------------------------------------------------------------------------------------------------------

    def _truth(self, labels: list[str]) -> tuple[tuple[str, ...], tuple[str, ...] | None, Ints]:
        several = [name for name in self._columns if name.startswith("label:")] if self._is_own else []
        if several:
            columns = [[LABEL_VALUES[cell.lower()] for cell in self._columns.pop(name)] for name in several]
            return tuple(name.removeprefix("label:") for name in several), None, np.array(columns, np.int64).T
        if "" in labels:
            line = self._lines[labels.index("")]
            raise DatasetError(f"{self._file} line {line}: the label is empty. Add it, or remove the row.")
        classes = tuple(sorted(set(labels), key=label_order))
        positive = self._positive(classes)
        if len(classes) == 1:
            classes = self._two_classes(classes[0], positive)
        return classes, positive, class_numbers(labels, classes, positive)

    def _positive(self, classes: tuple[str, ...]) -> tuple[str, ...] | None:
        wanted = tuple(self._options.positive)
        missing = [label for label in wanted if label not in classes]
        if missing and len(classes) > 1:
            raise DatasetError(
                f"--positive {missing[0]}: {self._file} has no such label. Its labels: {', '.join(classes)}."
            )
        if wanted and set(wanted) == set(classes) and len(classes) > 1:
            raise DatasetError("--positive names all labels. At least one must not be positive.")
        if wanted:
            return wanted
        if set(classes) <= {"0", "1"}:
            return ("1",)
        return classes[1:] if len(classes) == 2 else None

    def _two_classes(self, only: str, positive: tuple[str, ...] | None) -> tuple[str, ...]:
        """Return two classes where all rows have one label."""
        if positive is None:
            raise DatasetError(
                f"{self._file}: all {len(self._lines):,} rows have the label {only!r}. Name the positive label with "
                "--positive."
            )
        others = tuple(label for label in positive if label != only)
        return (*others, only) if others else (("0" if only == "1" else f"not {only}"), only)

    # -- predictions ----------------------------------------------------------------------------------------------------

    def _models(
        self, classes: tuple[str, ...], names: tuple[str, ...], positive: tuple[str, ...] | None, *, is_multilabel: bool
    ) -> list[ModelColumn]:
        columns, stem = self._columns, self._file.stem
        if self._options.probability_columns:
            return [self._named(name.strip().lower(), names, positive) for name in self._options.probability_columns]
        if self._is_own:
            return self._own_models(names, positive, is_multilabel=is_multilabel)
        if PROBABILITY in columns:
            self._check_whose(classes)
            return [self._of_positive(PROBABILITY, stem, positive)]
        of_labels = self._label_columns(classes)
        self._check_absent(classes)
        if of_labels:
            return [self._of_labels(of_labels, stem, classes, positive)]
        one_of_two = self._one_of_two(classes, positive)
        if one_of_two is not None:
            return [one_of_two]
        if SCORE in columns:
            self._check_whose(classes)
            return [self._score(positive)]
        if CALL in columns:
            return [self._calls(classes, positive)]
        raise DatasetError(
            f"{self._file}: no column holds predictions; there are {', '.join(columns) or 'no further columns'}. {_NEEDED}"
        )

    def _check_whose(self, classes: tuple[str, ...]) -> None:
        """Refuse one column of numbers if it is not known which of two labels they are of."""
        if not self._options.positive and len(classes) == 2 and set(classes) != {"0", "1"}:
            raise DatasetError(
                f"{self._file}: of which label are these the probabilities, {classes[0]} or {classes[1]}? Name it with "
                "--positive."
            )

    def _label_columns(self, classes: Sequence[str]) -> list[str]:
        """Return the names of a column for each label; empty if there are not all of them."""
        for pattern in ("probability:{}", "{}"):
            names = [pattern.format(_spelled(label)) for label in classes]
            if all(name in self._columns for name in names):
                return names
        return []

    def _one_of_two(self, classes: Sequence[str], positive: tuple[str, ...] | None) -> ModelColumn | None:
        """Return the model of the column probability:CLASS of one of two classes, if that is the only one."""
        names = [f"{PROBABILITY}:{_spelled(label)}" for label in classes]
        if len(classes) != 2 or positive is None or sum(name in self._columns for name in names) != 1:
            return None
        place = 0 if names[0] in self._columns else 1
        p = self._shares(names[place])
        own = p if classes[place] in positive else 1 - p
        return ModelColumn(self._file.stem, PROBABILITY, np.column_stack([1 - own, own]))

    def _check_absent(self, classes: Sequence[str]) -> None:
        """Refuse probabilities of a class that no row has: against the rest, nothing can be said of it."""
        known = {f"{PROBABILITY}:{_spelled(label)}" for label in classes}
        absent = [name for name in self._columns if name.startswith(f"{PROBABILITY}:") and name not in known]
        if absent and known & self._columns.keys():
            raise DatasetError(
                f"{self._file}: no row has the label {absent[0].partition(':')[2]!r}, of which there are probabilities. Add "
                "rows of this class; or add up the probabilities of the classes of interest in a column named probability, "
                "and name these classes with --positive."
            )

    def _own_models(
        self, names: tuple[str, ...], positive: tuple[str, ...] | None, *, is_multilabel: bool
    ) -> list[ModelColumn]:
        """Return the heads of a run's predictions.csv, the mean first: it is what `train` selects by default."""
        if positive is not None:
            heads = list(self._columns)
        else:
            last = f":{_spelled(names[-1])}"
            heads = [name.removesuffix(last) for name in self._columns if name.endswith(last)]
        if not heads:
            raise DatasetError(f"{self._file}: no column holds predictions. {_NEEDED}")
        ordered = sorted(heads, key=lambda name: name != MEAN)
        return [self._named(name, names, positive, is_multilabel=is_multilabel) for name in ordered]

    def _named(
        self, name: str, names: tuple[str, ...], positive: tuple[str, ...] | None, *, is_multilabel: bool = False
    ) -> ModelColumn:
        """Return the model of a column, or of the columns NAME:CLASS."""
        if positive is not None:
            return self._of_positive(name, name, positive)
        columns = [f"{name}:{_spelled(label)}" for label in names]
        p = np.column_stack([self._shares(column) for column in columns])
        return ModelColumn(name, PROBABILITY, p) if is_multilabel else self._summed(name, p)

    def _of_positive(self, column: str, name: str, positive: tuple[str, ...] | None) -> ModelColumn:
        self._check_binary(column, positive)
        p = self._shares(column)
        return ModelColumn(name, PROBABILITY, np.column_stack([1 - p, p]))

    def _of_labels(
        self, columns: Sequence[str], name: str, classes: Sequence[str], positive: tuple[str, ...] | None
    ) -> ModelColumn:
        found = self._summed(name, np.column_stack([self._shares(column) for column in columns]))
        if positive is None:
            return found
        own = found.p[:, [label in positive for label in classes]].sum(axis=1)
        return ModelColumn(name, PROBABILITY, np.column_stack([1 - own, own]), found.note)

    def _summed(self, name: str, p: Floats) -> ModelColumn:
        """Return probabilities that sum to one; rounded ones are scaled."""
        sums = p.sum(axis=1)
        wrong = np.flatnonzero(np.abs(sums - 1) > ROUNDED)
        if len(wrong):
            raise DatasetError(
                f"{self._file} line {self._lines[wrong[0]]}: the probabilities of {name} sum to {sums[wrong[0]]:.4g}, not to "
                f"1 ({len(wrong):,} such rows). Give one probability for each class, so that they sum to 1."
            )
        if np.abs(sums - 1).max() <= EXACT:
            return ModelColumn(name, PROBABILITY, p)
        return ModelColumn(
            name, PROBABILITY, p / sums[:, None], f"{name}: rounded probabilities were scaled to sum to 1."
        )

    def _score(self, positive: tuple[str, ...] | None) -> ModelColumn:
        self._check_binary(SCORE, positive)
        found = self._numbers(SCORE)
        low, high = float(found.min()), float(found.max())
        if low == high:
            raise DatasetError(f"{self._file}: all scores are {low:g}, so nothing can be said of them.")
        p = (found - low) / (high - low)
        note = (
            f"{self._file.stem} gives scores from {low:g} to {high:g}. They are not probabilities: calibration, log loss, "
            "Brier score and net benefit are left out."
        )
        return ModelColumn(self._file.stem, SCORE, np.column_stack([1 - p, p]), note, Scale(low, high))

    def _calls(self, classes: tuple[str, ...], positive: tuple[str, ...] | None) -> ModelColumn:
        self._check_binary(CALL, positive)
        assert positive is not None
        # Labels first: a class may be named "0", "no" or "negative", and be the positive one.
        answers = dict.fromkeys(_YES, True) | dict.fromkeys(_NO, False)
        answers |= {normal_form(label): label in positive for label in classes}
        cells = list(labels_named(Texts.of(self._taken(CALL)), self._options.table))
        known = np.array([answers.get(normal_form(cell)) is not None for cell in cells])
        self._check(CALL, known, f"is none of the labels, which are {', '.join(classes)}", cells)
        is_positive = np.array([answers[normal_form(cell)] for cell in cells])
        p = is_positive.astype(np.float64)
        note = (
            f"{self._file.stem} gives calls without a score: they have one sensitivity and one specificity, and their ROC "
            "AUC is the mean of the two. Calibration, log loss, Brier score and net benefit are left out."
        )
        return ModelColumn(self._file.stem, CALL, np.column_stack([1 - p, p]), note)

    def _check_binary(self, column: str, positive: tuple[str, ...] | None) -> None:
        if positive is None:
            raise DatasetError(
                f"{self._file}: there are more than two labels, and one column of predictions ({column}). Name the positive "
                "labels with --positive, or give one column probability:CLASS for each class."
            )

    def _shares(self, column: str) -> Floats:
        found = self._numbers(column)
        is_share = (found >= 0) & (found <= 1)
        hint = "" if found.min() < 0 or found.max() > 100 else " Percentages must be divided by 100."
        if not is_share.all() and column == PROBABILITY:
            hint += f" If these are ratings or other scores, name the column {SCORE}."
        self._check(column, is_share, "is not a probability: it must be between 0 and 1", hint=hint)
        return found

    def _numbers(self, column: str) -> Floats:
        cells = self._taken(column)
        try:
            found = np.array(cells, np.float64)
        except ValueError:
            found = np.array([_number(cell) for cell in cells])
        hint = " Percentages must be divided by 100." if any("%" in cell for cell in cells) else ""
        self._check(column, np.isfinite(found), "is not a number", cells, hint=hint)
        return found

    def _check(self, column: str, good: Bools, problem: str, cells: Sequence[str] = (), *, hint: str = "") -> None:
        wrong = np.flatnonzero(~good)
        if len(wrong):
            shown = f" {cells[wrong[0]]!r}" if cells else ""
            raise DatasetError(
                f"{self._file} line {self._lines[wrong[0]]}: {column}{shown} {problem} ({len(wrong):,} such rows). Correct "
                f"these cells, or remove the rows.{hint}"
            )


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return np.nan


def _spelled(label: str) -> str:
    """Return a label as it is in the names of columns, which are read in lower case."""
    return label.strip().lower()
