"""Repeated splits: how much the ROC AUC, and each image's probability, depend on which images were learned from."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation import Estimate
from hoarfrost.evaluation.stability import Instability, watched
from hoarfrost.report.evaluation import class_names
from hoarfrost.report.figures import Axis, Figure, Marks, Panel, area_axis, share_axis
from hoarfrost.report.words import decimal, estimate_text, percent, several
from hoarfrost.runs import RepeatedSplits, Run

N_IMAGES = 150  # drawn, from the lowest to the highest probability


@dataclass(frozen=True)
class StabilitySection:
    """What the report says of repeated splits."""

    found: RepeatedSplits
    areas: str
    selected: str
    images: str


def stability_of(run: Run) -> StabilitySection | None:
    """Return what the report says of repeated splits; None if there are none."""
    found = run.repeats
    if found is None:
        return None
    return StabilitySection(
        found, areas_text(found.roc_auc, found), _selected_text(found), images_text(found.instability)
    )


def areas_text(mean: Estimate, found: RepeatedSplits) -> str:
    """Describe the areas of the splits in a sentence."""
    return (
        f"On {found.n_splits} random splits, each with about {found.n_trained:,} images to learn from and "
        f"{found.n_held_out:,} held out, the ROC AUC is {estimate_text(mean)} on average, and between "
        f"{decimal(min(found.roc_aucs))} and {decimal(max(found.roc_aucs))}."
    )


def images_text(found: Instability | None) -> str:
    """Describe how much single predictions vary, in two sentences."""
    if found is None:
        return "No image was held out twice, so nothing can be said of single probabilities. Use more --repeats."
    return (
        f"The probability of {several(found.n, 'image')} varies between splits with a standard deviation of "
        f"{decimal(found.spread)} on average, and of more than {decimal(found.most_spread)} for one in twenty. On average an "
        f"image gets another predicted class than in this run in {percent(found.changed)} of the splits that held it out "
        f"(the median image: {several(found.n_splits, 'split')})."
    )


def _selected_text(found: RepeatedSplits) -> str:
    counts = Counter(found.selected).most_common()
    return "; ".join(f"{name} on {n}" for name, n in counts)


def stability_figures(run: Run) -> tuple[Figure, ...]:
    """Describe the plots of instability: the areas of all splits, and the probabilities of images."""
    if run.repeats is None or run.repeated is None:
        return ()
    images = _images(run, run.repeated)
    return (_areas(run.repeats), *(() if images is None else (images,)))


def _areas(found: RepeatedSplits) -> Figure:
    areas = np.sort(np.array(found.roc_aucs))
    ranks = np.arange(1, len(areas) + 1, dtype=np.float64)
    message = (
        f"ROC AUC of each of {found.n_splits} random splits, from the lowest, {decimal(areas[0])}, to the highest, "
        f"{decimal(areas[-1])}."
    )
    marks = Marks("one split", ranks, areas, None, None, series=0)
    last = float(len(areas))
    ticks = (1.0, last) if last < 4 else (1.0, float(round(last / 2)), last)
    axis = Axis("splits, from the lowest", 0.5, last + 0.5, ticks)
    return Figure(message, (Panel(axis, area_axis("ROC AUC", areas.tolist()), (), marks=(marks,)),))


def _images(run: Run, repeated: "np.ndarray[tuple[int, int, int], np.dtype[np.float64]]") -> Figure | None:
    """Describe the instability plot of Riley and Collins; None for several labels, or if no image was held out twice."""
    y, of_run = run.y_true(), run.predictions.probabilities[run.selected]
    times = np.isfinite(repeated[:, :, 0]).sum(0)
    rows = np.flatnonzero((times > 1) & np.isfinite(of_run).all(1))
    if y.ndim == 2 or not len(rows):
        return None
    is_binary = of_run.shape[1] == 2
    name = class_names(run.config.dataset)[1] if is_binary else "the true class"
    shown = np.ones_like(y) if is_binary else y
    own = watched(shown[rows], of_run[rows])[:, 0]
    order = np.argsort(own, kind="stable")
    kept = order[np.unique(np.linspace(0, len(order) - 1, min(N_IMAGES, len(order))).astype(int))]
    found = np.stack([watched(shown[rows[kept]], one[rows[kept]])[:, 0] for one in repeated])  # (R, m), NaN
    message = (
        f"Probability of {name} for {several(len(kept), 'image')}: by this run, and by the heads of the splits that held the "
        "image out (mean, lowest and highest)."
    )
    marks = Marks(
        "one image", own[kept], np.nanmean(found, axis=0), np.nanmin(found, axis=0), np.nanmax(found, axis=0), series=0
    )
    axes = share_axis(f"probability of {name}, this run"), share_axis("on random splits")
    return Figure(message, (Panel(*axes, (), diagonal=True, marks=(marks,)),))
