"""Two or more runs side by side: selected heads, what was configured differently, the paired test where images agree."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.evaluation import Comparison, Estimate, Scores, ShownIn, compare_heads, metrics_of
from hoarfrost.evaluation.comparison import NO_INTERVAL
from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.evaluation.units import Units, patient_numbers, units_of
from hoarfrost.features.errors import RunError
from hoarfrost.features.origins import is_elsewhere
from hoarfrost.report.costs import Cost, cost_of
from hoarfrost.report.evaluation import SPLIT_NAMES, Evaluation, evaluation_of
from hoarfrost.report.svg import cell_scale, difference_scale
from hoarfrost.report.templates import template_environment
from hoarfrost.report.words import p_text
from hoarfrost.runs import CacheFacts, HeadResult, Run, optimistic

if TYPE_CHECKING:
    import numpy.typing as npt

SIGNIFICANT = 0.05
MOST_RUNS = len(ascii_uppercase)
NO_ENCODER = "predictions from a file"
# What differs between any two runs, or is shown elsewhere on the page.
NOT_CONFIGURED = (
    *("command", "created", "seconds", "head_seconds", "warnings"),
    *("dataset.counts", "dataset.unreadable", "dataset.cohort"),
)


@dataclass(frozen=True)
class Column:
    """One of the runs. `name` is a letter, "A" for the first. `area` has the interval that is printed."""

    name: str
    run: Run
    evaluation: Evaluation
    head: HeadResult
    scores: Scores
    area: Estimate
    rows: "npt.NDArray[np.intp]"
    cost: Cost

    @property
    def encoder(self) -> str:
        """The encoder, or encoders, and their weights; that there is none where only predictions are known."""
        return " and ".join(map(_title, self.run.config.embeddings.of_each)) or NO_ENCODER

    @property
    def split(self) -> str:
        """The name of the scored split."""
        return SPLIT_NAMES[self.evaluation.split]

    @property
    def counted(self) -> str:
        """What the scores count: images, or patients and how their images were joined."""
        how = self.run.config.per_patient
        return self.evaluation.samples() + ("" if how is None else f", by patient ({how})")


@dataclass(frozen=True)
class Tested:
    """A run against the first: the paired test, or the reason why it is missing."""

    name: str
    result: Comparison | None
    reason: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class SideBySide:
    """All that the page shows. `differences` are (setting, its value in each run)."""

    columns: tuple[Column, ...]
    differences: tuple[tuple[str, tuple[str, ...]], ...]
    tests: tuple[Tested, ...]
    unit: str


def side_by_side(runs: Sequence[Run]) -> SideBySide:
    """Compare runs.

    Parameters
    ----------
    runs : sequence of Run, two or more
        The others are compared with the first.

    Returns
    -------
    SideBySide

    Raises
    ------
    RunError
        If a run is named twice, or there are more than 26 runs.
    """
    places = [run.directory.resolve() for run in runs]
    twice = next((run for run, place in zip(runs, places, strict=True) if places.count(place) > 1), None)
    if twice is not None:
        raise RunError(f"{twice.directory} is named twice. Name each run once.")
    if len(runs) > MOST_RUNS:
        raise RunError(f"{len(runs)} runs are too many for one page. Name at most {MOST_RUNS}.")
    columns = tuple(_column(name, run) for name, run in zip(ascii_uppercase, runs, strict=False))
    tests, unit = _tests(columns)
    judged = tuple(
        replace(test, verdict=_verdict(column, columns[0], test.result, unit))
        for test, column in zip(tests, columns[1:], strict=True)
    )
    return SideBySide(columns, _differences(columns), judged, unit)


def require_tests(found: SideBySide) -> None:
    """Refuse runs that cannot be compared image by image.

    Raises
    ------
    RunError
        If one of them has other images, labels, or another split or unit than the first; it says how many they share.
    """
    first = found.columns[0].run.directory
    for test, column in zip(found.tests, found.columns[1:], strict=True):
        if test.result is None:
            raise RunError(
                f"{column.run.directory} ({column.name}) cannot be compared with {first} ({found.columns[0].name}). "
                f"{test.reason} {_way_out(column.run, first)} To see them side by side without a test: hoarfrost report "
                f"--run {first} --run {column.run.directory} --output both.html"
            )


def _way_out(run: Run, first: Path) -> str:
    if run.external is not None:
        return "Evaluate the same cohort, with the same labels and unit, in both."
    return (
        f"Train it on the same dataset with the same splits, labels and unit: hoarfrost train --splits-from {first} …"
    )


def render_comparison(found: SideBySide) -> str:
    """Write runs side by side as HTML.

    Parameters
    ----------
    found : SideBySide

    Returns
    -------
    str
        A whole document, with its style inside.
    """
    shown = metrics_of([column.scores for column in found.columns], ShownIn.EVERYWHERE)
    metrics = [metric for metric in shown if metric.key != ROC_AUC]
    template = template_environment().get_template("compare.html.j2")
    return template.render(
        vars(found),
        metrics=metrics,
        scale=cell_scale(column.area for column in found.columns),
        forest=difference_scale(test.result.difference for test in found.tests if test.result is not None),
    )


def _title(facts: CacheFacts) -> str:
    """Return an encoder with its weights; the title of an imported one already states that it was elsewhere."""
    return facts.encoder.title if is_elsewhere(facts.backbone) else f"{facts.encoder.title} ({facts.weights})"


def _column(name: str, run: Run) -> Column:
    evaluation, head = evaluation_of(run, by_image=True), run.head(run.selected)
    rows = run.rows_of(evaluation.split)
    return Column(
        name, run, evaluation, head, evaluation.scores(head), evaluation.area(head), rows, cost_of(run.config)
    )


def _verdict(other: Column, first: Column, found: Comparison | None, unit: str) -> str:
    """Return whether another run is better than the first, as one sentence; empty if they were not compared."""
    if found is None:
        return ""
    ours, theirs = other.name, first.name
    if other.encoder != first.encoder:
        ours, theirs = f"{ours}, {other.encoder},", f"{theirs}, {first.encoder}"
    area = found.difference
    where = f"on these {unit.partition(',')[0]}"
    if found.p_holm is None or area.value is None or area.low is None or area.high is None:
        return f"Whether {ours} is better than {theirs} cannot be tested {where}: {found.reason or NO_INTERVAL}."
    change = (
        f"ROC AUC {area.value:+.3f}, 95% CI {area.low:+.3f} to {area.high:+.3f}, corrected p {p_text(found.p_holm)}"
    )
    if found.p_holm >= SIGNIFICANT:
        return f"It is not shown that {ours} is better or worse than {theirs} {where} ({change})."
    return f"{ours} is {'better' if area.value > 0 else 'worse'} than {theirs} {where} ({change})."


def _differences(columns: Sequence[Column]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    settings = [_settings(column.run) for column in columns]
    names = dict.fromkeys(name for of_run in settings for name in of_run)
    found = [(name, tuple(of_run.get(name, "absent") for of_run in settings)) for name in names]
    return tuple((name, values) for name, values in found if len(set(values)) > 1)


def _settings(run: Run) -> dict[str, str]:
    """Return all settings of a run as text, by dotted names."""
    flat: dict[str, str] = {"heads": ", ".join(head.name for head in run.heads)}

    def add(name: str, value: object) -> None:
        if name in NOT_CONFIGURED:
            return
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{name}.{key}" if name else str(key), inner)
        elif isinstance(value, (list, tuple)):
            flat[name] = ", ".join(map(str, value))
        else:
            flat[name] = "none" if value is None else str(value)

    add("", asdict(run.config))
    return flat


def _tests(columns: Sequence[Column]) -> tuple[tuple[Tested, ...], str]:
    """Compare the others with the first where the images agree, corrected for the number of comparisons."""
    first, others = columns[0], columns[1:]
    reasons = {other.name: _disagreement(first, other) for other in others}
    agreeing = [first, *(other for other in others if not reasons[other.name])]
    try:
        units = _units(first)
        probabilities = {column.name: units.joined(_aligned(column, first)) for column in agreeing}
        compared = compare_heads(units.y, probabilities, first.name, groups=units.groups)
    except ValueError as error:
        reasons |= {column.name: str(error) for column in agreeing[1:]}
        return tuple(Tested(other.name, None, reasons[other.name]) for other in others), ""
    if first.evaluation.split == "val":
        compared = optimistic(compared)
    results = {one.name: one for one in compared}
    tests = tuple(Tested(other.name, results.get(other.name), reasons[other.name]) for other in others)
    return tests, _unit(units, first.run.config.sample) if results else ""


def _unit(units: Units, sample: str) -> str:
    if units.members is not None:
        return f"{len(units.y):,} patients"
    if units.groups is not None and len(np.unique(units.groups)) < len(units.groups):
        return f"{len(units.y):,} {sample}s of {len(np.unique(units.groups)):,} patients, whose {sample}s count as clusters"
    return f"{len(units.y):,} {sample}s, taken as independent"


def _units(column: Column) -> Units:
    patients = [column.run.predictions.patients[i] for i in column.rows]
    numbers = patient_numbers(patients) if any(patients) else None
    return units_of(column.evaluation.y_true, len(column.evaluation.classes), numbers, column.run.config.per_patient)


def _paths(column: Column) -> list[str]:
    return [column.run.predictions.paths[i] for i in column.rows]


def _order(column: Column, first: Column) -> list[int]:
    """Return the places of the first run's images among those of another run."""
    place = {path: i for i, path in enumerate(_paths(column))}
    return [place[path] for path in _paths(first)]


