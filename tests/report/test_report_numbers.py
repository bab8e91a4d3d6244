"""Every number on a report's page is in metrics.json; of configuration in config.json, of an image in predictions.csv.

What the map of the embeddings says of itself comes from the cache, and is held by test_map.py.
"""

import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hoarfrost.evaluation.bootstrap import N_DRAWS
from hoarfrost.evaluation.calibration_curve import N_CURVES
from hoarfrost.report.checklists import checklists_of
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.methods import LITERATURE
from hoarfrost.report.planning import needs_text
from hoarfrost.report.simulated import OF_AREAS, OF_CALIBRATION, OF_FOLDS, OF_SCORES, OF_SHARES
from hoarfrost.report.words import decimal, interval
from hoarfrost.runs import Run, outlook_of, outlook_text, precision_text
from tests.support.reported import KINDS

Reported = Callable[[str], Run]

NUMBER = re.compile(r"(?<![\w.-])-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?%?")
WORDS = {
    "95%",  # intervals
    "0.500", "0", "1", "100%",  # chance, perfect calibration, a whole
    "90",  # the percentile that E90 is
    "0.5", "5",  # the even threshold; ten bins and five folds have no figure of their own
}  # fmt: skip
DESCRIBED = "512 values of ResNet18, checklists of 2024"
SETTINGS = ("seeds", "prevalence", "head_seconds", "created")
VOID = {"meta", "link", "br", "wbr", "input", "img", "col"}


class Results(HTMLParser):
    """The text of the results: all but code, drawings, scripts, hidden parts; apart, where they came from, and the images."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self.sources: list[str] = []
        self.images: list[str] = []
        self._open: list[tuple[str, bool, list[str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in VOID:
            return
        attributes = dict(attrs)
        is_hidden = tag in ("code", "svg", "script", "style", "title", "time") or "hidden" in attributes
        _, hidden, pieces = self._open[-1] if self._open else ("", False, self.pieces)
        section = attributes.get("aria-labelledby") or ""
        if section in ("provenance", "methods", "checklists"):
            pieces = self.sources
        elif section in ("look", "map"):
            pieces = self.images if section == "look" else []
        self._open.append((tag, hidden or is_hidden, pieces))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        _, hidden, pieces = self._open[-1] if self._open else ("", False, self.pieces)
        if not hidden:
            pieces.append(data)


def leaves(value: Any) -> Iterator[Any]:
    """Return all numbers and texts in a document, and the lengths of its lists."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from leaves(inner)
    elif isinstance(value, list):
        yield len(value)
        for inner in value:
            yield from leaves(inner)
    elif value is not None and not isinstance(value, bool):
        yield value


def spellings(value: Any) -> Iterator[str]:
    """Return the ways in which the report may write a value of a document."""
    if isinstance(value, str):
        yield from (number.rstrip(",") for number in NUMBER.findall(value))
    else:
        yield from (
            decimal(value).replace("\N{MINUS SIGN}", "-"),
            f"{value:.2f}",
            f"{value:.1f}",
            f"{value:g}",
            f"{value:.2g}",
        )
        yield from (f"{value:,}", f"{100 * value:.0f}%")


def numbers_of(*documents: Any) -> set[str]:
    return {text for document in documents for value in leaves(document) for text in spellings(value)}


def plain(text: str) -> str:
    return " ".join(text.split())


def read(run: Path) -> tuple[dict[str, Any], dict[str, Any], Results]:
    documents = (json.loads((run / f"{name}.json").read_text(encoding="utf-8")) for name in ("metrics", "config"))
    metrics, config = documents
    return metrics, config, Results((run / "report.html").read_text(encoding="utf-8"))


def unknown(pieces: list[str], known: set[str]) -> set[str]:
    text = " ".join(" ".join(pieces).split()).replace("\N{MINUS SIGN}", "-")
    return {number.rstrip(",") for number in NUMBER.findall(text)} - known


def figures_of_cohort(cohort: dict[str, Any]) -> set[str]:
    """Return table 1's shares and rounded numbers, and the sums of the flow."""
    flow = cohort["flow"]
    readable = flow["n_listed"] - flow["n_unreadable"]
    found = {f"{readable:,}", f"{readable - flow['n_without_split']:,}"}
    for one in cohort["characteristics"]:
        for figures in filter(None, one["figures"]):
            found |= {f"{value:.4g}" for value in figures} | {f"{int(value):,}" for value in figures}
            if one["kind"] == "count" and figures[1]:
                found.add(f"{100 * figures[0] / figures[1]:.0f}%")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_among_the_results_is_in_metrics(reported: Reported, kind: str) -> None:
    metrics, config, page = read(reported(kind).directory)
    settings = {name: config[name] for name in SETTINGS}
    assert len(NUMBER.findall(" ".join(page.pieces))) > 300
    folded = reported(kind).cross_validation
    stated = set() if folded is None else set(NUMBER.findall(folded.meaning))  # derived from the number of folds
    known = (OF_AREAS, OF_SHARES, OF_SCORES, OF_FOLDS, OF_CALIBRATION)
    stated |= set(NUMBER.findall(" ".join(text for texts in known for text in texts.values())))
    run = reported(kind)  # sizes that a study needs are calculated, and rounded: test_plan.py holds them
    outlook = outlook_of(run)
    further = "" if outlook is None else outlook_text(outlook)
    stated |= set(NUMBER.findall(f"{precision_text(run)} {needs_text(run, evaluation_of(run))} {further}"))
    stated |= {decimal(point.mean) for point in run.learning_curve}
    stated |= numbers_of(config["dataset"]["cohort"]) | figures_of_cohort(config["dataset"]["cohort"])
    assert unknown(page.pieces, numbers_of(metrics, settings) | WORDS | stated) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_beside_an_image_is_in_its_predictions_or_in_metrics(reported: Reported, kind: str) -> None:
    metrics, _, page = read(reported(kind).directory)
    predicted = [values.tolist() for values in reported(kind).predictions.probabilities.values()]
    assert unknown(page.images, numbers_of(metrics, predicted) | WORDS) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_of_where_they_came_from_is_in_config_or_metrics(reported: Reported, kind: str) -> None:
    metrics, config, page = read(reported(kind).directory)
    run = reported(kind)
    checklists = checklists_of(run, evaluation_of(run))
    counts = [[len(items), sum(bool(item.answer) for item in items)] for items in checklists.values()]
    items = [item.number for items in checklists.values() for item in items]
    cited = [*LITERATURE, *LITERATURE.values(), f"{N_DRAWS:,}", f"{N_CURVES}"]
    assert unknown(page.sources, numbers_of(metrics, config, counts, items, DESCRIBED, cited) | WORDS) == set()


