"""Sites that shared aggregates only, pooled: areas by site, a random-effects summary, a common ROC curve and calibration."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from hoarfrost.evaluation import Estimate
from hoarfrost.evaluation.disclosure import area_bounds
from hoarfrost.evaluation.meta_analysis import RandomEffects, random_effects, random_effects_of_areas
from hoarfrost.features.errors import RunError
from hoarfrost.report.figures import Curve, Figure, Panel, share_axis
from hoarfrost.report.svg import CellScale, Drawing, cell_scale, draw
from hoarfrost.report.templates import template_environment
from hoarfrost.runs.aggregate import Aggregate, AggregateClass, read_aggregate
from hoarfrost.runs.aggregate import Figure as Shared

FEWEST_SITES = 2
WIDE = 0.1
"""Bounds of the area of all samples together that are farther apart say little."""
LARGEST_BIN = 0.75
"""The largest share of all samples in one bin of a common calibration table."""
_HEIGHT = 294
_Z = 1.959963984540054
SUMMARISED = (
    ("ROC AUC", "roc_auc"),
    ("sensitivity", "sensitivity"),
    ("specificity", "specificity"),
    ("calibration slope", "slope"),
    ("calibration intercept", "intercept"),
)
_OF_LOGITS = ("roc_auc", "sensitivity", "specificity")


@dataclass(frozen=True)
class PooledFigure:
    """One figure over sites: `found` is its summary, or `reason` states why there is none. `n_sites` have it."""

    title: str
    n_sites: int
    found: RandomEffects | None
    reason: str = ""

    @property
    def estimate(self) -> Estimate:
        """The mean with its interval."""
        assert self.found is not None
        return Estimate(self.found.mean, self.found.low, self.found.high)


@dataclass(frozen=True)
class PooledBin:
    """Samples of all sites between two probabilities: how many, how many positive, and the mean probability."""

    low: float
    high: float
    n: int
    n_positive: int
    mean_probability: float | None


@dataclass(frozen=True)
class PooledClass:
    """One class over all sites.

    `area` are the lowest and the highest ROC AUC that all samples together can have. `bins` are those between the edges
    that all sites have; `has_curve` is whether straight lines between these give an area within the bounds.
    """

    name: str
    sites: tuple[tuple[str, AggregateClass], ...]
    figures: tuple[PooledFigure, ...]
    bins: tuple[PooledBin, ...]
    area: tuple[float, float]
    has_curve: bool
    scale: CellScale
    drawing: Drawing

    @property
    def is_wide(self) -> bool:
        """Whether the shared counts leave the area of all samples together open."""
        return self.area[1] - self.area[0] > WIDE

    @property
    def n_largest(self) -> int:
        """The samples of the bin that has most."""
        return max(one.n for one in self.bins)

    @property
    def is_calibrated(self) -> bool:
        """Whether common bins are fine enough for a calibration table: none has nearly all samples."""
        return self.n_largest <= LARGEST_BIN * sum(one.n for one in self.bins)

    @staticmethod
    def shown(found: Shared) -> Estimate:
        """Return a site's figure as the bars of a table show it."""
        return Estimate(found.value, found.low, found.high)


@dataclass(frozen=True)
class Pooled:
    """All that the page shows."""

    sites: tuple[Aggregate, ...]
    classes: tuple[PooledClass, ...]
    notes: tuple[str, ...]


def pool(files: Sequence[Path]) -> Pooled:
    """Read aggregates and pool them.

    Parameters
    ----------
    files : sequence of Path, two or more
        What `hoarfrost evaluate --aggregate-only` wrote.

    Raises
    ------
    RunError
        If a file is not an aggregate, or the files do not fit one another.
    """
    sites = [read_aggregate(file) for file in files]
    _check(files, sites)
    classes = tuple(_pooled(name, [(one.site, _class(one, name)) for one in sites]) for name in _names(sites[0]))
    return Pooled(tuple(sites), classes, tuple(_notes(sites)))


def render_pooled(found: Pooled) -> str:
    """Write pooled sites as HTML: a whole document, with its style inside."""
    return template_environment().get_template("pooled.html.j2").render(vars(found))


def _check(files: Sequence[Path], sites: Sequence[Aggregate]) -> None:
    """Refuse sites that are named twice, or that evaluated something else."""
    if len(sites) < FEWEST_SITES:
        raise RunError(f"Pooling needs two sites or more. Name each file with --aggregate: there is only {files[0]}.")
    for place, one in enumerate(sites):
        for other, file in zip(sites[:place], files, strict=False):
            if one.site == other.site:
                raise RunError(
                    f"{files[place]} and {file} are both of the site {one.site!r}. Name each site once; to rename one, run "
                    "evaluate --aggregate-only again with another --name."
                )
        _check_alike(files[0], sites[0], files[place], one)


