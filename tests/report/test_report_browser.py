"""The report in a browser: it complains of nothing, asks for nothing, and what a reader moves is what the metrics say."""

import html
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from hoarfrost.evaluation import PointResult, binary_problems, evaluate_threshold
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.outputs import write_report
from hoarfrost.report.words import count, decimal, interval
from hoarfrost.runs import Run
from tests.support.browser import Browser, Tab, open_tab
from tests.support.pictured import pictured_run
from tests.support.reported import HOSTILE, KINDS

A4_PX = 794 - 2 * 45  # 210 mm less the margins, at 96 pixels an inch
THRESHOLDS = (0, 0.001, 0.05, 0.137, 0.25, 0.5, 0.618, 0.75, 0.9, 1)
PREVALENCES = (0.001, 0.02, 0.1, 0.25, 0.333, 0.5, 0.6, 0.75, 0.9, 0.999)
MEASURES = """Object.fromEntries(Array.from(document.querySelectorAll("tr[data-measure]"),
  row => [row.dataset.measure, Array.from(row.querySelectorAll("td"), cell => cell.textContent)]))"""
CELLS = """Object.fromEntries(Array.from(document.querySelectorAll("td[data-cell]"),
  cell => [cell.dataset.cell, cell.querySelector("b").textContent]))"""
SPOTS = """Object.fromEntries(Array.from(document.querySelectorAll("circle.spot"), spot => [spot.dataset.spot,
  spot.getAttribute("visibility") === "hidden" ? null
  : [spot.getAttribute("cx") / spot.dataset.width, 1 - spot.getAttribute("cy") / spot.dataset.height]]))"""


@pytest.fixture
def opened(browser: Browser, reported: Callable[[str], Run]) -> Iterator[Callable[..., Tab]]:
    """Open a run's report; its tab is closed when the test ends."""
    tabs = []

    def tab(kind: str, **options: Any) -> Tab:
        tabs.append(open_tab(browser, reported(kind).directory / "report.html", **options))
        return tabs[-1]

    yield tab
    for each in tabs:
        each.close()


def move(tab: Tab, slider: str, value: float) -> None:
    tab.run(
        f'{{ const s = document.getElementById("{slider}"); s.value = "{value}"; s.dispatchEvent(new Event("input")); }}'
    )


def choose(tab: Tab, problem: int) -> None:
    """Choose a class or label, where there are several."""
    tab.run(
        "{ const p = document.getElementById('problem');"
        f" if (p) {{ p.value = '{problem}'; p.dispatchEvent(new Event('change')); }} }}"
    )


def expected_measures(result: PointResult) -> dict[str, list[str]]:
    """Return the texts of the table of measures, of a fixed threshold and of any other alike."""
    measures = {}
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        share = getattr(result, name)
        ends = interval(share.interval)
        measures[name] = [decimal(share.value), ends, f"{count(share.n_hits)} of {count(share.n)}"]
    assert result.at_prevalence is not None
    for name in ("ppv", "npv"):
        found = getattr(result.at_prevalence, name)
        texts = [decimal(None)] * 2 if found is None else [decimal(found.value), interval(found.interval)]
        measures[f"{name}-there"] = [*texts, ""]
    return measures


def assert_shows(tab: Tab, result: PointResult) -> None:
    assert tab.run(MEASURES) == expected_measures(result)
    cells = {
        "tp": result.true_positives, "fp": result.false_positives,
        "tn": result.true_negatives, "fn": result.false_negatives,
    }  # fmt: skip
    assert tab.run(CELLS) == {name: count(n) for name, n in cells.items()}
    sensitivity, specificity, ppv = (getattr(result, name).value for name in ("sensitivity", "specificity", "ppv"))
    spots = tab.run(SPOTS)
    assert spots["roc"] == pytest.approx([1 - specificity, sensitivity], abs=1e-9)
    assert spots["precision"] == (None if ppv is None else pytest.approx([sensitivity, ppv], abs=1e-9))


def scores_of(
    run: Run, problem: int
) -> "tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.int64] | None]":
    """Return labels, the selected head's probabilities and the patients of the scored split's class number `problem`."""
    evaluation = evaluation_of(run)
    number, rows, y = list(binary_problems(evaluation.y_true, len(evaluation.classes)))[problem]
    patients = None if evaluation.patients is None else evaluation.patients[rows]
    return y, evaluation.probabilities[run.selected][rows, number], patients


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_report_asks_for_nothing_and_complains_of_nothing(
    opened: Callable[..., Tab], reported: Callable[[str], Run], kind: str
) -> None:
    tab = opened(kind)
    move(tab, "threshold-slider", 0.3)
    requests = [request for request in tab.requests if not request.startswith("data:")]  # the pictures that are in it
    assert requests == [(reported(kind).directory / "report.html").as_uri()]
    assert tab.complaints == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [360, 1280, 1920])
