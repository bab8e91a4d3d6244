"""CSV manifests: `path,label[,split][,patient][,attributes…]`, or with one column of 0 and 1 for each label."""

import csv
import io
import logging
import os
import posixpath
import re
import unicodedata
from pathlib import Path

from features.datasets.table import SPLIT_NAMES, Dataset, composed, file_images
from features.errors import DatasetError, ImageDecodeError
from features.files import checked_url, is_url, opened_file
from features.formats import FRAME_MARK
from features.labels import is_label_column

_NEEDED = (
    "Needed: path,label, or instead of the label columns of 0 and 1, one a label; known besides: split,patient; "
    "others become attributes."
)
MAX_CELL_CHARACTERS = 8192  # what no path or label needs; the cache stores columns as wide as their longest cell


logger = logging.getLogger(__name__)


def read_manifest(path: str, name: str, source: str, *, labelled: bool = True) -> Dataset:
    """Read the table of a CSV file, or of one at a URL, labels and splits only if it is to be labelled.

    `source` is what the user gave.
    """
    columns, lines = _read_csv(path)
    _check_columns(path, columns, labelled=labelled)
    root = path.rpartition("/")[0] if is_url(path) else str(Path(path).parent)
    paths = _manifest_paths(path, root, columns.pop("path"), lines)
    labels = [""] * len(paths)
    if not labelled:
        # A patient may be unknown here: nothing is split by patients.
        patients = [composed(cell) for cell in columns["patient"]] if "patient" in columns else None
        return Dataset(name, source, paths, labels, None, patients, file_images(root, paths))
    if "label" in columns:
        labels = [composed(cell) for cell in _filled(path, "label", columns.pop("label"), lines)]
    splits = _manifest_splits(path, columns.pop("split"), lines) if "split" in columns else None
    patients = None
    if "patient" in columns:
        patients = [composed(cell) for cell in _filled(path, "patient", columns.pop("patient"), lines)]
    return Dataset(name, source, paths, labels, splits, patients, file_images(root, paths), columns)


def _check_columns(path: str, columns: dict[str, list[str]], *, labelled: bool) -> None:
    """Refuse a CSV without paths, or without a label: in a column of that name, or in columns of 0 and 1."""
    for wanted in ("path", "label") if labelled else ("path",):
        if wanted not in columns and not (wanted == "label" and any(map(is_label_column, columns.values()))):
            raise DatasetError(
                f"{path}: the column {wanted!r} is missing; the header has {', '.join(columns) or 'no columns'}. "
                + (_NEEDED if labelled else "Needed: path; known besides: patient.")
            )


def _read_csv(path: str) -> tuple[dict[str, list[str]], list[int]]:
    """Read a CSV's columns (names in lower case) and each row's line number."""
    line = 1
    try:
        # "-sig": Excel writes a byte order mark
        with opened_file(path) as content, io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as file:
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
    except ImageDecodeError as error:  # at a URL
        raise DatasetError(f"{path}: cannot be read: {error}.") from error
    return _columns(path, header, rows, lines), lines


def _delimiter(header: str) -> str:
    """Tell it from the header: Excel writes ";" where the comma is the decimal sign."""
    candidates = ",;\t"
    for delimiter in candidates:
        columns = {column.strip().lower() for column in next(csv.reader([header], delimiter=delimiter), [])}
        if {"path", "label"} <= columns:
            return delimiter
    return max(candidates, key=header.count)


def _check_lengths(path: str, columns: dict[str, list[str]], lines: list[int]) -> None:
    for name, cells in columns.items():
        for cell, line in zip(cells, lines, strict=True):
            if len(cell) > MAX_CELL_CHARACTERS:
                raise DatasetError(f"{path} line {line}: the {name} has {len(cell)} characters. Shorten it.")


def _columns(path: str, header: list[str], rows: list[list[str]], lines: list[int]) -> dict[str, list[str]]:
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


def _manifest_paths(manifest: str, root: str, cells: list[str], lines: list[int]) -> list[str]:
    paths = [_inside(manifest, root, cell, line) for cell, line in zip(cells, lines, strict=True)]
    n_signed = sum(is_url(path) and "?" in path for path in paths)
    if n_signed:
        logger.warning(
            "%s: %s URLs have a '?': what follows may be a signature or a token, and paths are kept in the cache, the run "
            "and the report", manifest, f"{n_signed:,}",
        )  # fmt: skip
    first_line: dict[str, int] = {}
    for path, line in zip(paths, lines, strict=True):
        if path in first_line:
            raise DatasetError(
                f"{manifest} line {line}: the path {path} stands already in line {first_line[path]}. Keep one of them."
            )
        first_line[path] = line
    return paths


def _inside(manifest: str, root: str, cell: str, line: int) -> str:
    """Give the path relative to the CSV's folder, with forward slashes."""
    if not cell:
        raise DatasetError(f"{manifest} line {line}: the path is empty.")
    if is_url(cell):
        return _checked(manifest, cell, line)
    if is_url(root):
        return _below_url(manifest, root, cell, line)
    if "\\" in cell and not os.path.lexists(os.path.join(root, cell)):
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


def _checked(manifest: str, url: str, line: int) -> str:
    try:
        return checked_url(url)
    except DatasetError as error:
        raise DatasetError(f"{manifest} line {line}: {error}") from error


def _below_url(manifest: str, root: str, cell: str, line: int) -> str:
    relative = posixpath.normpath(cell.replace("\\", "/"))
    if relative.startswith(("/", "../")) or relative == "..":
        raise DatasetError(
            f"{manifest} line {line}: {cell} is outside the CSV's folder {root}. "
            "Paths are relative to the CSV: put it above the images, or name them by URL."
        )
    return relative


def _spelled_as_on_disk(root: str, relative: str) -> str:
    """Find a name with umlauts whether the CSV composes them (NFC) or not (NFD, as macOS does)."""
    if relative.isascii() or os.path.lexists(os.path.join(root, relative)):
        return relative
    file, mark, number = relative.rpartition(FRAME_MARK)
    if mark:
        return _spelled_as_on_disk(root, file) + mark + number
    spellings = (unicodedata.normalize(form, relative) for form in ("NFC", "NFD"))
    return next((spelling for spelling in spellings if os.path.lexists(os.path.join(root, spelling))), relative)


def _filled(manifest: str, column: str, cells: list[str], lines: list[int]) -> list[str]:
    for cell, line in zip(cells, lines, strict=True):
        if not cell:
            raise DatasetError(f"{manifest} line {line}: the {column} is empty. Fill it in, or remove the line.")
    return cells


def _manifest_splits(manifest: str, cells: list[str], lines: list[int]) -> list[str]:
    for cell, line in zip(cells, lines, strict=True):
        if cell.lower() not in SPLIT_NAMES:
            raise DatasetError(
                f"{manifest} line {line}: {cell!r} is no split; use train, val or test. "
                "Without the column, images are split by patient."
            )
    return [SPLIT_NAMES[cell.lower()] for cell in cells]