def _check_alike(first: Path, expected: Aggregate, file: Path, found: Aggregate) -> None:
    if found.names != expected.names or _names(found) != _names(expected):
        raise RunError(
            f"{file} has the classes {', '.join(found.names)}, {first} {', '.join(expected.names)}. Rename labels with "
            "--label-map, or choose the same --positive, and run evaluate again."
        )
    if found.counted != expected.counted:
        raise RunError(f"{file} counts {found.counted}s, {first} {expected.counted}s. Use the same --per-patient.")
    if found.model_digest and expected.model_digest and found.model_digest != expected.model_digest:
        raise RunError(
            f"{file} is of another head than {first} ({found.model}, {expected.model}; the digests of their files differ). "
            "Send one head file to all sites."
        )


def _names(one: Aggregate) -> tuple[str, ...]:
    return tuple(found.name for found in one.classes)


def _class(one: Aggregate, name: str) -> AggregateClass:
    return next(found for found in one.classes if found.name == name)


def _notes(sites: Sequence[Aggregate]) -> Iterator[str]:
    unknown = [one.site for one in sites if not one.model_digest]
    if unknown:
        yield f"Whether {', '.join(unknown)} evaluated the same model is not known: the files hold predictions of a CSV."
    if len(sites) < 5:
        yield f"With {len(sites)} sites the variance between them is uncertain, and so are the intervals that follow from it."


# -- one class ----------------------------------------------------------------------------------------------------------


def _pooled(name: str, sites: Sequence[tuple[str, AggregateClass]]) -> PooledClass:
    figures = tuple(_summary(title, key, [getattr(one, key) for _, one in sites]) for title, key in SUMMARISED)
    bins = _bins([one for _, one in sites])
    x, y = _curve(bins)
    curves = [
        Curve(f"{site}, AUC {one.roc_auc.value:.3f}", np.linspace(0, 1, len(one.roc)), np.array(one.roc), number + 1)
        for number, (site, one) in enumerate(sites)
    ]
    area = area_bounds([(*one.by_outcome, one.roc_auc.value or 0.0) for _, one in sites])
    has_curve = area[0] <= float(np.trapezoid(y, x)) <= area[1]
    axes = (
        share_axis("false positive rate (1 \N{MINUS SIGN} specificity)"),
        share_axis("true positive rate (sensitivity)"),
    )
    message = f"ROC curves of {len(sites)} sites{' and of all their patients together' if has_curve else ''}, {name}"
    if has_curve:
        curves.insert(0, Curve("all together", x, y, 0, strong=True))
    drawing = draw(Figure(message, (Panel(*axes, tuple(curves), diagonal=True),)), _HEIGHT)
    scale = cell_scale(PooledClass.shown(one.roc_auc) for _, one in sites)
    return PooledClass(name, tuple(sites), figures, bins, area, has_curve, scale, drawing)


def _summary(title: str, key: str, found: Sequence[Shared | None]) -> PooledFigure:
    known = [one for one in found if one is not None and one.value is not None and one.low is not None]
    try:
        if key in _OF_LOGITS:
            usable = [
                PooledClass.shown(one) for one in known if one.value is not None and 0 < one.value < 1 and one.low
            ]
            return PooledFigure(title, len(usable), random_effects_of_areas(usable))
        errors = [((one.high or 0) - (one.low or 0)) / (2 * _Z) for one in known]
        return PooledFigure(title, len(known), random_effects([one.value or 0 for one in known], errors))
    except ValueError as error:
        return PooledFigure(title, len(known), None, str(error))


def _bins(sites: Sequence[AggregateClass]) -> tuple[PooledBin, ...]:
    """Return the bins between the edges that all sites have; sums of shareable cells can be shared."""
    common = sorted(set.intersection(*(set(one.cells.edges) for one in sites)))
    found = []
    for low, high in pairwise(common):
        n = n_positive = 0
        total = 0.0
        for one in sites:
            cells = one.cells
            for i, (edge, mean) in enumerate(zip(cells.edges[:-1], cells.mean_probability, strict=True)):
                if low <= edge < high:
                    own = cells.positives[i] + cells.negatives[i]
                    n, n_positive, total = n + own, n_positive + cells.positives[i], total + own * (mean or 0.0)
        found.append(PooledBin(low, high, n, n_positive, total / n if n else None))
    return tuple(found)


def _curve(bins: Sequence[PooledBin]) -> "tuple[np.typing.NDArray[np.float64], np.typing.NDArray[np.float64]]":
    """Return false and true positive rates at the edges of bins, from the highest probability down."""
    positives = np.array([one.n_positive for one in reversed(bins)], np.float64)
    negatives = np.array([one.n - one.n_positive for one in reversed(bins)], np.float64)
    return tuple(np.concatenate([[0.0], np.cumsum(one) / one.sum()]) for one in (negatives, positives))  # type: ignore[return-value]
