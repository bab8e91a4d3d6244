"""A metric is one entry: it is scored, written, read back and shown wherever metrics are. Earlier runs still open."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoarfrost.cli.console.training import train_text
from hoarfrost.evaluation import (
    Comparison,
    Metric,
    Scores,
    Subgroup,
    metrics,
    score,
)
from hoarfrost.evaluation.intervals import IntervalKind
from hoarfrost.evaluation.metrics import OneAgainstRest, ShownIn, registered
from hoarfrost.evaluation.shares import BOOTSTRAP
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.export.card import model_card
from hoarfrost.inference.predict import run_head
from hoarfrost.report.compare import render_comparison, side_by_side
from hoarfrost.report.files import csv_text
from hoarfrost.report.page import render
from hoarfrost.report.paper import tables_of
from hoarfrost.runs import Run, from_json, metrics_document, read_heads, read_run, to_json
from hoarfrost.training import TrainingConfig
from tests.support.commands import ROOT
from tests.support.labelled import mixed, write_labelled_cache
from tests.support.made_runs import Page
from tests.support.samples import drawn_probabilities


def youden(one: OneAgainstRest) -> float:
    return one.sensitivity + one.specificity - 1


YOUDEN = Metric(
    "youden_j", "Youden's J", "sensitivity + specificity - 1", True, of_class=youden, interval=IntervalKind.RESAMPLED
)


@pytest.fixture
def with_youden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, YOUDEN))


def trained(folder: Path, **options: Any) -> Run:
    labels = mixed({"benign": 120, "malignant": 80})
    patients = [f"p{i // 2}" for i in range(len(labels))]
    cache = write_labelled_cache(folder / "cache.h5", labels, patients=patients)
    config = ExperimentConfig(training=TrainingConfig(epochs=2), **options)
    return run_experiment(cache, folder / "run", parse_heads(["linear", "mlp:8"]), config)


def text_of(found: Any) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})".replace("-", "\N{MINUS SIGN}")


@pytest.mark.usefixtures("with_youden")
def test_metric_of_one_entry_is_in_every_output_with_its_interval(tmp_path: Path) -> None:
    run = trained(tmp_path, n_folds=2)
    test = run.head(run.selected).test
    assert test is not None
    found = test["youden_j"]
    assert found.interval is not None
    written = next(head for head in metrics_document(run)["heads"] if head["name"] == run.selected)["test"]
    assert written["youden_j"] == found.value
    assert written["youden_j_ci95"] == list(found.interval)
    assert read_run(run.directory).head(run.selected) == run.head(run.selected)
    shown = train_text(run)
    assert "test Youden's J (95% CI)" in shown
    assert text_of(found).replace("\N{MINUS SIGN}", "-") in shown
    page = Page(render(run, with_images=False, with_map=False)).text
    assert f"Test Youden's J {found.value:.3f} 95% interval".replace("-", "\N{MINUS SIGN}") in page
    assert page.count("test Youden's J") == 1  # the comparison of heads; the tile is above
    assert "pooled Youden's J" in page
    assert text_of(found) in page
    compared = Page(render_comparison(side_by_side([run, other_run(run)]))).text
    assert "Youden's J" in compared
    assert text_of(found) in compared
    rows = list(csv.DictReader(io.StringIO(csv_text(tables_of(run)["heads"]))))
    assert float(rows[0]["test_youden_j"]) == found.value
    assert float(rows[0]["test_youden_j_low"]) == found.low
    card = model_card(run, run_head(read_heads(run.directory), None), "model.onnx", ["Made."])
    assert f"| Youden's J | {found.value:.3f} |".replace("-", "\N{MINUS SIGN}") in card


def other_run(run: Run) -> Run:
    """Return the same run, as if it were in another folder."""
    return replace(run, directory=run.directory.with_name("other"))


def test_run_of_an_earlier_version_lacks_a_later_metric_and_is_shown_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = trained(tmp_path)
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, YOUDEN))
    again = read_run(run.directory)
    assert "Youden's J" not in train_text(again)
    assert "Youden's J" not in render(again, with_images=False, with_map=False)
    assert "youden_j" not in csv_text(tables_of(again)["heads"])


@pytest.mark.usefixtures("with_youden")
def test_resampled_interval_draws_patients_where_they_have_several_images() -> None:
    y_true, probabilities = drawn_probabilities(120, 2, seed=0)
    by_image, by_patient = (
        score(y_true, probabilities, "ab", groups)["youden_j"] for groups in (None, np.arange(120) // 4)
    )
    assert by_image.value == by_patient.value
    assert (by_image.method, by_patient.method) == ("bootstrap", BOOTSTRAP)
    assert (by_image.n, by_image.n_patients, by_patient.n_patients) == (120, None, 30)
    for one in (by_image, by_patient):
        assert one.low < one.value < one.high  # type: ignore[operator]


@pytest.mark.usefixtures("with_youden")
@pytest.mark.parametrize("n_classes", [2, 3])
def test_scores_read_back_as_they_were_written(n_classes: int) -> None:
    y_true, probabilities = drawn_probabilities(90, n_classes, seed=1)
    for groups in (None, np.arange(90) // 3):
        found = score(y_true, probabilities, "abc"[:n_classes], groups)
        assert from_json(json.loads(json.dumps(to_json(found), allow_nan=False)), Scores) == found


def test_labels_scores_read_back_as_they_were_written() -> None:
    rng = np.random.default_rng(0)
    y_true = rng.integers(-1, 2, (80, 2))
    found = score(y_true, rng.random((80, 2)), "ab", np.arange(80) // 2)
    assert from_json(to_json(found), Scores) == found
    assert found.per_class["a"].auc.n == (y_true[:, 0] >= 0).sum()


# What `metrics.json` held of three labels before there were records for it.
EARLIER = {
    "n": 80, "accuracy": 0.7, "majority_accuracy": 0.6, "loss": 0.55, "brier": 0.2, "balanced_accuracy": 0.68,
    "f1": 0.6, "matthews": 0.3, "average_precision": 0.71, "roc_auc": 0.8, "roc_auc_ci95": [0.72, 0.88],
    "roc_auc_ci95_method": "DeLong", "roc_auc_ci95_newcombe": [0.7, 0.87],
    "roc_auc_per_class": {"a": 0.9, "b": 0.7}, "roc_auc_ci95_per_class": {"a": [0.8, 0.95], "b": [0.6, 0.8]},
    "n_known_per_class": {"a": 75, "b": 80},
    "per_class": {
        label: {
            "n": 30, "roc_auc": area, "average_precision": 0.6, "brier": 0.2, "loss": 0.5, "sensitivity": 0.7,
            "specificity": 0.8, "precision": 0.6, "f1": 0.65, "balanced_accuracy": 0.75, "matthews": 0.4,
        }
        for label, area in (("a", 0.9), ("b", 0.7))
    },
}  # fmt: skip


def test_scores_of_earlier_versions_are_read() -> None:
    found = from_json(EARLIER, Scores)
    # Of two intervals the one that was printed.
    assert (found.n, found.auc.value, found.auc.interval, found.auc.method) == (80, 0.8, (0.7, 0.87), "Newcombe")
    one = found.per_class["a"]
    assert (one.n, one.auc.n, one.auc.value, one.auc.interval) == (30, 75, 0.9, (0.8, 0.95))
    assert one.value("sensitivity") == 0.7
    written = to_json(found)
    now = {**EARLIER, "roc_auc_ci95": EARLIER["roc_auc_ci95_newcombe"], "roc_auc_ci95_method": "Newcombe"}
    del now["roc_auc_ci95_newcombe"]
    assert now.items() <= {**written, "per_class": EARLIER["per_class"]}.items()
    for label, earlier in EARLIER["per_class"].items():  # type: ignore[attr-defined]
        assert earlier.items() <= written["per_class"][label].items()


def test_earliest_scores_with_areas_of_classes_alone_are_read() -> None:
    found = from_json(
        {"n": 9, "roc_auc": 0.8, "roc_auc_ci95": [0.7, 0.9], "roc_auc_per_class": {"x": 0.75}, "later": {}}, Scores
    )
    assert found.per_class["x"].auc.value == 0.75
    assert (found.auc.method, found.auc.n) == ("", 9)


def test_subgroup_and_difference_of_earlier_versions_are_read() -> None:
    subgroup = {
        "attribute": "site", "value": "A", "n": 30, "counts": [20, 10], "roc_auc": 0.8, "low": 0.7, "high": 0.9,
        "interval": "DeLong", "sensitivity": {"value": 0.5, "low": 0.2, "high": 0.8, "n_hits": 5, "n": 10},
        "specificity": None, "reason": "",
    }  # fmt: skip
    found = from_json(subgroup, Subgroup)
    assert (found.roc_auc.value, found.roc_auc.interval, found.roc_auc.method, found.roc_auc.n) == (
        0.8, (0.7, 0.9), "DeLong", 30,
    )  # fmt: skip
    subgroup["sensitivity"]["method"] = "Wilson"  # type: ignore[index]
    assert to_json(found) == {**subgroup, "n_patients": None}
    comparison = {
        "name": "linear", "difference": -0.1, "low": -0.2, "high": 0.0, "z": -1.0, "p": 0.3, "p_holm": 0.3, "reason": "",
    }  # fmt: skip
    read = from_json(comparison, Comparison)
    assert (read.difference.value, read.difference.interval, read.p) == (-0.1, (-0.2, 0.0), 0.3)
    assert comparison.items() <= to_json(read).items()


# -- the registry -------------------------------------------------------------------------------------------------------


def test_every_metric_has_a_key_of_its_own_and_says_what_it_is() -> None:
    keys = [metric.key for metric in registered()]
    assert len(set(keys)) == len(keys)
    for metric in registered():
        assert metric.of_class is not None or metric.overall is not None
        assert metric.baseline in {"", *keys}
        assert metric.hint.endswith(("higher is better", "lower is better"))
    assert [metric.key for metric in registered(ShownIn.WIDE)] == ["roc_auc", "accuracy", "loss"]


def test_no_other_file_spells_the_keys_of_intervals() -> None:
    spelt = [
        path.name
        for folder in ("pipeline", "features")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".j2", ".js"} and "ci95" in path.read_text(encoding="utf-8")
    ]
    assert spelt == ["scores.py"]


def test_undefined_draws_leave_a_metric_without_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_once(one: OneAgainstRest) -> float:
        if len(set(one.p.tolist())) < len(one.p):
            raise ValueError("undefined of samples that come twice")
        return 0.5

    odd = Metric("odd", "odd", "", True, of_class=only_once, interval=IntervalKind.RESAMPLED)
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, odd))
    found = score(*drawn_probabilities(40, 2, seed=3), "ab")["odd"]
    assert (found.value, found.interval) == (0.5, None)


# -- which interval a proportion gets -----------------------------------------------------------------------------------
