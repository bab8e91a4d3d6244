"""What more looks gave: the sets of views side by side."""

from collections.abc import Iterator
from dataclasses import dataclass

from hoarfrost.features.decoding.views import shows_region
from hoarfrost.report.words import estimate_text, listed
from hoarfrost.runs import CacheFacts, ComparedViews, Run, ViewsResult

BASES = {
    "folds": "pooled predictions of nested cross-validation, in which each fold chose its own set",
    "test": "test split",
    "val": "images that also selected the heads and the set, so the figures are optimistic",
}
FLIPPED = (
    "Heads also look at mirror images. That is wrong where left and right mean something (laterality, situs inversus). "
    "Then train with --views without flip."
)
OF_REGIONS = (
    "Heads also look at a region of each image (views named region). New images need regions that are drawn in the same "
    "way. If those who drew them knew the diagnosis, the scores are too high."
)
MOST_VIEWS = 12


@dataclass(frozen=True)
class ViewsRow:
    """A set of views: its names, the encoder's work in looks, scores, and the difference from the smallest set."""

    views: tuple[str, ...]
    work: float
    roc_auc: float
    loss: float
    difference: str
    chosen: str


@dataclass(frozen=True)
class ViewsSection:
    """What the report says of views: the table, what it was scored on, and cautions."""

    rows: tuple[ViewsRow, ...]
    basis: str
    cautions: tuple[str, ...]


def views_section(run: Run) -> ViewsSection:
    """Return what the report says of a run's views."""
    basis = "" if run.views is None else BASES[run.views.basis]
    return ViewsSection(_rows(run.views), basis, tuple(_cautions(run)))


def _rows(compared: ComparedViews | None) -> tuple[ViewsRow, ...]:
    """Return the rows of the table; none if there was only one set."""
    if compared is None:
        return ()
    return tuple(
        ViewsRow(
            one.views, one.work, one.roc_auc, one.loss,
            "" if one.difference is None else estimate_text(one.difference),
            _chosen(one, compared),
        )
        for one in compared.results
    )  # fmt: skip


def _chosen(one: ViewsResult, compared: ComparedViews) -> str:
    if compared.basis == "folds":
        return f"in {one.n_chosen} of {compared.n_choices} folds"
    return "chosen" if one.n_chosen else ""


def looks_of(facts: CacheFacts) -> str:
    """Return the views and layers that a run's heads look at, in words; empty for one look and the last layer."""
    parts = []
    if facts.views:
        parts.append(f"in {len(facts.views)} views ({listed(list(facts.views), MOST_VIEWS)})")
    if facts.layers:
        parts.append(f"as the mean outputs of layers {' and '.join(map(str, facts.layers))}")
    return ", ".join(parts)


def _cautions(run: Run) -> Iterator[str]:
    """Yield what a reader must know about the views."""
    views = run.config.embeddings.views
    if any("flip" in name.split(":") for name in views):
        yield FLIPPED
    if any(map(shows_region, views)):
        yield OF_REGIONS
