"""Cross-fitting: what is decided is decided by predictions of heads that did not learn from the image, and never by test."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoarfrost.experiment.development import Development, development_of
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.experiment.task import Task, read_task
from hoarfrost.experiment.variants import Variant, fit_variants, with_mean
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.files import read_head
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import Predictor
from hoarfrost.runs import Run
from hoarfrost.training import TrainingConfig
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache

QUICK = TrainingConfig(epochs=3)
HEADS = ("logistic", "mlp:8,members=10", "quadratic,C=1", "linear")
LABELS = mixed({"benign": 60, "malignant": 40})


def train(cache: Path, heads: tuple[str, ...] = HEADS, config: TrainingConfig = QUICK, **options: Any) -> Run:
    asked = ExperimentConfig(training=config, **options)
    return run_experiment(cache, cache.parent / "run", parse_heads(list(heads)), asked)


def head_files(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run.directory / "heads").iterdir()}


def fitted(path: Path, **columns: Any) -> tuple[Task, Development, dict[str, Variant]]:
    with EmbeddingCache(write_labelled_cache(path, LABELS, **columns)) as cache:
        task = read_task(cache, None, (), 0)
    development = development_of(task, 0)
    (of_sets,) = fit_variants(parse_heads(list(HEADS)), [development], task, QUICK, lambda *_: None)
    (variants,) = of_sets.values()
    return task, development, with_mean(variants, task, development)


# -- the test split -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("select", ["mean", "best"])
@pytest.mark.parametrize("has_validation", [False, True], ids=["cross-fitted", "validation split"])
def test_altered_test_labels_and_images_leave_all_that_is_decided_bit_identical(
    tmp_path: Path, select: str, has_validation: bool
) -> None:
    splits = ["train"] * 50 + (["val"] if has_validation else ["train"]) * 25 + ["test"] * 25
    x, labels = embeddings_of(LABELS), list(LABELS)
    first = train(write_labelled_cache(tmp_path / "a" / "c.h5", labels, splits=splits, embeddings=x), select=select)
    labels[75:] = ["malignant" if label == "benign" else "benign" for label in labels[75:]]
    x[75:] = 3 * x[:25] + 1  # near-duplicates of training images, too
    second = train(write_labelled_cache(tmp_path / "b" / "c.h5", labels, splits=splits, embeddings=x), select=select)
    # A head file has the weights, thresholds, temperature, conformal scores, and the limit of novelty.
    assert head_files(first) == head_files(second)
    assert first.selected == second.selected
    assert [head.shares for head in first.heads] == [head.shares for head in second.heads]
    assert [head.val for head in first.heads] == [head.val for head in second.heads]
    assert [head.test for head in first.heads] != [head.test for head in second.heads]
    assert [one.setting for one in first.references] == [one.setting for one in second.references]
    assert first.predictions.splits == second.predictions.splits
    decided = first.rows_of("val")
    for name, found in first.predictions.probabilities.items():
        assert np.array_equal(found[decided], second.predictions.probabilities[name][decided])
        assert np.isfinite(found).all()
    assert first.assessment is not None
    assert second.assessment is not None
    one, other = ([point.point for point in run.assessment.classes[0].points] for run in (first, second))
    assert one == other


# -- out of fold --------------------------------------------------------------------------------------------------------


def test_an_image_is_predicted_by_exactly_the_members_whose_fold_did_not_train_on_it(tmp_path: Path) -> None:
    task, development, variants = fitted(tmp_path / "c.h5", patients=[f"p{i // 2}" for i in range(100)])
    assert len(development.folds) == 5
    assert [len(one.members) for one in variants.values()][:4] == [5, 10, 5, 5]
    for variant in variants.values():
        assert sum(member.weight for member in variant.members) == pytest.approx(1, abs=1e-12)
        total, weights = np.zeros((100, 2)), np.zeros(100)
        for member in variant.members:
            unseen = np.setdiff1d(development.rows, development.folds[member.head.fold].train)
            total[unseen] += member.weight * task.predicted_by([member.head], unseen)[0]
            weights[unseen] += member.weight
        rows = development.rows
        assert (weights[rows] > 0).all()
        np.testing.assert_allclose(variant.out_of_fold[rows], total[rows] / weights[rows, None], rtol=0, atol=1e-12)
        assert np.isnan(variant.out_of_fold[task.rows_of("test")]).all()


def test_no_patient_bytes_or_near_duplicates_are_divided_by_folds(tmp_path: Path) -> None:
    x, contents = embeddings_of(LABELS), list(range(100))
    copies = {20: 3, 21: 3, 40: 7, 60: 41}
    for copy, of in copies.items():
        x[copy] = x[of] * 1.001
    contents[80] = contents[81] = 80
    patients = [f"p{i // 3}" for i in range(100)]
    for name, columns in (("near", {"contents": contents}), ("patients", {"patients": patients})):
        path = tmp_path / name / "c.h5"
        with EmbeddingCache(write_labelled_cache(path, LABELS, embeddings=x, **columns)) as cache:  # type: ignore[arg-type]
            task = read_task(cache, None, (), 0)
        together = (
            [{copy, of} for copy, of in copies.items()] + [{80, 81}]
            if name == "near"
            else [set(range(i, min(100, i + 3))) for i in range(0, 100, 3)]
        )
        development = development_of(task, 0)
        sides = [set(fold.val.tolist()) for fold in development.folds] + [set(task.rows_of("test").tolist())]
        assert sorted(row for side in sides for row in side) == list(range(100))
        for rows in together:
            assert sum(bool(rows & side) for side in sides) == 1
        for fold in development.folds:
            assert not set(task.groups[fold.train]) & set(task.groups[fold.val])


def test_a_committees_file_predicts_test_images_as_the_csv_says_to_the_last_digit(tmp_path: Path) -> None:
    x = embeddings_of(LABELS)
    run = train(write_labelled_cache(tmp_path / "c.h5", LABELS, embeddings=x))
    test = run.rows_of("test")
    for head in run.heads:
        saved = read_head(run.directory / head.weights_file)
        assert len(saved.members) == head.n_members
        found = Predictor(saved).predict(x[test]).probabilities
        assert np.array_equal(found, run.predictions.probabilities[head.name][test])


# -- options ------------------------------------------------------------------------------------------------------------


def test_early_stopping_with_cross_fitting_is_refused_before_any_training(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS)
    with pytest.raises(TrainingError, match="--patience stops each head by its validation images. With cross-fitting"):
        train(cache, config=replace(QUICK, patience=2), cross_fit=True)
    assert not (tmp_path / "run").exists()


def test_early_stopping_sets_a_validation_split_aside(tmp_path: Path) -> None:
    run = train(write_labelled_cache(tmp_path / "c.h5", LABELS), ("linear",), replace(QUICK, patience=2))
    assert (run.config.n_cross_fit, run.config.validation) == (None, "validation")
    assert set(run.config.dataset.n_split) == {"train", "val", "test"}
    assert sum(run.config.dataset.n_split.values()) == len(LABELS)


@pytest.mark.parametrize("cross_fit", [True, None])
def test_given_validation_images_are_trained_on_only_if_asked_for(tmp_path: Path, cross_fit: bool | None) -> None:
    splits = ["train"] * 60 + ["val"] * 20 + ["test"] * 20
    run = train(write_labelled_cache(tmp_path / "c.h5", LABELS, splits=splits), ("linear",), cross_fit=cross_fit)
    expected = {"train": 80, "test": 20} if cross_fit else {"train": 60, "val": 20, "test": 20}
    assert run.config.dataset.n_split == expected
    assert run.heads[0].val.n == (80 if cross_fit else 20)


def test_the_same_run_twice_is_bit_identical(tmp_path: Path) -> None:
    first, second = (
        train(write_labelled_cache(tmp_path / name / "c.h5", LABELS), n_folds=2, with_learning_curve=True)
        for name in ("a", "b")
    )
    assert head_files(first) == head_files(second)
    for name in ("predictions.csv", "out_of_fold.csv", "history.csv", "metrics.json"):
        assert (first.directory / name).read_bytes() == (second.directory / name).read_bytes()
    metrics = json.loads((first.directory / "metrics.json").read_text())
    assert metrics["selected"] == "mean"
