"""What a site shares where it cannot share predictions: one JSON file without a row of a patient."""

import json
from dataclasses import dataclass
from pathlib import Path

from hoarfrost.evaluation.disclosure import Cells
from hoarfrost.features.errors import RunError
from hoarfrost.features.files.whole import whole_file
from hoarfrost.runs.decoding import from_json, to_json

FORMAT = "hoarfrost-aggregate"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Figure:
    """A figure with its 95% interval, without the counts that it is of."""

    value: float | None
    low: float | None
    high: float | None
    method: str = ""


@dataclass(frozen=True)
class AggregateClass:
    """A class against the rest: how it is separated, at the head's threshold and at all others.

    `roc` are the sensitivities at false positive rates of 0, 0.01, ... 1, from `cells`. `threshold` is that of the operating
    point `rule`; None if there is none, or too few patients on one side of it. `slope` and `intercept` are those of the
    calibrated probabilities.
    """

    name: str
    n: int
    n_positive: int
    roc_auc: Figure
    cells: Cells
    roc: tuple[float, ...]
    rule: str = ""
    threshold: float | None = None
    sensitivity: Figure | None = None
    specificity: Figure | None = None
    slope: Figure | None = None
    intercept: Figure | None = None


@dataclass(frozen=True)
class Aggregate:
    """One site's evaluation.

    `site` is the name that the site chose. `model` is the head's name, and `model_digest` that of its content; empty for
    predictions of unknown origin. `counted` is "image" or "patient". Counts of one to four are None.
    """

    site: str
    model: str
    model_digest: str
    counted: str
    names: tuple[str, ...]
    n_images: int | None
    n_patients: int | None
    loss: float | None
    brier: float | None
    classes: tuple[AggregateClass, ...]


def write_aggregate(path: Path, found: Aggregate) -> None:
    """Write an aggregate, complete or not at all; raise RunError if it cannot be written."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **to_json(found)}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as file:
            file.write(text.encode("utf-8"))
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error}. Name another file with --aggregate-only.") from error


def read_aggregate(path: Path) -> Aggregate:
    """Read an aggregate.

    Raises
    ------
    RunError
        If the file is missing, is not an aggregate, is damaged, or is of a later version.
    """
    again = "Ask the site for the file again, or write it again with: hoarfrost evaluate ... --aggregate-only FILE.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise RunError(f'{path} is not an aggregate ("format": "{FORMAT}" is missing). {again}')
        if content["format_version"] != FORMAT_VERSION:
            raise RunError(
                f"{path} has the format version {content['format_version']}, and this hoarfrost reads version "
                f"{FORMAT_VERSION}. Use the same hoarfrost at all sites."
            )
        return from_json(content, Aggregate)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist. Check the path.") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is damaged or incomplete: {error}. {again}") from error
