"""What a column of labels may hold, where an image may have several."""

from collections.abc import Iterable

LABEL_VALUES = {
    **dict.fromkeys(("1", "1.0", "true"), 1), **dict.fromkeys(("0", "0.0", "false"), 0),
    **dict.fromkeys(("", "-1", "-1.0", "nan", "na"), -1),
}  # fmt: skip
"""By their text in lower case; -1: unknown. CheXpert writes -1.0 where a report is uncertain."""


def is_label_column(cells: Iterable[str]) -> bool:
    """Return whether a column says which images have a label: it has 0 and 1, and nothing else but unknown values."""
    values = set()
    for cell in cells:
        value = LABEL_VALUES.get(cell.lower())
        if value is None:
            return False
        values.add(value)
    return {0, 1} <= values
