"""The values of label columns, where an image may have several labels."""

from collections.abc import Iterable

LABEL_VALUES = {
    **dict.fromkeys(("1", "1.0", "true"), 1), **dict.fromkeys(("0", "0.0", "false"), 0),
    **dict.fromkeys(("", "-1", "-1.0", "nan", "na"), -1),
}  # fmt: skip
"""By text in lower case; -1 means unknown. CheXpert writes -1.0 where a report is uncertain."""


def is_label_column(cells: Iterable[str]) -> bool:
    """Return whether a column states which images have a label: 0 and 1 occur, and nothing else but unknown values."""
    values: set[int | None] = set()
    for cell in cells:
        values.add(LABEL_VALUES.get(cell.lower()))
        if None in values:  # most columns end here, at their first cell
            return False
    return {0, 1} <= values
