"""The variants side by side: their table, their areas as a forest, what seeds and more cases change."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

import numpy as np

from hoarfrost.evaluation import Metric, ShownIn, binary_problems, metrics_of
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.figures import Axis, Curve, Figure, Forest, ForestRow, Marks, Panel, area_axis, nice_ticks
from hoarfrost.report.words import count, decimal, estimate_text, metric_text, p_text, several
from hoarfrost.runs import HeadResult, LearningPoint, ReferenceResult, Run

N_DRAWN = 20
N_IN_TABLE = 1000


@dataclass(frozen=True)
class VariantRow:
    """One line of the table, as text. `metrics` are those that `compared_metrics` names.

    `training` is empty for a reference: epochs, parameters, hyperparameters, seconds.
    """

    name: str
    is_selected: bool
    is_head: bool
    val: str
    test: str | None
    difference: str
    p: str
    seeds: str
    metrics: tuple[str, ...]
    training: tuple[str, ...]


@dataclass(frozen=True)
class LabelScores:
    """One class or label: samples that it is known of, those that have it, and the ROC AUC as text."""

    label: str
    n_known: int
    n_with: int
    roc_auc: str


@dataclass(frozen=True)
class LearningRow:
    """One share of the training patients, and the least, middle and greatest ROC AUC of its draws."""

    share: float
    n_patients: int
    n_images: int
    least: float
    middle: float
    greatest: float


def ranked(run: Run) -> tuple[HeadResult, ...]:
    """Give the heads: the selected one, then the others by descending validation ROC AUC."""
    selected = run.head(run.selected)
    others = [head for head in run.heads if head is not selected]
    return selected, *sorted(others, key=lambda head: -head.val.value(ROC_AUC))


def _listed(run: Run, most: int) -> tuple[HeadResult | ReferenceResult, ...]:
    heads: tuple[HeadResult | ReferenceResult, ...] = ranked(run)[:most]
    return heads + run.references


def compared_metrics(run: Run, evaluation: Evaluation, least: ShownIn) -> tuple[Metric, ...]:
    """Return the metrics that heads are compared by beside the ROC AUC, and that are shown at least there."""
    shown = metrics_of([evaluation.scores(variant) for variant in _listed(run, N_IN_TABLE)], least)
    return tuple(metric for metric in shown if metric.key != ROC_AUC)


def variant_rows(run: Run, evaluation: Evaluation) -> tuple[VariantRow, ...]:
    """Give the table's lines: the first thousand heads, then the references."""
    compared = {comparison.name: comparison for comparison in run.comparisons}
    metrics = compared_metrics(run, evaluation, ShownIn.WIDE)
    rows = []
    for variant in _listed(run, N_IN_TABLE):
        is_head, scores = isinstance(variant, HeadResult), evaluation.scores(variant)
        found = compared.get(variant.name)
        rows.append(
            VariantRow(
                name=variant.name,
                is_selected=is_head and variant.name == run.selected,
                is_head=is_head,
                val=estimate_text(variant.val.auc),
                test=None if variant.test is None else estimate_text(variant.test.auc),
                difference="" if found is None else estimate_text(found.difference),
                p="" if found is None else p_text(found.p_holm),
                seeds=_seeds(variant, evaluation),
                metrics=tuple(metric_text(scores, metric.key) for metric in metrics),
                training=_training(variant, run.config.head_seconds[variant.name])
                if isinstance(variant, HeadResult)
                else (),
            )
        )
    return tuple(rows)


def _seeds(variant: HeadResult | ReferenceResult, evaluation: Evaluation) -> str:
    found = seed_areas(variant, evaluation)
    return f"{decimal(min(found))} to {decimal(max(found))}" if len(found) > 1 else ""


def seed_areas(variant: HeadResult | ReferenceResult, evaluation: Evaluation) -> tuple[float, ...]:
    """Give the ROC AUC of each seed's head alone, on the scored split."""
    if not isinstance(variant, HeadResult):
        return ()
    areas = [seed.val_roc_auc if evaluation.split == "val" else seed.test_roc_auc for seed in variant.seeds]
    return tuple(area for area in areas if area is not None)


