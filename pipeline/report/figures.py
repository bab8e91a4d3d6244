"""What the report draws, in the units of the data; and the curves of heads: ROC, precision and recall, training.

A figure is described here and drawn elsewhere. The report draws it as SVG of its own making (`svg.py`), not with
matplotlib: colours then follow the reader's light or dark scheme through CSS, text stays text and scales to a phone,
each curve is one element that a pointer or a script can address, importing costs nothing, and the same run gives the
same bytes under every version of matplotlib. A file for a paper is the other use, and there matplotlib can draw the
same description.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.evaluation import binary_problems, precision_recall_curve, roc_curve
from hoarfrost.evaluation.metrics import AVERAGE_PRECISION, ROC_AUC
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.runs import Epoch, HeadResult

if TYPE_CHECKING:
    import numpy.typing as npt

XY = tuple["npt.NDArray[np.float64]", "npt.NDArray[np.float64]"]
CurveOf = Callable[["npt.NDArray[np.int64]", "npt.NDArray[np.float64]"], XY]

# A head whose loss explodes may leave its frame, so that it does not flatten the curves of all others.
LOSS_AXIS_MEDIANS = 4


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low` to `high`, marked at `ticks`."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Return the place of a value on the axis, 0 to 1."""
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Curve:
    """One line: `x` and `y` are (n,), in data units. `series` numbers its colour; 0 is the accent."""

    label: str
    x: "npt.NDArray[np.float64]"
    y: "npt.NDArray[np.float64]"
    series: int
    strong: bool = False


@dataclass(frozen=True)
class Marks:
    """Dots, all (n,) in data units, each with a whisker from `low` to `high` of y, if any."""

    label: str
    x: "npt.NDArray[np.float64]"
    y: "npt.NDArray[np.float64]"
    low: "npt.NDArray[np.float64] | None"
    high: "npt.NDArray[np.float64] | None"
    series: int


