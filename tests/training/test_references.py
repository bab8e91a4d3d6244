"""Classifiers that heads are compared to: their settings are chosen by images that they had not seen."""

import logging
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from hoarfrost.training import Fold, HeldRows
from hoarfrost.training.classifiers import Predict, Problem, Space, majority, support_vectors
from hoarfrost.training.references import (
    LINEAR,
    LOGISTIC_REGRESSION,
    MAJORITY,
    MOST_TRAINED,
    Reference,
    ReferenceFit,
    fit_references,
    fitted_rows,
)

NAMES = [MAJORITY, LOGISTIC_REGRESSION, "support vector machine", "nearest neighbours", "linear discriminant"]


def drawn(n: int, n_classes: int = 2, dim: int = 12, seed: int = 0) -> tuple[HeldRows, np.ndarray]:
    """Draw embeddings (n, D) whose means differ between classes, and the classes."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % n_classes)
    means = rng.normal(size=(n_classes, dim))
    return HeldRows(torch.from_numpy((2 + means[y] + rng.normal(size=(n, dim)) * 1.5).astype(np.float32))), y


def five_folds(n: int) -> list[Fold]:
    places = np.arange(n)
    return [Fold(places[places % 5 != i], places[places % 5 == i]) for i in range(5)]


def by_name(fits: list[ReferenceFit]) -> dict[str, ReferenceFit]:
    return {fit.name: fit for fit in fits}


def log_loss(p: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(np.maximum(p[np.arange(len(y)), y], 1e-15)).mean())


def with_rare(n: int, n_rare: int) -> np.ndarray:
    """Classes (n,) of which the third is rare, in a seeded order."""
    y = np.arange(n) % 2
    y[:n_rare] = 2
    return np.random.default_rng(0).permutation(y)


def test_all_training_rows_are_fitted_on_where_they_are_few() -> None:
    train = np.arange(3, MOST_TRAINED)
    assert fitted_rows(with_rare(MOST_TRAINED, 5), train).tolist() == train.tolist()


@pytest.mark.parametrize("n_rare", [2, 200])
def test_a_drawn_part_of_the_training_rows_has_its_size_and_some_of_every_class(n_rare: int) -> None:
    y, train = with_rare(60_000, n_rare), np.arange(0, 60_000, 1)
    rows = fitted_rows(y, train)
    assert len(rows) == len(np.unique(rows)) == MOST_TRAINED
    counts = np.bincount(y[rows])
    assert counts[2] == min(n_rare, 10) or counts[2] > 10
    assert counts[0] == pytest.approx(counts[1], rel=0.1)


def test_a_label_of_few_images_is_learnt_both_ways_from_a_drawn_part() -> None:
    y = np.zeros((20_000, 3), np.int64)
    y[:, 0] = np.arange(20_000) % 2
    y[[17, 11_111], 1] = 1
    y[:, 2] = 1
    y[[18, 11_112], 2] = 0
    x = HeldRows(torch.from_numpy(np.random.default_rng(0).standard_normal((20_000, 3), np.float32)))
    everyone = np.arange(20_000)
    fits = fit_references(x, y, [Fold(everyone, everyone[:40])], everyone, everyone[:5])
    assert [fit.name for fit in fits] == NAMES
    for fit in fits:
        assert fit.n_train == MOST_TRAINED
        assert fit.probabilities.shape == fit.out_of_fold.shape == (20_000, 3)
        assert np.isfinite(fit.probabilities[:5]).all()


@pytest.mark.parametrize("n_classes", [2, 3])
def test_probabilities_are_there_where_they_were_requested_and_sum_to_one(n_classes: int) -> None:
    x, y = drawn(200, n_classes)
    fits = fit_references(x, y, five_folds(150), np.arange(150), np.arange(150, 200))
    assert [fit.name for fit in fits] == NAMES
    for fit in fits:
        assert np.isnan(fit.out_of_fold[150:]).all()
        assert np.isnan(fit.probabilities[:150]).all()
        for found in (fit.out_of_fold[:150], fit.probabilities[150:]):
            assert found.sum(axis=1) == pytest.approx(1)
            assert found.min() >= 0
    settings = {fit.name: fit.setting for fit in fits}
    assert settings[MAJORITY] == settings["linear discriminant"] == ""
    assert settings["support vector machine"] in {"C = 1", "C = 3", "C = 10"}


def test_the_setting_is_the_one_whose_pooled_predictions_have_the_lowest_loss() -> None:
    x, y = drawn(200)
    folds, values = five_folds(200), x.x.numpy().astype(np.float64)
    losses = {}
    for penalty in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0):
        p = np.empty((200, 2))
        for fold in folds:
            model = make_pipeline(StandardScaler(), LogisticRegression(C=penalty, max_iter=2_000, tol=1e-8))
            p[fold.val] = model.fit(values[fold.train], y[fold.train]).predict_proba(values[fold.val])
        losses[f"C = {penalty:g}"] = (log_loss(p, y), p)
    fit = by_name(fit_references(x, y, folds, np.arange(200), np.arange(200)))[LOGISTIC_REGRESSION]
    assert fit.setting == min(losses, key=lambda name: losses[name][0])
    assert fit.out_of_fold == pytest.approx(losses[fit.setting][1], abs=2e-3)


def test_fits_are_those_of_scikit_learn() -> None:
    x, y = drawn(240, 3)
    values, train, rows = x.x.numpy().astype(np.float64), np.arange(200), np.arange(200, 240)
    fits = by_name(fit_references(x, y, five_folds(200), train, rows))
    discriminant = make_pipeline(StandardScaler(), LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"))
    expected = discriminant.fit(values[train], y[train]).predict_proba(values[rows])
    assert fits["linear discriminant"].probabilities[rows] == pytest.approx(expected)
    k = int(fits["nearest neighbours"].setting.split()[0])
    neighbours = make_pipeline(StandardScaler(), KNeighborsClassifier(k)).fit(values[train], y[train])
    shares = np.bincount(y[train]) / 200
    smoothed = (neighbours.predict_proba(values[rows]) * k + shares) / (k + 1)
    assert fits["nearest neighbours"].probabilities[rows] == pytest.approx(smoothed)


def test_a_support_vector_machine_has_scikit_learns_decision_values() -> None:
    x, y = drawn(240, 3)
    values = x.x.numpy().astype(np.float64)
    space = Space(values[:200])
    found = support_vectors(Problem(space, np.arange(200), y[:200], 3), (1.0, 10.0))(space.block(values[200:]))
    scaler = StandardScaler().fit(values[:200])
    for number in range(3):
        machine = SVC(C=10.0).fit(scaler.transform(values[:200]), y[:200] == number)
        assert found[1, :, number] == pytest.approx(machine.decision_function(scaler.transform(values[200:])), abs=1e-3)


def test_labels_of_held_out_images_do_not_change_their_own_predictions() -> None:
    x, y = drawn(200)
    folds, changed = five_folds(200), y.copy()
    changed[folds[2].val[:6]] = 1 - changed[folds[2].val[:6]]
    before, after = (by_name(fit_references(x, one, folds, folds[0].train, folds[0].val)) for one in (y, changed))
    rows = folds[2].val
    same = [name for name in NAMES if before[name].setting == after[name].setting]
    assert "linear discriminant" in same
    for name in same:
        # The other folds' machines, on whose decision values the sigmoid is fitted, learnt from these labels.
        tolerance = 0.02 if name == "support vector machine" else 0
        assert np.abs(before[name].out_of_fold[rows] - after[name].out_of_fold[rows]).max() <= tolerance


def test_one_reference_alone_is_the_same_as_among_all() -> None:
    x, y = drawn(120)
    everyone = np.arange(120)
    among = by_name(fit_references(x, y, five_folds(120), everyone, everyone[:5]))[LOGISTIC_REGRESSION]
    (alone,) = fit_references(x, y, five_folds(120), everyone, everyone[:0], kinds=(LINEAR,))
    assert (alone.setting, alone.n_train) == (among.setting, among.n_train)
    assert (alone.out_of_fold == among.out_of_fold).all()


def test_nothing_is_fitted_to_predict_no_row() -> None:
    fits = []

    def noted(problem: Problem, settings: Sequence[float]) -> Predict:
        fits.append(len(problem.y))
        return majority(problem, settings)

    x, y = drawn(60)
    (fit,) = fit_references(x, y, five_folds(60), np.arange(60), np.arange(0), kinds=(Reference("noted", noted),))
    assert fits == [48] * 5
    assert np.isfinite(fit.out_of_fold).all()


def test_one_given_validation_split_is_enough() -> None:
    x, y = drawn(120)
    fits = fit_references(x, y, [Fold(np.arange(80), np.arange(80, 100))], np.arange(80), np.arange(80, 120))
    assert [fit.name for fit in fits] == NAMES
    for fit in fits:
        assert np.isfinite(fit.out_of_fold[80:100]).all()
        assert fit.n_train == 80


def test_a_class_that_is_absent_from_a_fold_has_probability_zero_there() -> None:
    x, y = drawn(90, 3)
    rows = np.arange(90)
    absent = Fold(rows[y != 2], rows[y == 2])
    for fit in fit_references(x, y, [absent], rows, rows):
        assert np.isfinite(fit.out_of_fold[absent.val]).all()
        if fit.name not in {"support vector machine"}:  # its sigmoid sees the held-out images' classes
            assert (fit.out_of_fold[absent.val, 2] == 0).all()


def test_labels_choose_their_own_settings_and_unknown_ones_are_left_out() -> None:
    x, y = drawn(200)
    noise = np.random.default_rng(1).integers(0, 2, 200)
    unknown = np.where(np.arange(200) % 4 == 0, -1, y)
    labels = np.column_stack([y, noise, unknown])
    fits = by_name(fit_references(x, labels, five_folds(200), np.arange(200), np.arange(200)))
    alone = by_name(fit_references(x, y, five_folds(200), np.arange(200), np.arange(200)))
    assert list(fits) == NAMES
    for name in (MAJORITY, LOGISTIC_REGRESSION, "linear discriminant"):
        assert fits[name].out_of_fold[:, 0] == pytest.approx(alone[name].out_of_fold[:, 1])
    assert " to " in fits[LOGISTIC_REGRESSION].setting
    assert all(np.isfinite(fit.out_of_fold).all() for fit in fits.values())


def test_very_few_images_have_references_or_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    x, y = drawn(6)
    with caplog.at_level(logging.WARNING):
        fits = fit_references(x, y, [Fold(np.arange(4), np.arange(4, 6))], np.arange(4), np.arange(4, 6))
    left_out = {record.message.split(":")[0] for record in caplog.records}
    assert {fit.name for fit in fits} | left_out == set(NAMES)
    assert MAJORITY in {fit.name for fit in fits}
