"""The CSVs that predictions are written to: one of images, one of patients."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.units import patient_numbers
from hoarfrost.features.datasets import MANIFEST_NAME, Dataset
from hoarfrost.features.decoding.formats import FRAME_MARK
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.files import is_url
from hoarfrost.inference.outputs import checked_output, written_output
from hoarfrost.inference.predict.predictor import NONE, Prediction, Predictor
from hoarfrost.runs import OWN_FILES

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet runs
YES_NO = ("no", "yes")
IMAGE_COLUMNS, PATIENT_COLUMNS = ("path", "frame", "patient"), ("patient", "images", "unreadable")
_BEGINNINGS = tuple(f"{','.join(columns)},".encode() for columns in (IMAGE_COLUMNS, PATIENT_COLUMNS))


def patients_path(output: Path) -> Path:
    """Return the path of the patients' CSV: FILE_patients.csv beside FILE.csv."""
    return output.with_name(f"{output.stem}_patients{output.suffix}")


def check_output(output: Path, data: Path | str, inputs: Sequence[Path | None], run: Path | None) -> None:
    """Refuse a place for the CSV where something else would be lost, and make its folder, before anything is embedded.

    Raises
    ------
    HoarfrostError
        If the output is a folder, one of the inputs or of the run's own files, or a file other than an earlier prediction,
        or its folder cannot be made.
    """
    sources = () if is_url(data) else (Path(data), Path(data) / MANIFEST_NAME)
    taken = [path for path in (*sources, *inputs) if path is not None]
    taken += [run / name for name in sorted(OWN_FILES)] if run is not None else []
    with checked_output(output):
        for path in (output, patients_path(output)):
            place = path.resolve()
            if place.is_dir():
                raise HoarfrostError(f"--output {output}: {path} is a folder. Name a file in it.")
            if path.exists() and not _is_prediction(path):
                raise HoarfrostError(
                    f"--output {output} would overwrite {path}, which is not a prediction of hoarfrost. Name another file."
                )
            for other in taken:
                if place == other.resolve() or (run is not None and place.is_relative_to((run / "heads").resolve())):
                    raise HoarfrostError(f"--output {output} would overwrite {other}. Name another file.")


def _is_prediction(path: Path) -> bool:
    """Return whether a file begins like the CSVs written here; an empty one has nothing to lose."""
    with path.open("rb") as file:
        return file.read(len(max(_BEGINNINGS, key=len))).startswith(_BEGINNINGS) or not path.stat().st_size


class ImageCsv:
    """The images' CSV: the header is written at once, then rows block by block."""

    def __init__(self, writer: "CsvWriter", dataset: Dataset, predictor: Predictor) -> None:
        self._writer, self._dataset, self._predictor = writer, dataset, predictor
        self._columns = [*_prediction_columns(predictor), "novelty", "out_of_distribution"]
        writer.writerow([*IMAGE_COLUMNS, *self._columns, "error"])

    def add(self, places: Ints, found: Prediction, errors: Mapping[int, str]) -> None:
        """Write the rows of some images; `found` is of those without an error, in order."""
        predicted = zip(_prediction_cells(self._predictor, found), _novelty_cells(found), strict=True)
        for place in places.tolist():
            error = errors.get(place, "")
            cells = (
                [""] * len(self._columns) if place in errors else [cell for part in next(predicted) for cell in part]
            )
            self._writer.writerow([*self._facts(place), *cells, _text(error)])

    def _facts(self, place: int) -> list[str]:
        path, patients = self._dataset.paths[place], self._dataset.patients
        frame = path.rpartition(FRAME_MARK)[2] if FRAME_MARK in path else ""
        return [_path(path), frame if frame.isdigit() else "", _text(patients[place]) if patients is not None else ""]


