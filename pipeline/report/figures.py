"""What the report draws: ROC curves and training curves, in the units of the data.

A figure is described here and drawn elsewhere. The report draws it as SVG of its own making (`svg.py`), not with
matplotlib: colours then follow the reader's light or dark scheme through CSS, text stays text and scales to a phone,
each curve is one element that a pointer or a script can address, importing costs nothing, and the same run gives the
same bytes under every version of matplotlib. A file for a paper is the other use, and there matplotlib can draw the
same description.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.metrics import binary_problems, roc_curve
from pipeline.report.evaluation import Evaluation
from pipeline.runs import Epoch, HeadResult

if TYPE_CHECKING:
    import numpy.typing as npt

# A head whose loss explodes may leave its frame, so that it does not flatten the curves of all others.
LOSS_AXIS_MEDIANS = 4


@dataclass(frozen=True)
class Axis:
    """A linear scale from `low` to `high`, marked at `ticks`."""

    label: str
    low: float
    high: float
    ticks: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """One line: `x` and `y` are (n,), in data units. `series` numbers its colour; 0 is the accent."""

    label: str
    x: "npt.NDArray[np.float64]"
    y: "npt.NDArray[np.float64]"
    series: int
    strong: bool = False


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `diagonal` draws chance; `mark` is a vertical line at that x."""

    x: Axis
    y: Axis
    curves: tuple[Curve, ...]
    diagonal: bool = False
    mark: float | None = None


@dataclass(frozen=True)
class Figure:
    """Panels one below the other that share their x axis; `message` says in words what there is to see."""

    message: str
    panels: tuple[Panel, ...]


def nice_ticks(low: float, high: float) -> tuple[float, ...]:
    """Mark an axis in at most five steps of 1, 2 or 5 times a power of ten.

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


def roc_figure(heads: Sequence[HeadResult], evaluation: Evaluation) -> Figure:
    """Describe the ROC curves.

    Parameters
    ----------
    heads : sequence of HeadResult
        The selected head first.
    evaluation : Evaluation

    Returns
    -------
    Figure
        With two classes a curve for each head. With more, the selected head's curves: each class against the rest, or
        each label.
    """
    if evaluation.is_binary:
        curves, message = _curves_of_heads(heads, evaluation), _message_on_heads(heads, evaluation)
    else:
        curves, message = _curves_of_classes(heads[0], evaluation), _message_on_classes(heads[0], evaluation)
    x = Axis("false positive rate (1 \N{MINUS SIGN} specificity)", 0, 1, nice_ticks(0, 1))
    y = Axis("true positive rate (sensitivity)", 0, 1, nice_ticks(0, 1))
    return Figure(message, (Panel(x, y, curves, diagonal=True),))


def _curves_of_heads(heads: Sequence[HeadResult], evaluation: Evaluation) -> tuple[Curve, ...]:
    curves = []
    for number, head in enumerate(heads):
        fpr, tpr, _ = roc_curve(evaluation.y_true, evaluation.probabilities[head.name][:, 1])
        label = f"{head.name}: {evaluation.scores(head)['roc_auc']:.3f}"
        curves.append(Curve(label, fpr, tpr, series=number, strong=number == 0))
    return tuple(curves)


def _curves_of_classes(head: HeadResult, evaluation: Evaluation) -> tuple[Curve, ...]:
    curves = []
    areas = evaluation.scores(head)["roc_auc_per_class"]
    for number, rows, y in binary_problems(evaluation.y_true, len(evaluation.classes)):
        label = evaluation.classes[number]
        fpr, tpr, _ = roc_curve(y, evaluation.probabilities[head.name][rows, number])
        curves.append(Curve(f"{label}: {areas[label]:.3f}", fpr, tpr, series=number))
    return tuple(curves)


def _message_on_heads(heads: Sequence[HeadResult], evaluation: Evaluation) -> str:
    areas = {head.name: evaluation.scores(head)["roc_auc"] for head in heads}
    if len(heads) == 1:
        return f"ROC curve of {heads[0].name} on {evaluation.images()}; its area is {areas[heads[0].name]:.2f}."
    best = max(areas, key=areas.__getitem__)
    return (
        f"ROC curves of {len(heads)} heads on {evaluation.images()}; "
        f"{best} has the largest area, {areas[best]:.2f}; selected: {heads[0].name}, {areas[heads[0].name]:.2f}."
    )


def _message_on_classes(head: HeadResult, evaluation: Evaluation) -> str:
    areas = evaluation.scores(head)["roc_auc_per_class"]
    best, worst = (choose(areas, key=areas.__getitem__) for choose in (max, min))
    return (
        f"ROC curves of {head.name} on {evaluation.images()}, "
        f"{'one for each label' if evaluation.is_multilabel else f'each of {len(areas)} classes against the rest'}; "
        f"{best} has the largest area, {areas[best]:.2f}, {worst} the smallest, {areas[worst]:.2f}."
    )


def training_figures(heads: Iterable[HeadResult], history: Sequence[Epoch]) -> dict[str, Figure]:
    """Describe the training of each head: losses above, the validation split's ROC AUC below.

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
    axes = _epoch_axis(history), _loss_axis(history), _auc_axis(history)
    epochs = {head.name: [epoch for epoch in history if epoch.head == head.name] for head in heads}
    return {head.name: _training_figure(head, epochs[head.name], axes) for head in heads if epochs[head.name]}


def _training_figure(head: HeadResult, epochs: Sequence[Epoch], axes: tuple[Axis, Axis, Axis]) -> Figure:
    epoch_axis, loss_axis, auc_axis = axes
    losses = (
        _over_epochs("training loss", epochs, [epoch.train_loss for epoch in epochs], series=1),
        _over_epochs("validation loss", epochs, [epoch.val_loss for epoch in epochs], series=0),
    )
    areas = (_over_epochs("validation ROC AUC", epochs, [epoch.val_roc_auc for epoch in epochs], series=0),)
    message = (
        f"Training of {head.name}: {head.epochs} epochs, the best is epoch {head.best_epoch}, "
        f"where the validation ROC AUC is {head.val['roc_auc']:.2f}."
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


def _auc_axis(history: Sequence[Epoch]) -> Axis:
    lowest = min(epoch.val_roc_auc for epoch in history)
    low = min(0.5, math.floor(lowest * 10) / 10)
    return Axis("validation ROC AUC", low, 1, nice_ticks(low, 1))
