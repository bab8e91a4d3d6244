"""What a validation needs: with stated assumptions, or with those that a run supports."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import logit

from hoarfrost.evaluation import apply_temperature
from hoarfrost.evaluation.sample_size import Assumed, LinearPredictor, Plan, images_for_width, plan_study, precision_of
from hoarfrost.features.errors import RunError
from hoarfrost.report.evaluation import Evaluation, evaluation_of
from hoarfrost.report.words import listed, several
from hoarfrost.runs import Run, read_looked_at, scored_area

WIDTH, CALIBRATION_WIDTH = 0.1, 0.2
LEAST = 1e-6  # a probability of 0 has no log-odds
LARGEST = 1_000_000  # patients; beyond, probabilities hardly vary, and the number says no more


def plan_of(
    run: Path | None,
    given: Mapping[str, float | None],
    *,
    width: float = WIDTH,
    calibration_width: float = CALIBRATION_WIDTH,
    linear_predictor: tuple[float, float] | None = None,
) -> Plan:
    """Return how many images, patients and cases an external validation needs.

    Parameters
    ----------
    run : path or None
        The run folder whose results are assumed, but for what is given.
    given : mapping of str -> float or None
        Attributes of `Assumed`; without a run, `prevalence` and `auc` are required.
    width, calibration_width : float
        As `plan_study`.
    linear_predictor : (float, float), optional
        Mean and standard deviation of the predicted log-odds, if they are normal.

    Raises
    ------
    RunError
        As `read_run`; or if the run does not have one positive class, or its scores allow no plan.
    ValueError
        As `plan_study`, without a run.
    """
    known: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if run is None:
        assumed = Assumed(**known)
    else:
        opened = read_looked_at(run, "plan")
        prevalence = known.get("prevalence")
        assumed = replace(assumed_of(opened, evaluation_of(opened), width=width, prevalence=prevalence), **known)
        if known.keys() & {"auc", "images_per_patient", "icc"}:  # the run's own interval no longer shows the need
            assumed = replace(assumed, images_for_area=None)
        if "auc" in known:  # nor do its probabilities have this area
            assumed = replace(assumed, linear_predictor=None)
    if linear_predictor is not None:
        assumed = replace(assumed, linear_predictor=LinearPredictor.normal(*linear_predictor))
    try:
        return plan_study(assumed, width=width, calibration_width=calibration_width)
    except ValueError as error:
        if run is None:
            raise
        raise RunError(f"{run}: {error}. State another value, such as --auc 0.9.") from error


def assumed_of(run: Run, evaluation: Evaluation, *, width: float = WIDTH, prevalence: float | None = None) -> Assumed:
    """Return the results of a run's selected head, as what a validation is assumed to find.

    Its calibrated log-odds are taken as they are; for another prevalence they are shifted, and the classes weighted.

    Raises
    ------
    RunError
        If the run does not have one positive class.
    """
    if run.assessment is None or len(run.assessment.classes) != 1 or not evaluation.is_binary:
        raise RunError(f"{run.directory}: a plan needs one positive class. Train with --positive, or use no --run.")
    area, n_positive = scored_area(run)
    own, point = float(evaluation.y_true.mean()), run.assessment.classes[0].points[0].result
    n_patients = evaluation.n_patients
    m = 1.0 if n_patients is None else len(evaluation.y_true) / n_patients
    precision = precision_of(area, n_positive)
    effect = None if precision is None else precision.design_effect
    has_interval = area.interval is not None and area.value is not None and 0 < area.value < 1
    return Assumed(
        prevalence=own if prevalence is None else prevalence,
        auc=area.value or 0.0,
        sensitivity=None if point is None else point.sensitivity.value,
        specificity=None if point is None else point.specificity.value,
        images_per_patient=m,
        icc=1.0 if effect is None or m == 1 else min(max((effect - 1) / (m - 1), 0.0), 1.0),
        linear_predictor=_predictor(run, evaluation, own, prevalence),
        images_for_area=images_for_width(area, n_positive, width) if has_interval and prevalence is None else None,
    )


def _predictor(run: Run, evaluation: Evaluation, own: float, prevalence: float | None) -> LinearPredictor:
    assert run.assessment is not None
    fitted = run.assessment.calibration
    p = evaluation.probabilities[run.selected]
    p = p if fitted is None else apply_temperature(p, fitted.temperature.temperature)
    values = logit(np.clip(p[:, 1], LEAST, 1 - LEAST))
    if prevalence is None:
        return LinearPredictor(values, np.full(len(values), 1 / len(values)))
    weights = np.where(evaluation.y_true == 1, prevalence / own, (1 - prevalence) / (1 - own)) / len(values)
    return LinearPredictor(values + float(logit(prevalence) - logit(own)), weights)


def needs_text(run: Run, evaluation: Evaluation) -> str:
    """Return what a validation of the selected head on new images needs; "" with several classes.

    The ROC AUC is left out: what it needs is next to its value.
    """
    try:
        plan = plan_study(assumed_of(run, evaluation), width=WIDTH, calibration_width=CALIBRATION_WIDTH)
    except (RunError, ValueError):
        return ""
    unit = "patient" if plan.images_per_patient != 1 else evaluation.unit
    parts = [f"{one.quantity} ({one.width:.2f}) {_number(one.patients, unit)}" for one in plan.needed[1:]]
    return (
        "To validate this head on new images like these, intervals of these widths need: "
        f"{listed(parts)} (Riley et al. 2021; see hoarfrost plan)."
    )


def _number(n: int, unit: str) -> str:
    return several(n, unit) if n <= LARGEST else f"more than {several(LARGEST, unit)}"