class PatientTable:
    """The patients' CSV; `patients` are the images', and those of unknown patients ("") are skipped.

    `how`, "mean" or "max", is how a patient's probabilities are joined.
    """

    def __init__(self, predictor: Predictor, how: str, patients: Sequence[str]) -> None:
        self._predictor, self._how, self._patients = predictor, how, patients

    def write(self, path: Path, probabilities: Floats, is_novel: Bools) -> int:
        """Write the CSV, and return the number of patients; `probabilities` (n, C) are NaN of unreadable images."""
        numbers = patient_numbers(self._patients)  # in the order in which patients come first
        named = np.array([bool(name) for name in self._patients])
        readable = named & np.isfinite(probabilities).all(axis=1)
        rows = np.flatnonzero(readable)
        cells: dict[int, list[str]] = {}
        if len(rows):
            found = self._predictor.predict_patients(probabilities[rows], numbers[rows], self._how)
            of_patients = np.unique(numbers[rows]).tolist()
            cells = dict(zip(of_patients, _prediction_cells(self._predictor, found), strict=True))
        counts = [Counter(numbers[mask].tolist()) for mask in (named, readable, named & is_novel)]
        columns = _prediction_columns(self._predictor)
        with csv_writer(path) as writer:
            writer.writerow([*PATIENT_COLUMNS, *columns, "out_of_distribution", "error"])
            for number, place in zip(*np.unique(numbers, return_index=True), strict=True):
                if not named[place]:
                    continue
                n_images, n_readable, n_novel = (count[number] for count in counts)
                last = [n_novel, ""] if n_readable else ["", "none of the images could be read"]
                row = cells.get(number, [""] * len(columns))
                writer.writerow([_text(self._patients[place]), n_images, n_images - n_readable, *row, *last])
        return len(counts[0])

    def notes(self) -> list[str]:
        """Return what is missing in the CSV."""
        found = []
        n_unknown = sum(not name for name in self._patients)
        if n_unknown:
            found.append(f"Skipped {n_unknown:,} images of unknown patients in the patients' file.")
        if not self._predictor.has_sets(self._how):
            n = self._predictor.n_validated(self._how)
            found.append(
                f"Too few validation patients ({n}) for sets of this coverage. Each patient's set holds all classes."
            )
        return found


# -- cells --------------------------------------------------------------------------------------------------------------


def _prediction_columns(predictor: Predictor) -> list[str]:
    own = [name for name, _ in predictor.head.columns]
    calibrated = [f"probability:{name}" for name in predictor.names]
    sets = [f"set:{name}" for name in predictor.names] if predictor.head.is_multilabel else ["set"]
    return [*own, *calibrated, "class", *sets]


def _prediction_cells(predictor: Predictor, found: Prediction) -> Iterator[list[str]]:
    """Yield the cells of each image, or patient."""
    own = found.probabilities[:, [number for _, number in predictor.head.columns]]
    answers = predictor.answers(found.called)
    for p, calibrated, answer, in_set in zip(own, found.calibrated, answers, found.sets, strict=True):
        # As in predictions.csv: the shortest digits that stand for the same number.
        numbers = (repr(float(value)) for value in (*p, *calibrated))
        yield [*numbers, *map(_text, [answer, *_set_cells(predictor, in_set)])]


def _set_cells(predictor: Predictor, in_set: Bools) -> list[str]:
    """Return one set (C,) as text, "a|b"; of several labels (C, 2) one text each, "no|yes"."""
    if not predictor.head.is_multilabel:
        return [predictor.joined(in_set)]
    return ["|".join(word for word, may_be in zip(YES_NO, both, strict=True) if may_be) or NONE for both in in_set]


def _novelty_cells(found: Prediction) -> Iterator[list[str]]:
    assert found.distances is not None
    for i, distance in enumerate(found.distances):
        yield [repr(float(distance)), "" if found.is_novel is None else YES_NO[int(found.is_novel[i])]]


def _path(path: str) -> str:
    """Keep a spreadsheet from running a path: with "./" before it, it is the same file."""
    return f"./{path}" if path.startswith(FORMULA_STARTS) else path


def _text(text: str) -> str:
    """Keep a spreadsheet from running a text: an apostrophe before it marks a text, and is not shown."""
    if text.startswith(FORMULA_STARTS) and not text[1:].isdigit():
        return f"'{text}"
    return text


# -- files --------------------------------------------------------------------------------------------------------------


class CsvWriter(Protocol):
    """The interface of `csv.writer`'s objects."""

    def writerow(self, row: Iterable[object], /) -> object:
        """Write a row."""


@contextmanager
def csv_writer(path: Path) -> Iterator[CsvWriter]:
    """Open a CSV that is written whole or not at all."""
    with written_output(path) as binary:
        # Names that are not UTF-8 keep their bytes.
        text = io.TextIOWrapper(binary, encoding="utf-8", errors="surrogateescape", newline="")
        yield csv.writer(text)
        text.detach()
