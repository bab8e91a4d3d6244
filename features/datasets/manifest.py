"""CSV manifests: `path,label[,split][,patient][,attributes…]`, or with one column of 0 and 1 per label."""

import csv
import io
import logging
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator
from itertools import compress, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.features.columns.labels import is_label_column
from hoarfrost.features.columns.lookup import Ints
from hoarfrost.features.columns.texts import TextIndex, Texts, TextsBuilder
from hoarfrost.features.datasets.finding import found_below
from hoarfrost.features.datasets.header import advice, renamed, separated
from hoarfrost.features.datasets.options import TableOptions
from hoarfrost.features.datasets.table import Dataset, file_images, split_of, to_nfc
from hoarfrost.features.decoding.formats import FRAME_MARK
from hoarfrost.features.errors import DatasetError, ImageDecodeError, reason_of
from hoarfrost.features.files import checked_url, is_url, opened_file

if TYPE_CHECKING:
    import _csv

_REQUIRED = (
    "Required: path and label (or, in place of label, one column of 0 and 1 per label). Optional: split and patient. Other "
    "columns become attributes."
)
NOT_ASCII = bytes(range(128, 256))
BLOCK_ROWS = 1 << 10  # as Python objects before they are packed: few enough for the processor's cache
MAX_CELL_CHARACTERS = 8192  # more than any path or label needs; the cache stores columns as wide as their longest cell

DEFAULTS = TableOptions()
_STATED_DELIMITER = re.compile("sep=(.)", re.IGNORECASE)  # the first line of some of Excel's files
_DECIMAL = re.compile(r"[+-]?\d+(,\d+)?")
_TEXTS = frozenset({"path", "label", "split", "patient"})

logger = logging.getLogger(__name__)


def read_manifest(
    path: str, name: str, source: str, options: TableOptions = DEFAULTS, *, labelled: bool = True
) -> Dataset:
    """Read the table of a CSV file, on disk or at a URL, with labels and splits if `labelled`.

    `source` is the path as the user wrote it.
    """
    columns, lines = read_columns(path)
    columns = renamed(path, columns, options)
    if options.label_separator is not None and labelled:
        columns = separated(path, columns, options.label_separator)
    _check_columns(path, columns, labelled=labelled)
    root = path.rpartition("/")[0] if is_url(path) else str(Path(path).parent)
    root = root if options.image_root is None else str(options.image_root)
    paths = _manifest_paths(path, root, columns.pop("path"), lines)
    paths = found_below(path, root, paths, is_root_given=options.image_root is not None)
    labels = Texts.repeated("", len(paths))
    if not labelled:
        # Patients may be empty here, because nothing is split by patient.
        patients = _composed(columns["patient"]) if "patient" in columns else None
        return Dataset(name, source, paths, labels, None, patients, file_images(root, paths))
    labels = _filled_column(path, "label", columns, lines) or labels
    splits = _manifest_splits(path, columns.pop("split"), lines) if "split" in columns else None
    patients = _filled_column(path, "patient", columns, lines)
    return Dataset(name, source, paths, labels, splits, patients, file_images(root, paths), columns)


def _check_columns(path: str, columns: dict[str, Texts], *, labelled: bool) -> None:
    """Refuse a CSV without paths, or without labels: a column of that name, or columns of 0 and 1."""
    for required in ("path", "label") if labelled else ("path",):
        are_labels = (is_label_column(column.values()) for column in columns.values())
        if required not in columns and not (required == "label" and any(are_labels)):
            raise DatasetError(
                f"{path}: the column {required!r} is missing; the header has {', '.join(columns) or 'no columns'}. "
                + (_REQUIRED if labelled else "Required: path. Optional: patient.")
                + advice(path, columns, required)
            )


def read_columns(path: str) -> tuple[dict[str, Texts], Ints]:
    """Read a CSV's columns (names in lower case) and each row's line number, (n,) int64; raise DatasetError if it cannot."""
    line = 1
    try:
        # "-sig": Excel writes a byte order mark
        with opened_file(path) as content, io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            stated = _STATED_DELIMITER.fullmatch(first.strip('"\r\n '))
            delimiter = stated[1] if stated else _delimiter(first)
            if not stated:
                file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [column.strip().lower() for column in next(reader, [])]
            builders = [TextsBuilder() for _ in header]
            lines = [np.empty(0, np.int64)]
            for rows, at in _row_blocks(reader):
                line = int(at[-1])
                cells, at = _cells(path, rows, at, len(header), delimiter)
                for builder, column in zip(builders, cells, strict=True):
                    builder.add(column)
                lines.append(at + (1 if stated else 0))
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not UTF-8 text ({error.reason}). Save it as 'CSV UTF-8'.") from error
    except csv.Error as error:
        raise DatasetError(f"{path} after line {line}: not a well-formed CSV: {error}.") from error
    except (OSError, ImageDecodeError) as error:  # the latter at a URL
        raise DatasetError(f"{path}: cannot be read: {reason_of(error).text}.") from error
    all_lines = np.concatenate(lines)
    columns = _columns(path, header, [builder.built() for builder in builders], all_lines)
    if delimiter != ",":
        columns = {name: cells if name in _TEXTS else _with_points(cells) for name, cells in columns.items()}
    return columns, all_lines


