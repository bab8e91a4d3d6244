"""What a threshold does: the operating points, and the counts that let a reader move it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.evaluation import (
    AtPrevalence,
    Estimate,
    PointResult,
    binary_problems,
    confusion_matrix,
    evaluate_threshold,
)
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.words import decimal, estimate_text, rule
from hoarfrost.runs import Assessment, FixedPoint, Run

if TYPE_CHECKING:
    import numpy.typing as npt

N_STEPS = 1000
"""The slider's thresholds are 0, 0.001, ... 1."""
MOST_PROBLEMS = 20
EVEN = 0.5
"""The threshold that is shown where a run has fixed none."""
WITHOUT_POINT = "threshold 0.5"


@dataclass(frozen=True)
class Start:
    """A threshold that has a name, and the positives that it finds, true and false."""

    name: str
    threshold: float
    true_positives: int
    false_positives: int


@dataclass(frozen=True)
class ClassThresholds:
    """A class against the rest: what the slider needs of it.

    `true_positives` and `false_positives` are (1001,): those at the thresholds 0, 0.001, ... 1. `points` begins with the
    threshold that is shown first.
    """

    name: str
    n_positive: int
    n_negative: int
    points: tuple[Start, ...]
    true_positives: tuple[int, ...]
    false_positives: tuple[int, ...]


@dataclass(frozen=True)
class Cell:
    """One count of a confusion matrix and its share of the row, 0 to 1; None where the row is empty."""

    count: int
    share: float | None


@dataclass(frozen=True)
class PointRow:
    """One operating point in the table: what it is, and what it does, as text. `reason` says why it does not exist."""

    cls: str
    name: str
    threshold: str
    cells: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Explorer:
    """What the report shows of thresholds. `shown` is what the first problem's first threshold does."""

    problems: tuple[ClassThresholds, ...]
    n_left_out: int
    shown: PointResult
    prevalence: float
    is_prevalence_stated: bool
    data: str

    @property
    def there(self) -> AtPrevalence:
        """Predictive values at the stated prevalence; none where none was stated."""
        found = self.shown.at_prevalence
        return found if found is not None and self.is_prevalence_stated else AtPrevalence(self.prevalence, None, None)

    @property
    def roc_spot(self) -> tuple[float, float]:
        """False and true positive rate of what is shown."""
        return 1 - (self.shown.specificity.value or 0), self.shown.sensitivity.value or 0

    @property
    def precision_spot(self) -> tuple[float, float] | None:
        """Recall and precision of what is shown."""
        return None if self.shown.ppv.value is None else (self.shown.sensitivity.value or 0, self.shown.ppv.value)


def explorer_of(run: Run, evaluation: Evaluation) -> Explorer:
    """Prepare the selected head's thresholds on the scored split.

    Parameters
    ----------
    run : Run
    evaluation : Evaluation

    Returns
    -------
    Explorer
        Of each class, or label, that there is; of the first twenty where there are more.
    """
    problems, shown = [], None
    for number, y, p in _problems(run.selected, evaluation):
        points = _named(run.assessment, evaluation.classes[number], y, p)
        grid = np.arange(N_STEPS + 1) / N_STEPS
        found = [len(part) - np.searchsorted(np.sort(part), grid, "left") for part in (p[y == 1], p[y == 0])]
        counts = (tuple(part.tolist()) for part in found)
        problems.append(ClassThresholds(evaluation.classes[number], int(y.sum()), int((1 - y).sum()), points, *counts))
        if shown is None:
            prevalence = run.config.prevalence or min(max(round(float(y.mean()), 3), 0.001), 0.999)
            shown = evaluate_threshold(y, p, points[0].threshold, prevalence=prevalence)
            first_prevalence = prevalence
        if len(problems) == MOST_PROBLEMS:
            break
    assert shown is not None
    n_all = 1 if evaluation.is_binary else len(evaluation.classes)
    document = {
        "steps": N_STEPS,
        "unit": evaluation.unit,
        "prevalence": run.config.prevalence,
        "problems": [asdict(problem) for problem in problems],
    }
    is_stated = run.config.prevalence is not None
    return Explorer(tuple(problems), n_all - len(problems), shown, first_prevalence, is_stated, script_json(document))


def _problems(
    head: str, evaluation: Evaluation
) -> "Iterator[tuple[int, npt.NDArray[np.int64], npt.NDArray[np.float64]]]":
    for number, rows, y in binary_problems(evaluation.y_true, len(evaluation.classes)):
        yield number, y, evaluation.probabilities[head][rows, number]


def _named(
    assessment: Assessment | None, name: str, y: "npt.NDArray[np.int64]", p: "npt.NDArray[np.float64]"
) -> tuple[Start, ...]:
    """Give a class's fixed points that exist, and what they find; else the even threshold."""
    classes = () if assessment is None else assessment.classes
    fixed = next((one.points for one in classes if one.name == name), ())
    wanted = [(rule(one.point.name), one.point.threshold) for one in fixed if one.point.threshold is not None]
    return tuple(
        Start(title, at, int((p[y == 1] >= at).sum()), int((p[y == 0] >= at).sum()))
        for title, at in wanted or [(WITHOUT_POINT, EVEN)]
    )


def script_json(document: object) -> str:
    """Write JSON that is safe between script tags: no text in it can end the element."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def point_rows(assessment: Assessment | None) -> tuple[PointRow, ...]:
    """Give the table of operating points fixed on validation; intervals over patients where there are any."""
    if assessment is None:
        return ()
    return tuple(_point_row(one.name, point) for one in assessment.classes for point in one.points)


def _point_row(cls: str, fixed: FixedPoint) -> PointRow:
    point, result = fixed.point, fixed.result
    if result is None:
        return PointRow(cls, rule(point.name), decimal(None), (), rule(point.reason))
    shares = [estimate_text(one) for one in (result.sensitivity, result.specificity, result.ppv, result.npv)]
    ratios = [_ratio_text(ratio) for ratio in (result.lr_positive, result.lr_negative)]
    there = result.at_prevalence
    stated = [] if there is None else [there.ppv, there.npv]
    elsewhere = [estimate_text(one) for one in stated]
    return PointRow(cls, rule(point.name), decimal(point.threshold), (*shares, *ratios, *elsewhere), "")


def _ratio_text(ratio: Estimate) -> str:
    def one(value: float | None) -> str:
        return "\N{INFINITY}" if value is None else f"{value:.2f}"

    return decimal(None) if ratio.low is None else f"{one(ratio.value)} ({one(ratio.low)} to {one(ratio.high)})"


def confusion_of(head: str, evaluation: Evaluation) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    """Count the head's most probable classes against the true ones; nothing where an image may have several labels."""
    if evaluation.is_multilabel:
        return ()
    y_pred = evaluation.probabilities[head].argmax(axis=1)
    matrix = confusion_matrix(evaluation.y_true, y_pred, len(evaluation.classes))  # (C, C): rows are true
    rows = []
    for label, counts in zip(evaluation.classes, matrix, strict=True):
        n = int(counts.sum())
        rows.append((label, tuple(Cell(int(count), count / n if n else None) for count in counts)))
    return tuple(rows)
