"""One decision rule: whatever a threshold decides uses the primary operating point, and its name stands beside it."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score, matthews_corrcoef

from hoarfrost.evaluation import Scores, score
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.first import tiles
from hoarfrost.report.gallery import groups_of
from hoarfrost.runs import Run
from hoarfrost.runs.decoding import from_json, to_json
from tests.experiment.test_assessment import images_of, points_of, train
from tests.experiment.test_assessment import two as two
from tests.support.labelled import write_labelled_cache


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
    assert score(y, p, ("a", "b"), thresholds=(0.25, 0.75)).value("accuracy") == 1
    assert score(y, p, ("a", "b")).value("accuracy") == 0.5


def test_nothing_is_tested_on_the_images_that_selected(tmp_path: Path) -> None:
    cache = write_labelled_cache(
        tmp_path / "c.h5", [f"{i % 2}" for i in range(120)], splits=["train"] * 80 + ["val"] * 40
    )
    assert train(cache, ("linear", "mlp:8")).comparisons == ()
