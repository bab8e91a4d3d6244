"""The project from Python (tests/house/test_docs.py runs the lines of docs/python.md)."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score

from hoarfrost import load_data, open_predictor, train
from hoarfrost.features.errors import TrainingError
from hoarfrost.training import TrainingConfig
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache

LABELS = mixed({"benign": 60, "malignant": 40})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a cache of fifty patients with two images each, one of them unreadable."""
    patients = [f"p{i // 2}" for i in range(100)]
    return write_labelled_cache(tmp_path_factory.mktemp("api") / "images.h5", LABELS, patients=patients, unreadable=[3])


def test_arrays_are_what_was_cached_without_the_unreadable(cache: Path) -> None:
    data = load_data(cache, positive=["malignant"])
    kept = [i for i in range(100) if i != 3]
    assert np.array_equal(data.X, embeddings_of(LABELS)[kept])
    assert data.y.tolist() == [int(LABELS[i] == "malignant") for i in kept]
    assert data.names == ("benign", "malignant")
    assert data.paths == tuple(f"{LABELS[i]}/{i}.png" for i in kept)
    of_splits = [set(data.groups[data.splits == name].tolist()) for name in ("train", "val", "test")]
    assert not of_splits[0] & of_splits[1] | of_splits[0] & of_splits[2] | of_splits[1] & of_splits[2]


def test_arrays_fit_scikit_learn_by_patient(cache: Path) -> None:
    data = load_data(cache, positive=["malignant"])
    scores = cross_val_score(LogisticRegression(max_iter=500), data.X, data.y, groups=data.groups, cv=GroupKFold(3))
    assert scores.mean() > 0.6


def test_trained_run_predicts_arrays_as_its_own_record_says(cache: Path, tmp_path: Path) -> None:
    run = train(cache, tmp_path / "run", ["linear"], positive=["malignant"], config=TrainingConfig(epochs=3))
    data = load_data(cache, positive=["malignant"])
    assert tuple(data.splits) == run.predictions.splits
    alone = shutil.copy(tmp_path / "run" / "heads" / "linear.safetensors", tmp_path / "alone.safetensors")
    for predictor in (open_predictor(tmp_path / "run"), open_predictor(str(alone), coverage=0.8)):
        found = predictor.predict(data.X)
        tested = data.splits == "test"  # the run predicted other images out of fold
        assert np.array_equal(found.probabilities[tested], run.predictions.probabilities["linear"][tested])
        assert set(predictor.answers(found.called)) <= {"benign", "malignant"}


def test_a_run_of_several_views_predicts_arrays_of_its_own_views(tmp_path: Path) -> None:
    views = {name: embeddings_of(LABELS, seed=seed) for seed, name in enumerate(("224", "224:flip", "448"))}
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, views=views)
    run = train(cache, tmp_path / "run", ["logistic,C=0.01"], positive=["malignant"], views="448,224:flip")
    predictor = open_predictor(tmp_path / "run")
    data = load_data(cache, positive=["malignant"], views=predictor.head.views)
    assert np.array_equal(data.X, np.stack([views["448"], views["224:flip"]], axis=1))
    assert np.array_equal(load_data(cache, positive=["malignant"]).X, views["224"])
    tested = data.splits == "test"
    found = predictor.predict(data.X).probabilities[tested]
    assert np.array_equal(found, run.predictions.probabilities["logistic,C=0.01"][tested])


def test_train_takes_every_option_of_an_experiment_and_no_other(cache: Path, tmp_path: Path) -> None:
    options = {"with_learning_curve": True, "memory_limit": 1 << 30, "allow_leakage": True, "prevalence": 0.1}
    quick = TrainingConfig(epochs=2)
    run = train(cache, tmp_path / "run", ["linear"], positive=["malignant"], config=quick, **options)
    assert run.learning_curve
    assert run.config.prevalence == 0.1
    with pytest.raises(TypeError, match="unexpected keyword argument 'folds'"):
        train(cache, tmp_path / "run", folds=3)


def test_what_is_wrong_is_an_error_of_the_projects_own(cache: Path) -> None:
    with pytest.raises(TrainingError, match="--positive cyst: .* has no such label"):
        load_data(cache, positive=["cyst"])
