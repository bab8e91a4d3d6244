"""Whether the scores can be trusted: calibration, net benefit, subgroups, shortcuts, leakage."""

from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation import Calibration, CalibrationLine, DecisionCurve, Estimate
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.figures import (
    Axis,
    Curve,
    Figure,
    Forest,
    ForestRow,
    Marks,
    Panel,
    area_axis,
    nice_ticks,
    share_axis,
)
from hoarfrost.report.words import count, decimal, estimate, estimate_text
from hoarfrost.runs import Assessment, ClassAssessment, Recalibration, Run

LOWEST_BENEFIT = -0.05
N_LISTED = 20


@dataclass(frozen=True)
class CalibrationPanel:
    """Calibration of one label, or of the classes together: the figure, the verdict, and the fitted lines as text."""

    name: str
    figure: Figure
    verdict: str
    summary: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class SubgroupRow:
    """One subgroup: its counts by class and its scores as text, or the reason why they are missing."""

    attribute: str
    value: str
    counts: tuple[int, ...]
    area: Estimate
    roc_auc: str
    sensitivity: str
    specificity: str
    reason: str


@dataclass(frozen=True)
class ShortcutRow:
    """One attribute of the audit, as text."""

    attribute: str
    values: str
    roc_auc: str
    cramers_v: str
    p: str
    verdict: str


def calibrations(run: Run, evaluation: Evaluation) -> tuple[CalibrationPanel, ...]:
    """Return the calibration of the classes together, or of each label."""
    if run.assessment is None:
        return ()
    if run.assessment.calibration is not None:
        what = f"probability of {evaluation.classes[1]}" if evaluation.is_binary else "highest probability"
        return (_panel("", what, run.assessment.calibration, evaluation),)
    return tuple(
        _panel(one.name, f"probability of {one.name}", one.calibration, evaluation)
        for one in run.assessment.classes
        if one.calibration is not None
    )


def _panel(name: str, what: str, found: Recalibration, evaluation: Evaluation) -> CalibrationPanel:
    observed = "observed share" if name or evaluation.is_binary else "share that is right"
    marks = _bin_marks("as predicted", found.before, 1), _bin_marks("with temperature", found.after, 0)
    panel = Panel(share_axis(what), share_axis(observed), (), diagonal=True, marks=marks)
    verdict = _verdict(found)
    message = f"Calibration{f' of {name}' if name else ''} on {evaluation.samples()}. {verdict}"
    return CalibrationPanel(name, Figure(message, (panel,)), verdict, _summary(found, evaluation, alone=bool(name)))


def _verdict(found: Recalibration) -> str:
    """Return the calibration error against that of calibrated probabilities, and the effect of the temperature."""
    error, chance, after = (
        decimal(one) for one in (found.before.error, found.before.error_by_chance, found.after.error)
    )
    comparison = "no larger than" if found.before.error <= found.before.error_by_chance else "larger than"
    effect = f"improved it to {after}" if float(after) < float(error) else f"did not improve it ({after})"
    text = (
        f"Calibration error {error}, {comparison} by chance ({chance}). Temperature scaling "
        f"(T = {found.temperature.temperature:.2f}, fitted on validation) {effect}."
    )
    if found.temperature.at_limit:
        text += " The temperature is at its limit: validation is separated perfectly, or nothing was learnt."
    return text


def _bin_marks(label: str, calibration: Calibration, series: int) -> Marks:
    x, y, low, high = (
        np.array(values, dtype=np.float64)
        for values in zip(
            *((b.confidence, b.observed.value, b.observed.low, b.observed.high) for b in calibration.bins), strict=True
        )
    )
    return Marks(label, x, y, low, high, series)


def _summary(found: Recalibration, evaluation: Evaluation, *, alone: bool) -> tuple[tuple[str, str, str], ...]:
    names = [""] if alone or evaluation.is_binary else [f", {name}" for name in evaluation.classes]
    rows = []
    for name, one, two in zip(names, found.before.lines, found.after.lines, strict=True):
        rows.append((f"slope{name} (ideal 1)", _slope(one), _slope(two)))
        rows.append((f"intercept{name} (ideal 0)", _intercept(one), _intercept(two)))
    return tuple(rows)


def _slope(line: CalibrationLine) -> str:
    return line.reason if line.slope is None else estimate(line.slope, line.slope_interval)


