"""One figure, one interval: terminal, JSON, report, model card, tables for a paper and `predict` say the same."""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hoarfrost.cli.console.training import train_text
from hoarfrost.heads.files import SavedHead
from hoarfrost.inference.export.card import model_card
from hoarfrost.inference.predict import open_predictor, run_head
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.files import Table
from hoarfrost.report.outputs import write_report
from hoarfrost.report.paper import tables_of
from hoarfrost.report.variants import area_methods
from hoarfrost.runs import Run, metrics_document, precision_text, read_heads, read_run
from tests.experiment.test_assessment import train
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache

LABELS = mixed({"benign": 140, "malignant": 80})
OPTIMISTIC = "selected on these; optimistic"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train with folds and another rule than the default one."""
    cache = write_labelled_cache(
        tmp_path_factory.mktemp("one") / "c.h5", LABELS, embeddings=embeddings_of(LABELS, distance=0.09)
    )
    found = train(cache, ("linear", "mlp:8"), n_folds=3, operating_point="sensitivity=0.9", prevalence=0.1)
    return read_run(found.directory)


def text(value: float | None, low: float | None, high: float | None) -> str:
    assert None not in (value, low, high)
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def plain(html: str) -> str:
    """Return the words of a page, as the terminal would write them."""
    words = re.sub(r"<[^>]*>", " ", html.split("<body")[1]).replace("&nbsp;", " ").replace("\N{NO-BREAK SPACE}", " ")
    words = words.replace("&ge;", ">=").replace("≥", ">=").replace("&#39;", "'").replace("\N{MINUS SIGN}", "-")
    return " ".join(words.split())


def saved(run: Run) -> SavedHead:
    return run_head(read_heads(run.directory))


def row_of(table: Table, **wanted: object) -> dict[str, object]:
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    (found,) = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    return found


def test_every_output_has_the_same_area_interval_threshold_and_accuracy(run: Run) -> None:
    document = json.loads(json.dumps(metrics_document(run)))
    head = next(one for one in document["heads"] if one["name"] == document["selected"])
    test, point = head["test"], document["assessment"]["classes"][0]["points"][0]
    area = text(test["roc_auc"], *test["roc_auc_ci95"])
    sensitivity, specificity = (
        text(*(point["result"][name][part] for part in ("value", "low", "high")))
        for name in ("sensitivity", "specificity")
    )
    at, rule = f"threshold >= {point['point']['threshold']:.3f}", "sensitivity >= 0.9"
    assert (point["point"]["name"], test["decided_by"], test["thresholds"]) == (
        rule,
        rule,
        [point["point"]["threshold"]],
    )
    folded = document["cross_validation"]["results"][0]["pooled"]
    pooled = text(folded["roc_auc"], *folded["roc_auc_ci95"])

    terminal = train_text(run)
    page = plain(write_report(run.directory, with_map=False).read_text(encoding="utf-8"))
    card = model_card(run, saved(run), "m.onnx", []).replace("\N{NO-BREAK SPACE}", " ").replace("≥", ">=")
    tables = tables_of(run)

    assert area in terminal
    assert f"{test['roc_auc']:.3f} 95% interval {area.partition('(')[2][:-1]} ({test['roc_auc_ci95_method']})" in page
    assert f"| {test['roc_auc']:.3f} | {area.partition('(')[2][:-1]} | {test['roc_auc_ci95_method']} |" in card
    heads = row_of(tables["heads"], head=document["selected"])
    assert text(heads["test_roc_auc"], heads["test_roc_auc_low"], heads["test_roc_auc_high"]) == area  # type: ignore[arg-type]

    assert pooled in terminal
    assert pooled in page
    assert pooled in card
    folds = row_of(tables["cross-validation"], head="selected in each fold")
    assert text(folds["roc_auc"], folds["low"], folds["high"]) == pooled  # type: ignore[arg-type]

    for found in (sensitivity, specificity):
        assert found in terminal
        assert found in page
        assert found in card
    points = row_of(tables["operating points"], rule=rule)
    for name, expected in (("sensitivity", sensitivity), ("specificity", specificity)):
        assert text(*(points[f"{name}{end}"] for end in ("", "_low", "_high"))) == expected  # type: ignore[arg-type]

    assert f"{at} ({rule}" in terminal
    assert f"at {at} ({rule})" in page
    assert f"At {at}" in card or f"at {at} ({rule})" in card
    assert (heads["test_decided_by"], heads["test_threshold"]) == (rule, point["point"]["threshold"])
    assert open_predictor(run.directory).decided_by() == f"{rule}, {at}"
    right = point["result"]["true_positives"] + point["result"]["true_negatives"]
    assert test["accuracy"] == right / test["n"] == heads["test_accuracy"]
    for output in (terminal, page, card):
        assert f"{test['accuracy']:.3f}" in output


def test_predict_decides_as_the_run_did(run: Run) -> None:
    test = run.head(run.selected).test
    assert test is not None
    rows = run.rows_of("test")
    x = embeddings_of(LABELS, distance=0.09)[rows]
    found = open_predictor(run.directory).predict(x)
    assert float((found.called[:, 1] == run.y_true()[rows]).mean()) == test.value("accuracy")


def test_scores_of_what_selected_the_head_have_no_interval_and_say_so_everywhere(run: Run) -> None:
    document = metrics_document(run)
    members = run.head(run.selected).shares
    for one in document["heads"]:
        is_chosen = one["name"] == run.selected or members.get(one["name"], 0) > 0 or one["trained_as"]
        assert ("roc_auc_ci95" in one["val"]) == (not is_chosen)
    val = run.head(run.selected).val
    assert val.auc.method == OPTIMISTIC
    assert "AUC is optimistic, because the same images selected it." in train_text(run)
    page = plain(write_report(run.directory, with_map=False).read_text(encoding="utf-8"))
    assert f"{val.value('roc_auc'):.3f} ({OPTIMISTIC})" in page
    assert OPTIMISTIC not in area_methods(run, evaluation_of(run))
    heads = row_of(tables_of(run)["heads"], head=run.selected)
    assert (heads["val_roc_auc_low"], heads["val_roc_auc_high"], heads["val_roc_auc_method"]) == (
        None,
        None,
        OPTIMISTIC,
    )


def test_without_a_test_split_the_selected_head_has_no_interval_at_all(tmp_path: Path) -> None:
    labels = mixed({"benign": 70, "malignant": 50})
    cache = write_labelled_cache(
        tmp_path / "c.h5", labels, splits=["train"] * 80 + ["val"] * 40, embeddings=embeddings_of(labels, distance=0.09)
    )
    found = read_run(train(cache, ("linear", "mlp:8")).directory)
    area = found.head(found.selected).val.auc
    assert area.interval is None
    assert f"{area.value:.3f} ({OPTIMISTIC})" in train_text(found)
    page = plain(write_report(found.directory, with_map=False).read_text(encoding="utf-8"))
    assert f"Validation ROC AUC {area.value:.3f} {OPTIMISTIC}" in page
    assert "The ROC AUC has no interval, because these images also selected the model" in page
    card = model_card(found, saved(found), "m.onnx", [])
    assert f"| {area.value:.3f} | — | {OPTIMISTIC} |" in card


@pytest.fixture(scope="module")
def untested(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train without a test split, on patients with several images and on an attribute."""
    labels = [label for label in mixed({"benign": 140, "malignant": 100}) for _ in range(2)]
    cache = write_labelled_cache(
        tmp_path_factory.mktemp("untested") / "c.h5", labels, splits=["train"] * 240 + ["val"] * 240,
        embeddings=embeddings_of(labels, distance=0.07), patients=[f"p{i // 2}" for i in range(480)],
        attributes={"site": ["A", "A", "B", "B"] * 120},
    )  # fmt: skip
    return read_run(train(cache, ("logistic", "mlp:8"), positive=["malignant"], prevalence=0.1).directory)


