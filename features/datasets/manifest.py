"""CSV manifests: `path,label[,split][,patient][,attributes…]`, or with one column of 0 and 1 for each label."""

import csv
import os
import re
import unicodedata
from pathlib import Path

from features.datasets.table import SPLIT_NAMES, Dataset, composed, file_images
from features.errors import DatasetError
from features.formats import FRAME_MARK
from features.labels import is_label_column

_NEEDED = (
    "Needed: path,label, or instead of the label columns of 0 and 1, one a label; known besides: split,patient; "
    "others become attributes."
)
MAX_CELL_CHARACTERS = 8192  # what no path or label needs; the cache stores columns as wide as their longest cell


def read_manifest(path: Path, name: str, source: str, *, labelled: bool = True) -> Dataset:
    """Read the table of a CSV file, labels and splits only if it is to be labelled; `source` is what the user gave."""
    columns, lines = _read_csv(path)
    _check_columns(path, columns, labelled=labelled)
    root = path.parent
    paths = _manifest_paths(path, root, columns.pop("path"), lines)
    labels = [""] * len(paths)
    if not labelled:
        # A patient may be unknown here: nothing is split by patients.
        patients = [composed(cell) for cell in columns["patient"]] if "patient" in columns else None
        return Dataset(name, source, paths, labels, None, patients, file_images(str(root), paths))
    if "label" in columns:
        labels = [composed(cell) for cell in _filled(path, "label", columns.pop("label"), lines)]
    splits = _manifest_splits(path, columns.pop("split"), lines) if "split" in columns else None
    patients = None
    if "patient" in columns:
        patients = [composed(cell) for cell in _filled(path, "patient", columns.pop("patient"), lines)]
    return Dataset(name, source, paths, labels, splits, patients, file_images(str(root), paths), columns)


def _check_columns(path: Path, columns: dict[str, list[str]], *, labelled: bool) -> None:
    """Refuse a CSV without paths, or without a label: in a column of that name, or in columns of 0 and 1."""
    for wanted in ("path", "label") if labelled else ("path",):
        if wanted not in columns and not (wanted == "label" and any(map(is_label_column, columns.values()))):
            raise DatasetError(
                f"{path}: the column {wanted!r} is missing; the header has {', '.join(columns) or 'no columns'}. "
                + (_NEEDED if labelled else "Needed: path; known besides: patient.")
            )


def _read_csv(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    """Read a CSV's columns (names in lower case) and each row's line number."""
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # "-sig": Excel writes a byte order mark
            delimiter = _delimiter(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [column.strip().lower() for column in next(reader, [])]
            rows, lines = [], []
            for row in reader:
                line = reader.line_num
                if not any(cell.strip() for cell in row):
                    continue
                if len(row) != len(header):
                    raise DatasetError(
                        f"{path} line {line}: {len(row)} fields, the header has {len(header)}. "
                        f"Put a text that holds {delimiter!r} into double quotes."
                    )
                if any("\0" in cell for cell in row):
                    raise DatasetError(f"{path} line {line}: holds a NUL character. Remove it.")
                rows.append([cell.strip() for cell in row])
                lines.append(line)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error.reason}). Save it as 'CSV UTF-8'.") from error
    except csv.Error as error:
        raise DatasetError(f"{path} after line {line}: not a well-formed CSV: {error}.") from error
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}.") from error
    return _columns(path, header, rows, lines), lines


def _delimiter(header: str) -> str:
    """Tell it from the header: Excel writes ";" where the comma is the decimal sign."""
    candidates = ",;\t"
    for delimiter in candidates:
        columns = {column.strip().lower() for column in next(csv.reader([header], delimiter=delimiter), [])}
        if {"path", "label"} <= columns:
            return delimiter
    return max(candidates, key=header.count)


def _check_lengths(path: Path, columns: dict[str, list[str]], lines: list[int]) -> None:
    for name, cells in columns.items():
        for cell, line in zip(cells, lines, strict=True):
            if len(cell) > MAX_CELL_CHARACTERS:
                raise DatasetError(f"{path} line {line}: the {name} has {len(cell)} characters. Shorten it.")


def _columns(path: Path, header: list[str], rows: list[list[str]], lines: list[int]) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {}
    for i, name in enumerate(header):
        cells = [row[i] for row in rows]
        if not name and not any(cells):  # spreadsheets end lines with delimiters
            continue
        if not name:
            raise DatasetError(f"{path}: column {i + 1} has no name in the header. Name it, or remove it.")
        name = name.replace("/", "\N{DIVISION SLASH}")  # the cache keeps columns by name, as HDF5 members
        if name in {".", ".."}:
            raise DatasetError(f"{path}: {name!r} cannot name a column. Rename it.")
        if name in columns:
            raise DatasetError(f"{path}: two columns have the name {name!r}. Rename one.")
        columns[name] = cells
    _check_lengths(path, columns, lines)
    return columns


def _manifest_paths(manifest: Path, root: Path, cells: list[str], lines: list[int]) -> list[str]:
    paths = [_inside(manifest, root, cell, line) for cell, line in zip(cells, lines, strict=True)]
    first_line: dict[str, int] = {}
    for path, line in zip(paths, lines, strict=True):
        if path in first_line:
            raise DatasetError(
                f"{manifest} line {line}: the path {path} stands already in line {first_line[path]}. Keep one of them."
            )
        first_line[path] = line
    return paths


def _inside(manifest: Path, root: Path, cell: str, line: int) -> str:
    """Give the path relative to the CSV's folder, with forward slashes."""
    if not cell:
        raise DatasetError(f"{manifest} line {line}: the path is empty.")
    if "\\" in cell and not os.path.lexists(root / cell):
        cell = cell.replace("\\", "/")  # written on Windows
    relative = os.path.relpath(cell, root) if os.path.isabs(cell) else os.path.normpath(cell)
    if os.path.isabs(cell) and relative.split("/")[0] == "..":  # the same place, by links?
        relative = os.path.relpath(os.path.realpath(cell), os.path.realpath(root))
    if relative.split("/")[0] == ".." or re.match("[A-Za-z]:/", relative):
        raise DatasetError(
            f"{manifest} line {line}: {cell} is outside the CSV's folder {root}. "
            "Paths are relative to the CSV: put it above the images."
        )
    return _spelled_as_on_disk(root, relative)


def _spelled_as_on_disk(root: Path, relative: str) -> str:
    """Find a name with umlauts whether the CSV composes them (NFC) or not (NFD, as macOS does)."""
    if relative.isascii() or os.path.lexists(root / relative):
        return relative
    file, mark, number = relative.rpartition(FRAME_MARK)
    if mark:
        return _spelled_as_on_disk(root, file) + mark + number
    spellings = (unicodedata.normalize(form, relative) for form in ("NFC", "NFD"))
    return next((spelling for spelling in spellings if os.path.lexists(root / spelling)), relative)


def _filled(manifest: Path, column: str, cells: list[str], lines: list[int]) -> list[str]:
    for cell, line in zip(cells, lines, strict=True):
        if not cell:
            raise DatasetError(f"{manifest} line {line}: the {column} is empty. Fill it in, or remove the line.")
    return cells


def _manifest_splits(manifest: Path, cells: list[str], lines: list[int]) -> list[str]:
    for cell, line in zip(cells, lines, strict=True):
        if cell.lower() not in SPLIT_NAMES:
            raise DatasetError(
                f"{manifest} line {line}: {cell!r} is no split; use train, val or test. "
                "Without the column, images are split by patient."
            )
    return [SPLIT_NAMES[cell.lower()] for cell in cells]
