"""External validation in the report: what differs from the training images, what overlaps, and the drop, by site."""

from collections.abc import Iterator
from dataclasses import dataclass

from hoarfrost.evaluation.metrics import ROC_AUC
from hoarfrost.evaluation.updating import INTERCEPT, PRIOR, SLOPE, THRESHOLDS
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.words import MINUS, NONE, decimal, estimate_text, listed, of_patients, several
from hoarfrost.runs import CohortDifference, Drop, External, OverlapCheck, Run
from hoarfrost.runs.external import ALL, NOVEL

UPDATES = {
    INTERCEPT: "another intercept",
    SLOPE: "slope and intercept",
    PRIOR: "another prevalence",
}
TITLES = {ROC_AUC: "ROC AUC"}  # other metrics are titled by their keys


@dataclass(frozen=True)
class DropRow:
    """One figure: internal, external, and the drop, as text."""

    site: str
    metric: str
    n: str
    internal: str
    external: str
    drop: str


@dataclass(frozen=True)
class UpdateRow:
    """An update of one class's probabilities, or the frozen ones: its figures as text."""

    name: str
    method: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class ExternalSection:
    """What the page shows of an external validation.

    `alike` names the characteristics that do not differ, and `unknown` those that are not known of the training images.
    `update_notes` state how updates were judged, and why some could not be fitted.
    """

    title: str
    intro: tuple[str, ...]
    differences: tuple[CohortDifference, ...]
    alike: str
    unknown: str
    overlap: tuple[OverlapCheck, ...]
    internal: str
    drops: tuple[DropRow, ...]
    sites: tuple[DropRow, ...]
    site_column: str
    notes: tuple[str, ...]
    updates: tuple[UpdateRow, ...]
    update_notes: tuple[str, ...]
    thresholds: tuple[str, ...]


def external_section(run: Run, evaluation: Evaluation) -> ExternalSection | None:
    """Collect what the page shows of an external validation; None for a run of `train`."""
    found = run.external
    if found is None:
        return None
    return ExternalSection(
        "External validation" if found.scored == "external" else "Evaluation of predictions",
        (f"{_capital(found.model)} on {evaluation.samples()}.", found.frozen),
        tuple(one for one in found.differences if one.differs),
        ", ".join(found.alike),
        ", ".join(found.unknown),
        found.overlap,
        found.internal,
        tuple(_row(one) for one in found.drops if one.site == ALL),
        tuple(_row(one) for one in found.drops if one.site != ALL),
        found.site_column,
        found.notes,
        tuple(_update_rows(found)),
        tuple(_update_notes(found)),
        tuple(f"{at:g}" for at in THRESHOLDS),
    )


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _row(one: Drop) -> DropRow:
    metric = TITLES.get(one.metric, one.metric)
    drop = one.reason if one.external.value is None and one.reason else estimate_text(one.drop)
    return DropRow(
        one.site, metric, f"{one.external.n:,}", estimate_text(one.internal), estimate_text(one.external), drop or NONE
    )


def _update_rows(found: External) -> Iterator[UpdateRow]:
    """Yield the frozen probabilities and each update of them; of several classes one row each for slopes and benefits."""
    for updating in found.updates:
        for one in (one for one in updating.methods if not one.reason):
            joint = (decimal(one.loss), decimal(one.brier), decimal(one.calibration_error))
            change = NONE if one.difference is None else estimate_text(one.difference)
            for name, line, benefit in zip(updating.names, one.lines, one.net_benefit, strict=True):
                own = (_fitted(line.slope), _fitted(line.intercept), *map(decimal, benefit))
                yield UpdateRow(updating.name or name, one.method, (*joint, change, *own))


def _fitted(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}".replace("-", MINUS)


def _update_notes(found: External) -> Iterator[str]:
    for updating in found.updates:
        of = f" of {updating.name}" if updating.name else ""
        if updating.reason:
            yield f"No update{of}: {updating.reason}."
        yield from (
            f"{one.method[0].upper()}{one.method[1:]}{of}: {one.reason}." for one in updating.methods if one.reason
        )


def cautions_of(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield the cautions of an external validation: their titles, their texts, and the sections that show more."""
    if run.external is None:
        return
    for text in _drop_texts(run.external):
        yield "Drop", text, "drop"
    for one in run.external.differences:
        if one.what == NOVEL and one.differs:
            text = (
                f"{one.cohort} of the cohort are farther from the training images than all but {one.training} of these."
            )
            yield "Unlike the training images", text, "differences"
    unchecked = [one.what for one in run.external.overlap if one.n is None]
    if unchecked:
        yield (
            "Overlap",
            f"Whether the training images have the same {listed(unchecked)} could not be checked.",
            "overlap",
        )


def _drop_texts(found: External) -> Iterator[str]:
    """Yield a sentence for each figure of the whole cohort whose drop is more than chance."""
    for one in found.drops:
        if one.site == ALL and one.drop.low is not None and one.drop.low > 0:
            metric = TITLES.get(one.metric, one.metric)
            yield (
                f"{metric} {estimate_text(one.external)} in this cohort, {estimate_text(one.internal)} in the internal test: "
                f"it drops by {estimate_text(one.drop)}."
            )


def external_methods(run: Run) -> Iterator[str]:
    """Yield the sentences that replace those on training in the methods paragraph."""
    found, dataset = run.external, run.config.dataset
    assert found is not None
    unreadable = f"; {len(dataset.unreadable):,} of them were unreadable and omitted" if dataset.unreadable else ""
    samples = f"{several(dataset.n_images, run.config.sample)}{of_patients(dataset.n_patients)}{unreadable}"
    were = "was" if run.config.sample == "image" else "were"
    yield f"{_capital(found.model)} {were} evaluated on {dataset.name}: {samples}."
    yield found.frozen
    searched = [one.what for one in found.overlap if one.n is not None]
    if searched:
        n = sum(one.n or 0 for one in found.overlap)
        result = "none was found" if not n else f"{n:,} were found"
        yield f"The cohort was compared with the training images for {listed(searched)}: {result}."
    updated = {one.method for updating in found.updates for one in updating.methods if not one.reason}
    kinds = [words for method, words in UPDATES.items() if method in updated]
    if kinds:
        by = " by patient" if dataset.n_patients is not None else ""
        yield (
            f"Updated probabilities ({'; '.join(kinds)}) were cross-validated{by} and are reported beside the frozen ones."
        )
    if any(one.drop.interval is not None for one in found.drops):
        yield (
            f"{found.internal} The drop is the internal figure minus the external one; its 95% interval combines both "
            "intervals as those of independent samples (Zou and Donner 2008)."
        )