@dataclass(frozen=True)
class Band:
    """What lies between `low` and `high` of y, all (n,) in data units: the uncertainty of a curve, or a histogram."""

    label: str
    x: "npt.NDArray[np.float64]"
    low: "npt.NDArray[np.float64]"
    high: "npt.NDArray[np.float64]"
    series: int


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    `diagonal` draws chance, or perfect calibration; `mark` is a vertical line at that x; `spot` is where the selected
    head's threshold is, which the reader can move. `height` is relative to that of other panels.
    """

    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    diagonal: bool = False
    mark: float | None = None
    marks: tuple[Marks, ...] = ()
    spot: tuple[float, float] | None = None
    height: float = 1.0
    bands: tuple[Band, ...] = ()


@dataclass(frozen=True)
class Figure:
    """Panels one below the other that share their x axis; `message` describes them in words."""

    message: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class ForestRow:
    """One estimate with its interval. `dots` are single values behind the estimate."""

    label: str
    value: float
    low: float | None
    high: float | None
    dots: tuple[float, ...] = ()
    strong: bool = False


@dataclass(frozen=True)
class Forest:
    """Estimates one below the other on one axis, for a file; `line` is a vertical line to compare them with."""

    x: Axis
    rows: tuple[ForestRow, ...]
    line: float | None = None


SHARE_TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1)


def share_axis(label: str) -> Axis:
    """Return an axis from 0 to 1."""
    return Axis(label, 0, 1, SHARE_TICKS)


def area_axis(label: str, values: Iterable[float | None]) -> Axis:
    """Return an axis of ROC AUCs with room for all values: from 0.5, or the next tenth below, to 1."""
    lowest = min((value for value in values if value is not None), default=0.5)
    low = max(0.0, min(0.5, math.floor(lowest * 10) / 10))
    return Axis(label, low, 1, nice_ticks(low, 1))


def nice_ticks(low: float, high: float) -> tuple[float, ...]:
    """Return marks for an axis, in at most five steps of 1, 2 or 5 times a power of ten.

    Parameters
    ----------
    low, high : float
        The ends of the axis; `low < high`.

    Returns
    -------
    tuple of float
        Ascending, all within the axis.
    """
    smallest = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(smallest))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= smallest * (1 - 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return tuple(round(number * step, 10) for number in numbers)


def roc_figure(heads: Sequence[HeadResult], evaluation: Evaluation, spot: tuple[float, float] | None = None) -> Figure:
    """Describe the ROC curves.

    Parameters
    ----------
    heads : sequence of HeadResult
        The selected head first.
    evaluation : Evaluation
    spot : (float, float), optional
        False and true positive rate at the threshold that is shown.

    Returns
    -------
    Figure
        With two classes a curve for each head. With more, the selected head's curves: each class against the rest, or
        each label.
    """

    def curve(y: "npt.NDArray[np.int64]", p: "npt.NDArray[np.float64]") -> XY:
        fpr, tpr, _ = roc_curve(y, p)
        return fpr, tpr

    areas = _areas(heads, evaluation, ROC_AUC)
    curves = _curves(heads, evaluation, areas, "AUC", curve)
    x = share_axis("false positive rate (1 \N{MINUS SIGN} specificity)")
    y = share_axis("true positive rate (sensitivity)")
    return Figure(_roc_message(heads, evaluation, areas), (Panel(x, y, curves, diagonal=True, spot=spot),))


def precision_figure(
    heads: Sequence[HeadResult], evaluation: Evaluation, spot: tuple[float, float] | None = None
) -> Figure:
    """Describe the curves of precision over recall, as steps whose area is the average precision; as `roc_figure`."""

    def curve(y: "npt.NDArray[np.int64]", p: "npt.NDArray[np.float64]") -> XY:
        precision, recall, _ = precision_recall_curve(y, p)
        return np.repeat(np.append(0, recall), 2)[1:-1], np.repeat(precision, 2)

    curves = _curves(heads, evaluation, _areas(heads, evaluation, AVERAGE_PRECISION), "AP", curve)
    found = evaluation.scores(heads[0]).value_or_none(AVERAGE_PRECISION)
    message = f"Precision over recall on {evaluation.samples()}"
    message += "." if found is None else f"; average precision of {heads[0].name}: {found:.3f}."
    axes = share_axis("recall (sensitivity)"), share_axis("precision (positive predictive value)")
    return Figure(message, (Panel(*axes, curves, spot=spot),))


def _areas(heads: Sequence[HeadResult], evaluation: Evaluation, key: str) -> dict[str, float | None]:
    """Return the areas of heads with two classes, else of the selected head's classes or labels."""
    by_head = {head.name: evaluation.scores(head) for head in heads}
    found = by_head if evaluation.is_binary else evaluation.scores(heads[0]).per_class
    return {name: one.value_or_none(key) for name, one in found.items()}


def _curves(
    heads: Sequence[HeadResult], evaluation: Evaluation, areas: Mapping[str, float | None], what: str, curve: CurveOf
) -> tuple[Curve, ...]:
    def label(name: str) -> str:
        area = areas.get(name)
        return name if area is None else f"{name}: {what} {area:.3f}"

    p = evaluation.probabilities
    if evaluation.is_binary:
        drawn = ((i, head.name, curve(evaluation.y_true, p[head.name][:, 1])) for i, head in enumerate(heads))
    else:
        problems = binary_problems(evaluation.y_true, len(evaluation.classes))
        drawn = ((i, evaluation.classes[i], curve(y, p[heads[0].name][rows, i])) for i, rows, y in problems)
    return tuple(
        Curve(label(name), x, y, series=i, strong=evaluation.is_binary and i == 0) for i, name, (x, y) in drawn
    )


