"""One decision rule: whatever a threshold decides uses the primary operating point, and its name stands beside it."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, matthews_corrcoef

from hoarfrost.cli.console.training import train_text
from hoarfrost.evaluation import Scores, score
from hoarfrost.evaluation.metrics import Decision
from hoarfrost.features.errors import TrainingError
from hoarfrost.inference.predict import open_predictor
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.first import tiles
from hoarfrost.report.gallery import groups_of
from hoarfrost.runs import Run, read_run
from hoarfrost.runs.decoding import from_json, to_json
from tests.experiment.test_assessment import images_of, points_of, train
from tests.experiment.test_assessment import two as two
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache


def decided(run: Run) -> tuple[np.ndarray, np.ndarray, float]:
    y, p = images_of(run, "test")
    threshold = points_of(run)[0].point.threshold
    assert threshold is not None
    return y, (p[:, 1] >= threshold).astype(int), threshold


def test_metrics_of_decisions_are_at_the_threshold_of_the_printed_sensitivity(two: Run) -> None:
    y, found, threshold = decided(two)
    test = two.head(two.selected).test
    assert test is not None
    assert test.thresholds == (threshold,)
    expected = {
        "accuracy": accuracy_score(y, found),
        "balanced_accuracy": balanced_accuracy_score(y, found),
        "f1": f1_score(y, found),
        "matthews": matthews_corrcoef(y, found),
    }
    assert {key: test.value(key) for key in expected} == pytest.approx(expected)
    result = points_of(two)[0].result
    assert result is not None
    right = result.true_positives + result.true_negatives
    assert test.value("accuracy") == pytest.approx(right / len(y))


def test_confusion_matrix_is_at_the_same_threshold(two: Run) -> None:
    y, found, _ = decided(two)
    assert two.assessment is not None
    assert two.assessment.confusion is not None
    assert np.array(two.assessment.confusion.counts).tolist() == confusion_matrix(y, found).tolist()


def test_first_screen_and_gallery_name_the_rule(two: Run) -> None:
    _, _, threshold = decided(two)
    evaluation = evaluation_of(two)
    (accuracy,) = [one for one in tiles(two, evaluation) if one.name.endswith("accuracy")]
    assert f"at threshold ≥ {threshold:.3f} (Youden's index)" in accuracy.notes
    assert f"threshold ≥ {threshold:.3f} (Youden's index)" in groups_of(two, evaluation)["errors"].note


def test_gallery_shows_the_errors_of_this_threshold(two: Run) -> None:
    y, found, _ = decided(two)
    n_wrong = int((y != found).sum())
    assert len(groups_of(two, evaluation_of(two))["errors"].cases) == min(n_wrong, 8)


def test_scores_of_earlier_versions_are_at_a_probability_of_one_half(two: Run) -> None:
    written = to_json(two.head(two.selected).test)
    assert written.pop("thresholds")
    assert from_json(written, Scores).thresholds == ()


def test_labels_are_each_decided_at_their_threshold() -> None:
    y = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    p = np.array([[0.4, 0.6], [0.3, 0.9], [0.1, 0.7], [0.2, 0.8]])
    assert score(y, p, ("a", "b"), decision=Decision((0.25, 0.75))).value("accuracy") == 1
    assert score(y, p, ("a", "b")).value("accuracy") == 0.5


def test_another_rule_decides_everything(tmp_path: Path) -> None:
    labels = mixed({"benign": 120, "malignant": 80})
    cache = write_labelled_cache(tmp_path / "c.h5", labels, embeddings=embeddings_of(labels, distance=0.08))
    run = train(cache, ("linear", "mlp:8"), operating_point="sensitivity=0.9")
    assert run.config.operating_point == "sensitivity=0.9"
    first = points_of(run)[0]
    assert first.point.name == "sensitivity >= 0.9"
    test = run.head(run.selected).test
    assert test is not None
    assert test.rule == "sensitivity >= 0.9"
    assert test.thresholds == (first.point.threshold,)
    assert first.result is not None
    counts = first.result.true_negatives, first.result.false_positives
    assert run.assessment is not None
    assert run.assessment.confusion is not None
    assert run.assessment.confusion.counts[0] == counts
    decided_by = f"threshold >= {first.point.threshold:.3f} (sensitivity >= 0.9)"
    assert decided_by.rstrip(")") in train_text(run)  # another rule may share the threshold
    assert "Accuracy: at the threshold that each head has by sensitivity >= 0.9 on validated images." in train_text(run)
    assert decided_by.replace(">=", "≥") in groups_of(run, evaluation_of(run))["errors"].note
    predictor = open_predictor(run.directory)
    assert predictor.decided_by() == f"sensitivity >= 0.9, threshold >= {first.point.threshold:.3f}"
    at = open_predictor(run.directory, at="youden")
    assert at.decided_by().startswith("Youden's index, threshold >= ")
    x = embeddings_of(labels, distance=0.08)
    stated = open_predictor(run.directory, at="threshold=0.3").predict(x)
    assert stated.called[:, 1].tolist() == (stated.probabilities[:, 1] >= 0.3).tolist()


def test_a_point_that_the_head_lacks_is_refused_with_those_that_it_has(two: Run) -> None:
    with pytest.raises(TrainingError, match=r"--at sensitivity=0\.8: the head has no such .* It has: Youden's index, "):
        open_predictor(two.directory, at="sensitivity=0.8")


def test_several_classes_have_no_operating_point_to_choose(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", ["a", "b", "c"] * 30)
    with pytest.raises(TrainingError, match=r"--operating-point threshold=0\.3: of 3 classes, the most probable one"):
        train(cache, ("linear",), operating_point="threshold=0.3")


def test_pooled_predictions_are_decided_by_the_threshold_of_their_fold(tmp_path: Path) -> None:
    labels = mixed({"benign": 120, "malignant": 60})
    cache = write_labelled_cache(tmp_path / "c.h5", labels, embeddings=embeddings_of(labels, distance=0.12))
    run = train(cache, ("linear",), n_folds=3, operating_point="sensitivity=0.9")
    assert run.cross_validation is not None
    assert run.out_of_fold is not None
    for result in run.cross_validation.results[:2]:
        assert result.pooled.rule.endswith("sensitivity >= 0.9, fixed in each fold")  # Youden's where none reaches it
        p = run.out_of_fold.probabilities[result.name][:, 1]
        at_one_half = ((p >= 0.5) == run.y_true()).mean()
        sensitivity = result.pooled.value("balanced_accuracy")
        assert result.pooled.value("accuracy") != at_one_half
        assert sensitivity > 0.5
    assert read_run(run.directory).cross_validation == run.cross_validation


def test_gallery_of_patients_judges_patients_at_their_threshold(tmp_path: Path) -> None:
    patients = [f"p{i // 2}" for i in range(240)]
    labels = ["malignant" if (i // 2) % 3 == 0 else "benign" for i in range(240)]
    cache = write_labelled_cache(
        tmp_path / "c.h5", labels, patients=patients, embeddings=embeddings_of(labels, distance=0.05)
    )
    run = train(cache, ("linear",), per_patient="mean")
    by_patient = evaluation_of(run)
    test = run.head(run.selected).test
    assert test is not None
    p = by_patient.probabilities[run.selected][:, 1]
    n_wrong = int(((p >= test.thresholds[0]) != by_patient.y_true).sum())
    errors = groups_of(run, evaluation_of(run, by_image=True))["errors"]
    assert f"({by_patient.decided_by(run.head(run.selected))})" in errors.note
    assert "test patients" in errors.note
    assert len(errors.cases) == min(n_wrong, 8)
    assert all("(mean of 2 images)" in case.lines[1] for (case,) in errors.cases)


def test_nothing_is_tested_on_the_images_that_selected(tmp_path: Path) -> None:
    cache = write_labelled_cache(
        tmp_path / "c.h5", [f"{i % 2}" for i in range(120)], splits=["train"] * 80 + ["val"] * 40
    )
    assert train(cache, ("linear", "mlp:8")).comparisons == ()
