"""Figures and tables as files, for a paper: each figure as SVG, PDF and PNG, each table as CSV.

matplotlib draws the descriptions that the page draws as its own SVG.
"""

import csv
import io
import re
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hoarfrost.features.errors import RunError
from hoarfrost.features.files.whole import whole_file
from hoarfrost.report.figures import Axis, Band, Curve, Figure, Forest, Marks, Panel
from hoarfrost.report.svg import N_COLOURS, N_DASHES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawn

COLOURS = ("#0b6a8f", "#b8572a", "#47773a", "#80539b", "#94750a", "#66727d")  # the page's, of its light scheme
DASHES = ("-", (0, (7, 4)), (0, (2, 3)))
WIDTH_INCHES, PANEL_INCHES, SINGLE_PANEL_INCHES, ROW_INCHES = 6.0, 2.4, 5.0, 0.3
PNG_DPI = 300
MOST_IN_LEGEND = 12
MOST_IN_NAME = 80  # characters
# Deterministic, and readable by any viewer: text becomes outlines, ids come from the content.
STYLE: Any = {  # of no type: the names that matplotlib knows differ by version
    "svg.hashsalt": "hoarfrost",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,  # TrueType, which journals ask for
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
FORMULA_STARTS = tuple(
    "=+-@\t\r\n\N{FULLWIDTH EQUALS SIGN}\N{FULLWIDTH PLUS SIGN}\N{FULLWIDTH HYPHEN-MINUS}\N{FULLWIDTH COMMERCIAL AT}"
)

Value = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A table: the names of its columns, and rows of as many values. None is an empty cell."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]


def write_figures(
    directory: Path, figures: Mapping[str, Figure | Forest], tables: Mapping[str, Table]
) -> tuple[Path, ...]:
    """Write figures and tables into a folder.

    Parameters
    ----------
    directory : Path
        Created if it does not exist. Files of the same names are replaced, others stay.
    figures : mapping of name -> Figure or Forest
        Each becomes NAME.svg, NAME.pdf and NAME.png; characters that file names cannot hold become "_".
    tables : mapping of name -> Table
        Each becomes NAME.csv, UTF-8.

    Returns
    -------
    tuple of Path
        The files, in the order of the mappings.

    Raises
    ------
    RunError
        If the folder cannot be written.
    """
    figure_names, table_names, paths = _file_names(figures), _file_names(tables), []
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for suffix, content in _drawings(figure).items():
                paths.append(directory / f"{figure_names[name]}.{suffix}")
                _write(paths[-1], content)
        for name, table in tables.items():
            paths.append(directory / f"{table_names[name]}.csv")
            _write(paths[-1], csv_text(table).encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise RunError(f"{directory}: the figures cannot be written: {error}. Name another folder.") from error
    return tuple(paths)


def _write(path: Path, content: bytes) -> None:
    with whole_file(path) as file:
        file.write(content)


def _file_names(names: Iterable[str]) -> dict[str, str]:
    """Return a file name for each name; names that differ only in case get different ones."""
    taken: set[str] = set()
    found = {}
    for name in names:
        plain = stem = re.sub(r"[^A-Za-z0-9.,=_-]+", "_", name).strip("._")[:MOST_IN_NAME] or "figure"
        number = 1
        while stem.lower() in taken:
            number += 1
            stem = f"{plain}-{number}"
        taken.add(stem.lower())
        found[name] = stem
    return found


def csv_text(table: Table) -> str:
    """Write a table as CSV, with an apostrophe before text that a spreadsheet would run as a formula."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow([_cell(column) for column in table.columns])
    writer.writerows([_cell(value) for value in row] for row in table.rows)
    return buffer.getvalue()


def _cell(value: Value) -> Value:
    if isinstance(value, str) and value.lstrip(" ").startswith(FORMULA_STARTS):
        return f"'{value}"
    return value


def _drawings(figure: Figure | Forest) -> dict[str, bytes]:
    """Draw a figure in each format."""
    from matplotlib import rc_context

    with rc_context(STYLE), _missing_glyphs_are_boxes():
        drawn = _drawn_forest(figure) if isinstance(figure, Forest) else _drawn(figure)
        return {
            "svg": _saved(drawn, format="svg", metadata={"Date": None, "Creator": None}),
            "pdf": _saved(drawn, format="pdf", metadata={"CreationDate": None, "Creator": None, "Producer": None}),
            "png": _saved(drawn, format="png", dpi=PNG_DPI, metadata={"Software": None}),
        }


def _saved(drawn: "Drawn", **options: Any) -> bytes:
    buffer = io.BytesIO()
    drawn.savefig(buffer, bbox_inches="tight", **options)
    return buffer.getvalue()


@contextmanager
def _missing_glyphs_are_boxes() -> "Iterator[None]":
    """Accept labels in any script: characters that the font does not have are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def _drawn(figure: Figure) -> "Drawn":
    # Figure itself, not pyplot: no shared state, and no window.
    from matplotlib.figure import Figure as Drawn

    n_panels = len(figure.panels)
    is_square = figure.panels[0].diagonal
    heights = sum(panel.height for panel in figure.panels)
    height = SINGLE_PANEL_INCHES * heights if is_square or n_panels == 1 else PANEL_INCHES * n_panels
    drawn = Drawn(figsize=(WIDTH_INCHES, height), layout="constrained")
    rows = drawn.subplots(n_panels, squeeze=False, height_ratios=[panel.height for panel in figure.panels])
    for axes, panel in zip(rows[:, 0], figure.panels, strict=True):
        _draw_panel(axes, panel)
        if is_square:  # panels below have the same width
            axes.set_box_aspect(panel.height)
    return drawn


def _drawn_forest(forest: Forest) -> "Drawn":
    from matplotlib.figure import Figure as Drawn

    n_rows = len(forest.rows)
    drawn = Drawn(figsize=(WIDTH_INCHES, 1 + ROW_INCHES * n_rows), layout="constrained")
    axes = drawn.subplots()
    for place, row in enumerate(forest.rows):
        style: dict[str, Any] = {"color": COLOURS[0 if row.strong else -1], "zorder": 3}
        axes.plot(row.dots, [place] * len(row.dots), ".", color="#aaaaaa", zorder=2)
        if row.low is not None and row.high is not None:
            axes.plot([row.low, row.high], [place, place], linewidth=1.6, **style)
        axes.plot([row.value], [place], "o", markersize=6 if row.strong else 4, **style)
    if forest.line is not None:
        axes.axvline(forest.line, color="#444444", linewidth=0.8, linestyle=":")
    _set_axis(forest.x, axes.xaxis, axes.set_xlim)
    axes.set_ylim(n_rows - 0.5, -0.5)
    axes.set_yticks(range(n_rows), [drawable(row.label) for row in forest.rows], parse_math=False)
    return drawn


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    if panel.diagonal:
        axes.plot(
            [panel.x.low, panel.x.high], [panel.y.low, panel.y.high], color="#888888", linewidth=0.8, linestyle=":"
        )
    if panel.mark is not None:
        axes.axvline(panel.mark, color="#444444", linewidth=0.8, linestyle=":")
    handles = []
    for curve in panel.curves:
        dash = DASHES[curve.series // N_COLOURS % N_DASHES]
        style: dict[str, Any] = {
            "color": COLOURS[curve.series % N_COLOURS],
            "linestyle": dash,
            "linewidth": 2.4 if curve.strong else 1.3,
            "zorder": 3 if curve.strong else 2,
        }
        is_point = len(curve.x) == 1
        handles += axes.plot(curve.x, curve.y, marker="o" if is_point else "", markersize=3, **style)
    handles += [_draw_marks(axes, marks) for marks in panel.marks]
    handles += [_draw_band(axes, band) for band in panel.bands]
    if panel.spot is not None:
        axes.plot(*panel.spot, "o", markersize=7, markerfacecolor="none", color="#444444", zorder=4)
    for axis, line, limit in ((panel.x, axes.xaxis, axes.set_xlim), (panel.y, axes.yaxis, axes.set_ylim)):
        _set_axis(axis, line, limit)
    place: Literal["lower right", "best"] = "lower right" if panel.diagonal and not panel.bands else "best"
    drawn: tuple[Curve | Marks | Band, ...] = (*panel.curves, *panel.marks, *panel.bands)
    labels = [one.label for one in drawn]
    _add_legend(axes, handles[:MOST_IN_LEGEND], labels, place)


def _draw_marks(axes: "Axes", marks: Marks) -> Any:
    colour = COLOURS[marks.series % N_COLOURS]
    if marks.low is not None and marks.high is not None:
        axes.vlines(marks.x, marks.low, marks.high, color=colour, linewidth=1)
    return axes.plot(marks.x, marks.y, "o", markersize=4, color=colour)[0]


def _draw_band(axes: "Axes", band: Band) -> Any:
    return axes.fill_between(
        band.x, band.low, band.high, color=COLOURS[band.series % N_COLOURS], alpha=0.25, linewidth=0
    )


def _set_axis(axis: Axis, line: Any, limit: Any) -> None:
    limit(axis.low, axis.high)
    line.set_ticks(axis.ticks, [f"{tick:g}" for tick in axis.ticks])
    line.set_label_text(drawable(axis.label), parse_math=False)


def _add_legend(axes: "Axes", handles: list[Any], labels: list[str], place: Literal["lower right", "best"]) -> None:
    """Add the legend. Texts are set afterwards: matplotlib drops those that begin with "_", and reads "$" as mathematics."""
    if not handles:
        return
    legend = axes.legend(handles, ["."] * len(handles), frameon=False, fontsize=8, loc=place)
    for text, label in zip(legend.get_texts(), labels, strict=False):
        text.set_parse_math(False)
        text.set_text(drawable(label))


def drawable(text: str) -> str:
    """Return a text in characters that can be drawn and that XML can hold."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
