"""Types of options: paths, sizes, shares, windows."""

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from hoarfrost.features.decoding.windows import Window

SMALLEST_LIMIT = 16_000_000  # bytes: two chunks of the cache, and as many for rows in memory


class PathType(click.Path):
    """A path that is not empty: an empty one, from an unset variable, would mean the current folder."""

    def __init__(self, *, dir_okay: bool = True) -> None:
        super().__init__(dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse the empty path."""
        if not str(value).strip():
            self.fail("the path is empty", param, ctx)
        return super().convert(value, param, ctx)


class DataType(PathType):
    """Where images are: a path, or a URL as text, because a path would lose one of its slashes."""

    name = "data"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return a Path, or a URL as text."""
        from hoarfrost.features.files import is_url

        text = str(value).removeprefix("file://")
        return text if is_url(text) else super().convert(text, param, ctx)


class NamesType(click.ParamType[tuple[str, ...]]):
    """Names, separated by commas."""

    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        """Return the names, without blanks around them."""
        if isinstance(value, tuple):  # the default
            return value
        names = tuple(name.strip() for name in str(value).split(","))
        if not all(names):
            self.fail(f"{value!r} has an empty name; write for example age,sex", param, ctx)
        return names


class SizeType(click.ParamType[int]):
    """A number of bytes: 1GB, 500MB, 2GiB, or a plain number."""

    name = "size"

    def __init__(self, smallest: int = SMALLEST_LIMIT) -> None:
        self.smallest = smallest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the size in bytes."""
        found = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*([kmgt]?)(i?)b?", str(value).strip().lower())
        if found is None:
            self.fail(f"{value!r} is not a size; write for example 1GB, 500MB or 2GiB", param, ctx)
        size = int(float(found[1]) * (1024 if found[3] else 1000) ** " kmgt".index(found[2] or " "))
        if size < self.smallest:
            least = f"{self.smallest / 1_000_000:g}MB" if self.smallest >= 1_000_000 else f"{self.smallest} byte"
            self.fail(f"{value} is too small; the least is {least}", param, ctx)
        return size


class NumbersType(click.ParamType[tuple[int, ...]]):
    """Whole numbers, separated by commas."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers."""
        if isinstance(value, tuple):
            return value
        parts = [part.strip() for part in str(value).split(",")]
        if not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts):
            self.fail(f"{value!r} is not a list of numbers; write for example 3,4", param, ctx)
        return tuple(int(part) for part in parts)


class ShareType(click.FloatRange):
    """A number in a range; NaN is refused, which click's own range would accept."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        share = float(super().convert(value, param, ctx))
        if math.isnan(share):
            self.fail(f"{value} is not a number", param, ctx)
        return share


class RuleType(click.ParamType[str]):
    """The rule of an operating point: youden, sensitivity=0.95, specificity=0.95, threshold=0.3.

    `of_scores` permits a threshold on another scale than that of probabilities.
    """

    name = "rule"

    def __init__(self, *, of_scores: bool = False) -> None:
        self.of_scores = of_scores

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the rule as a text that `Rule.parse` reads."""
        if value == "youden":  # without loading what reads the others
            return "youden"
        from hoarfrost.evaluation.operating import Rule

        try:
            Rule.parse(str(value), of_scores=self.of_scores)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class WindowType(click.ParamType["Window"]):
    """A window of grey values: CENTER/WIDTH."""

    name = "window"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> "Window":
        """Return the window."""
        from hoarfrost.features.decoding.windows import Window

        try:
            return value if isinstance(value, Window) else Window.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
