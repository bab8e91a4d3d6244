"""Beyond the headline: shortcuts, what files tell without pixels, sites held out, looks at a locked test split."""

from collections.abc import Iterator
from dataclasses import dataclass

from hoarfrost.evaluation import Estimate
from hoarfrost.evaluation.meta_analysis import RandomEffects
from hoarfrost.report.evaluation import Evaluation
from hoarfrost.report.figures import Forest, ForestRow, area_axis
from hoarfrost.report.svg import CellScale, cell_scale
from hoarfrost.report.trust import ShortcutRow, shortcut_rows
from hoarfrost.report.words import count, decimal, estimate_text, several
from hoarfrost.runs import LeftOut, LeftOutSite, Run
from hoarfrost.runs.acquisition import CLOSE, MARGIN, Acquisition, Twin
from hoarfrost.runs.lock import LOOKS


@dataclass(frozen=True)
class SiteRow:
    """One site: its images, and the ROC AUC there, held out and in the mixed split; or why it was not scored."""

    site: str
    n: str
    n_patients: int | None
    held_out: str
    area: Estimate
    mixed: str
    selected: str
    reason: str


@dataclass(frozen=True)
class SitesSection:
    """What the report says of sites that were held out."""

    column: str
    answer: str
    meaning: str
    expectation: str
    rows: tuple[SiteRow, ...]
    scale: CellScale


@dataclass(frozen=True)
class Scrutiny:
    """What the page shows beyond the headline; empty, or None, where the run does not have it."""

    shortcuts: tuple[ShortcutRow, ...]
    acquisition: tuple[str, ...]
    by_fact: tuple[tuple[str, str], ...]
    sites: SitesSection | None
    lock: tuple[str, ...]


def scrutiny_of(run: Run, evaluation: Evaluation) -> Scrutiny:
    """Collect what the page shows beyond the headline."""
    twin = run.acquisition
    return Scrutiny(
        shortcut_rows(run),
        tuple(_acquisition_texts(run, evaluation)),
        () if twin is None else tuple((name, decimal(area)) for name, area in twin.by_fact.items()),
        _sites(run.left_out),
        tuple(_lock_texts(run)),
    )


def _acquisition_texts(run: Run, evaluation: Evaluation) -> Iterator[str]:
    """Yield what the acquisition-only classifiers know, and their areas next to the headline."""
    found = run.acquisition
    if found is None:
        return
    validation = run.config.validation.capitalize()
    for sees, twin in _named_twins(found):
        setting = f" ({twin.setting})" if twin.setting else ""
        yield (
            f"A logistic regression{setting} that {sees} {', '.join(twin.facts)}, was fitted by the same folds and scored on "
            f"{evaluation.samples()}: ROC AUC {estimate_text(twin.scored)}."
        )
        if twin.test is not None:
            yield f"{validation}: {estimate_text(twin.val)}."
    yield f"The selected head: {estimate_text(evaluation.area(run.head(run.selected)))}."
    yield found.meaning(run.reached) or _no_sign(found)


def _no_sign(found: Acquisition) -> str:
    """Return why there is no caution."""
    if found.is_high:
        return f"That is no sign of a shortcut: the head's ROC AUC is higher by {CLOSE:g} or more."
    return f"That is no sign of a shortcut: no interval begins above {0.5 + MARGIN:g}."


def _named_twins(found: Acquisition) -> Iterator[tuple[str, Twin]]:
    """Yield the classifier of headers and columns, then the one that knows facts of the content too, with what it sees."""
    if found.of_headers is not None:
        yield "sees no pixel, only", found.of_headers
    if found.of_headers is not found:
        yield "does not look at the image, but knows", found


# -- a locked test split ------------------------------------------------------------------------------------------------


def _lock_texts(run: Run) -> Iterator[str]:
    plan = run.config.plan
    if plan is None or run.external is not None:
        return
    yield (
        f"The test split of {several(plan.n_test, 'image')} was locked {plan.created}, before training: splits, labels, "
        f"embeddings, heads, settings and the rule of the threshold have the SHA-256 {plan.digest}."
    )
    if run.looks:
        last = "; ".join(f"{look.time} {look.command}" for look in run.looks)
        yield f"{several(len(run.looks), 'look')} at its scores: {last}."
    else:
        yield f"No look at its scores is recorded in {LOOKS}."