def _aligned(column: Column, first: Column) -> "npt.NDArray[np.float64]":
    """Return the selected head's probabilities, in the order of the first run's images."""
    return column.evaluation.probabilities[column.run.selected][_order(column, first)]


def _disagreement(first: Column, other: Column) -> str:
    """Return why two runs cannot be compared image by image; empty if they can."""
    one, two = first.evaluation, other.evaluation
    samples = f"{first.split} {first.run.config.sample}s"
    if one.split != two.split:
        others = f"{other.split} {other.run.config.sample}s"
        return f"{first.name} is scored on its {samples}, {other.name} on its {others}."
    if first.run.config.per_patient != other.run.config.per_patient:
        return f"{first.name} counts {first.counted}, {other.name} {other.counted}."
    # Two classes may have other names in each run; more than two may not.
    if (
        one.is_multilabel != two.is_multilabel
        or len(one.classes) != len(two.classes)
        or (not one.is_binary and one.classes != two.classes)
    ):
        return f"{first.name} predicts {', '.join(one.classes)}; {other.name} predicts {', '.join(two.classes)}."
    mine, theirs = set(_paths(first)), set(_paths(other))
    if mine != theirs:
        return (
            f"Their {samples} differ: {len(mine & theirs):,} in both, "
            f"{len(mine - theirs):,} in {first.name} alone, {len(theirs - mine):,} in {other.name} alone."
        )
    n_differ = int((one.y_true != two.y_true[_order(other, first)]).reshape(len(mine), -1).any(axis=1).sum())
    if n_differ:
        return f"{n_differ:,} of their {samples} have another label in {other.name} than in {first.name}."
    return ""