def _roc_message(heads: Sequence[HeadResult], evaluation: Evaluation, areas: Mapping[str, float | None]) -> str:
    known = {name: area for name, area in areas.items() if area is not None}
    best, worst = (choose(known, key=known.__getitem__) for choose in (max, min))
    selected = heads[0].name
    if not evaluation.is_binary:
        which = "one for each label" if evaluation.is_multilabel else f"each of {len(known)} classes against the rest"
        return (
            f"ROC curves of {selected} on {evaluation.samples()}, {which}; "
            f"{best} has the largest area, {known[best]:.2f}, {worst} the smallest, {known[worst]:.2f}."
        )
    if len(heads) == 1:
        return f"ROC curve of {selected} on {evaluation.samples()}; its area is {known[selected]:.2f}."
    return (
        f"ROC curves of {len(heads)} heads on {evaluation.samples()}; "
        f"{best} has the largest area, {known[best]:.2f}; selected: {selected}, {known[selected]:.2f}."
    )


def training_figures(heads: Iterable[HeadResult], history: Sequence[Epoch]) -> dict[str, Figure]:
    """Describe the training of each head: losses above, the ROC AUC of held-out images below.

    Parameters
    ----------
    heads : iterable of HeadResult
    history : sequence of Epoch
        Of all heads, each head's epochs in order.

    Returns
    -------
    dict of head name -> Figure
        In the order of `heads`, all on the same scales, so that they can be compared at a glance. Without the heads
        that have no history.
    """
    if not history:
        return {}
    axes = (
        _epoch_axis(history),
        _loss_axis(history),
        area_axis("ROC AUC", [epoch.val_roc_auc for epoch in history]),
    )
    epochs = {head.name: [epoch for epoch in history if epoch.head == head.name] for head in heads}
    return {head.name: _training_figure(head, epochs[head.name], axes) for head in heads if epochs[head.name]}


def _training_figure(head: HeadResult, epochs: Sequence[Epoch], axes: tuple[Axis, Axis, Axis]) -> Figure:
    epoch_axis, loss_axis, auc_axis = axes
    losses = (
        _over_epochs("training loss", epochs, [epoch.train_loss for epoch in epochs], series=1),
        _over_epochs("loss of held-out images", epochs, [epoch.val_loss for epoch in epochs], series=0),
    )
    areas = (_over_epochs("ROC AUC of held-out images", epochs, [epoch.val_roc_auc for epoch in epochs], series=0),)
    message = (
        f"Training of {head.name}: {head.epochs} epochs"
        + ("" if head.best_epoch == head.epochs else f", the best is epoch {head.best_epoch}")
        + f"; ROC AUC {head.val.value(ROC_AUC):.2f}."
    )
    panels = (
        Panel(epoch_axis, loss_axis, losses, mark=head.best_epoch),
        Panel(epoch_axis, auc_axis, areas, mark=head.best_epoch),
    )
    return Figure(message, panels)


def _over_epochs(label: str, epochs: Sequence[Epoch], values: Sequence[float], series: int) -> Curve:
    x, y = np.array([epoch.epoch for epoch in epochs], dtype=np.float64), np.array(values)
    known = np.isfinite(y)  # a head that diverged has no loss to draw from then on
    return Curve(label, x[known], y[known], series)


def _epoch_axis(history: Sequence[Epoch]) -> Axis:
    low = min(epoch.epoch for epoch in history)
    high = max(low + 1, *(epoch.epoch for epoch in history))
    return Axis("epoch", low, high, tuple(tick for tick in nice_ticks(low, high) if tick.is_integer()))


def _loss_axis(history: Sequence[Epoch]) -> Axis:
    losses = np.array([loss for epoch in history for loss in (epoch.train_loss, epoch.val_loss)])
    losses = losses[np.isfinite(losses)]
    high = min(losses.max(), LOSS_AXIS_MEDIANS * float(np.median(losses))) if losses.size else 1.0
    high = max(high * 1.05, 1e-6)  # heads that fit without error have a loss of 0 throughout
    return Axis("loss (cross-entropy)", 0, high, nice_ticks(0, high))
