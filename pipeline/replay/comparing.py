"""Two documents compared number by number."""

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

TOLERANCE = 1e-6
"""By which a number may differ, relative to the larger one, or by itself if that is below 1.

A temperature is where a loss is lowest: the rounding of its terms moves that place by 1e-8, and what follows by more.
"""


@dataclass(frozen=True)
class Difference:
    """A value that is not what was recorded: `place` is where, as "heads[2].test.roc_auc"; `size` is by how much."""

    place: str
    recorded: str
    again: str
    size: float | None


def is_in(places: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that states whether a place is one of some, or inside of one; `*` stands for any characters."""
    texts = [re.escape(place).replace(r"\*", ".*") for place in places]
    pattern = re.compile(rf"(?:{'|'.join(texts)})(?:$|[.\[])") if texts else None
    return lambda place: pattern is not None and pattern.match(place) is not None


def differences(recorded: Any, again: Any, place: str, is_skipped: Callable[[str], bool]) -> Iterator[Difference]:
    """Yield the recorded values that differ; numbers by more than `TOLERANCE`. Earlier versions recorded fewer values."""
    if is_skipped(place):
        return
    if isinstance(recorded, dict) and isinstance(again, dict):
        for key, value in recorded.items():
            yield from differences(value, again.get(key), f"{place}.{key}", is_skipped)
    elif isinstance(recorded, list) and isinstance(again, list) and len(recorded) == len(again):
        for i, pair in enumerate(zip(recorded, again, strict=True)):
            yield from differences(*pair, f"{place}[{i}]", is_skipped)
    elif _is_number(recorded) and _is_number(again):
        if not math.isclose(recorded, again, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield Difference(place, f"{recorded:g}", f"{again:g}", abs(recorded - again))
    elif recorded != again:
        yield Difference(place, _short(recorded), _short(again), None)


def as_written_now(recorded: Any, now: Any) -> Any:
    """Return what was recorded, as it is after it was read: earlier versions gave intervals that are no longer given.

    Keys are those that were recorded, because earlier versions recorded fewer.
    """
    if isinstance(recorded, dict) and isinstance(now, dict):
        return {key: as_written_now(value, now[key]) for key, value in recorded.items() if key in now}
    if isinstance(recorded, list) and isinstance(now, list) and len(recorded) == len(now):
        return [as_written_now(*pair) for pair in zip(recorded, now, strict=True)]
    return now


def numbers(document: Any, place: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a JSON document, each with its place."""
    if isinstance(document, dict):
        for key, value in document.items():
            yield from numbers(value, f"{place}.{key}")
    elif isinstance(document, list):
        for i, value in enumerate(document):
            yield from numbers(value, f"{place}[{i}]")
    elif _is_number(document):
        yield place, document


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: object) -> str:
    if isinstance(value, dict | list):
        return f"{len(value)} values"
    return "nothing" if value is None else str(value)