def _with_points(cells: Texts) -> Texts:
    """Return a column of numbers with decimal commas with points; any other as it is."""
    written = [cell for cell in cells.values() if cell]
    if not any("," in cell for cell in written) or not all(map(_DECIMAL.fullmatch, written)):
        return cells
    return cells.mapped(lambda cell: cell.replace(",", "."))


def _row_blocks(reader: "_csv.Reader") -> Iterator[tuple[list[list[str]], Ints]]:
    """Yield blocks of rows, with the numbers of their last lines; before an error, the rows that precede it."""
    failure: Exception | None = None
    while failure is None:
        rows: list[list[str]] = []
        before = reader.line_num
        try:
            rows.extend(islice(reader, BLOCK_ROWS))
        except (csv.Error, UnicodeDecodeError) as error:
            failure = error
        if not rows:
            break
        n_lines = np.ones(len(rows), np.int64)
        if failure is not None or reader.line_num - before != len(rows):
            n_lines += [sum(cell.count("\n") + cell.count("\r") - cell.count("\r\n") for cell in row) for row in rows]
        yield rows, before + np.cumsum(n_lines)
    if failure is not None:
        raise failure


def _cells(
    path: str, rows: list[list[str]], lines: Ints, n_columns: int, delimiter: str
) -> tuple[list[list[str]], Ints]:
    """Return columns of stripped cells, without empty rows."""
    if set(map(len, rows)) != {n_columns}:
        written = [any(map(str.strip, row)) for row in rows]
        rows, lines = list(compress(rows, written)), lines[written]
        for row, line in zip(rows, lines, strict=True):
            if len(row) != n_columns:
                found = f"{len(row)} field{'' if len(row) == 1 else 's'}, but the header has {n_columns}"
                advice = f"Put a text that contains {delimiter!r} into double quotes."
                if len(row) < n_columns:
                    advice = f"Write {delimiter!r} after an empty field, too."
                raise DatasetError(f"{path} line {line}: {found}. {advice}")
    columns = [list(map(str.strip, column)) for column in zip(*rows, strict=True)] or [[] for _ in range(n_columns)]
    if columns and "" in columns[0]:
        written = list(map(any, zip(*columns, strict=True)))
        columns, lines = [list(compress(column, written)) for column in columns], lines[written]
    return columns, lines


def _delimiter(header: str) -> str:
    """Return the delimiter, by the header: Excel writes ";" if the comma is the decimal sign."""
    candidates = ",;\t"
    for delimiter in candidates:
        columns = {column.strip().lower() for column in next(csv.reader([header], delimiter=delimiter), [])}
        if {"path", "label"} <= columns:
            return delimiter
    return max(candidates, key=header.count)


def _check_cells(path: str, name: str, cells: Texts, lines: Ints) -> None:
    """Refuse cells that the cache cannot store."""
    for row in cells.rows_with(b"\0"):
        raise DatasetError(f"{path} line {lines[row]}: the {name} contains a NUL character. Remove it.")
    for row in cells.rows_of_length(MAX_CELL_CHARACTERS + 1):  # in bytes, which may be more
        if len(cells[row]) > MAX_CELL_CHARACTERS:
            raise DatasetError(f"{path} line {lines[row]}: the {name} has {len(cells[row])} characters. Shorten it.")


def _columns(path: str, header: list[str], read: list[Texts], lines: Ints) -> dict[str, Texts]:
    columns: dict[str, Texts] = {}
    for i, (name, cells) in enumerate(zip(header, read, strict=True)):
        if not name and not len(cells.rows_of_length(1)):  # spreadsheets end lines with delimiters
            continue
        if not name:
            raise DatasetError(f"{path}: column {i + 1} has no name in the header. Name it, or remove it.")
        name = name.replace("/", "\N{DIVISION SLASH}")  # the cache stores columns by name, as HDF5 members
        if name in {".", ".."}:
            raise DatasetError(f"{path}: {name!r} cannot be a column's name. Rename it.")
        if name in columns:
            raise DatasetError(f"{path}: two columns have the name {name!r}. Rename one.")
        columns[name] = cells
    for name, cells in columns.items():
        _check_cells(path, name, cells, lines)
    return columns


