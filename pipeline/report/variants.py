"""The variants side by side: their table, their areas, and the effect of seeds and of more images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hoarfrost.evaluation import Estimate, Metric, ShownIn, binary_problems, metrics_of, registered
from hoarfrost.evaluation.extrapolation import Extrapolation
from hoarfrost.evaluation.intervals import NEWCOMBE
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.evaluation.units import count_patients
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.figures import Axis, Curve, Figure, Forest, ForestRow, Marks, Panel, area_axis, nice_ticks
from hoarfrost.report.simulated import OF_AREAS, simulated
from hoarfrost.report.svg import N_COLOURS
from hoarfrost.report.words import count, decimal, estimate, estimate_text, metric_text, p_text, several
from hoarfrost.runs import HeadResult, LearningPoint, ReferenceResult, Run, outlook_of, outlook_text

N_DRAWN = 20
N_IN_TABLE = 1000
OF_CLASSES = ("roc_auc", "sensitivity", "specificity", "precision")  # keys of metrics


@dataclass(frozen=True)
class VariantRow:
    """One row of the table, as text; `area` and `seeds` are drawn. `metrics` are those of `compared_metrics`.

    `training` is empty for a reference: best epoch, parameters, learning rate, weight decay, dropout, seconds.
    """

    name: str
    is_selected: bool
    is_head: bool
    alarms: tuple[str, ...]
    val: str
    test: str | None
    area: Estimate
    seeds: tuple[float, ...]
    difference: str
    p: str
    metrics: tuple[str, ...]
    training: tuple[str, ...]


@dataclass(frozen=True)
class LabelScores:
    """One class or label: samples of which it is known, samples that have it, and the `class_metrics` as text.

    `n_patients` have it, where images are counted and patients are known.
    """

    label: str
    n_known: int
    n_with: int
    n_patients: int | None
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class ScoreRow:
    """One metric of the selected head: its title and its hint, and as text its value with the interval, and the method."""

    title: str
    hint: str
    value: str
    method: str


@dataclass(frozen=True)
class LearningRow:
    """One share of the training patients, and the lowest, mean and highest ROC AUC of its draws."""

    share: float
    n_patients: int
    n_images: int
    least: float
    mean: float
    greatest: float


def ranked(run: Run) -> tuple[HeadResult, ...]:
    """Return the heads: the selected one, then the others by descending ROC AUC of the images that validated them."""
    selected = run.head(run.selected)
    others = [head for head in run.heads if head is not selected]
    return selected, *sorted(others, key=lambda head: -(head.val.value_or_none(ROC_AUC) or 0.0))


def _listed(run: Run, most: int) -> tuple[HeadResult | ReferenceResult, ...]:
    heads: tuple[HeadResult | ReferenceResult, ...] = ranked(run)[:most]
    return heads + run.references


def compared_metrics(run: Run, evaluation: Evaluation, least: ShownIn) -> tuple[Metric, ...]:
    """Return the metrics other than the ROC AUC that heads are compared by, and that are shown at least there."""
    shown = metrics_of([evaluation.scores(variant) for variant in _listed(run, N_IN_TABLE)], least)
    return tuple(metric for metric in shown if metric.key != ROC_AUC)


def variant_rows(run: Run, evaluation: Evaluation) -> tuple[VariantRow, ...]:
    """Return the rows of the table: the first thousand heads, then the references."""
    metrics = compared_metrics(run, evaluation, ShownIn.WIDE)
    return tuple(_row(run, variant, evaluation, metrics) for variant in _listed(run, N_IN_TABLE))


def _row(
    run: Run, variant: HeadResult | ReferenceResult, evaluation: Evaluation, metrics: Sequence[Metric]
) -> VariantRow:
    found = next((one for one in run.comparisons if one.name == variant.name), None)
    head = variant if isinstance(variant, HeadResult) else None
    is_selected = head is not None and head.name == run.selected
    return VariantRow(
        name=variant.name,
        is_selected=is_selected,
        is_head=head is not None,
        alarms=() if head is None or is_selected else head.alarms,
        val=metric_text(variant.val, ROC_AUC),
        test=None if variant.test is None else metric_text(variant.test, ROC_AUC),
        area=evaluation.area(variant),
        seeds=seed_areas(variant, evaluation),
        difference="" if found is None else estimate_text(found.difference),
        p="" if found is None else p_text(found.p_holm),
        metrics=tuple(metric_text(evaluation.scores(variant), metric.key) for metric in metrics),
        training=() if head is None else _training(head, run.config.head_seconds.get(head.name, 0.0)),
    )


def area_methods(run: Run, evaluation: Evaluation) -> str:
    """Write the methods of the intervals of ROC AUCs in the table, by split; "" if there are no intervals."""
    listed = _listed(run, N_IN_TABLE)
    areas = {
        run.config.validation: [one.val.printed(ROC_AUC) for one in listed],
        "test": [one.test.printed(ROC_AUC) for one in listed if one.test is not None],
    }
    methods = {
        split: " or ".join(sorted({one.method for one in found if one is not None and one.interval and one.method}))
        for split, found in areas.items()
    }
    named = "; ".join(f"{split} by {names}" for split, names in methods.items() if names)
    if methods[run.config.validation] == methods["test"] != "":
        named = f"by {methods['test']}"
    note = f" {NEWCOMBE}'s is used for few images of a class or an AUC near 1." if NEWCOMBE in named else ""
    coverage = simulated(methods.values(), OF_AREAS, evaluation)
    return f"95% intervals of the ROC AUC: {named}.{note} {coverage}".rstrip() if named else ""


def seed_areas(variant: HeadResult | ReferenceResult, evaluation: Evaluation) -> tuple[float, ...]:
    """Return the ROC AUC of each seed by itself on the scored split; empty if there is only one seed."""
    if not isinstance(variant, HeadResult) or len(variant.seeds) < 2:
        return ()
    areas = [seed.val_roc_auc if evaluation.split == "val" else seed.test_roc_auc for seed in variant.seeds]
    return tuple(area for area in areas if area is not None)


def _training(head: HeadResult, seconds: float) -> tuple[str, ...]:
    return (
        _epochs_text(head),
        count(head.n_parameters),
        *("" if value is None else f"{value:g}" for value in (head.learning_rate, head.weight_decay, head.dropout)),
        f"{seconds:.1f}",
    )


def _epochs_text(head: HeadResult) -> str:
    if not head.epochs:
        return "" if head.shares else "to convergence"
    return str(head.epochs) if head.best_epoch == head.epochs else f"{head.best_epoch} (stopped at {head.epochs})"


def areas_forest(run: Run, evaluation: Evaluation) -> Forest:
    """Describe the areas of heads and references with their intervals; each seed by itself is a dot."""
    rows = tuple(_area_row(variant, evaluation, run.selected) for variant in _listed(run, N_DRAWN))
    values = [value for row in rows for value in (row.value, row.low, *row.dots)]
    return Forest(area_axis(f"{evaluation.split_name} ROC AUC", values), rows, rows[0].value)


def _area_row(variant: HeadResult | ReferenceResult, evaluation: Evaluation, selected: str) -> ForestRow:
    area = evaluation.area(variant)
    dots, is_selected = seed_areas(variant, evaluation), variant.name == selected
    return ForestRow(variant.name, area.value or 0.0, area.low, area.high, dots, is_selected)


def learning_rows(points: Sequence[LearningPoint]) -> tuple[LearningRow, ...]:
    """Return the table of the learning curve."""
    return tuple(
        LearningRow(
            point.share, point.n_patients, point.n_images,
            min(point.roc_aucs), point.mean, max(point.roc_aucs),
        )
        for point in points
    )  # fmt: skip


def learning_figure(run: Run, evaluation: Evaluation) -> Figure | None:
    """Describe the learning curve: the mean of the draws at each number of training images, and all draws as dots."""
    rows = learning_rows(run.learning_curve)
    if len(rows) < 2:
        return None
    sizes = np.array([row.n_images for row in rows], dtype=np.float64)
    mean = np.array([row.mean for row in rows])
    draws = [
        (row.n_images, area) for row, point in zip(rows, run.learning_curve, strict=True) for area in point.roc_aucs
    ]
    x, y = np.array(draws, dtype=np.float64).T
    outlook = outlook_of(run)
    assert outlook is not None
    gain = rows[-1].mean - rows[-2].mean
    message = (
        f"Learning curve of {run.selected} on {evaluation.samples()}: from {several(rows[0].n_images, 'training image')} "
        f"to {rows[-1].n_images:,} the mean ROC AUC goes from {decimal(rows[0].mean)} to {decimal(rows[-1].mean)}. "
        f"The last step {'still rises' if gain > 0 else 'does not rise'}. {outlook_text(outlook)}"
    )
    further = _further(outlook)
    high = max(float(sizes[-1]), *(float(curve.x[-1]) for curve in further), 0.0) * 1.04
    panel = Panel(
        Axis("training images", 0, high, _size_ticks(high)),
        area_axis(f"{evaluation.split_name} ROC AUC", [*y.tolist(), *(low for one in further for low in one.y)]),
        (Curve("mean of the draws", sizes, mean, series=0, strong=True), *further),
        marks=(Marks("one draw", x, y, None, None, series=1),),
    )
    return Figure(message, (panel,))


def _further(outlook: Extrapolation) -> tuple[Curve, ...]:
    """Return the extrapolated curve and the ends of its band, up to twice the images; none if there is no law."""
    if outlook.reason:
        return ()
    x = np.array(outlook.n_images[:-1], dtype=np.float64)  # the last one, far away, is in words
    ends = {"extrapolated": outlook.values, "lower end of its 95% band": outlook.low, "upper end": outlook.high}
    series = (N_COLOURS, 2, 2)  # the first is dashed, in the accent's colour
    return tuple(
        Curve(name, x, np.array(values[:-1]), number)
        for (name, values), number in zip(ends.items(), series, strict=True)
    )


def _size_ticks(high: float) -> tuple[float, ...]:
    return tuple(tick for tick in nice_ticks(0, high) if tick.is_integer())


def label_scores(head: HeadResult, evaluation: Evaluation) -> tuple[LabelScores, ...]:
    """Return the selected head's scores by class against the rest, or by label; empty with two classes."""
    if evaluation.is_binary:
        return ()
    scores, found = evaluation.scores(head), []
    for number, rows, y in binary_problems(evaluation.y_true, len(evaluation.classes)):
        label = evaluation.classes[number]
        texts = tuple(metric_text(scores.per_class[label], metric.key) for metric in class_metrics())
        patients = None if evaluation.patients is None else evaluation.patients[rows[y == 1]]
        found.append(LabelScores(label, len(y), int(y.sum()), count_patients(patients), texts))
    return tuple(found)


def class_metrics() -> tuple[Metric, ...]:
    """Return the metrics of a class, or label, that a page has room for; the paper's table `classes` has all."""
    found = {metric.key: metric for metric in registered() if metric.of_class is not None}
    return tuple(found[key] for key in OF_CLASSES)


def score_rows(head: HeadResult, evaluation: Evaluation) -> tuple[ScoreRow, ...]:
    """Return all metrics of a head over all classes, or labels, together."""
    scores = evaluation.scores(head)
    shown = [(metric, scores[metric.key]) for metric in metrics_of([scores], ShownIn.FILE)]
    return tuple(
        ScoreRow(metric.title, metric.hint, estimate(found.value, found.interval), found.method)
        for metric, found in shown
    )
