"""The images of the study: table 1, and how many remain at each step from the files to the splits."""

from collections.abc import Iterator
from dataclasses import dataclass

from hoarfrost.evaluation.cohort import ALL, COUNT, Characteristic, Cohort, CohortGroup, Flow
from hoarfrost.report.evaluation import SPLIT_NAMES
from hoarfrost.report.files import Table, Value
from hoarfrost.report.words import NONE, TO, count, of_patients, percent, several
from hoarfrost.runs import Run, SplitSize, UnreadableImage

N_LISTED = 50  # unreadable images


@dataclass(frozen=True)
class CohortRow:
    """One row of table 1, as text: a cell for each group."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class FlowStep:
    """One box of the flow diagram, and what leaves it, or is known of it, at its side. `parts` are side by side."""

    text: str
    sides: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Data:
    """What the report shows of the images: the sizes of splits, table 1, the flow, and the first unreadable images.

    `columns`, `rows` and `flow` are empty for runs of earlier versions.
    """

    sizes: tuple[tuple[str, SplitSize], ...]
    columns: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[CohortRow, ...]
    flow: tuple[FlowStep, ...]
    unreadable: tuple[UnreadableImage, ...]
    n_unlisted: int


def data_of(run: Run) -> Data:
    """Collect what the report shows of the images."""
    cohort, unreadable = run.config.dataset.cohort, run.config.dataset.unreadable
    names = SPLIT_NAMES if run.external is None else SPLIT_NAMES | {"test": run.external.scored}
    return Data(
        sizes=tuple((names.get(size.split, size.split), size) for size in run.split_sizes()),
        columns=() if cohort is None else cohort_columns(cohort),
        rows=() if cohort is None else cohort_rows(cohort, run.config.sample),
        flow=() if cohort is None else flow_steps(cohort, run.config.sample),
        unreadable=unreadable[:N_LISTED],
        n_unlisted=len(unreadable[N_LISTED:]),
    )


def cohort_columns(cohort: Cohort) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the splits with the names of their columns: "all", and each class."""
    names: dict[str, list[str]] = {}
    for group in cohort.groups:
        names.setdefault(SPLIT_NAMES.get(group.split, group.split), []).append(group.label)
    return tuple((split, tuple(labels)) for split, labels in names.items())


def cohort_rows(cohort: Cohort, sample: str = "image") -> tuple[CohortRow, ...]:
    """Return table 1: images or rows, patients where they are known, and the characteristics."""
    rows = [CohortRow(f"{sample}s", tuple(count(one.n_images) for one in cohort.groups))]
    if cohort.groups[0].n_patients is not None:
        rows.append(CohortRow("patients", tuple(count(one.n_patients) for one in cohort.groups)))
    return *rows, *(_row(one) for one in cohort.characteristics)


def _row(one: Characteristic) -> CohortRow:
    name = f"{one.attribute}: {one.value}" if one.value else f"{one.attribute}, {one.kind}"
    return CohortRow(name, tuple(_cell(one.kind, figures) for figures in one.figures))


def _cell(kind: str, figures: tuple[float, ...]) -> str:
    if not figures:
        return NONE
    if kind == COUNT:
        n, of = figures
        return f"{count(int(n))} ({percent(n / of)})" if of else NONE
    first, *others = (f"{value:.4g}" for value in figures)
    return f"{first} ({TO.join(others)})"


def flow_steps(cohort: Cohort, sample: str = "image") -> tuple[FlowStep, ...]:
    """Return the boxes of the flow diagram, from the files to the splits; from the rows, where there are no images."""
    splits = [one for one in cohort.groups if one.label == ALL and one.split != ALL]
    parts = tuple(_split(one, sample) for one in splits)
    if sample != "image":
        return (FlowStep(f"{several(cohort.flow.n_used, sample)} of predictions", (), parts),)
    return tuple(_steps(cohort.flow, parts))


def _steps(flow: Flow, parts: tuple[str, ...]) -> Iterator[FlowStep]:
    yield FlowStep(f"{several(flow.n_listed, 'image')} listed", (f"{count(flow.n_unreadable)} unreadable: left out",))
    copies = f"{count(flow.n_same_bytes)} with the bytes of another one: kept in its split"
    left_out = (f"{count(flow.n_without_split)} in no split: left out",) if flow.n_without_split else ()
    yield FlowStep(f"{several(flow.n_readable, 'image')} with an embedding", (copies, *left_out))
    near = "near-identical images: not grouped"
    if flow.n_near_groups is not None:
        groups = several(flow.n_near_groups, "group")
        near = f"{groups} of near-identical images ({several(flow.n_near_images or 0, 'image')}): kept in one split"
    yield FlowStep(f"{several(flow.n_used, 'image')} in splits", (near,), parts)


def _split(one: CohortGroup, sample: str) -> str:
    name = SPLIT_NAMES.get(one.split, one.split)
    return f"{name}: {several(one.n_images, sample)}{of_patients(one.n_patients)}"


# -- for a paper --------------------------------------------------------------------------------------------------------


def cohort_tables(run: Run) -> dict[str, Table]:
    """Return "characteristics" and "flow" with all digits; empty tables for runs of earlier versions."""
    cohort = run.config.dataset.cohort
    columns = ("split", "class", "characteristic", "value", "kind", "first", "second", "third")
    if cohort is None:
        return {"characteristics": Table(columns, ()), "flow": Table(("step", "images"), ())}
    return {
        "characteristics": Table(columns, tuple(_long_rows(cohort))),
        "flow": Table(("step", "images"), tuple(_flow_rows(cohort, run.config.sample))),
    }


def _long_rows(cohort: Cohort) -> Iterator[tuple[Value, ...]]:
    for place, group in enumerate(cohort.groups):
        about = group.split, group.label
        yield *about, "images", None, COUNT, group.n_images, None, None
        if group.n_patients is not None:
            yield *about, "patients", None, COUNT, group.n_patients, None, None
        for one in cohort.characteristics:
            first, second, third = (*one.figures[place], None, None, None)[:3]
            yield *about, one.attribute, one.value, one.kind, first, second, third


def _flow_rows(cohort: Cohort, sample: str) -> Iterator[tuple[Value, ...]]:
    flow = cohort.flow
    yield "listed", flow.n_listed
    if sample == "image":
        yield "unreadable", flow.n_unreadable
        yield "with an embedding", flow.n_readable
        yield "with the bytes of another one", flow.n_same_bytes
        yield "in no split", flow.n_without_split
        yield "groups of near-identical images", flow.n_near_groups
        yield "images in these groups", flow.n_near_images
    yield from ((one.split, one.n_images) for one in cohort.groups if one.label == ALL)
