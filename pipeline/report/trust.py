"""How far the scores can be believed: calibration, net benefit, subgroups, shortcuts, leakage, suspect labels."""

from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation import Bin, Calibration, CalibrationLine, DecisionCurve
from hoarfrost.evaluation.leakage import SharedPair, SimilarPair
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
from hoarfrost.report.words import count, decimal, estimate, estimate_text, interval, several
from hoarfrost.runs import Assessment, ClassAssessment, Recalibration, Run

LOWEST_BENEFIT = -0.05
N_LISTED = 20


@dataclass(frozen=True)
class CalibrationPanel:
    """What the page shows of calibration: of what, the figure, its bins and its summary as text."""

    name: str
    figure: Figure
    summary: tuple[tuple[str, str, str], ...]
    bins: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class SubgroupRow:
    """One subgroup: its counts by class and its figures as text, or the reason why it has none."""

    attribute: str
    value: str
    counts: tuple[int, ...]
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
    """Give the calibration of the classes together, or of each label."""
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
    pair = (("as predicted", found.before, 1), ("with temperature", found.after, 0))
    observed = "observed share" if name or evaluation.is_binary else "share that is right"
    marks = tuple(_bin_marks(label, one, series) for label, one, series in pair)
    counts = tuple(_count_marks(label, one, series) for label, one, series in pair)
    most = max(one.observed.n for _, side, _ in pair for one in side.bins)
    panels = (
        Panel(share_axis(what), share_axis(observed), (), diagonal=True, marks=marks),
        Panel(
            share_axis(what),
            Axis(f"{evaluation.unit}s a bin", 0, most * 1.1, nice_ticks(0, most * 1.1)),
            (),
            marks=counts,
            height=0.3,
        ),
    )
    message = (
        f"Calibration{f' of {name}' if name else ''} on {evaluation.samples()}: the expected error is "
        f"{decimal(found.before.error)} as predicted and {decimal(found.after.error)} with the temperature "
        f"{found.temperature.temperature:.2f} fitted on validation; perfectly calibrated probabilities would have "
        f"{decimal(found.before.error_by_chance)} and {decimal(found.after.error_by_chance)} by chance."
    )
    if found.temperature.at_limit:
        message += " The temperature is at its limit: validation parts the classes perfectly, or nothing was learnt."
    bins = tuple((label, _bin_cells(one)) for label, side, _ in pair for one in side.bins)
    return CalibrationPanel(name, Figure(message, panels), _summary(found, evaluation, alone=bool(name)), bins)


def _bin_marks(label: str, calibration: Calibration, series: int) -> Marks:
    bins = calibration.bins
    x, y, low, high = (
        np.array(values, dtype=np.float64)
        for values in zip(
            *((b.confidence, b.observed.value, b.observed.low, b.observed.high) for b in bins), strict=True
        )
    )
    return Marks(label, x, y, low, high, series)


def _count_marks(label: str, calibration: Calibration, series: int) -> Marks:
    x = np.array([one.confidence for one in calibration.bins])
    n = np.array([one.observed.n for one in calibration.bins], dtype=np.float64)
    return Marks(label, x, n, np.zeros(len(n)), n, series)


def _bin_cells(one: Bin) -> tuple[str, ...]:
    return (
        interval((one.lowest, one.highest)),
        decimal(one.confidence),
        estimate_text(one.observed),
        f"{one.observed.n_hits:,} of {one.observed.n:,}",
    )


def _summary(found: Recalibration, evaluation: Evaluation, *, alone: bool) -> tuple[tuple[str, str, str], ...]:
    before, after = found.before, found.after
    rows = [
        ("expected calibration error", decimal(before.error), decimal(after.error)),
        (
            "the same by chance, if perfectly calibrated",
            decimal(before.error_by_chance),
            decimal(after.error_by_chance),
        ),
    ]
    names = [""] if alone or evaluation.is_binary else [f", {name}" for name in evaluation.classes]
    for name, one, other in zip(names, before.lines, after.lines, strict=True):
        rows.append((f"slope{name} (1 is perfect)", _slope(one), _slope(other)))
        rows.append((f"intercept{name} (0 is perfect)", _intercept(one), _intercept(other)))
    return tuple(rows)


def _slope(line: CalibrationLine) -> str:
    return line.reason if line.slope is None else estimate(line.slope, line.slope_interval)


def _intercept(line: CalibrationLine) -> str:
    return line.reason if line.intercept is None else estimate(line.intercept, line.intercept_interval)