def ends_of(values: Any, place: str = "") -> Iterator[str]:
    """Yield the places of intervals and p values in a JSON document."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        here = f"{place}.{key}"
        is_end = key in {"low", "high", "p", "p_holm"} or str(key).endswith(
            ("_ci95", "slope_interval", "error_interval")
        )
        if is_end and value not in (None, []):
            yield here
        elif isinstance(value, dict | list):
            yield from ends_of(value, here)


def test_without_a_test_split_no_figure_of_what_was_selected_has_an_interval_or_p(untested: Run) -> None:
    document = json.loads(json.dumps(metrics_document(untested)))
    chosen = {untested.selected, *(name for name, share in untested.head(untested.selected).shares.items() if share)}
    chosen |= {head.name for head in untested.heads if head.trained_as}
    assert chosen >= {"mean", "logistic"}
    for kind in ("heads", "references"):
        for one in document[kind]:
            if one["name"] in chosen or one.get("setting"):
                assert list(ends_of(one["val"])) == []
                assert one["val"]["roc_auc_ci95_method"] == OPTIMISTIC
    assessed = document["assessment"]
    assert list(ends_of({name: value for name, value in assessed.items() if name != "calibration"})) == []
    assert [place for place in ends_of(assessed["calibration"]) if not place.endswith("curve.p")] == []
    point = assessed["classes"][0]["points"][0]
    for name in ("sensitivity", "specificity", "ppv", "npv", "lr_positive"):
        assert point["result"][name]["method"] == OPTIMISTIC
    assert {one["reason"] for one in assessed["heterogeneity"]} == {OPTIMISTIC}
    assert read_run(untested.directory).assessment == untested.assessment


def test_without_a_test_split_every_output_says_optimistic_and_prints_no_interval(untested: Run) -> None:
    assert untested.assessment is not None
    fixed = untested.assessment.classes[0].points[0]
    assert fixed.result is not None
    sensitivity = f"{fixed.result.sensitivity.value:.3f} ({OPTIMISTIC})"
    html = write_report(untested.directory, with_map=False).read_text(encoding="utf-8")
    page = plain(html)
    card = model_card(untested, saved(untested), "m.onnx", []).replace("\N{NO-BREAK SPACE}", " ")
    for output in (train_text(untested), page, card):
        assert sensitivity in output
    interval = re.compile(r"\d\.\d{3} \(-?\d\.\d{3} to ")
    own = re.findall(r"(?m)^.*\b(?:mean|logistic|Sensitivity|specificity)\b.*$", train_text(untested))
    assert own
    assert not any(interval.search(line) for line in own)
    assert not interval.search(card)
    sections = [one for one in html.split("<section") if not re.search('id="(heads|acquisition)"', one)]
    assert len(sections) > 5
    assert not [interval.search(plain(f"<body{one}")) for one in sections if interval.search(plain(f"<body{one}"))]
    for end in ("low", "high"):
        points = tables_of(untested)["operating points"]
        at = [i for i, name in enumerate(points.columns) if name.endswith(f"_{end}")]
        assert at
        assert all(row[i] is None for row in points.rows for i in at)


def test_csvs_of_the_paper_name_the_rule(run: Run, tmp_path: Path) -> None:
    from hoarfrost.report.outputs import report_runs

    report_runs([run.directory], output=tmp_path / "r.html", figures=tmp_path / "figures", with_map=False)
    with (tmp_path / "figures" / "heads.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["test_decided_by"] for row in rows} <= {"sensitivity >= 0.9", "Youden's index", ""}
    assert rows[0]["test_decided_by"] == "sensitivity >= 0.9"


def test_the_interval_has_one_statement_of_its_width_and_it_is_the_terminals(run: Run) -> None:
    statement = precision_text(run)
    assert statement in train_text(run)
    page = plain(write_report(run.directory, with_map=False).read_text(encoding="utf-8"))
    assert page.count("gives an interval of width") == page.count(statement) == 1
    found = metrics_document(run)["precision"]
    area = run.head(run.selected).test.auc  # type: ignore[union-attr]
    assert found["width"] == pytest.approx(area.high - area.low)  # type: ignore[operator]


def test_card_has_the_thresholds_of_patients_next_to_their_results(tmp_path: Path) -> None:
    patients = [f"p{number // 2}" for number in range(240)]
    labels = [label for label in mixed({"benign": 70, "malignant": 50}) for _ in range(2)]
    cache = write_labelled_cache(
        tmp_path / "c.h5", labels, patients=patients, embeddings=embeddings_of(labels, distance=0.07)
    )
    run = read_run(train(cache, positive=["malignant"], per_patient="max").directory)
    card = model_card(run, saved(run), "m.onnx", [])
    assert run.assessment is not None
    for fixed in run.assessment.classes[0].points:
        if fixed.result is not None:
            shown = text(fixed.result.sensitivity.value, *(fixed.result.sensitivity.interval or (None, None)))
            assert f"| {fixed.point.threshold:.6g} | {shown} |" in card
    assert "For single images" in card