def lock_cautions(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield what a reader must know of a locked test split: a plan that was changed, looks without a record, or several."""
    plan = run.config.plan
    if plan is None or run.external is not None:
        return
    if not plan.is_intact:
        yield "Analysis plan", "The analysis plan is not the one that was hashed before training.", "lock"
    if not run.looks:
        yield (
            "Locked test split",
            f"The record of looks ({LOOKS}) is missing, so nobody knows how many there were.",
            "lock",
        )
    elif len(run.looks) > 1:
        text = (
            f"Its scores were looked at {len(run.looks)} times. What was changed after the first look may have been chosen "
            "by them, and they are then too high."
        )
        yield "Locked test split", text, "lock"


# -- sites --------------------------------------------------------------------------------------------------------------


def site_cautions(run: Run) -> Iterator[tuple[str, str, str]]:
    """Yield the caution that mixed splits overstate what a new site may expect: its title, text and section."""
    found = run.left_out
    if found is not None and found.is_grave:
        text = (
            f"ROC AUC {estimate_text(found.mixed)} where sites are mixed, but {estimate_text(found.held_out)} at a "
            f"{found.column} that heads did not learn from: it drops by {estimate_text(found.drop)}. {found.expectation}"
        )
        yield "Sites", text, "left-out"


def _sites(found: LeftOut | None) -> SitesSection | None:
    if found is None:
        return None
    answer = (
        f"Mean ROC AUC {estimate_text(found.held_out)} over {len(found.scored)} values of {found.column} that were held out. "
        f"With all of them mixed in {found.n_folds} folds the pooled ROC AUC is {estimate_text(found.mixed)}, and "
        f"{estimate_text(found.within)} on average within one. From mixed to held out it drops by "
        f"{estimate_text(found.drop)}."
    )
    shared = ""
    if found.n_shared:
        shared = (
            f" {several(found.n_shared, 'patient')} with images in several are scored in each, by heads that learned from "
            "none of their images."
        )
    meaning = (
        "All heads were trained, and one selected, without the value that is scored. A value that is not scored is learned "
        f"from. The interval of the drop is paired{_by_patient(found)}, and allows for training sets that overlap.{shared}"
    )
    areas = (one.held_out for one in found.scored)
    scale = cell_scale(areas, found.mixed.value)
    rows = (*map(_row, found.sites), *_summary_rows(found.summary))
    return SitesSection(found.column, answer, meaning, found.expectation, rows, scale)


def _by_patient(found: LeftOut) -> str:
    return "" if found.n_shared is None else " and by patient"


def _row(one: LeftOutSite) -> SiteRow:
    return SiteRow(
        one.site, count(one.n), one.held_out.n_patients, estimate_text(one.held_out), one.held_out,
        estimate_text(one.mixed), one.selected, one.reason,
    )  # fmt: skip


def _summary_rows(found: RandomEffects | None) -> Iterator[SiteRow]:
    """Yield the mean over sites, and what a new one may expect."""
    if found is None:
        return
    mean = Estimate(found.mean, found.low, found.high)
    yield SiteRow("mean (random effects)", "", None, estimate_text(mean), mean, "", "", "")
    if found.prediction_low is not None:
        new = Estimate(found.mean, found.prediction_low, found.prediction_high)
        yield SiteRow("a new one (95% prediction)", "", None, estimate_text(new), new, "", "", "")


def sites_forest(run: Run) -> Forest | None:
    """Describe the areas of all sites held out, their summary, and as a line that of the mixed split."""
    found = run.left_out
    if found is None:
        return None
    areas = {f"{found.column}: {one.site}": one.held_out for one in found.scored}
    rows = [ForestRow(name, area.value or 0.0, area.low, area.high) for name, area in areas.items()]
    if (summary := found.summary) is not None:
        rows.append(ForestRow("mean (random effects)", summary.mean, summary.low, summary.high, strong=True))
        if summary.prediction_low is not None:
            rows.append(
                ForestRow("a new one (prediction)", summary.mean, summary.prediction_low, summary.prediction_high)
            )
    axis = area_axis("ROC AUC, held out", [value for row in rows for value in (row.value, row.low)])
    return Forest(axis, tuple(rows), found.mixed.value)
