"""From a figure in data units to shapes in pixels, which the template writes as SVG."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.evaluation import Estimate
from hoarfrost.report.figures import Axis, Band, Curve, Figure, Marks, Panel

if TYPE_CHECKING:
    import numpy.typing as npt

# The drawing is as wide as a phone, where its text has the size of the page's; on a wide page it only grows.
WIDTH = 340
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM, X_LABEL_HEIGHT = 36, 10, 26, 20, 18
# A fifth of a pixel is invisible, and the curve of 10,000 images shrinks to some hundred points.
TOLERANCE_PX = 0.2
N_COLOURS, N_DASHES = 6, 3
CELL_WIDTH = 180


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: `at` pixels from the panel's left or top."""

    at: float
    text: str


@dataclass(frozen=True)
class Stroke:
    """A curve: the `d` of an SVG path, its CSS classes and its name."""

    path: str
    classes: str
    label: str


@dataclass(frozen=True)
class Dot:
    """A dot at (x, y) pixels, its whisker from `low` to `high` pixels of the other axis, or None."""

    x: float
    y: float
    low: float | None
    high: float | None
    classes: str
    label: str


@dataclass(frozen=True)
class DrawnPanel:
    """A panel in pixels. `diagonal`, `mark` and `spot` as in `Panel`, the latter two in pixels from the upper left."""

    top: float
    width: float
    height: float
    label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    strokes: tuple[Stroke, ...]
    diagonal: bool
    mark: float | None
    dots: tuple[Dot, ...] = ()
    spot: tuple[float, float] | None = None
    bands: tuple[Stroke, ...] = ()


@dataclass(frozen=True)
class Drawing:
    """A figure in pixels."""

    width: float
    height: float
    left: float
    message: str
    x_label: str
    frames: tuple[DrawnPanel, ...]


@dataclass(frozen=True)
class CellScale:
    """Where ROC AUCs, or differences, are in a table's cell of `CELL_WIDTH` pixels; `line` is the value to compare with."""

    low: float
    line: float | None = None
    high: float = 1.0

    def place(self, area: float) -> float:
        """Return the place of an area in pixels."""
        return round(10 + (CELL_WIDTH - 20) * (area - self.low) / (self.high - self.low), 1)


def cell_scale(areas: Iterable[Estimate], line: float | None = None) -> CellScale:
    """Return a scale from the tenth below all intervals to 1; those without width, of constant predictions, may leave it."""
    ends = [area.low for area in areas if area.low is not None and area.low != area.high]
    return CellScale(math.floor(min(ends, default=0.5) * 10) / 10, line)


def difference_scale(differences: Iterable[Estimate]) -> CellScale:
    """Return a scale with zero in its middle, as wide as the tenth beyond all intervals."""
    ends = [abs(end) for one in differences for end in (one.value, one.low, one.high) if end is not None]
    widest = max(math.ceil(max(ends, default=0.1) * 10) / 10, 0.1)
    return CellScale(-widest, 0.0, widest)


def draw(figure: Figure, panel_height: float) -> Drawing:
    """Place a figure in pixels.

    Parameters
    ----------
    figure : Figure
    panel_height : float
        The height of a panel's plotting area, in pixels of a drawing that is `WIDTH` wide.

    Returns
    -------
    Drawing
    """
    frames, top = [], 0.0
    for panel in figure.panels:
        height = panel_height * panel.height
        frames.append(_frame(panel, top + MARGIN_TOP, height))
        top += MARGIN_TOP + height + MARGIN_BOTTOM
    return Drawing(WIDTH, top + X_LABEL_HEIGHT, MARGIN_LEFT, figure.message, figure.panels[-1].x.label, tuple(frames))


def _frame(panel: Panel, top: float, height: float) -> DrawnPanel:
    width = WIDTH - MARGIN_LEFT - MARGIN_RIGHT
    return DrawnPanel(
        top=top,
        width=width,
        height=height,
        label=panel.y.label,
        x_ticks=tuple(Tick(_pixel(tick, panel.x, width), f"{tick:g}") for tick in panel.x.ticks),
        y_ticks=tuple(Tick(_pixel(tick, panel.y, height, upwards=True), f"{tick:g}") for tick in panel.y.ticks),
        strokes=tuple(_stroke(curve, panel, width, height) for curve in panel.curves),
        diagonal=panel.diagonal,
        mark=None if panel.mark is None else _pixel(panel.mark, panel.x, width),
        dots=tuple(dot for marks in panel.marks for dot in _dots(marks, panel, width, height)),
        spot=None
        if panel.spot is None
        else (_pixel(panel.spot[0], panel.x, width), _pixel(panel.spot[1], panel.y, height, upwards=True)),
        bands=tuple(_band(band, panel, width, height) for band in panel.bands),
    )


