"""Prevalence, test images among suspect labels, test against cross-validation, and what conformal sets hold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from hoarfrost.cli.console.training import train_text
from hoarfrost.evaluation import decision_curve
from hoarfrost.evaluation.calibration import at_prevalence
from hoarfrost.evaluation.conformal import are_covered, calibrate_classes
from hoarfrost.features.errors import TrainingError
from hoarfrost.inference.predict import Predictor, open_predictor
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.first import tiles, warnings_of
from hoarfrost.report.gallery import groups_of
from hoarfrost.runs import Run, read_run
from tests.experiment.test_assessment import images_of, train
from tests.support.folds import drawn, pooled_scores
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache
from tests.support.saved_heads import embeddings, saved_head

LABELS = mixed({"benign": 140, "malignant": 80})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    cache = write_labelled_cache(
        tmp_path_factory.mktemp("care") / "c.h5", LABELS, embeddings=embeddings_of(LABELS, distance=0.06)
    )
    return train(cache, ("linear", "mlp:8"), n_folds=3)


# -- prevalence ---------------------------------------------------------------------------------------------------------


def calibrated(n: int, prevalence: float) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and calibrated probabilities of normal scores."""
    rng = np.random.default_rng(0)
    y = (rng.random(n) < prevalence).astype(np.int64)
    odds = prevalence / (1 - prevalence) * np.exp(2 * (rng.normal(size=n) + 2 * y) - 2)
    return y, odds / (1 + odds)


def test_probabilities_are_calibrated_at_the_new_prevalence() -> None:
    _, p = calibrated(200_000, 0.46)
    y_there, p_there = calibrated(200_000, 0.05)
    shifted = at_prevalence(p_there, 0.05, 0.46)
    assert np.sort(at_prevalence(p, 0.46, 0.05)).max() <= 1
    assert at_prevalence(shifted, 0.46, 0.05) == pytest.approx(p_there)
    for low, high in ((0.02, 0.1), (0.3, 0.5)):
        rows = (at_prevalence(shifted, 0.46, 0.05) > low) & (at_prevalence(shifted, 0.46, 0.05) < high)
        assert y_there[rows].mean() == pytest.approx(p_there[rows].mean(), abs=0.03)


def test_net_benefit_of_shifted_probabilities_is_that_of_the_population_itself() -> None:
    y, p = calibrated(200_000, 0.46)
    y_there, p_there = calibrated(200_000, 0.05)
    at = np.array([0.1, 0.2])
    truth = decision_curve(y_there, p_there, at).net_benefit
    shifted = decision_curve(y, at_prevalence(p, 0.46, 0.05), at, prevalence=0.05).net_benefit
    plain = decision_curve(y, p, at, prevalence=0.05).net_benefit
    assert shifted == pytest.approx(truth, abs=0.003)
    assert plain[0] < 0 < shifted[0]


def test_share_that_is_no_prevalence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^a prevalence must be between 0 and 1, not 1$"):
        at_prevalence(np.array([0.5]), 0.5, 1)


def test_predictions_are_shifted_to_a_stated_prevalence_and_classes_are_not() -> None:
    head = saved_head()
    head = replace(head, validated=tuple(replace(one, prevalences=(0.4,)) for one in head.validated))
    plain, there = (Predictor(head, prevalence=share).predict(embeddings()) for share in (None, 0.05))
    assert there.calibrated[:, 1] == pytest.approx(at_prevalence(plain.calibrated[:, 1], 0.4, 0.05))
    assert (there.called == plain.called).all()
    assert (there.probabilities == plain.probabilities).all()
    (said,) = Predictor(head, prevalence=0.05).assumptions()
    assert said.startswith(
        "Calibrated probabilities are for a prevalence of 0.05; validated images have 0.4. This assumes"
    )


def test_prevalence_that_a_head_file_does_not_state_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"--prevalence 0\.05: .* its file is of an earlier version"):
        Predictor(saved_head(), prevalence=0.05)


def test_head_of_a_run_states_the_prevalence_of_its_validated_images(run: Run) -> None:
    y, _ = images_of(run, "val" if run.config.n_cross_fit is None else "train")
    assert open_predictor(run.directory).head.validated[0].prevalences == (y.mean(),)
    assert open_predictor(run.directory, prevalence=0.01).prevalence == 0.01


# -- labels to look at again --------------------------------------------------------------------------------------------


def test_images_of_the_test_split_are_listed_only_on_request_and_with_a_warning(tmp_path: Path, run: Run) -> None:
    assert run.suspects is not None
    assert run.suspects.images
    assert {one.split for one in run.suspects.images} <= {"train", "val"}
    assert run.suspects.n_images == len(LABELS) - run.config.dataset.n_split["test"]
    note = groups_of(run, evaluation_of(run))["suspects"].note
    assert "outside of the test split" in note
    assert "test scores too high" not in note
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, embeddings=embeddings_of(LABELS, distance=0.06))
    asked = train(cache, ("linear", "mlp:8"), n_folds=3, suspects_in_test=True)
    assert asked.suspects is not None
    assert "test" in {one.split for one in asked.suspects.images}
    note = groups_of(asked, evaluation_of(asked))["suspects"].note
    assert note.endswith("correcting labels there by this list makes test scores too high.")


