"""The result of a threshold: the operating points, and the counts that let a reader move it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
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
from hoarfrost.evaluation.estimates import OPTIMISTIC, WILSON
from hoarfrost.evaluation.operating import LOG_CLUSTERED
from hoarfrost.evaluation.shares import BOOTSTRAP
from hoarfrost.evaluation.thresholds import evaluate_thresholds
from hoarfrost.evaluation.units import is_repeated
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.words import TO, decimal, estimate_text, rule, threshold_text
from hoarfrost.runs import Assessment, FixedPoint, Run, optimistic
from hoarfrost.runs.external import Scale

if TYPE_CHECKING:
    from hoarfrost.evaluation.checks import Floats, Ints

N_STEPS, N_FEWER_STEPS = 1000, 100
"""The slider's thresholds are 0, 0.001, ... 1; or 0, 0.01, ... 1, see `_steps`."""
MOST_DRAWN = 1_000_000
MOST_PATIENTS = 2_000
"""With more patients the slider's intervals are by the delta method: the bootstrap would take too long."""
MOST_PROBLEMS = 20
EVEN = 0.5
"""The threshold that is shown if a run has fixed none."""
Ends = tuple[float | None, float | None, float | None]
WITHOUT_POINT = "threshold 0.5"
SHARES = ("sensitivity", "specificity", "ppv", "npv")


@dataclass(frozen=True)
class Start:
    """A threshold that has a name, and its true and false positives.

    `intervals` are those of the table of operating points, by measure; empty if the threshold is not one of them. Those of
    the predictive values in use hold at the stated prevalence.
    `ratios` are the likelihood ratios, as value, low and high; empty where a page can compute them.
    `method` is that of the intervals which are shown. `folds` describes cross-fitted thresholds, by which the positives are
    counted then; `threshold` is that of all samples together, where the slider begins.
    """

    name: str
    threshold: float
    folds: str
    true_positives: int
    false_positives: int
    intervals: dict[str, tuple[float, float] | None]
    ratios: "dict[str, Ends]"
    method: str


@dataclass(frozen=True)
class MovedIntervals:
    """The intervals of a threshold that a reader chooses, where patients have several images.

    `limits` has for each measure value, low and high at each distinct threshold, and `at` is the place there of each step
    of the slider.
    """

    method: str
    at: tuple[int, ...]
    limits: "dict[str, tuple[Ends, ...]]"


@dataclass(frozen=True)
class ClassThresholds:
    """A class against the rest: what the slider needs.

    `true_positives` and `false_positives` are those at each step of the slider. `points` begins with the threshold that is
    shown first. `moved` is None where a page can compute the intervals.
    """

    name: str
    n_positive: int
    n_negative: int
    points: tuple[Start, ...]
    true_positives: tuple[int, ...]
    false_positives: tuple[int, ...]
    moved: MovedIntervals | None


@dataclass(frozen=True)
class Cell:
    """One count of a confusion matrix and its share of the row, 0 to 1; None in an empty row."""

    count: int
    share: float | None