def test_page_never_scrolls_sideways(opened: Callable[..., Tab], kind: str, width: int) -> None:
    tab = opened(kind, width=width)
    tab.run("for (const part of document.querySelectorAll('details')) part.open = true")
    assert tab.run("document.documentElement.scrollWidth") <= width


def test_hostile_names_are_text_in_all_that_the_script_makes(opened: Callable[..., Tab]) -> None:
    for kind in ("patients", "labels"):
        tab = opened(kind)
        for number in range(tab.run("document.getElementById('problem')?.options.length ?? 1")):
            choose(tab, number)
        assert tab.run("document.images.length") == 0
        assert tab.run("document.scripts.length") == 4
        assert HOSTILE in tab.run("document.body.textContent")
        assert tab.complaints == []


def test_without_scripts_the_numbers_of_the_first_operating_point_stand(
    opened: Callable[..., Tab], reported: Callable[[str], Run]
) -> None:
    tab, run = opened("demo", scripting=False), reported("demo")
    assert run.assessment is not None
    result = run.assessment.classes[0].points[0].result
    assert result is not None
    root = tab.call("DOM.getDocument")["root"]["nodeId"]

    def texts(selector: str) -> list[str]:
        nodes = tab.call("DOM.querySelectorAll", nodeId=root, selector=selector)["nodeIds"]
        found = [tab.call("DOM.getOuterHTML", nodeId=node)["outerHTML"] for node in nodes]
        return [html.unescape(re.sub(r"<[^>]*>", "", text)) for text in found]

    for name, cells in expected_measures(result).items():
        assert texts(f"tr[data-measure={name}] td") == cells
    hidden = tab.call("DOM.querySelectorAll", nodeId=root, selector="form[hidden], button.scripted[hidden]")["nodeIds"]
    assert len(hidden) == 2
    assert len(texts("svg.drawing")) >= 8


# -- the sliders ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "problem"), [("demo", 0), ("patients", 0), ("classes", 2), ("labels", 1)])
def test_sliders_show_what_the_metrics_say_at_ten_thresholds(
    opened: Callable[..., Tab], reported: Callable[[str], Run], kind: str, problem: int
) -> None:
    tab = opened(kind)
    choose(tab, problem)
    y, p, patients = scores_of(reported(kind), problem)
    for threshold, prevalence in zip(THRESHOLDS, PREVALENCES, strict=True):
        move(tab, "threshold-slider", threshold)
        move(tab, "prevalence-slider", prevalence)
        assert_shows(tab, evaluate_threshold(y, p, threshold, groups=patients, prevalence=prevalence))
        assert tab.run("document.getElementById('threshold-value').textContent") == decimal(threshold)
        assert tab.run("document.getElementById('prevalence-value').textContent") == decimal(prevalence)


def test_buttons_show_the_operating_points_of_metrics_json(
    opened: Callable[..., Tab], reported: Callable[[str], Run]
) -> None:
    tab, run = opened("demo"), reported("demo")
    assert run.assessment is not None
    points = [point for point in run.assessment.classes[0].points if point.result is not None]
    buttons = "document.querySelectorAll('#points-buttons button')"
    assert tab.run(f"{buttons}.length") == len(points)
    for number in reversed(range(len(points))):
        tab.run(f"{buttons}[{number}].click()")
        result = points[number].result
        assert result is not None
        assert_shows(tab, result)
        assert tab.run(f"{buttons}[{number}].getAttribute('aria-pressed')") == "true"


def test_slider_moves_by_key_and_says_where_it_is(opened: Callable[..., Tab]) -> None:
    tab = opened("demo")
    move(tab, "threshold-slider", 0.5)
    tab.run("document.getElementById('threshold-slider').focus()")
    tab.press("ArrowRight", 39)
    assert tab.run("document.getElementById('threshold-value').textContent") == "0.501"
    assert tab.run("document.getElementById('threshold-slider').getAttribute('aria-valuetext')") == "0.501"
    assert tab.run("document.getElementById('spoken').textContent").startswith("Threshold 0.501: sensitivity 0.")


def test_curve_under_the_pointer_is_named(opened: Callable[..., Tab], reported: Callable[[str], Run]) -> None:
    tab, run = opened("demo"), reported("demo")
    tab.run("document.querySelector('[data-readout=roc]').scrollIntoView({block: 'end'})")
    x, y = tab.run(
        "{ const path = document.querySelector('circle[data-spot=roc]').closest('figure').querySelector('path.strong');"
        " const at = path.getPointAtLength(path.getTotalLength() / 3).matrixTransform(path.getScreenCTM());"
        " [at.x, at.y] }"
    )
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    said = tab.run("document.querySelector('[data-readout=roc]').textContent")
    assert re.match(r".+: AUC 0\.\d{3}\. Here: false positive rate 0\.\d\d, sensitivity 0\.\d\d\.", said)
    assert any(said.startswith(head.name) for head in run.heads)


