"""Cohorts that lack a class: no ROC AUC is defined there, and what can still be said is."""

import numpy as np

from hoarfrost.evaluation import Share
from hoarfrost.evaluation.checks import Floats
from hoarfrost.evaluation.shares import share
from hoarfrost.experiment.assessment import Fixed
from hoarfrost.experiment.scored import ScoredTask
from hoarfrost.features.errors import TrainingError
from hoarfrost.runs.external import Scale


def check_classes(
    task: ScoredTask, p: Floats, fixed: Fixed | None, *, sample: str = "image", scale: Scale | None = None
) -> None:
    """Refuse a cohort of one class, with its sensitivity or specificity at the threshold that was fixed before, if one was.

    Raises
    ------
    TrainingError
    """
    rows = task.rows_of("test")
    units = task.units(rows)
    if units.y.ndim == 2 or len(task.names) != 2 or len(np.unique(units.y)) > 1:
        return
    is_positive, points = bool(units.y[0]), () if fixed is None else fixed.points.get(1, ())
    point = points[0] if points else None
    text = ""
    if point is not None and point.threshold is not None:
        hits = (units.joined(p[rows])[:, 1] >= point.threshold) == is_positive
        found = share(hits, np.ones(len(hits), bool), units.groups)
        at = f"{point.threshold:.3f}" if scale is None else scale.text(point.threshold)
        measure = "sensitivity" if is_positive else "specificity"
        text = f" At the frozen threshold (>= {at}, {point.name}) the {measure} is {_text(found)}."
    raise TrainingError(
        f"{task.table.source}: all {len(units.y):,} scored {sample if units.how is None else 'patient'}s are "
        f"{task.names[int(is_positive)]}. With one class there is no ROC AUC, no calibration and no drop.{text} Add "
        f"{sample}s of the other class for a report."
    )


def _text(found: Share) -> str:
    ends = "" if found.interval is None else f" (95% CI {found.interval[0]:.3f} to {found.interval[1]:.3f})"
    return f"{found.value or 0:.3f}{ends}, {found.n_hits:,} of {found.n:,}"
