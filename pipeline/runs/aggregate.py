"""What a site shares where it cannot share predictions: one JSON file without a row of a patient."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from hoarfrost.evaluation.disclosure import Cells, Histogram, shareable_count
from hoarfrost.features.errors import RunError
from hoarfrost.features.files.whole import whole_file
from hoarfrost.runs.decoding import from_json, to_json

FORMAT = "hoarfrost-aggregate"
FORMAT_VERSION = 1
N_RATES = 101
"""False positive rates at which sensitivities are shared: 0, 0.01, ... 1."""


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
    point `rule`; None if there is none, or too few patients on one side of it. `positives` and `negatives` divide the
    bins of `cells` further; earlier versions did not write them. `slope` and `intercept` are those of the
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
    positives: Histogram | None = None
    negatives: Histogram | None = None

    @property
    def by_outcome(self) -> tuple[Histogram, Histogram]:
        """Positives and negatives by their probability, in the finest bins that the site shared."""
        own = (self.cells.positives, self.positives), (self.cells.negatives, self.negatives)
        positives, negatives = (finer or Histogram(self.cells.edges, counts) for counts, finer in own)
        return positives, negatives


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
        found = from_json(content, Aggregate)
        _check(found)
        return found
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist. Check the path.") from error
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise RunError(f"{path} is damaged or incomplete: {error}. {again}") from error


_LARGEST = 1e6  # of calibration slopes, intercepts and losses


def _check(found: Aggregate) -> None:
    """Refuse numbers that no evaluation writes: raise ValueError that names the first."""
    problems = [*_problems(found), *(f"{one.name}: {problem}" for one in found.classes for problem in _of_class(one))]
    if problems:
        raise ValueError(problems[0])


def _problems(found: Aggregate) -> Iterator[str]:
    if not found.classes or len(found.classes) > len(found.names):
        yield "its classes are not those that it names"
    if not all(_is_count(n) for n in (found.n_images, found.n_patients) if n is not None):
        yield "the number of images or patients is not one that may be shared"
    if not all(0 <= one < _LARGEST for one in (found.loss, found.brier) if one is not None):
        yield "log loss or Brier score is not a number of 0 or more"


def _of_class(one: AggregateClass) -> Iterator[str]:
    cells, k = one.cells, len(one.cells.positives)
    if not (len(cells.negatives) == len(cells.mean_probability) == len(cells.edges) - 1 == k > 0):
        yield "its bins have different numbers of parts"
        return
    if not all(map(_is_count, (*cells.positives, *cells.negatives))):
        yield "a bin has a count that may not be shared"
    if (sum(cells.positives), sum(cells.negatives)) != (one.n_positive, one.n - one.n_positive):
        yield "its bins do not add up to its number of images"
    if not sum(cells.positives) or not sum(cells.negatives):
        yield "one of its two sides is empty"
    if (cells.edges[0], cells.edges[-1]) != (0, 1) or not all(low < high for low, high in pairwise(cells.edges)):
        yield "the edges of its bins do not ascend from 0 to 1"
    means = zip(cells.positives, cells.negatives, cells.mean_probability, strict=True)
    if not all((mean is None) == (pos + neg == 0) and (mean is None or 0 <= mean <= 1) for pos, neg, mean in means):
        yield "the mean probability of a bin is not between 0 and 1"
    for finer, counts in ((one.positives, cells.positives), (one.negatives, cells.negatives)):
        if finer is not None and not _divides(finer, cells.edges, counts):
            yield "its histograms by outcome do not add up to its bins"
    if len(one.roc) != N_RATES or not all(0 <= low <= high <= 1 for low, high in pairwise(one.roc)):
        yield f"its ROC curve does not have {N_RATES} ascending sensitivities"
    if one.threshold is not None and one.threshold not in cells.edges:
        yield "its threshold is not an edge of its bins"
    shares = [("roc_auc", one.roc_auc), ("sensitivity", one.sensitivity), ("specificity", one.specificity)]
    yield from (
        f"{name} or its interval is not between 0 and 1" for name, share in shares if not _is_within(share, 0, 1)
    )
    fitted = [("slope", one.slope), ("intercept", one.intercept)]
    yield from (f"{name} is not a number" for name, of in fitted if not _is_within(of, -_LARGEST, _LARGEST))


def _divides(finer: Histogram, edges: Sequence[float], counts: Sequence[int]) -> bool:
    """Return whether a histogram has the bins of coarser ones, and their counts."""
    own, ascend = finer.edges, all(low < high for low, high in pairwise(finer.edges))
    if len(own) != len(finer.counts) + 1 or not ascend or not set(edges) <= set(own) or (own[0], own[-1]) != (0, 1):
        return False
    starts = [own.index(edge) for edge in edges]
    sums = tuple(sum(finer.counts[low:high]) for low, high in pairwise(starts))
    return all(map(_is_count, finer.counts)) and sums == tuple(counts)


def _is_count(n: int) -> bool:
    return n >= 0 and shareable_count(n) is not None


def _is_within(figure: Figure | None, low: float, high: float) -> bool:
    """Return whether a figure, if there is one, and its interval are within limits, and in order."""
    if figure is None:
        return True
    values = (figure.low, figure.value, figure.high)
    if any(one is None or not math.isfinite(one) for one in values):
        return False
    first, middle, last = (one for one in values if one is not None)
    return low <= first <= middle <= last <= high