def _dots(marks: Marks, panel: Panel, width: float, height: float) -> list[Dot]:
    def at(values: "npt.NDArray[np.float64] | None", i: int) -> float | None:
        return None if values is None else _pixel(float(values[i]), panel.y, height, upwards=True)

    classes = f"dot colour-{marks.series % N_COLOURS}"
    return [
        Dot(
            _pixel(float(marks.x[i]), panel.x, width),
            _pixel(float(marks.y[i]), panel.y, height, upwards=True),
            at(marks.low, i),
            at(marks.high, i),
            classes,
            marks.label,
        )
        for i in range(len(marks.x))
    ]


def _pixel(value: float, axis: Axis, length: float, *, upwards: bool = False) -> float:
    share = axis.share(value)
    return round(length * (1 - share if upwards else share), 1)


def _stroke(curve: Curve, panel: Panel, width: float, height: float) -> Stroke:
    return Stroke(path(_points(curve.x, curve.y, panel, width, height)), series_classes(curve), curve.label)


def _band(band: Band, panel: Panel, width: float, height: float) -> Stroke:
    """Return the outline of a band: along its upper end, and back along its lower one."""
    high, low = (_points(band.x, ends, panel, width, height) for ends in (band.high, band.low))
    return Stroke(path(np.vstack([high, low[::-1]])), f"band colour-{band.series % N_COLOURS}", band.label)


def _points(
    x: "npt.NDArray[np.float64]", y: "npt.NDArray[np.float64]", panel: Panel, width: float, height: float
) -> "npt.NDArray[np.float64]":
    """Return a curve in pixels, (m, 2), without points that do not change it visibly."""
    across = (x - panel.x.low) / (panel.x.high - panel.x.low) * width
    down = (panel.y.high - y) / (panel.y.high - panel.y.low) * height
    return simplify(np.column_stack([across, down]), TOLERANCE_PX)


def series_classes(curve: Curve) -> str:
    """Return the CSS classes of a curve: first colours distinguish the curves, then dashes."""
    dash = curve.series // N_COLOURS % N_DASHES
    return f"curve colour-{curve.series % N_COLOURS} dash-{dash}" + (" strong" if curve.strong else "")


def path(points: "npt.NDArray[np.float64]") -> str:
    """Write points, (n, 2) in pixels, as the `d` of an SVG path."""
    if not len(points):
        return ""
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points) + "h0"  # h0: a single point shows as a dot


def simplify(points: "npt.NDArray[np.float64]", tolerance: float) -> "npt.NDArray[np.float64]":
    """Remove the points that do not change a curve visibly.

    Parameters
    ----------
    points : ndarray (n, 2)
        A curve, in order.
    tolerance : float
        The largest distance of a removed point from the remaining curve, in the points' unit.

    Returns
    -------
    ndarray (m, 2), m <= n
        A subset in the same order, with the first and the last point.

    References
    ----------
    Douglas and Peucker (1973), Cartographica 10(2), 112-122.
    """
    keep = np.zeros(len(points), dtype=bool)
    keep[:1] = keep[-1:] = True
    open_spans = [(0, len(points) - 1)]
    while open_spans:
        first, last = open_spans.pop()
        if last - first < 2:
            continue
        distance = _distance_to_chord(points[first : last + 1])
        farthest = first + int(distance.argmax())
        if distance.max() > tolerance:
            keep[farthest] = True
            open_spans += [(first, farthest), (farthest, last)]
    return points[keep]


def _distance_to_chord(points: "npt.NDArray[np.float64]") -> "npt.NDArray[np.float64]":
    """Return the distance of each point from the straight line between the first and the last, (n,)."""
    offset, chord = points - points[0], points[-1] - points[0]
    length_squared = max(float(chord @ chord), np.finfo(float).tiny)
    along = np.clip(offset @ chord / length_squared, 0, 1)  # (n,) share of the chord
    distance: npt.NDArray[np.float64] = np.linalg.norm(offset - along[:, None] * chord, axis=1)
    return distance
