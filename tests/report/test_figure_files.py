"""Figures and tables as files: each as SVG, PDF, PNG and CSV, the same each time, and harmless to open."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from hoarfrost.features.errors import RunError
from hoarfrost.report.figures import Axis, Curve, Figure, Panel
from hoarfrost.report.files import Table, csv_text, write_figures
from hoarfrost.report.paper import named_figures, tables_of
from hoarfrost.runs import Run, write_run
from tests.support.commands import Hoarfrost
from tests.support.made_runs import make_run

HOSTILE = '<img src=x onerror=alert(1)> $\\frac{ _x "]}</script>'


def figure(*labels: str) -> Figure:
    axis = Axis("share", 0, 1, (0, 0.5, 1))
    x = np.linspace(0, 1, 30)
    curves = tuple(Curve(label, x, x ** (i + 1), i, strong=i == 0) for i, label in enumerate(labels))
    return Figure("A message.", (Panel(axis, axis, curves, diagonal=True), Panel(axis, axis, curves, mark=0.3)))


def read_csv(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_report_writes_every_figure_and_table(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    run = make_run(tmp_path / "run")
    write_run(run, {})
    status, stdout, _ = hoarfrost("report", "--run", run.directory, "--figures", tmp_path / "figures", "--json")
    assert status == 0
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    heads = [head.name.replace(":", "_") for head in run.heads]
    figures = ["roc", "precision-recall", "areas", *(f"training_{h}" for h in heads)]
    assert names >= {f"{name}.{suffix}" for name in figures for suffix in ("svg", "pdf", "png")}
    assert names >= {"heads.csv", "counts.csv"}
    document = json.loads(stdout)
    assert {Path(path).name for path in document["figures"]} == names
    assert document["report"] == str(run.directory / "report.html")


def test_figures_are_whole_images_that_open(tmp_path: Path) -> None:
    svg, pdf, png = write_figures(tmp_path, {"roc": figure("a", "b")}, {})
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert pdf.read_bytes().startswith(b"%PDF-")
    with Image.open(png) as image:
        image.load()
        assert min(image.size) > 1200
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_the_same_figures_are_the_same_bytes(tmp_path: Path) -> None:
    first = write_figures(tmp_path / "a", {"roc": figure("a", "b")}, {})
    second = write_figures(tmp_path / "b", {"roc": figure("a", "b")}, {})
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("label", [HOSTILE, "_hidden", "$x", "\udc80 not UTF-8", "\x00\x1b[2J", "肺炎"])
def test_odd_labels_are_drawn_as_text(tmp_path: Path, label: str) -> None:
    svg, _, _ = write_figures(tmp_path, {label: figure(label, "other")}, {})
    assert ElementTree.parse(svg).getroot() is not None
    assert "<script" not in svg.read_text(encoding="utf-8")
    assert "<img" not in svg.read_text(encoding="utf-8")


def test_names_become_file_names_of_their_own(tmp_path: Path) -> None:
    names = ["a/b", "a:b", "A:B", "../../etc/passwd", "..", "x" * 300]
    paths = write_figures(tmp_path / "out", {}, {name: Table(("n",), ((1,),)) for name in names})
    assert len({path.name.lower() for path in paths}) == len(names)
    assert all(path.parent == tmp_path / "out" and path.is_file() for path in paths)


def test_tables_hold_the_numbers_of_the_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    paths = write_figures(tmp_path / "out", {}, tables_of(run))
    header, *rows = read_csv(next(path for path in paths if path.name == "heads.csv"))
    found = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    for head in run.heads:
        assert head.test is not None
        assert float(found[head.name]["test_roc_auc"]) == head.test.value("roc_auc")
        assert float(found[head.name]["val_roc_auc_low"]) == head.val.auc.low
        assert found[head.name]["selected"] == ("yes" if head.name == run.selected else "no")
    assert found["logistic regression"]["selected"] == "reference"
    _, *sizes = read_csv(next(path for path in paths if path.name == "counts.csv"))
    assert [row[:2] for row in sizes] == [["train", "90"], ["val", "30"], ["test", "60"], ["all", "180"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["demo", "classes", "patients", "labels"])
def test_every_figure_and_table_of_a_real_run_is_written_with_the_digits_of_the_run(
    tmp_path: Path, reported: Callable[[str], Run], kind: str
) -> None:
    run = reported(kind)
    assert run.assessment is not None
    paths = {path.name: path for path in write_figures(tmp_path, named_figures(run), tables_of(run))}
    if kind == "demo":
        drawn = {"roc", "precision-recall", "areas", "learning_curve", "calibration", "decision_curve"}
        assert {f"{name}.{suffix}" for name in drawn for suffix in ("svg", "pdf", "png")} <= paths.keys()
        assert {"cross-validation.csv", "learning_curve.csv", "shortcuts.csv"} <= paths.keys()
    points = read_csv(paths["operating_points.csv"])[1:]
    fixed = [(one.name, point) for one in run.assessment.classes for point in one.points]
    assert [(row[0], row[1]) for row in points] == [(name, point.point.name) for name, point in fixed]
    for row, (_, point) in zip(points, fixed, strict=True):
        if point.result is not None and point.result.sensitivity.value is not None:
            assert float(row[3]) == point.result.sensitivity.value
    for place, (header, *rows) in {
        name: read_csv(path) for name, path in paths.items() if name.endswith(".csv")
    }.items():
        assert all(header), place
        assert len(set(header)) == len(header), place
        assert {len(row) for row in rows} == {len(header)}, place
    header, *rows = read_csv(paths["operating_points.csv"])
    for row, (_, point) in zip(rows, fixed, strict=True):
        cells = dict(zip(header, row, strict=True))
        if point.result is not None and point.result.sensitivity.interval is not None:
            found = point.result.sensitivity  # as the page has it
            assert (float(cells["sensitivity_low"]), cells["sensitivity_method"]) == (found.low, found.method)
            assert (int(cells["sensitivity_hits"]), int(cells["sensitivity_n"])) == (found.n_hits, found.n)
    groups = read_csv(paths["subgroups.csv"])[1:] if run.assessment.subgroups else []
    assert [int(row[2]) for row in groups] == [group.n for group in run.assessment.subgroups]
    differences = {row[0]: float(row[2]) for row in read_csv(paths["comparisons.csv"])[1:]}
    assert differences == {one.name: one.difference.value for one in run.comparisons}


def test_run_without_test_split_has_no_test_columns(tmp_path: Path) -> None:
    table = tables_of(make_run(tmp_path / "run", n_of_split={"train": 90, "val": 30}))["heads"]
    assert not [column for column in table.columns if "test" in column]
    assert {len(row) for row in table.rows} == {len(table.columns)}


def test_figures_are_those_of_the_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    training = [f"training {name}" for name in ("mlp:256", *_others(run.selected))]
    assert list(named_figures(run)) == ["roc", "precision-recall", "areas", *training]


def _others(selected: str) -> list[str]:
    run = make_run(Path("unwritten"))
    others = [head for head in run.heads if head.name != selected]
    return [head.name for head in sorted(others, key=lambda head: -head.val.value("roc_auc"))]


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =HYPERLINK(1)", "\N{FULLWIDTH EQUALS SIGN}1"]
)
def test_text_that_a_spreadsheet_would_run_gets_an_apostrophe(text: str) -> None:
    table = Table((text,), ((text,),))
    rows = list(csv.reader(csv_text(table).splitlines(keepends=True)))
    assert rows == [[f"'{text}"], [f"'{text}"]]


def test_numbers_stay_numbers() -> None:
    assert csv_text(Table(("a", "b", "c"), ((-1.5, 3, None),))) == "a,b,c\r\n-1.5,3,\r\n"


def test_harmless_texts_stay_as_they_are() -> None:
    assert csv_text(Table(("mlp:256x2,dropout=0.2",), (("a-b",),))) == '"mlp:256x2,dropout=0.2"\r\na-b\r\n'


def test_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file: the figures cannot be written: .*Name another folder"):
        write_figures(tmp_path / "file", {}, {"a": Table(("n",), ())})
