"""Few images, few patients, rare labels: a run, or a plain message that says what cannot be done."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.specs import parse_heads
from hoarfrost.runs import Run
from hoarfrost.training import TrainingConfig
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache


def train(cache: Path, **options: Any) -> Run:
    asked = ExperimentConfig(training=TrainingConfig(epochs=3), **options)
    return run_experiment(cache, cache.parent / "run", parse_heads(["logistic", "mlp:4,members=5"]), asked)


def of_patients(path: Path, sizes: dict[str, list[int]], **columns: Any) -> Path:
    """Write a cache of patients of one class each, with so many images."""
    labels = [label for label, of in sizes.items() for n in of for _ in range(n)]
    patients = [f"{label}{i}" for label, of in sizes.items() for i, n in enumerate(of) for _ in range(n)]
    return write_labelled_cache(path, labels, patients=patients, embeddings=embeddings_of(labels), **columns)


def checked(run: Run) -> Run:
    """Return a run if all its probabilities and scores are there."""
    for head in run.heads:
        assert np.isfinite(run.predictions.probabilities[head.name]).all()
        assert np.isfinite(head.val.value("roc_auc"))
        assert head.test is None or np.isfinite(head.test.value("roc_auc"))
    return run


def test_forty_images(tmp_path: Path) -> None:
    run = checked(train(write_labelled_cache(tmp_path / "c.h5", mixed({"benign": 28, "malignant": 12})), n_folds=3))
    assert run.config.n_cross_fit == 5
    assert run.cross_validation is not None
    assert run.cross_validation.n_images == 40


def test_three_patients_of_a_class_make_two_folds(tmp_path: Path) -> None:
    run = checked(train(of_patients(tmp_path / "c.h5", {"benign": [2] * 14, "malignant": [4, 4, 4]})))
    assert run.config.n_cross_fit == 2  # one of the three is in the test split
    assert run.heads[-1].n_members == 2 + 2 * 3 or run.heads[-1].shares.keys() < {"logistic", "mlp:4,members=5"}


def test_class_of_one_patient_cannot_be_learned_and_validated(tmp_path: Path) -> None:
    cache = of_patients(tmp_path / "c.h5", {"benign": [2] * 14, "malignant": [6]})
    with pytest.raises(TrainingError, match=r"The class 'malignant' has 1 patient\(s\) .* At least 3"):
        train(cache)


def test_class_of_one_training_patient_in_a_given_split_is_refused_in_words(tmp_path: Path) -> None:
    splits = ["train"] * 20 + ["test"] * 8 + ["train"] * 6 + ["test"] * 4
    cache = of_patients(tmp_path / "c.h5", {"benign": [2] * 14, "malignant": [6, 4]}, splits=splits)
    message = (
        "The training images: the class 'malignant' is seen in one patient only (or one image, if patients are unknown), "
        "so it cannot be both learned and validated. Add patients, merge classes with --positive, or omit the label."
    )
    with pytest.raises(TrainingError, match=f"^{re.escape(message)}$"):
        train(cache)
    assert not (tmp_path / "run").exists()


def test_class_of_two_large_patients_is_in_both_folds(tmp_path: Path) -> None:
    splits = ["train"] * 20 + ["test"] * 8 + ["train"] * 9 + ["test"] * 3
    sizes = {"benign": [1] * 28, "malignant": [8, 1, 3]}
    run = checked(train(of_patients(tmp_path / "c.h5", sizes, splits=splits)))
    assert run.config.n_cross_fit == 2


@pytest.mark.parametrize("sizes", [(5, 5), (6, 4), (12, 3)])
def test_nested_folds_of_few_patients_work_or_say_what_cannot_be_done(tmp_path: Path, sizes: tuple[int, int]) -> None:
    benign, malignant = sizes
    cache = of_patients(tmp_path / "c.h5", {"benign": [2] * benign, "malignant": [3] * malignant})
    refused: dict[int, str] = {}
    for n_folds in (2, 3, 5):
        try:
            run = checked(train(cache, n_folds=n_folds))
        except TrainingError as error:
            refused[n_folds] = str(error)
        else:
            assert run.cross_validation is not None
            assert run.cross_validation.n_images == 2 * benign + 3 * malignant
    for n_folds, said in refused.items():
        assert re.match(rf"--folds {n_folds}(: |, the training images of a fold: )", said)
    assert (5 in refused) == (malignant < 5)


def test_several_labels_with_a_rare_one(tmp_path: Path) -> None:
    columns = {
        "mass": [str(i % 2) for i in range(40)],
        "rare": [str(int(i % 13 == 0)) for i in range(40)],
        "half known": [("", "0", "1")[i % 3] for i in range(40)],
    }
    splits = ["test" if i in (0, 1, 2, 3, 4, 5, 13, 7, 8) else "train" for i in range(40)]
    cache = write_labelled_cache(tmp_path / "c.h5", [""] * 40, attributes=columns, splits=splits)
    run = checked(train(cache, label_columns=()))
    assert run.config.n_cross_fit == 2  # two training images with the rare label
    with pytest.raises(
        TrainingError, match="--folds 2, the training images of a fold: the label 'rare' is seen in one"
    ):
        train(cache, label_columns=(), n_folds=2)


def test_learning_curve_without_a_test_split_scores_what_a_fold_holds_out(tmp_path: Path) -> None:
    labels = mixed({"benign": 60, "malignant": 40})
    x = embeddings_of(labels, distance=0.3)
    cache = write_labelled_cache(tmp_path / "c.h5", labels, splits=["train"] * 100, embeddings=x)
    run = checked(train(cache, with_learning_curve=True))
    assert (run.config.dataset.n_split, run.heads[0].test) == ({"train": 100}, None)
    assert run.learning_curve[-1].share == 1
    for point in run.learning_curve:
        assert point.n_images <= 0.8 * 100 + 1  # a fold's training images
        assert len(point.roc_aucs) == 5  # as many draws as folds
    assert np.mean(run.learning_curve[0].roc_aucs) < np.mean(run.learning_curve[-1].roc_aucs)
