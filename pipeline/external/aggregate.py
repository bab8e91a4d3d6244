"""An evaluation without a row of a patient, for sites that cannot share predictions."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from hoarfrost.evaluation import CalibrationLine, Estimate, binary_problems, macro_roc_auc
from hoarfrost.evaluation.checks import Floats
from hoarfrost.evaluation.disclosure import FEWEST, Cells, shareable_cells, shareable_count, shareable_histogram
from hoarfrost.evaluation.intervals import area
from hoarfrost.evaluation.units import count_patients
from hoarfrost.experiment.assessment import two_columns
from hoarfrost.experiment.scored import ScoredTask
from hoarfrost.features.errors import RunError, TrainingError
from hoarfrost.runs import ClassAssessment, Run
from hoarfrost.runs.aggregate import N_RATES, Aggregate, AggregateClass, Figure, write_aggregate

FINEST = tuple(number / 50 for number in range(1, 50))
"""The edges of the finest bins of probabilities: 0.02, 0.04, ... 0.98."""
GRID = tuple(dict.fromkeys((*(FINEST[5 * tenth - 1] for tenth in (5, 2, 1, 3, 7, 4, 6, 8, 9)), *FINEST)))
"""These edges in the order in which every site tries them: tenths first, so that sites have these in common."""
RATES = np.linspace(0, 1, N_RATES)
"""The false positive rates at which sensitivities are shared."""
_DIGITS = 6


def share_only(path: Path, run: Run, task: ScoredTask, p: Floats, digest: str) -> None:
    """Write what a site may share of an evaluation.

    Parameters
    ----------
    path : Path
    run : Run
        The evaluation, which is not written.
    task : Task
    p : ndarray (n, C) float64
    digest : str
        Of the head; empty if it is not known.

    Raises
    ------
    RunError, TrainingError
        If the file cannot be written, or the cohort is too small to share.
    """
    units = task.units(task.rows_of("test"))
    p, found = units.joined(p[task.rows_of("test")]), run.assessment
    assert found is not None
    if found.calibration is None and not any(one.calibration for one in found.classes):
        raise TrainingError(f"{task.table.source}: --aggregate-only is for probabilities. These are scores or calls.")
    by_name = {one.name: one for one in found.classes}
    lines = () if found.calibration is None else found.calibration.after.lines
    classes = []
    for place, (number, rows, y) in enumerate(binary_problems(units.y, len(task.names))):
        groups = None if units.groups is None else units.groups[rows]
        own = by_name[task.names[number]]
        line = lines[place] if lines else own.calibration.after.lines[0] if own.calibration is not None else None
        try:
            classes.append(_of_class(own, y, p[rows, number], groups, line))
        except ValueError as error:
            raise TrainingError(f"{task.table.source}: {own.name}: {error}.") from error
    scores = run.head(run.selected).test
    assert scores is not None
    n = len(units.y)  # of images, or of patients where these are scored: the classes have counts of the same
    n_images = _unrelated(len(task.rows_of("test")), n)
    n_patients = _unrelated(count_patients(units.groups) if units.how is None else n, n)
    _check_differences(task, [n, *(one.n for one in classes)])
    loss, brier = (_rounded(scores[key].value) if key in scores else None for key in ("loss", "brier"))
    write_aggregate(path, Aggregate(
        task.table.name, run.selected if digest else "predictions", digest, "image" if units.how is None else "patient",
        task.names, shareable_count(n_images), shareable_count(n_patients),
        loss, brier, tuple(classes),
    ))  # fmt: skip


def _check_differences(task: ScoredTask, counts: list[int]) -> None:
    """Refuse labels that are unknown for one to four images: the numbers of images that have them would tell."""
    ordered = sorted(set(counts))
    close = [(low, high) for low, high in pairwise(ordered) if high - low < FEWEST]
    if close:
        raise TrainingError(
            f"{task.table.source}: labels are known for {close[0][0]} and for {close[0][1]} images. Their difference would "
            f"share a count of fewer than {FEWEST}. Complete these labels, or leave the images out."
        )


def _unrelated(n: int | None, other: int) -> int | None:
    """Return a count; None if it differs from another one that is shared by one to four."""
    return None if n is None or shareable_count(abs(n - other)) is None else n


def check_place(path: Path, *, overwrite: bool) -> None:
    """Refuse a place that holds something; raise RunError."""
    if path.is_dir():
        raise RunError(f"--aggregate-only {path} is a folder. Name a file.")
    if path.exists() and not overwrite:
        raise RunError(
            f"{path} already exists. Nothing was written. Replace it with --overwrite, or name another file."
        )


def _of_class(
    found: ClassAssessment, y: "np.typing.NDArray[np.int64]", p: Floats,
    groups: "np.typing.NDArray[np.int64] | None", line: CalibrationLine | None,
) -> AggregateClass:  # fmt: skip
    point = found.points[0] if found.points else None
    result = None if point is None else point.result
    p = np.clip(p, 0, 1)
    # Cross-fitted thresholds are several: by them other samples are positive, and with the cells a few could be found.
    cells = shareable_cells(y, p, groups, GRID, kept=None if result is None else result.threshold)
    positives, negatives = (
        shareable_histogram(p[y == value], None if groups is None else groups[y == value], cells, GRID)
        for value in (1, 0)
    )
    pair = two_columns(p)
    plain = Estimate(macro_roc_auc(y, pair), None, None, n=len(y))
    shared = AggregateClass(
        found.name, len(y), int(y.sum()), _figure(area(plain, y, pair, groups)), cells, _roc(cells),
        slope=None if line is None else _fitted(line.slope, line.slope_interval),
        intercept=None if line is None else _fitted(line.intercept, line.intercept_interval),
        positives=positives, negatives=negatives,
    )  # fmt: skip
    if point is None or result is None or result.threshold not in cells.edges:
        return shared
    return replace(
        shared, rule=point.point.name, threshold=result.threshold, sensitivity=_with_interval(result.sensitivity),
        specificity=_with_interval(result.specificity),
    )  # fmt: skip


def _roc(cells: Cells) -> tuple[float, ...]:
    """Return the sensitivities at `RATES`, by straight lines between the edges of the cells."""
    true, false = (np.cumsum([0, *reversed(counts)]) for counts in (cells.positives, cells.negatives))
    # At one rate of false positives the highest sensitivity counts: cells without negatives are vertical lines.
    rates, firsts = np.unique(false[::-1] / false[-1], return_index=True)
    return tuple(np.round(np.interp(RATES, rates, (true / true[-1])[::-1][firsts]), 4).tolist())


def _figure(found: Estimate) -> Figure:
    return Figure(_rounded(found.value), _rounded(found.low), _rounded(found.high), found.method)


def _with_interval(found: Estimate) -> Figure | None:
    return None if found.low is None else _figure(found)


def _fitted(value: float | None, ends: tuple[float, float] | None) -> Figure | None:
    if value is None or ends is None:
        return None
    return Figure(_rounded(value), _rounded(ends[0]), _rounded(ends[1]))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _DIGITS)