@pytest.mark.parametrize("kind", ["demo", "patients"])
def test_first_screen_has_the_figures_of_the_selected_head(reported: Reported, kind: str) -> None:
    metrics, _, page = read(reported(kind).directory)
    text = " ".join(" ".join(page.pieces).split())
    scores = next(head["test"] for head in metrics["heads"] if head["name"] == metrics["selected"])
    ends = scores.get("roc_auc_ci95")
    beside = scores["roc_auc_ci95_method"] if ends is None else f"95% interval {plain(interval(ends))}"
    assert f"Test ROC AUC {decimal(scores['roc_auc'])} {beside}" in text
    point = metrics["assessment"]["classes"][0]["points"][0]
    for name in ("sensitivity", "specificity"):
        share = point["result"][name]
        beside = share["method"] if share["low"] is None else "95% interval"
        assert f"Test {name} {decimal(share['value'])} {beside}" in text
    if kind == "patients":
        assert point["by_patient"] is None
        sensitivity = point["result"]["sensitivity"]
        ends = plain(interval((sensitivity["low"], sensitivity["high"])))
        assert f"95% interval {ends}, {sensitivity['n_hits']} of {sensitivity['n']}" in text


@pytest.mark.parametrize("kind", KINDS)
def test_variants_table_has_each_head_and_its_comparison(reported: Reported, kind: str) -> None:
    metrics, _, page = read(reported(kind).directory)
    text = " ".join(" ".join(page.pieces).split())
    for one in metrics["comparisons"]:
        beside = one["interval"] if one["low"] is None else plain(interval((one["low"], one["high"])))
        assert f"{decimal(one['difference'])} ({beside})" in text
    for variant in (*metrics["heads"], *metrics["references"]):
        for split in ("val", "test"):
            scores = variant[split]
            has_ends = "roc_auc_ci95" in scores
            beside = plain(interval(scores["roc_auc_ci95"])) if has_ends else scores["roc_auc_ci95_method"]
            assert not (has_ends and split == "val" and variant["name"] == metrics["selected"])
            assert f"{decimal(scores['roc_auc'])} ({beside})" in text


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_for_the_script_are_those_of_the_operating_points(reported: Reported, kind: str) -> None:
    metrics, _, _ = read(reported(kind).directory)
    html = (reported(kind).directory / "report.html").read_text(encoding="utf-8")
    data = json.loads(html.split('id="numbers">')[1].split("</script>")[0])
    for problem, assessed in zip(data["problems"], metrics["assessment"]["classes"], strict=True):
        assert problem["name"] == assessed["name"]
        assert problem["n_positive"] + problem["n_negative"] == assessed["n"]
        assert problem["n_positive"] == assessed["n_positive"]
        results = [point["result"] for point in assessed["points"] if point["result"]]
        keys = ("threshold", "true_positives", "false_positives")
        assert [[point[key] for key in keys] for point in problem["points"]] == [
            [r[key] for key in keys] for r in results
        ]


@pytest.mark.parametrize("kind", ["demo", "classes"])
def test_confusion_matrix_of_all_classes_is_in_metrics(reported: Reported, kind: str) -> None:
    metrics, _, _ = read(reported(kind).directory)
    html = (reported(kind).directory / "report.html").read_text(encoding="utf-8")
    found = [int(count.replace(",", "")) for count in re.findall(r"<b>([\d,]+)</b>\d+%", html)]
    counts = metrics["assessment"]["confusion"]["counts"]
    assert found == ([] if kind == "demo" else [n for row in counts for n in row])
    assert sum(map(sum, counts)) == metrics["assessment"]["classes"][0]["n"]


def test_splits_in_metrics_are_those_of_the_predictions(reported: Reported) -> None:
    metrics, config, _ = read(reported("demo").directory)
    run = reported("demo")
    for size in metrics["splits"][:-1]:
        rows = [i for i, split in enumerate(run.predictions.splits) if split == size["split"]]
        assert size["n_images"] == len(rows)
        assert size["n_patients"] == len({run.predictions.patients[i] for i in rows})
        assert size["counts"]["malignant"] == sum(run.predictions.labels[i] == "malignant" for i in rows)
    assert metrics["splits"][-1]["n_images"] == len(run.predictions.paths)
    assert metrics["splits"][-1]["n_patients"] == config["dataset"]["n_patients"]