def test_suspects_are_contradicted_by_the_rule_of_the_run(run: Run) -> None:
    assert run.suspects is not None
    margins = [one.margin for one in run.suspects.images]
    assert margins == sorted(margins, reverse=True)
    assert all(0 <= margin <= 1 for margin in margins)
    assert all(one.label != one.predicted for one in run.suspects.images)


# -- test against cross-validation --------------------------------------------------------------------------------------


def test_first_screen_has_both_figures(run: Run) -> None:
    assert run.cross_validation is not None
    pooled = run.cross_validation.whole.pooled
    (area, *_) = tiles(run, evaluation_of(run))
    wanted = f"3-fold cross-validated: {pooled.value('roc_auc'):.3f} ("
    assert any(note.startswith(wanted) for note in area.notes)


def cautioned(run: Run, *, lower: float) -> bool:
    """Return whether the caution appears if the pooled area, with its interval, is lower."""
    folded = run.cross_validation
    assert folded is not None
    test = run.head(run.selected).test
    assert test is not None
    pooled = folded.whole.pooled
    middle = test.value("roc_auc") - lower
    area = replace(pooled.auc, value=middle, low=middle - 0.05, high=middle + 0.05)
    scores = replace(pooled, estimates={**pooled.estimates, "roc_auc": area})
    folded = replace(folded, results=(replace(folded.whole, pooled=scores), *folded.results[1:]))
    changed = replace(run, cross_validation=folded)
    return "Test and cross-validation differ" in [one.title for one in warnings_of(changed, evaluation_of(changed))]


def test_a_test_split_far_from_cross_validation_is_a_caution(run: Run) -> None:
    assert cautioned(run, lower=0.3)
    assert cautioned(run, lower=-0.3)
    assert not cautioned(run, lower=0.0)
    assert not cautioned(run, lower=0.02)


def test_false_alarms_of_the_caution_are_rare() -> None:
    """The rule of the caution, on 200 datasets whose test split is drawn at random."""
    from hoarfrost.evaluation import score
    from hoarfrost.report.first import FAR, _variance

    rng, alarms = np.random.default_rng(0), 0
    for _ in range(200):
        data = drawn(rng, 200, n_features=64, distance=2.2)
        pooled, _ = pooled_scores(rng, data, penalty=60, n_folds=5)
        p = np.column_stack([1 - norm.cdf(pooled), norm.cdf(pooled)])
        test = rng.permutation(200)[:40]
        if min(np.bincount(data.y[test], minlength=2)) < 2:
            continue
        of_test, of_all = score(data.y[test], p[test], "ab").auc, score(data.y, p, "ab", n_folds=5).auc
        assert of_test.value is not None
        assert of_all.value is not None
        alarms += abs(of_test.value - of_all.value) > FAR * np.sqrt(_variance(of_test) * (1 - 40 / 200))
    assert alarms / 200 < 0.05


# -- conformal sets -----------------------------------------------------------------------------------------------------


def test_what_sets_hold_is_stated_for_the_test_split_and_out_of_fold(run: Run) -> None:
    validated = "val" if run.config.n_cross_fit is None else "train"
    (y_val, p_val), (y_test, p_test) = images_of(run, validated), images_of(run, "test")
    hits, known = are_covered(y_test, p_test, calibrate_classes(y_val, p_val), 0.9)
    assert known.all()
    assert run.assessment is not None
    assert run.cross_validation is not None
    found, folded = run.assessment.held_by_sets, run.cross_validation.held_by_sets
    assert found is not None
    assert (found.n_hits, found.n) == (hits.sum(), len(y_test))
    assert folded is not None
    assert folded.n == len(LABELS)
    assert 0.6 < (folded.value or 0) < 1
    said = train_text(run)
    assert f"hold the true class in {found.value:.3f} ({found.low:.3f} to {found.high:.3f}) of the test split." in said
    assert (
        f"hold the true class in {folded.value:.3f} ({folded.low:.3f} to {folded.high:.3f}) of what the folds" in said
    )
    assert read_run(run.directory).assessment == run.assessment


def test_labels_are_covered_where_they_are_known() -> None:
    y = np.array([[1, -1], [0, 1]])
    p = np.array([[0.9, 0.5], [0.95, 0.2]])
    fixed = calibrate_classes(np.array([[1, 0]] * 30 + [[0, 1]] * 30), np.array([[0.8, 0.3]] * 30 + [[0.2, 0.7]] * 30))
    hits, known = are_covered(y, p, fixed, 0.9)
    assert known.tolist() == [True, False, True, True]
    assert hits[known].tolist() == [True, False, False]
