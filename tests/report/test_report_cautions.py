"""What a report says must be known before its figures are believed, where it says so, and when it does not."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from sklearn.metrics import average_precision_score

from hoarfrost.evaluation import (
    Estimate,
    OperatingPoint,
    Scores,
    Subgroup,
    evaluate_threshold,
    precision_recall_curve,
)
from hoarfrost.evaluation.leakage import Leakage, SharedPair, SimilarPair
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.report.checklists import CLAIM, TRIPOD, checklists_of
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.first import grave_warnings, tiles, warnings_of
from hoarfrost.report.methods import methods_of
from hoarfrost.report.variants import area_methods
from hoarfrost.report.words import decimal, estimate_text, interval, p_text
from hoarfrost.runs import FixedPoint, Run, from_json, to_json
from tests.support.labelled import embeddings_of, write_labelled_cache
from tests.support.made_runs import make_run
from tests.support.samples import Sample, samples

SHARED = SharedPair("the patient 'p1'", "a.png", "train", "b.png", "test", 4)
NOTHING_SHARED = Leakage(0, (), 0, (), 0, (), 0.9)


def texts(run: Run) -> tuple[dict[str, str], dict[str, str]]:
    """Return the cautions above everything and those below the answer: title -> text."""
    evaluation = evaluation_of(run)
    return tuple({one.title: one.text for one in found(run, evaluation)} for found in (grave_warnings, warnings_of))  # type: ignore[return-value]


def subgroup(value: str, auc: float, low: float, high: float) -> Subgroup:
    return Subgroup("scanner", value, 30, (20, 10), Estimate(auc, low, high, "DeLong", 30), None, None)


# -- cautions -----------------------------------------------------------------------------------------------------------


def test_allowed_leakage_stands_above_everything_with_its_number(tmp_path: Path) -> None:
    leakage = replace(NOTHING_SHARED, n_patients=1, patients=(SHARED,), allowed=True)
    grave, others = texts(replace(make_run(tmp_path), leakage=leakage))
    assert grave["Leakage"].startswith("Leakage, allowed by --allow-leakage: 1 patient is in two splits")
    assert others == {}


def test_near_duplicates_and_what_was_not_compared_stand_below_the_answer(tmp_path: Path) -> None:
    pair = SimilarPair("a.png", "train", "b.png", "test", 0.987)
    found = replace(NOTHING_SHARED, n_near_duplicates=2, near_duplicates=(pair,))
    said = texts(replace(make_run(tmp_path), leakage=found))[1]["Near-duplicates"]
    assert said.startswith("2 pairs of near-identical images are in different splits (cosine above 0.9)")
    unknown = replace(NOTHING_SHARED, not_compared="300,000 images are too many to compare with one another")
    said = texts(replace(make_run(tmp_path), leakage=unknown))[1]["Near-duplicates"]
    assert said == "Not searched for: 300,000 images are too many to compare with one another."


def test_a_warning_of_the_run_is_not_said_twice(tmp_path: Path) -> None:
    leakage = replace(NOTHING_SHARED, n_patients=1, patients=(SHARED,), allowed=True)
    run = replace(make_run(tmp_path), leakage=leakage)
    said = texts(run)[0]["Leakage"]
    run = replace(run, config=replace(run.config, warnings=(said, "Something else.")))
    assert texts(run) == ({"Leakage": said}, {"Note": "Something else."})


def test_alarm_of_the_selected_head_is_grave_and_those_of_others_are_not(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    alarm = "collapsed: it calls every validation image 'benign'"
    run = replace(run, heads=tuple(replace(head, alarms=(alarm,)) for head in run.heads))
    grave, others = texts(run)
    assert grave == {"Selected head": f"The selected head mlp:256: {alarm}."}
    assert others["Other heads"] == "2 heads with a warning: linear, mlp:256x2,dropout=0.2."


def test_few_patients_are_counted_and_their_interval_said(reported_demo: Run) -> None:
    evaluation = evaluation_of(reported_demo)
    area = evaluation.area(reported_demo.head(reported_demo.selected))
    assert evaluation.patients is not None
    n_all, n_with = (
        len(np.unique(evaluation.patients[rows])) for rows in (evaluation.y_true >= 0, evaluation.y_true == 1)
    )
    said = texts(reported_demo)[1]["Few patients"]
    assert said.startswith(f"Only {n_with} of the {n_all} test patients are malignant")
    assert said.endswith(f"other patients could change the ROC AUC: {estimate_text(area)}.")


def test_only_a_subgroup_whose_interval_lies_below_all_is_uneven(reported_demo: Run) -> None:
    assessment = reported_demo.assessment
    assert assessment is not None
    auc = evaluation_of(reported_demo).scores(reported_demo.head(reported_demo.selected)).value("roc_auc")
    low, wide = subgroup("B", auc - 0.2, auc - 0.3, auc - 0.1), subgroup("B", auc - 0.2, auc - 0.3, auc + 0.01)
    for found, is_said in ((low, True), (wide, False)):
        run = replace(reported_demo, assessment=replace(assessment, subgroups=(subgroup("A", auc, auc, 1.0), found)))
        said = texts(run)[1].get("Uneven subgroups", "")
        assert said.startswith("scanner B (30 images): ROC AUC") == is_said


@pytest.fixture
def reported_demo(reported) -> Run:  # type: ignore[no-untyped-def]
    run: Run = reported("demo")
    return run


# -- intervals ----------------------------------------------------------------------------------------------------------


def test_newcombes_interval_is_printed_in_place_of_delongs_where_a_run_has_it(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    plain = tiles(run, evaluation_of(run))[0]
    assert not any("Newcombe" in note for note in plain.notes)
    beside = {"roc_auc_ci95_method": "DeLong", "roc_auc_ci95_newcombe": [0.6123, 0.9456]}
    tests = [from_json({**to_json(head.test), **beside}, Scores) for head in run.heads]
    run = replace(run, heads=tuple(replace(head, test=test) for head, test in zip(run.heads, tests, strict=True)))
    notes = tiles(run, evaluation_of(run))[0].notes
    assert notes[0] == f"95% interval {interval((0.6123, 0.9456))} (Newcombe)"
    assert area_methods(run, evaluation_of(run)) == (
        "95% intervals of the ROC AUC: test by Newcombe. Newcombe's is used for few images of a class or an AUC near 1. "
        "Coverage of these 95% intervals in simulations: DeLong's and Newcombe's, as they are chosen here, 92 to 100%, "
        "lowest with a rare class."
    )
    written = methods_of(run, evaluation_of(run))
    assert "by Newcombe's method (Newcombe 2006)" in written
    assert "References: Newcombe 2006, Statistics in Medicine" in written
    assert "Efron" not in written


def test_interval_over_patients_goes_before_wilsons_unless_it_has_no_width() -> None:
    result = evaluate_threshold(np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.7, 0.8, 0.9, 0.6]), 0.5)
    point = OperatingPoint("Youden's index", 0.5, 1.0, 1.0)
    written = to_json(FixedPoint(point, result))
    assert written["by_patient"] is None
    assert from_json(written, FixedPoint) == FixedPoint(point, result)
    for name in ("sensitivity", "specificity", "ppv", "npv"):  # as an earlier version wrote them
        del written["result"][name]["method"]
    written["by_patient"] = {"sensitivity": [1.0, 1.0], "specificity": [0.4, 0.9], "ppv": None, "npv": [1.0, 1.0]}
    fixed = from_json(written, FixedPoint)
    assert fixed.result is not None
    assert fixed.result.sensitivity == result.sensitivity
    assert (fixed.result.specificity.interval, fixed.result.npv) == ((0.4, 0.9), result.npv)
    assert fixed.result.ppv.interval is None
    assert from_json(to_json(fixed), FixedPoint) == fixed


@given(samples())
def test_area_under_the_drawn_steps_is_the_average_precision(sample: Sample) -> None:
    y_true, y_score = sample
    precision, recall, thresholds = precision_recall_curve(y_true, y_score)
    area = float((np.diff(recall, prepend=0) * precision).sum())
    assert area == pytest.approx(average_precision_score(y_true, y_score))
    assert (np.diff(thresholds) < 0).all()
    for at, found, all_found in zip(thresholds, precision, recall, strict=True):
        called = y_score >= at
        assert found == pytest.approx(y_true[called].mean())
        assert all_found == pytest.approx(y_true[called].sum() / y_true.sum())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0625, "0.062"),
        (0.1875, "0.188"),
        (-0.0001, "0.000"),
        (0.8625, "0.863"),
        (np.float64(0.8625), "0.863"),
        (-0.031, "\N{MINUS SIGN}0.031"),
        (None, "\N{EM DASH}"),
    ],
)
def test_shares_are_written_with_three_decimals_and_no_minus_before_zero(value: float | None, text: str) -> None:
    assert decimal(value) == text


def test_small_p_values_are_not_written_as_zero() -> None:
    assert [p_text(p) for p in (0.0004, 0.001, 0.5, None)] == ["<0.001", "0.001", "0.500", "\N{EM DASH}"]


# -- where it came from -------------------------------------------------------------------------------------------------


def test_digest_tells_which_images_and_which_embeddings_a_run_used(tmp_path: Path) -> None:
    labels = ["a", "b"] * 5
    x = embeddings_of(labels)
    paths = [
        write_labelled_cache(tmp_path / f"{i}.h5", labels, embeddings=each) for i, each in enumerate((x, x, x * 2))
    ]
    digests = []
    for path in paths:
        with EmbeddingCache(path) as cache:
            rows = cache.dataset().rows
            digests.append((cache.digest(rows), cache.digest(rows[:-1])))
    assert digests[0] == digests[1]
    assert len({*digests[0], *digests[2]}) == 4


def test_checklists_have_the_items_that_they_are_published_with() -> None:
    assert [number for number, _, _ in CLAIM] == [str(i) for i in range(1, 45)]
    mains = [number.rstrip("abcdefg") for number, _, _ in TRIPOD]
    assert list(dict.fromkeys(mains)) == [str(i) for i in range(1, 28)]
    assert len(TRIPOD) == len({number for number, _, _ in TRIPOD}) == 52


def test_checklists_leave_to_the_author_what_no_run_can_know(reported_demo: Run) -> None:
    found = checklists_of(reported_demo, evaluation_of(reported_demo))
    answered = {name: {item.number for item in items if item.answer} for name, items in found.items()}
    assert {"7", "19", "20", "22", "23", "26", "29", "37", "38"} <= answered["CLAIM 2024"]
    assert not {"2", "3", "4", "5", "8", "13", "14", "21", "33", "34", "40", "41", "44"} & answered["CLAIM 2024"]
    assert {"12a", "12c", "12e", "15", "20b", "22", "23a"} <= answered["TRIPOD+AI"]
    answers = {item.number: item.answer for item in found["CLAIM 2024"]}
    assert answers["36"].startswith("by split and class: ")
    assert not {"3a", "3b", "4", "5b", "6b", "17", "18a", "19", "25", "26", "27a"} & answered["TRIPOD+AI"]


def test_methods_say_what_was_done_and_nothing_that_was_not(reported_demo: Run, tmp_path: Path) -> None:
    full, bare = (methods_of(run, evaluation_of(run)) for run in (reported_demo, make_run(tmp_path)))
    for words in (
        "Holm's method",
        "cross-validated in 3 folds",
        "temperature fitted on out-of-fold predictions",
        "were divided into 5 folds",
        "prevalence of 0.1",
    ):
        assert words in full
        assert words not in bare
    assert "untrained, randomly initialised weights (random:0)" in full
    assert "pretrained on ImageNet" in bare
    assert re.search(r"3 heads \([^)]*\) were trained", full)  # the mean of all kinds is none of them
