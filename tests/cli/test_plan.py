"""`plan`: patients and cases for a wanted width, from stated values or from a run."""

import json
from pathlib import Path

import pytest

from hoarfrost.cli.console.training import train_text
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.planning import assumed_of, needs_text
from hoarfrost.runs import metrics_document, precision_text, read_run
from tests.experiment.test_assessment import train
from tests.support.commands import Hoarfrost
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = [label for label in mixed({"benign": 60, "malignant": 40}) for _ in range(3)]
    cache = write_labelled_cache(
        tmp_path_factory.mktemp("plan") / "c.h5", labels, embeddings=embeddings_of(labels, distance=0.05),
        patients=[f"p{i // 3}" for i in range(len(labels))],
    )  # fmt: skip
    return train(cache, ("linear", "mlp:8"), with_learning_curve=True).directory


def test_stated_values_give_the_published_number(hoarfrost: Hoarfrost) -> None:
    found = json.loads(hoarfrost("plan", "--prevalence", 0.018, "--auc", 0.8, "--json").stdout)
    assert found["needed"][0] == {
        "quantity": "ROC AUC", "assumed": 0.8, "width": 0.1, "images": 4252, "patients": 4252, "cases": 77,
    }  # fmt: skip
    assert found["largest"] == "observed/expected"


def test_table_has_what_is_stated_and_marks_the_largest_need(hoarfrost: Hoarfrost) -> None:
    shown = hoarfrost(
        "plan", "--prevalence", 0.3, "--auc", 0.85, "--sensitivity", 0.9, "--images-per-patient", 4, "--icc", 0.5
    ).stdout.splitlines()
    assert shown[0].split() == ["quantity", "assumed", "width", "images", "patients", "cases"]
    assert [line.split("  ")[0] for line in shown[1:5]].count("*") == 1
    assert shown[5].startswith("* calibration slope needs most: ")
    assert shown[-1] == "4 images per patient count as 1.60 independent images (design effect 2.50)."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--auc", 0.8], "Pass --prevalence and --auc"),
        (["--prevalence", 0.2, "--auc", 0.4], "--auc"),
        (["--prevalence", 0.2, "--auc", 0.8, "--linear-predictor", 0, 0], "above 0"),
        (["--prevalence", 0.2, "--auc", 0.8, "--linear-predictor", "nan", 1], "must be finite"),
        (["--prevalence", 0.2, "--auc", 0.8, "--linear-predictor", 1000, 1], "no calibration slope can be estimated"),
        (["--prevalence", 0.2, "--auc", 0.5000001], "no calibration slope can be estimated"),
        (["--prevalence", 0.2, "--auc", 0.8, "--width", 1e-6], "needs more than 1,000,000,000,000 images"),
        (["--prevalence", 1e-13, "--auc", 0.95], "needs more than 1,000,000,000,000 images"),
        (["--prevalence", 0.2, "--auc", 0.8, "--calibration-width", 1e-9], "calibration slope with an interval of"),
        (["--prevalence", 0.2, "--auc", 0.8, "--icc", 0.5], "--images-per-patient"),
    ],
)
def test_wrong_use_is_named(hoarfrost: Hoarfrost, arguments: list[object], message: str) -> None:
    done = hoarfrost("plan", *arguments)
    assert done.status == 2
    assert message in done.stderr


def test_widths_are_printed_as_given(hoarfrost: Hoarfrost) -> None:
    printed = hoarfrost("plan", "--prevalence", 0.2, "--auc", 0.8, "--width", 0.075).stdout
    assert "0.800    0.075" in printed
    assert "1.000    0.20 " in printed


def test_another_area_than_that_of_the_run_has_other_probabilities(hoarfrost: Hoarfrost, run: Path) -> None:
    stated = ("--prevalence", 0.3, "--auc", 0.7, "--icc", 1, "--images-per-patient", 3, "--json")
    of_run, alone = (json.loads(hoarfrost("plan", *more, *stated).stdout) for more in (("--run", run), ()))
    assert of_run["needed"][1] == alone["needed"][1]


def test_a_run_gives_what_is_assumed_and_its_statement_is_that_of_the_plan(hoarfrost: Hoarfrost, run: Path) -> None:
    opened = read_run(run)
    wanted = metrics_document(opened)["precision"]
    found = json.loads(hoarfrost("plan", "--run", run, "--width", wanted["wanted"], "--json").stdout)
    assert found["images_per_patient"] == 3
    assert found["needed"][0]["patients"] == wanted["patients"]
    assert [one["quantity"] for one in found["needed"]][-2:] == ["sensitivity", "specificity"]
    assert precision_text(opened) in train_text(opened)
    assert opened.heads[0].test is not None
    assert found["prevalence"] == pytest.approx(evaluation_of(opened).y_true.mean())


def test_given_values_replace_those_of_the_run(hoarfrost: Hoarfrost, run: Path) -> None:
    found = json.loads(hoarfrost("plan", "--run", run, "--prevalence", 0.05, "--auc", 0.8, "--icc", 0, "--json").stdout)
    alone = json.loads(hoarfrost("plan", "--prevalence", 0.05, "--auc", 0.8, "--json").stdout)
    assert found["design_effect"] == 1
    assert found["needed"][0]["images"] == pytest.approx(alone["needed"][0]["images"], abs=3)
    opened = read_run(run)
    predictor = assumed_of(opened, evaluation_of(opened), prevalence=0.05).linear_predictor
    assert predictor is not None
    assert predictor.weights.sum() == pytest.approx(1)


def test_plan_report_and_metrics_need_the_same_images(hoarfrost: Hoarfrost, run: Path) -> None:
    opened = read_run(run)
    found = metrics_document(opened)["precision"]
    done = hoarfrost("plan", "--run", run, "--width", found["wanted"], "--json")
    needed = next(one for one in json.loads(done.stdout)["needed"] if one["quantity"] == "ROC AUC")
    assert (needed["images"], needed["patients"]) == (found["images"], found["patients"])
    assert f"needs about {found['images']:,} images of about {found['patients']:,} patients" in precision_text(opened)


def test_report_states_what_else_is_needed_in_patients(run: Path) -> None:
    opened = read_run(run)
    text = needs_text(opened, evaluation_of(opened))
    assert text.count("patient") == 4
    assert "ROC AUC" not in text


def test_a_run_of_several_classes_is_refused(hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", mixed({"a": 40, "b": 40, "c": 40}))
    several = train(cache, ("linear",)).directory
    done = hoarfrost("plan", "--run", several)
    assert done.status == 1
    assert "one positive class" in done.stderr
    opened = read_run(several)
    assert needs_text(opened, evaluation_of(opened)) == ""
    assert "needs about" in precision_text(opened) or precision_text(opened).endswith(".")
