"""How a table is read, where its names or columns are not the usual ones."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from hoarfrost.features.errors import DatasetError

PARENT = "parent"


@dataclass(frozen=True)
class TableOptions:
    """How a folder or a CSV is read.

    Attributes
    ----------
    path_column, label_column, patient_column : str or None
        Columns of a CSV that have another name than path, label and patient.
    label_separator : str or None
        What separates several labels in one cell; each becomes a column of 0 and 1.
    image_root : Path or None
        The folder that paths are relative to, in place of the CSV's; files are also found by name below it.
    include, exclude : tuple of str
        Globs of a path, or of a file's name if they have no "/"; only included files are read, and no excluded one.
    patient_from, label_from : str or None
        "parent", the name of the folder that an image is in; or a regular expression, whose first group in a path is
        the patient or the label.
    merge_labels : bool
        Whether spellings of one label count as one.
    label_map : Path or None
        A CSV with the columns label and name: the label is replaced by the name.
    """

    path_column: str | None = None
    label_column: str | None = None
    patient_column: str | None = None
    label_separator: str | None = None
    image_root: Path | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    patient_from: str | None = None
    label_from: str | None = None
    merge_labels: bool = False
    label_map: Path | None = None

    def selects(self, path: str) -> bool:
        """Return whether a path is included, and not excluded."""
        is_included = not self.include or any(_matches(path, glob) for glob in self.include)
        return is_included and not any(_matches(path, glob) for glob in self.exclude)


def _matches(path: str, glob: str) -> bool:
    return fnmatchcase(path if "/" in glob else path.rpartition("/")[2], glob)


def part_of(path: str, rule: str, option: str) -> str:
    """Return what a rule, "parent" or a regular expression, finds in a path.

    Raises
    ------
    DatasetError
        If that is nothing, or the expression is not valid.
    """
    if rule == PARENT:
        found = path.rpartition("/")[0].rpartition("/")[2]
    else:
        try:
            match = re.search(rule, path)
        except re.error as error:
            raise DatasetError(f"{option} {rule}: not a regular expression: {error}.") from error
        found = "" if match is None else (match[1] if match.re.groups else match[0]) or ""
    if not found:
        raise DatasetError(
            f"{option} {rule}: finds nothing in {path}. It must match every path; {PARENT} is the folder."
        )
    return found