@dataclass(frozen=True)
class PointRow:
    """One row of operating points as text: its rules, threshold and results; or the reason why it does not exist."""

    cls: str
    name: str
    threshold: str
    cells: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Explorer:
    """What the report shows of thresholds.

    `shown` is the result of the first problem's first threshold, and `scale` that of scores.
    """

    problems: tuple[ClassThresholds, ...]
    n_left_out: int
    shown: PointResult
    prevalence: float
    is_prevalence_stated: bool
    data: str
    n_steps: int
    scale: Scale | None

    @property
    def threshold(self) -> str:
        """The threshold that is shown first, as text."""
        return threshold_text(self.shown.threshold, self.scale)

    @property
    def there(self) -> AtPrevalence:
        """Predictive values at the stated prevalence; None if none was stated."""
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
        Of each class or label that has samples; of the first twenty.
    """
    problems, shown, prevalence = [], None, run.config.prevalence
    steps, scale, has_selected = _steps(evaluation), evaluation.scales.get(run.selected), evaluation.split == "val"
    for number, y, p, patients in islice(_problems(run.selected, evaluation), MOST_PROBLEMS):
        name = evaluation.classes[number]
        fixed = _fixed(run.assessment, name)
        grid = np.arange(steps + 1) / steps
        found = [len(part) - np.searchsorted(np.sort(part), grid, "left") for part in (p[y == 1], p[y == 0])]
        true, false = (tuple(part.tolist()) for part in found)
        moved = None if has_selected else _moved(y, p, patients, grid)
        starts = _starts(fixed, scale) or (_even_start(y, p, patients, has_selected=has_selected),)
        problems.append(ClassThresholds(name, int(y.sum()), int((1 - y).sum()), starts, true, false, moved))
        if shown is None or prevalence is None:
            prevalence = prevalence or min(max(round(float(y.mean()), 3), 0.001), 0.999)
            shown = next((one.result for one in fixed if one.result is not None), None)
            shown = shown or _even(y, p, patients, prevalence, has_selected=has_selected)
    assert shown is not None
    assert prevalence is not None
    n_all = 1 if evaluation.is_binary else len(evaluation.classes)
    document = {
        "steps": steps,
        "unit": evaluation.unit,
        "why_none": OPTIMISTIC if has_selected else "",
        "prevalence": run.config.prevalence,
        "problems": [asdict(problem) for problem in problems],
        "scale": None if scale is None else {**asdict(scale), "decimals": scale.decimals},
    }
    is_stated = run.config.prevalence is not None
    return Explorer(
        tuple(problems), n_all - len(problems), shown, prevalence, is_stated, script_json(document), steps, scale
    )


def _problems(head: str, evaluation: Evaluation) -> "Iterator[tuple[int, Ints, Floats, Ints | None]]":
    for number, rows, y in binary_problems(evaluation.y_true, len(evaluation.classes)):
        patients = None if evaluation.patients is None else evaluation.patients[rows]
        yield number, y, evaluation.probabilities[head][rows, number], patients


def _steps(evaluation: Evaluation) -> int:
    """Return the number of the slider's steps: fewer where intervals must be computed here and would take too long."""
    patients = evaluation.patients
    if patients is None or not is_repeated(patients):
        return N_STEPS
    n_problems = 1 if evaluation.is_binary else min(len(evaluation.classes), MOST_PROBLEMS)
    return N_STEPS if len(patients) * N_STEPS * n_problems <= MOST_DRAWN else N_FEWER_STEPS


def _moved(y: "Ints", p: "Floats", patients: "Ints | None", grid: "Floats") -> MovedIntervals | None:
    """Return the intervals of all steps as those of the operating points, where patients have several images."""
    if patients is None or not is_repeated(patients):
        return None
    # Between two probabilities nothing changes.
    _, first, at = np.unique(np.searchsorted(np.sort(p), grid, "left"), return_index=True, return_inverse=True)
    found = evaluate_thresholds(y, p, grid[first], patients, by_draws=len(np.unique(patients)) <= MOST_PATIENTS)
    limits = {name: tuple(_ends(one) for one in several) for name, several in found.items()}
    method = next((one.method for one in found["sensitivity"] if one.method != WILSON), BOOTSTRAP)
    return MovedIntervals(method, tuple(at.tolist()), limits)


def _ends(found: Estimate) -> Ends:
    """Return value, low and high, rounded to what a page shows."""
    value, low, high = (None if one is None else round(one, 6) for one in (found.value, found.low, found.high))
    return value, low, high


def _fixed(assessment: Assessment | None, name: str) -> tuple[FixedPoint, ...]:
    classes = () if assessment is None else assessment.classes
    return next((one.points for one in classes if one.name == name), ())


def _even(
    y: "Ints", p: "Floats", patients: "Ints | None", prevalence: float | None = None, *, has_selected: bool
) -> PointResult:
    """Return the result of the even threshold, without intervals where the samples also selected the head."""
    found = evaluate_threshold(y, p, EVEN, groups=patients, prevalence=prevalence)
    return optimistic(found) if has_selected else found


def _even_start(y: "Ints", p: "Floats", patients: "Ints | None", *, has_selected: bool) -> Start:
    result = _even(y, p, patients, has_selected=has_selected)
    return Start(WITHOUT_POINT, EVEN, "", result.true_positives, result.false_positives, *_intervals(result))