def _manifest_paths(manifest: str, root: str, cells: Texts, lines: Ints) -> Texts:
    rows = _rows_to_check(cells)
    checked = zip(cells.take(rows), lines[rows].tolist(), strict=True)
    paths = cells.replaced(rows, Texts.of(_relative_path(manifest, root, cell, line) for cell, line in checked))
    n_signed = sum(is_url(path) and "?" in path for path in paths.take(rows))
    if n_signed:
        logger.warning(
            "%s: %s URLs have a '?'. A signature or a token could follow it, and paths are stored in the cache, the run and "
            "the report", manifest, f"{n_signed:,}",
        )  # fmt: skip
    firsts = TextIndex(paths).firsts()
    for row in np.flatnonzero(firsts != np.arange(len(paths))):
        raise DatasetError(
            f"{manifest} line {lines[row]}: the path {paths[row]} is already in line {lines[firsts[row]]}. Remove one of "
            "the two lines."
        )
    return paths


def _rows_to_check(cells: Texts) -> Ints:
    """Return the rows whose paths are checked one by one: the others are relative, ASCII and normalised."""
    first, last = cells.edges()
    checked = np.isin(first, (0, ord("/"), ord("."))) | (last == ord("/"))
    checked[cells.rows_with(b"\\:" + NOT_ASCII, [b"//", b"/."])] = True
    return np.flatnonzero(checked)


def _relative_path(manifest: str, root: str, cell: str, line: int) -> str:
    """Return the path relative to the CSV's folder, with forward slashes."""
    if not cell:
        raise DatasetError(f"{manifest} line {line}: the path is empty.")
    if is_url(cell):
        try:
            return checked_url(cell)
        except DatasetError as error:
            raise DatasetError(f"{manifest} line {line}: {error}") from error
    if is_url(root):
        relative = posixpath.normpath(cell.replace("\\", "/"))
        if relative.startswith(("/", "../")) or relative == "..":
            raise _outside(manifest, root, cell, line)
        return relative
    if "\\" in cell and not os.path.lexists(os.path.join(root, cell)):
        cell = cell.replace("\\", "/")  # written on Windows
    relative = os.path.relpath(cell, root) if os.path.isabs(cell) else os.path.normpath(cell)
    if os.path.isabs(cell) and relative.split("/")[0] == "..":  # the same place, by links?
        relative = os.path.relpath(os.path.realpath(cell), os.path.realpath(root))
    if relative.split("/")[0] == ".." or re.match("[A-Za-z]:/", relative):
        raise _outside(manifest, root, cell, line)
    return _spelled_as_on_disk(root, relative)


def _outside(manifest: str, root: str, cell: str, line: int) -> DatasetError:
    return DatasetError(
        f"{manifest} line {line}: {cell} is outside the CSV's folder {root}. Paths are relative to the CSV: move it into a "
        "folder above the images" + (", or write their URLs." if is_url(root) else ".")
    )


def _spelled_as_on_disk(root: str, relative: str) -> str:
    """Return a path as on disk, whether the CSV has composed umlauts (NFC) or not (NFD, as on macOS)."""
    if relative.isascii() or os.path.lexists(os.path.join(root, relative)):
        return relative
    file, mark, number = relative.rpartition(FRAME_MARK)
    if mark:
        return _spelled_as_on_disk(root, file) + mark + number
    spellings = (unicodedata.normalize(form, relative) for form in ("NFC", "NFD"))
    return next((spelling for spelling in spellings if os.path.lexists(os.path.join(root, spelling))), relative)


def _filled_column(manifest: str, name: str, columns: dict[str, Texts], lines: Ints) -> Texts | None:
    """Remove a column and return it; None if it is missing."""
    if name not in columns:
        return None
    cells = columns.pop(name)
    for row in cells.rows_of_length(0, 0):
        raise DatasetError(f"{manifest} line {lines[row]}: the {name} is empty. Fill it in, or remove the line.")
    return _composed(cells)


def _composed(cells: Texts) -> Texts:
    return cells.mapped(to_nfc) if len(cells.rows_with(NOT_ASCII)) else cells


def _manifest_splits(manifest: str, cells: Texts, lines: Ints) -> Texts:
    splits = cells.mapped(split_of)
    for row in splits.rows_of_length(0, 0):
        raise DatasetError(
            f"{manifest} line {lines[row]}: {cells[row]!r} is not a split. Use train, val or test, or "
            "remove the column: images are then split by patient."
        )
    return splits
