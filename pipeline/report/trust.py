"""Whether the scores can be trusted: calibration, net benefit, subgroups, shortcuts, leakage."""

from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation import Calibration, CalibrationLine, DecisionCurve, Estimate
from hoarfrost.evaluation.calibration_curve import N_SPIKES
from hoarfrost.evaluation.estimates import states_why
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.evaluation.shortcuts import AttributeAudit
from hoarfrost.evaluation.subgroup_differences import AREA, SENSITIVITY, SPECIFICITY
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.figures import (
    Axis,
    Band,
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
from hoarfrost.report.svg import CellScale, cell_scale
from hoarfrost.report.words import count, decimal, estimate, estimate_text, p_text
from hoarfrost.runs import Assessment, ClassAssessment, Recalibration, Run

LOWEST_BENEFIT = -0.05
N_LISTED = 20
SPREAD_HEIGHT = 0.3
FIGURE_TITLES = {AREA: "ROC AUC", SENSITIVITY: "sensitivity", SPECIFICITY: "specificity"}


@dataclass(frozen=True)
class CalibrationPanel:
    """Calibration of one label, or of the classes together: the figure, the verdict, and the fitted lines as text.

    `reason` states why there is no smooth curve.
    """

    name: str
    figure: Figure
    verdict: str
    summary: tuple[tuple[str, str, str], ...]
    reason: str


@dataclass(frozen=True)
class SubgroupRow:
    """One subgroup: its counts by class and its scores as text, or the reason why they are missing."""

    attribute: str
    value: str
    counts: tuple[int, ...]
    n_patients: int | None
    area: Estimate
    roc_auc: str
    sensitivity: str
    specificity: str
    reason: str


@dataclass(frozen=True)
class GroupCalibrationRow:
    """The calibration of one subgroup, as text."""

    name: str
    observed_expected: str
    slope: str
    intercept: str


@dataclass(frozen=True)
class HeterogeneityRow:
    """A test of one figure over the values of an attribute, and how far each is from the most frequent one, as text."""

    attribute: str
    figure: str
    differences: tuple[str, ...]
    p: str
    p_holm: str
    reason: str


@dataclass(frozen=True)
class SubgroupSection:
    """All that is told of subgroups: their scores on one scale, whether they differ, and their calibration."""

    rows: tuple[SubgroupRow, ...]
    scale: CellScale
    differences: tuple[HeterogeneityRow, ...]
    calibrations: tuple[GroupCalibrationRow, ...]


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
    series = ("as predicted", found.before, 1), ("with temperature", found.after, 0)
    # Without scaling both curves are the same.
    smoothed = series[:1] if found.temperature.temperature == 1 else series
    curves, bands = zip(*(_smooth(*one) for one in smoothed), strict=True)
    panel = Panel(
        *(share_axis(what), share_axis(observed), tuple(one for one in curves if one is not None)),
        diagonal=True,
        marks=tuple(_bin_marks(*one) for one in series),
        bands=tuple(one for one in bands if one is not None),
    )
    verdict = found.verdict
    message = f"Calibration{f' of {name}' if name else ''} on {evaluation.samples()}. {verdict}"
    figure = Figure(message, (panel, *_distribution(found.before, what, _outcomes(name, evaluation), evaluation.unit)))
    reason = "" if found.before.curve is None else found.before.curve.reason
    return CalibrationPanel(name, figure, verdict, _summary(found, evaluation, alone=bool(name)), reason)


def _smooth(label: str, calibration: Calibration, series: int) -> tuple[Curve | None, Band | None]:
    """Return the smooth curve, and its band, if the run has them."""
    found = calibration.curve
    if found is None or not found.p:
        return None, None
    x, y, low, high = (np.array(values) for values in (found.p, found.observed, found.low, found.high))
    band = Band(f"{label}, 95% band", x, low, high, series) if found.low else None
    return Curve(f"{label}, smoothed", x, y, series), band


def _outcomes(name: str, evaluation: Evaluation) -> tuple[str, str]:
    """Return what samples without and with the outcome are."""
    if name:
        return f"without {name}", f"with {name}"
    return (evaluation.classes[0], evaluation.classes[1]) if evaluation.is_binary else ("wrong", "right")


def _distribution(found: Calibration, what: str, outcomes: tuple[str, str], unit: str) -> tuple[Panel, ...]:
    """Describe the distribution of probabilities by outcome: with it upwards, without it downwards."""
    if found.curve is None:
        return ()
    counts = [np.array(values, np.float64) for values in (found.curve.without, found.curve.with_outcome)]
    shares = [np.repeat(one / max(one.sum(), 1), 2) for one in counts]
    edges = np.repeat(np.arange(N_SPIKES + 1) / N_SPIKES, 2)[1:-1]
    highest = max(float(one.max()) for one in shares)
    below = Band(f"{outcomes[0]}, as predicted (downwards)", edges, -shares[0], np.zeros(len(edges)), 5)
    above = Band(f"{outcomes[1]}, as predicted (upwards)", edges, np.zeros(len(edges)), shares[1], 2)
    y = Axis(f"{unit}s by outcome", -highest, highest, (0,))
    return (Panel(share_axis(what), y, (), height=SPREAD_HEIGHT, bands=(above, below)),)


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
    before, after = (
        estimate(one.error, one.error_interval, one.error_method if states_why(one.error_method) else "")
        for _, one in found.both
    )
    rows = [("calibration error (ideal 0)", before, after)]
    for title, key in (("ICI", "ici"), ("E50", "e50"), ("E90", "e90")):
        distances = [None if one.curve is None else getattr(one.curve, key) for _, one in found.both]
        if any(one is not None for one in distances):
            first, second = (estimate_text(one) for one in distances)
            rows.append((f"{title} (ideal 0)", first, second))
    for name, one, two in zip(names, found.before.lines, found.after.lines, strict=True):
        rows.append((f"slope{name} (ideal 1)", _slope(one), _slope(two)))
        rows.append((f"intercept{name} (ideal 0)", _intercept(one), _intercept(two)))
    return tuple(rows)


def _slope(line: CalibrationLine) -> str:
    return line.reason if line.slope is None else estimate(line.slope, line.slope_interval, line.why_no_interval)


def _intercept(line: CalibrationLine) -> str:
    return (
        line.reason
        if line.intercept is None
        else estimate(line.intercept, line.intercept_interval, line.why_no_interval)
    )


def held_by_sets(run: Run, evaluation: Evaluation) -> tuple[str, ...]:
    """Return what conformal sets for a coverage of 90% hold: on the test split, and out of fold."""
    tested = None if run.assessment is None else run.assessment.held_by_sets
    folded = None if run.cross_validation is None else run.cross_validation.held_by_sets
    found = ((tested, f"the {evaluation.samples()}"), (folded, "what the folds of cross-validation held out"))
    return tuple(
        f"Conformal sets for a coverage of 90% hold the true class in {estimate_text(share)} of {of}."
        for share, of in found
        if share is not None
    )


def decision_figures(run: Run) -> tuple[Figure, ...]:
    """Describe the decision curve of each class or label."""
    classes = () if run.assessment is None else run.assessment.classes
    return tuple(_decision_figure(one, one.net_benefit, run.selected) for one in classes if one.net_benefit is not None)


def _decision_figure(one: ClassAssessment, benefit: DecisionCurve, head: str) -> Figure:
    at = np.array(benefit.thresholds)
    curves: tuple[Curve, ...] = (
        Curve(head, at, np.array(benefit.net_benefit), series=0, strong=True),
        Curve("treat all", at, np.array(benefit.treat_all), series=1),
        Curve("treat none", np.array([0.0, 1.0]), np.zeros(2), series=5),
    )
    if any(end is not None for end in benefit.low):
        ends = (np.array([np.nan if end is None else end for end in of]) for of in (benefit.low, benefit.high))
        own = np.array(benefit.net_benefit)
        names = ("lower limit (95% interval)", "upper limit")
        curves += tuple(
            Curve(name, at, np.where(np.isnan(end), own, end), series=2) for name, end in zip(names, ends, strict=True)
        )
    high = max(benefit.prevalence, *benefit.net_benefit) * 1.1
    y = Axis("net benefit", LOWEST_BENEFIT, high, nice_ticks(LOWEST_BENEFIT, high))
    shift = f" (probabilities {one.shift})" if one.shift else ""
    message = f"Decision curve for {one.name}, prevalence {decimal(benefit.prevalence)}{shift}: "
    return Figure(message + _where_useful(benefit, head), (Panel(share_axis("threshold probability"), y, curves),))


def _where_useful(benefit: DecisionCurve, head: str) -> str:
    """Return the ranges of thresholds in which the head is better than both, and the range that was searched."""
    own, treat_all = np.array(benefit.net_benefit), np.array(benefit.treat_all)
    is_better = own > np.maximum(treat_all, 0) + 1e-12
    ends = np.flatnonzero(np.diff(is_better.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)  # from, one past to
    at = [f"{threshold:.2f}" for threshold in benefit.thresholds]
    ranges = [at[first] if end - first == 1 else f"{at[first]} to {at[end - 1]}" for first, end in ends]
    if ranges:
        where = " and ".join(part for part in (", ".join(ranges[:-1]), ranges[-1]) if part)
        found = f"{head} has a higher net benefit than treating all or none at threshold probabilities {where}."
    else:
        found = f"at no threshold probability does {head} have a higher net benefit than treating all or none."
    return f"{found} Range examined: {at[0]} to {at[-1]}."


def subgroup_forest(run: Run, evaluation: Evaluation) -> Forest | None:
    """Describe the areas of the subgroups that are large enough, against that of all."""
    subgroups = () if run.assessment is None else run.assessment.subgroups
    areas = {f"{one.attribute}: {one.value}": one.roc_auc for one in subgroups if one.roc_auc.value is not None}
    if not areas:
        return None
    rows = tuple(ForestRow(name, area.value or 0.0, area.low, area.high) for name, area in areas.items())
    axis = area_axis(f"{evaluation.split_name} ROC AUC", [value for row in rows for value in (row.value, row.low)])
    return Forest(axis, rows, evaluation.scores(run.head(run.selected)).value(ROC_AUC))


def subgroup_section(assessment: Assessment | None, overall: float) -> SubgroupSection:
    """Return what is told of subgroups; `overall` is the area of all images."""
    rows = subgroup_rows(assessment)
    scale = cell_scale((row.area for row in rows), overall)
    return SubgroupSection(rows, scale, heterogeneity_rows(assessment), group_calibration_rows(assessment))


def subgroup_rows(assessment: Assessment | None) -> tuple[SubgroupRow, ...]:
    """Return the table of subgroups; those that are too small come with the reason."""
    return tuple(
        SubgroupRow(
            one.attribute, one.value, one.counts, one.roc_auc.n_patients, one.roc_auc, estimate_text(one.roc_auc),
            "" if one.sensitivity is None else estimate_text(one.sensitivity),
            "" if one.specificity is None else estimate_text(one.specificity),
            one.reason,
        )
        for one in (() if assessment is None else assessment.subgroups)
    )  # fmt: skip


def group_calibration_rows(assessment: Assessment | None) -> tuple[GroupCalibrationRow, ...]:
    """Return the table of calibration by subgroup; empty with more than two classes, and in runs of earlier versions."""
    return tuple(
        GroupCalibrationRow(
            f"{one.attribute}: {one.value}",
            estimate_text(one.observed_expected),
            _slope(one.line),
            _intercept(one.line),
        )
        for one in (() if assessment is None else assessment.subgroup_calibration)
    )


def heterogeneity_rows(assessment: Assessment | None) -> tuple[HeterogeneityRow, ...]:
    """Return the table of tests of heterogeneity, with the differences that belong to each."""
    if assessment is None:
        return ()
    return tuple(
        HeterogeneityRow(
            one.attribute,
            FIGURE_TITLES[one.figure],
            tuple(
                f"{found.value} minus {found.reference}: {estimate_text(found.difference)}"
                for found in assessment.subgroup_differences
                if (found.attribute, found.figure) == (one.attribute, one.figure)
            ),
            *(p_text(one.p), p_text(one.p_holm), one.reason),
        )
        for one in assessment.heterogeneity
    )


def shortcut_rows(run: Run) -> tuple[ShortcutRow, ...]:
    """Return the table of the audit."""
    rows = []
    for one in run.shortcuts:
        found = one.association
        values = ", ".join(one.values[:6]) + (f" and {count(len(one.values) - 6)} more" if len(one.values) > 6 else "")
        rows.append(
            ShortcutRow(
                one.name, values, decimal(one.roc_auc), decimal(None if found is None else found.cramers_v),
                decimal(None) if found is None else f"{found.p:.2g}", _shortcut_verdict(one),
            )
        )  # fmt: skip
    return tuple(rows)


def _shortcut_verdict(one: AttributeAudit) -> str:
    """Return which of the two conditions of a shortcut an attribute meets: embeddings reveal it, and the class does."""
    if one.is_shortcut or one.reason:
        return one.reason or "possible shortcut: revealed, and associated with the class"
    if one.is_revealed:
        return "revealed by the embeddings, but not associated with the class strongly enough to be a shortcut"
    if one.association is not None and one.association.is_uneven:
        return "associated with the class, but not clearly revealed by the embeddings"
    return "no sign of a shortcut: neither clearly revealed, nor clearly associated with the class"


def shared_rows(run: Run) -> tuple[tuple[str, str, str], ...]:
    """Return what two splits share, and the two images: patients and identical files, the first of each kind."""
    if run.leakage is None:
        return ()
    shared = (*run.leakage.patients[:N_LISTED], *run.leakage.contents[:N_LISTED])
    return tuple((one.what, f"{one.first} ({one.first_split})", f"{one.second} ({one.second_split})") for one in shared)
