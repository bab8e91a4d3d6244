"""Columns of a CSV by other names than ours: as options say, or as guessed for a message."""

import shlex
from collections.abc import Iterable, Mapping

from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.options import TableOptions
from hoarfrost.features.decoding.formats import DICOM_SUFFIXES, IMAGE_SUFFIXES
from hoarfrost.features.errors import DatasetError
from hoarfrost.features.files import suffix_of

# By our name: names that public datasets use, without case, spaces and underscores; the likeliest first.
_USUAL = {
    "path": ("imagepath", "filepath", "filename", "imageindex", "imagename", "imagefile", "imageid", "isicid", "image",
             "file", "img", "name", "id"),
    "label": ("findinglabels", "labels", "diagnosis", "dx", "class", "classname", "target", "category", "pathology",
              "benignmalignant", "finding", "level", "grade"),
    "patient": ("patientid", "patient", "subjectid", "subject", "caseid", "case", "lesionid"),
}  # fmt: skip
SEPARATORS = ("|", ";")
_SAMPLE = 1000  # cells that decide whether a column has several labels


def renamed(path: str, columns: Mapping[str, Texts], options: TableOptions) -> dict[str, Texts]:
    """Return the columns by our names, where an option names another one.

    A column that had our name before becomes an attribute, "path (column)".
    """
    found = dict(columns)
    asked = {"path": options.path_column, "label": options.label_column, "patient": options.patient_column}
    for ours, name in asked.items():
        if name is None:
            continue
        theirs = name.strip().lower()
        if theirs not in columns:
            listed = ", ".join(columns) or "no columns"
            raise DatasetError(f"{path}: --{ours}-column {name}: no such column; the header has {listed}.")
        if theirs != ours and ours in found:
            found[f"{ours} (column)"] = found.pop(ours)
        found[ours] = found.pop(theirs) if theirs in found else columns[theirs]
    return found


def separated(path: str, columns: dict[str, Texts], separator: str) -> dict[str, Texts]:
    """Return the columns with one of 0 and 1 for each label, in place of a column with several labels in a cell."""
    if "label" not in columns:
        raise DatasetError(f"{path}: --label-separator {separator}: there is no column of labels.")
    cells = columns["label"]
    parts = {cell: tuple(filter(None, map(str.strip, cell.split(separator)))) for cell in cells.values()}
    names = sorted({part for each in parts.values() for part in each})
    others = {name: column for name, column in columns.items() if name != "label"}
    taken = [name for name in names if name in others]
    if taken:
        raise DatasetError(f"{path}: {taken[0]!r} is a label and a column. Rename the column.")
    # An empty cell: unknown.
    is_one = {
        name: {cell: "1" if name in each else "0" if each else "" for cell, each in parts.items()} for name in names
    }
    return others | {name.replace("/", "\N{DIVISION SLASH}"): cells.mapped(is_one[name].__getitem__) for name in names}


def advice(path: str, columns: Mapping[str, Texts], missing: str) -> str:
    """Return the command that would read a CSV without a column that is required; empty if the header suggests none."""
    arguments: list[str] = []
    for ours in ("path", "label", "patient"):
        if ours in columns:
            continue
        theirs = _guess(ours, columns)
        if theirs is None and ours == missing:
            return ""
        if theirs is not None:
            arguments += [f"--{ours}-column", theirs]
            separator = _separator(columns[theirs]) if ours == "label" else None
            arguments += ["--label-separator", separator] if separator else []
    return f" Perhaps: hoarfrost inspect {shlex.join([path, *arguments])}"


def _guess(ours: str, columns: Mapping[str, Texts]) -> str | None:
    """Return the column whose name, or whose first cells, are those of paths, labels or patients."""
    plain = {"".join(c for c in name if c.isalnum()): name for name in columns}
    found = next((plain[usual] for usual in _USUAL[ours] if usual in plain), None)
    if found is None and ours == "path":
        known = IMAGE_SUFFIXES | DICOM_SUFFIXES
        found = next((name for name, cells in columns.items() if len(cells) and suffix_of(cells[0]) in known), None)
    return found


def _separator(cells: Iterable[str]) -> str | None:
    """Return what separates several labels in one cell: labels that also occur alone."""
    some = {cell for cell, _ in zip(cells, range(_SAMPLE), strict=False)}
    for separator in SEPARATORS:
        several = [cell for cell in some if separator in cell]
        parts = {part.strip() for cell in several for part in cell.split(separator)}
        if several and parts & some:
            return separator
    return None