# -- tables and paper ---------------------------------------------------------------------------------------------------


def column_of(tab: Tab, number: int) -> list[str]:
    found: list[str] = tab.run(
        f"Array.from(document.querySelector('table.sortable').tBodies[0].rows, r => r.cells[{number}].textContent.trim())"
    )
    return found


def test_sorting_sorts_every_column_both_ways(opened: Callable[..., Tab]) -> None:
    tab = opened("demo")
    headers = "document.querySelectorAll('table.sortable thead th')"
    n_columns = tab.run(f"{headers}.length")
    assert n_columns >= 7
    for number in range(n_columns):
        if not tab.run(f"{headers}[{number}].querySelector('button') !== null"):
            continue  # a drawing of the column before
        for _ in range(2):
            tab.run(f"{headers}[{number}].querySelector('button').click()")
            direction = tab.run(f"{headers}[{number}].getAttribute('aria-sort')")
            texts = column_of(tab, number)
            if number == 0:
                assert texts == sorted(texts, key=str.lower, reverse=direction == "descending")
                continue
            first = [re.match(r"<?(\N{MINUS SIGN}?[\d.,]+)", text) for text in texts]
            numbers = [float(one[1].replace(",", "").replace("\N{MINUS SIGN}", "-")) for one in first if one]
            assert numbers == sorted(numbers, reverse=direction == "descending")
            assert first[: len(numbers)] == [one for one in first if one], "what has no number comes last"
        assert tab.run(f"Array.from({headers}).filter(h => h.hasAttribute('aria-sort')).length") == 1
        assert direction == ("descending" if number == 0 else "ascending")


@pytest.mark.parametrize("kind", KINDS)
def test_print_has_no_cut_table(opened: Callable[..., Tab], kind: str) -> None:
    tab = opened(kind, width=A4_PX, media="print")
    tab.run("for (const part of document.querySelectorAll('details')) part.open = true")
    wide = tab.run(
        "Array.from(document.querySelectorAll('table'), t => [t.caption.textContent.slice(0, 40),"
        f" Math.round(t.getBoundingClientRect().right)]).filter(([, right]) => right > {A4_PX})"
    )
    assert wide == []
    rows = "Array.from(document.querySelectorAll('tr, figure'))"
    assert tab.run(f"{rows}.every(e => getComputedStyle(e).breakInside === 'avoid')")
    assert tab.run("getComputedStyle(document.querySelector('form.controls')).display") == "none"
    pdf = tab.pdf()
    assert pdf.startswith(b"%PDF-")
    n_pages = len(re.findall(rb"/Type\s*/Page\b", pdf))
    assert 3 <= n_pages <= 20
    boxes = {tuple(map(float, box.split())) for box in re.findall(rb"/MediaBox\s*\[([^\]]*)\]", pdf)}
    assert all(box == pytest.approx((0, 0, 595, 842), abs=1.5) for box in boxes)  # A4


# -- for everyone -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_finds_no_violation(opened: Callable[..., Tab], axe: str, kind: str, scheme: str) -> None:
    tab = opened(kind, features={"prefers-color-scheme": scheme})
    tab.run("for (const part of document.querySelectorAll('details')) part.open = true")
    tab.run(f"{axe}; 0")
    found = tab.run("axe.run().then(r => r.violations.map(v => [v.impact, v.id, v.nodes[0].html.slice(0, 200)]))")
    assert found == []


def test_image_enlarges_to_its_own_size_and_asks_for_nothing(browser: Browser, tmp_path: Path) -> None:
    run = pictured_run(tmp_path)
    tab = open_tab(browser, write_report(run.directory, with_map=False))
    tab.run("document.querySelector('button.enlarge').click()")
    shown = "document.querySelector('dialog.enlarged[open] img')"
    assert tab.run(f"[{shown}.width, {shown}.height]") == tab.run(f"[{shown}.naturalWidth, {shown}.naturalHeight]")
    assert tab.run(f"document.querySelector('dialog p').textContent.includes({shown}.alt)")
    tab.press("Escape", 27)
    assert tab.run("document.querySelector('dialog.enlarged[open]')") is None
    assert [request for request in tab.requests if not request.startswith("data:")] == [
        (run.directory / "report.html").as_uri()
    ]
    assert tab.complaints == []
    tab.close()


@pytest.mark.parametrize("kind", KINDS)
def test_no_table_scrolls_sideways_on_a_laptop(opened: Callable[..., Tab], kind: str) -> None:
    tab = opened(kind, width=1280)
    tab.run("for (const part of document.querySelectorAll('details')) part.open = true")
    wide = "Array.from(document.querySelectorAll('.scroll')).filter(e => e.scrollWidth > e.clientWidth + 1)"
    assert tab.run(f"{wide}.map(e => e.getAttribute('aria-label'))") == []
