"""Records to JSON and back."""

from typing import Any, TypeVar

import cattrs

T = TypeVar("T")

# One error, as plain as Python's own, is enough to say that a file is damaged.
_CONVERTER = cattrs.Converter(detailed_validation=False)


def from_json(values: Any, kind: type[T]) -> T:
    """Make a record of a JSON object, those inside it too; keys of a later minor version are passed over.

    Raises
    ------
    KeyError, TypeError, ValueError, AttributeError
        If the object is not what the record was written as.
    """
    return _CONVERTER.structure(values, kind)


def to_json(record: Any) -> Any:
    """Give a record, or a mapping of records, as what `json` writes."""
    return _CONVERTER.unstructure(record)
