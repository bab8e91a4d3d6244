"""What more images would bring to a run: a narrower interval of its ROC AUC, and a higher learning curve."""

import numpy as np

from hoarfrost.evaluation import Estimate
from hoarfrost.evaluation.extrapolation import FURTHEST, Extrapolation, extrapolate
from hoarfrost.evaluation.sample_size import Precision, precision_of
from hoarfrost.runs.records import Run

DRAWN = 2
"""Times the training images, up to which the learning curve is drawn further."""
N_STEPS = 12


def scored_area(run: Run) -> tuple[Estimate, int | None]:
    """Return the selected head's ROC AUC that a run reports, and its positive units; None with several classes."""
    head = run.head(run.selected)
    found = None if run.assessment is None or len(run.assessment.classes) > 1 else run.assessment.classes[0]
    area = (head.val if head.test is None else head.test).auc
    return area, None if found is None else round(area.n * found.n_positive / found.n)


def precision_of_run(run: Run) -> Precision | None:
    """Return how wide the interval of a run's ROC AUC is, and what a narrower one needs; None without an interval."""
    return precision_of(*scored_area(run))


def precision_text(run: Run) -> str:
    """Return the statement on the interval's width that is printed next to the ROC AUC; "" without an interval."""
    found = precision_of_run(run)
    split = run.config.validation if run.head(run.selected).test is None else "test"
    return (
        ""
        if found is None
        else found.sentence(split, run.config.sample if run.config.per_patient is None else "patient")
    )


def outlook_of(run: Run) -> Extrapolation | None:
    """Return the learning curve further: to `DRAWN` times the training images, and at last at `FURTHEST` times them.

    None without a learning curve.
    """
    points = run.learning_curve
    if not points:
        return None
    if not all(point.by_draw for point in points):
        return Extrapolation((), (), (), (), "runs of earlier versions do not record which scores are of one draw")
    last = points[-1].n_images
    at = [*np.linspace(last, DRAWN * last, N_STEPS).round().astype(int).tolist(), FURTHEST * last]
    return extrapolate([point.n_images for point in points], [point.by_draw for point in points], at)


def outlook_text(found: Extrapolation) -> str:
    """Return what the learning curve promises with more images, or why nothing can be said."""
    if found.reason:
        return f"No extrapolation: {found.reason}."
    twice, most = (
        f"{found.values[i]:.3f} ({found.low[i]:.3f} to {found.high[i]:.3f}) with {n} times as many training images"
        for i, n in ((-2, DRAWN), (-1, FURTHEST))
    )
    return (
        f"Extrapolated, not measured (inverse power law, 95% band): {twice}, {most}. At the last point, which is one draw, "
        f"the law has {found.values[0]:.3f}."
    )