def _training(head: HeadResult, seconds: float) -> tuple[str, ...]:
    return (
        f"{head.best_epoch} of {head.epochs}",
        count(head.n_parameters),
        *(f"{value:g}" for value in (head.learning_rate, head.weight_decay, head.dropout)),
        f"{seconds:.1f}",
    )


def areas_forest(run: Run, evaluation: Evaluation) -> Forest:
    """Describe the areas of heads and references with their intervals; each seed's own is a dot."""
    rows = tuple(_area_row(variant, evaluation, run.selected) for variant in _listed(run, N_DRAWN))
    own = rows[0]
    apart = [row.label for row in rows[1:] if (row.low or 0) > (own.high or 1) or (row.high or 1) < (own.low or 0)]
    others = (
        f"the intervals of {', '.join(apart)} do not overlap its own"
        if apart
        else "all others' intervals overlap its own"
    )
    message = f"ROC AUC on {evaluation.samples()} with 95% intervals: {own.label} {own.text}; {others}."
    values = [value for row in rows for value in (row.value, row.low, *row.dots)]
    return Forest(message, area_axis(f"{evaluation.split_name} ROC AUC", values), rows, own.value)


def _area_row(variant: HeadResult | ReferenceResult, evaluation: Evaluation, selected: str) -> ForestRow:
    area, dots = evaluation.scores(variant).auc, seed_areas(variant, evaluation)
    shown = dots if len(dots) > 1 else ()
    text, is_selected = estimate_text(area), variant.name == selected
    return ForestRow(variant.name, area.value or 0.0, area.low, area.high, text, shown, is_selected)


def learning_rows(points: Sequence[LearningPoint]) -> tuple[LearningRow, ...]:
    """Give the learning curve's table."""
    return tuple(
        LearningRow(
            point.share, point.n_patients, point.n_images,
            min(point.roc_aucs), median_low(point.roc_aucs), max(point.roc_aucs),
        )
        for point in points
    )  # fmt: skip


def learning_figure(run: Run, evaluation: Evaluation) -> Figure | None:
    """Describe the learning curve: the middle draw at each number of training images, and all draws as dots."""
    rows = learning_rows(run.learning_curve)
    if len(rows) < 2:
        return None
    sizes = np.array([row.n_images for row in rows], dtype=np.float64)
    middle = np.array([row.middle for row in rows])
    draws = [
        (row.n_images, area) for row, point in zip(rows, run.learning_curve, strict=True) for area in point.roc_aucs
    ]
    x, y = np.array(draws, dtype=np.float64).T
    gain = rows[-1].middle - rows[-2].middle
    message = (
        f"Learning curve of {run.selected} on {evaluation.samples()}: from {several(rows[0].n_images, 'training image')} "
        f"to {rows[-1].n_images:,} the middle ROC AUC goes from {decimal(rows[0].middle)} to {decimal(rows[-1].middle)}; "
        f"the last step {'still rises' if gain > 0 else 'does not rise'}."
    )
    high = float(sizes[-1]) * 1.04
    panel = Panel(
        Axis("training images", 0, high, _size_ticks(high)),
        area_axis(f"{evaluation.split_name} ROC AUC", y.tolist()),
        (Curve("middle draw", sizes, middle, series=0, strong=True),),
        marks=(Marks("one draw", x, y, None, None, series=1),),
    )
    return Figure(message, (panel,))


def _size_ticks(high: float) -> tuple[float, ...]:
    return tuple(tick for tick in nice_ticks(0, high) if tick.is_integer())


def label_scores(head: HeadResult, evaluation: Evaluation) -> tuple[LabelScores, ...]:
    """Give the selected head's area by class against the rest, or by label; nothing with two classes."""
    if evaluation.is_binary:
        return ()
    scores, found = evaluation.scores(head), []
    for number, _, y in binary_problems(evaluation.y_true, len(evaluation.classes)):
        label = evaluation.classes[number]
        found.append(LabelScores(label, len(y), int(y.sum()), estimate_text(scores.per_class[label].auc)))
    return tuple(found)