def _starts(fixed: Sequence[FixedPoint], scale: Scale | None) -> tuple[Start, ...]:
    """Return a class's fixed points that exist, and their positives."""
    text = partial(threshold_text, scale=scale)
    return tuple(
        Start(
            rule(one.point.name), one.point.threshold, one.at(text) if one.by_fold else "",
            one.result.true_positives, one.result.false_positives, *_intervals(one.result),
        )
        for one in fixed
        if one.point.threshold is not None and one.result is not None
    )  # fmt: skip


def _intervals(result: PointResult) -> "tuple[dict[str, tuple[float, float] | None], dict[str, Ends], str]":
    """Return a fixed threshold's intervals, its likelihood ratios where these are clustered, and the intervals' methods."""
    intervals = {name: getattr(result, name).interval for name in SHARES}
    there = result.at_prevalence
    elsewhere = {"ppv-there": there.ppv, "npv-there": there.npv} if there is not None else {}
    intervals |= {name: one.interval for name, one in elsewhere.items() if one is not None}
    ratios = {name: getattr(result, name) for name in ("lr_positive", "lr_negative")}
    kept = {name: _ends(one) for name, one in ratios.items() if one.method == LOG_CLUSTERED or one.why_none}
    return intervals, kept, ", ".join(_methods([result]))


def script_json(document: object) -> str:
    """Write JSON that is safe between script tags: no text in it can end the element."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def point_rows(assessment: Assessment | None, scale: Scale | None = None) -> tuple[PointRow, ...]:
    """Return the table of operating points fixed on validation; rules of one threshold share a row."""
    names: dict[PointRow, list[str]] = {}
    for one in () if assessment is None else assessment.classes:
        for row in (_point_row(one.name, point, scale) for point in one.points):
            names.setdefault(replace(row, name=""), []).append(row.name)
    return tuple(replace(row, name="; ".join(shared)) for row, shared in names.items())


def promises(assessment: Assessment | None) -> tuple[str, ...]:
    """Return how often new cases reach what a rule requires, a sentence for each rule."""
    classes = () if assessment is None else assessment.classes
    start = {one.name: "" if len(classes) == 1 else f"{one.name}: " for one in classes}
    return tuple(
        f"{start[one.name]}{rule(fixed.point.promise)}"
        for one in classes
        for fixed in one.points
        if fixed.point.promise
    )


def point_methods(assessment: Assessment | None) -> tuple[str, ...]:
    """Return the methods of the intervals in the table of operating points."""
    points = [point for one in (assessment.classes if assessment else ()) for point in one.points]
    return _methods([point.result for point in points if point.result is not None])


def _methods(results: Sequence[PointResult]) -> tuple[str, ...]:
    return tuple(sorted({getattr(result, name).method for result in results for name in SHARES}))


def _point_row(cls: str, fixed: FixedPoint, scale: Scale | None) -> PointRow:
    point, result = fixed.point, fixed.result
    if result is None:
        return PointRow(cls, rule(point.name), decimal(None), (), rule(point.reason))
    shares = [estimate_text(getattr(result, name)) for name in SHARES]
    ratios = [_ratio_text(ratio) for ratio in (result.lr_positive, result.lr_negative)]
    there = result.at_prevalence
    elsewhere = [] if there is None else [estimate_text(one) for one in (there.ppv, there.npv)]
    at = fixed.at(partial(threshold_text, scale=scale))
    return PointRow(cls, rule(point.name), at, (*shares, *ratios, *elsewhere), "")


def _ratio_text(ratio: Estimate) -> str:
    def one(value: float | None) -> str:
        return "\N{INFINITY}" if value is None else f"{value:.2f}"

    if ratio.why_none:
        return f"{one(ratio.value)} ({ratio.why_none})"
    return decimal(None) if ratio.low is None else f"{one(ratio.value)} ({one(ratio.low)}{TO}{one(ratio.high)})"


def confusion_of(head: str, evaluation: Evaluation) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    """Count the head's most probable classes against the true ones; empty if an image may have several labels."""
    if evaluation.is_multilabel:
        return ()
    y_pred = evaluation.probabilities[head].argmax(axis=1)
    matrix = confusion_matrix(evaluation.y_true, y_pred, len(evaluation.classes))  # (C, C): rows are true
    rows = []
    for label, counts in zip(evaluation.classes, matrix, strict=True):
        n = int(counts.sum())
        rows.append((label, tuple(Cell(int(count), count / n if n else None) for count in counts)))
    return tuple(rows)