def _intercept(line: CalibrationLine) -> str:
    return line.reason if line.intercept is None else estimate(line.intercept, line.intercept_interval)


def decision_figures(run: Run) -> tuple[Figure, ...]:
    """Describe the decision curve of each class or label."""
    classes = () if run.assessment is None else run.assessment.classes
    return tuple(_decision_figure(one, run.selected) for one in classes)


def _decision_figure(one: ClassAssessment, head: str) -> Figure:
    benefit = one.net_benefit
    at = np.array(benefit.thresholds)
    curves = (
        Curve(head, at, np.array(benefit.net_benefit), series=0, strong=True),
        Curve("treat all", at, np.array(benefit.treat_all), series=1),
        Curve("treat none", np.array([0.0, 1.0]), np.zeros(2), series=5),
    )
    high = max(benefit.prevalence, *benefit.net_benefit) * 1.1
    y = Axis("net benefit", LOWEST_BENEFIT, high, nice_ticks(LOWEST_BENEFIT, high))
    message = f"Decision curve for {one.name}, prevalence {decimal(benefit.prevalence)}: "
    return Figure(message + _where_useful(benefit, head), (Panel(share_axis("threshold probability"), y, curves),))


def _where_useful(benefit: DecisionCurve, head: str) -> str:
    better = [
        at
        for at, own, everyone in zip(benefit.thresholds, benefit.net_benefit, benefit.treat_all, strict=True)
        if own > max(everyone, 0) + 1e-12
    ]
    if not better:
        return f"{head} is at no threshold probability better than treating all or none."
    step = benefit.thresholds[1] - benefit.thresholds[0]
    has_gaps = (better[-1] - better[0]) / step > len(better) - 0.5
    return (
        f"{head} is better than treating all or none at threshold probabilities from {better[0]:.2f} to "
        f"{better[-1]:.2f}{', with gaps' if has_gaps else ''}."
    )


def subgroup_forest(run: Run, evaluation: Evaluation) -> Forest | None:
    """Describe the areas of the subgroups that are large enough, against that of all."""
    subgroups = () if run.assessment is None else run.assessment.subgroups
    areas = {f"{one.attribute}: {one.value}": one.roc_auc for one in subgroups if one.roc_auc.value is not None}
    if not areas:
        return None
    rows = tuple(ForestRow(name, area.value or 0.0, area.low, area.high) for name, area in areas.items())
    axis = area_axis(f"{evaluation.split_name} ROC AUC", [value for row in rows for value in (row.value, row.low)])
    return Forest(axis, rows, evaluation.scores(run.head(run.selected)).value(ROC_AUC))


def subgroup_rows(assessment: Assessment | None) -> tuple[SubgroupRow, ...]:
    """Return the table of subgroups; those that are too small come with the reason."""
    return tuple(
        SubgroupRow(
            one.attribute, one.value, one.counts, one.roc_auc, estimate_text(one.roc_auc),
            "" if one.sensitivity is None else estimate_text(one.sensitivity),
            "" if one.specificity is None else estimate_text(one.specificity),
            one.reason,
        )
        for one in (() if assessment is None else assessment.subgroups)
    )  # fmt: skip


def shortcut_rows(run: Run) -> tuple[ShortcutRow, ...]:
    """Return the table of the audit."""
    rows = []
    for one in run.shortcuts:
        verdict = "possible shortcut" if one.is_shortcut else one.reason or "no sign of a shortcut"
        found = one.association
        values = ", ".join(one.values[:6]) + (f" and {count(len(one.values) - 6)} more" if len(one.values) > 6 else "")
        rows.append(
            ShortcutRow(
                one.name, values, decimal(one.roc_auc), decimal(None if found is None else found.cramers_v),
                decimal(None) if found is None else f"{found.p:.2g}", verdict,
            )
        )  # fmt: skip
    return tuple(rows)


def shared_rows(run: Run) -> tuple[tuple[str, str, str], ...]:
    """Return what two splits share, and the two images: patients and identical files, the first of each kind."""
    if run.leakage is None:
        return ()
    shared = (*run.leakage.patients[:N_LISTED], *run.leakage.contents[:N_LISTED])
    return tuple((one.what, f"{one.first} ({one.first_split})", f"{one.second} ({one.second_split})") for one in shared)