def decision_figures(run: Run, evaluation: Evaluation) -> tuple[Figure, ...]:
    """Describe the decision curve of each class or label."""
    classes = () if run.assessment is None else run.assessment.classes
    return tuple(_decision_figure(one, run.selected, evaluation) for one in classes)


def _decision_figure(one: ClassAssessment, head: str, evaluation: Evaluation) -> Figure:
    benefit = one.net_benefit
    at = np.array(benefit.thresholds)
    curves = (
        Curve(head, at, np.array(benefit.net_benefit), series=0, strong=True),
        Curve("treat all", at, np.array(benefit.treat_all), series=1),
        Curve("treat none", np.array([0.0, 1.0]), np.zeros(2), series=5),
    )
    high = max(benefit.prevalence, *benefit.net_benefit) * 1.1
    y = Axis("net benefit", LOWEST_BENEFIT, high, nice_ticks(LOWEST_BENEFIT, high))
    message = (
        f"Decision curve for {one.name} on {evaluation.samples()}, at a prevalence of {decimal(benefit.prevalence)}: "
    )
    return Figure(message + _where_useful(benefit, head), (Panel(share_axis("threshold probability"), y, curves),))


def _where_useful(benefit: DecisionCurve, head: str) -> str:
    better = [
        at
        for at, own, everyone in zip(benefit.thresholds, benefit.net_benefit, benefit.treat_all, strict=True)
        if own > max(everyone, 0) + 1e-12
    ]
    if not better:
        return f"{head} is nowhere better than treating all, or none."
    step = benefit.thresholds[1] - benefit.thresholds[0]
    has_gaps = (better[-1] - better[0]) / step > len(better) - 0.5
    return (
        f"{head} is better than treating all, and than treating none, at threshold probabilities from {better[0]:.2f} to "
        f"{better[-1]:.2f}{', but not at all between them' if has_gaps else ''}."
    )


def subgroup_forest(run: Run, evaluation: Evaluation) -> Forest | None:
    """Describe the areas of the subgroups that are large enough, against that of all."""
    subgroups = () if run.assessment is None else run.assessment.subgroups
    scored = [one for one in subgroups if one.roc_auc.value is not None]
    if not scored:
        return None
    overall = evaluation.scores(run.head(run.selected)).value(ROC_AUC)
    areas = {f"{one.attribute}: {one.value}": one.roc_auc for one in scored}
    rows = tuple(
        ForestRow(name, area.value or 0.0, area.low, area.high, estimate_text(area)) for name, area in areas.items()
    )
    worst, best = (choose(scored, key=lambda one: one.roc_auc.value or 0.0) for choose in (min, max))
    message = (
        f"ROC AUC of {run.selected} in {several(len(scored), 'subgroup')} of the {evaluation.samples()}, all together "
        f"{decimal(overall)}: least {decimal(worst.roc_auc.value)} ({worst.attribute}: {worst.value}), greatest "
        f"{decimal(best.roc_auc.value)} ({best.attribute}: {best.value})."
    )
    axis = area_axis(f"{evaluation.split_name} ROC AUC", [value for row in rows for value in (row.value, row.low)])
    return Forest(message, axis, rows, overall)


def subgroup_rows(assessment: Assessment | None) -> tuple[SubgroupRow, ...]:
    """Give the table of subgroups, those that are too small named with the reason."""
    return tuple(
        SubgroupRow(
            one.attribute,
            one.value,
            one.counts,
            estimate_text(one.roc_auc),
            "" if one.sensitivity is None else estimate_text(one.sensitivity),
            "" if one.specificity is None else estimate_text(one.specificity),
            one.reason,
        )
        for one in (() if assessment is None else assessment.subgroups)
    )


def shortcut_rows(run: Run) -> tuple[ShortcutRow, ...]:
    """Give the audit's table."""
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


def leak_rows(run: Run) -> tuple[tuple[str, str, str], ...]:
    """List what two splits share, and the two images: patients, bytes, near-duplicates; the first of each kind."""
    if run.leakage is None:
        return ()

    def row(what: str, pair: SharedPair | SimilarPair) -> tuple[str, str, str]:
        return what, f"{pair.first} ({pair.first_split})", f"{pair.second} ({pair.second_split})"

    shared = (*run.leakage.patients[:N_LISTED], *run.leakage.contents[:N_LISTED])
    similar = run.leakage.near_duplicates[:N_LISTED]
    return (
        *(row(one.what, one) for one in shared),
        *(row(f"nearly the same, cosine {decimal(one.cosine)}", one) for one in similar),
    )
