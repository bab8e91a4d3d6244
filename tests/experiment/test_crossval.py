"""Nested cross-validation: nobody is predicted by a head that saw him, and selection never sees the outer fold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hoarfrost.experiment.crossval import NESTED
from hoarfrost.experiment.development import outer_folds
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.experiment.splits import k_folds
from hoarfrost.experiment.task import read_task
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.specs import parse_heads
from hoarfrost.runs import CrossValidation, Run, read_run
from hoarfrost.training import TrainedHead, TrainingConfig, train_heads
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache

QUICK = TrainingConfig(epochs=4, seeds=2)
LABELS = mixed({"benign": 60, "malignant": 40})
CLASSES = ("benign", "malignant")


def cross_validated(cache: Path, n_folds: int = 3, heads: tuple[str, ...] = ("linear", "mlp:8")) -> Run:
    return run_experiment(
        cache, cache.parent / "run", parse_heads(list(heads)), ExperimentConfig(training=QUICK, n_folds=n_folds)
    )


def folds_of(run: Run) -> CrossValidation:
    assert run.cross_validation is not None
    return run.cross_validation


@given(
    n_folds=st.integers(2, 5),
    patients=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=12, max_size=40),
    seed=st.integers(0, 5),
)
def test_a_patient_is_never_in_two_folds_and_every_class_is_in_each(
    n_folds: int, patients: list[tuple[int, bool]], seed: int
) -> None:
    groups = np.repeat(np.arange(len(patients)), [n for n, _ in patients])
    y = np.repeat([int(positive) for _, positive in patients], [n for n, _ in patients])
    try:
        folds = k_folds(y, groups, CLASSES, n_folds, seed=seed)
    except TrainingError:
        # Only where it may: a class with hardly more patients than folds, and patients of very different size.
        assert min(len(np.unique(groups[y == c])) for c in (0, 1)) < 2 * n_folds
        return
    for group in range(len(patients)):
        assert len(set(folds[groups == group].tolist())) == 1
    for fold in range(n_folds):
        assert set(y[folds == fold].tolist()) == {0, 1}


@settings(max_examples=25)
@given(
    n_folds=st.integers(2, 4),
    sizes=st.tuples(*[st.lists(st.integers(1, 4), min_size=12, max_size=20)] * 2),
    seed=st.integers(0, 5),
    has_test=st.booleans(),
)
def test_a_patient_is_on_one_side_of_every_fold(
    tmp_path_factory: pytest.TempPathFactory,
    n_folds: int,
    sizes: tuple[list[int], list[int]],
    seed: int,
    has_test: bool,
) -> None:
    patients = np.repeat([f"p{i}" for i in range(len(sizes[0] + sizes[1]))], sizes[0] + sizes[1])
    labels = np.repeat(CLASSES, [sum(of_class) for of_class in sizes])
    # Every third patient is for the test, the others are learnt from.
    splits = ["test" if int(patient[1:]) % 3 == 0 else "train" for patient in patients] if has_test else None
    path = tmp_path_factory.mktemp("folds") / "c.h5"
    with EmbeddingCache(
        write_labelled_cache(path, labels.tolist(), patients=patients.tolist(), splits=splits)
    ) as cache:
        task = read_task(cache, None, (), seed)
    held_out = []
    for fold in outer_folds(task, n_folds, seed):
        for inner in fold.development.folds:
            sides = [set(patients[rows].tolist()) for rows in (fold.held_out, inner.train, inner.val)]
            assert sum(map(len, sides)) == len(set.union(*sides))
            assert all(set(labels[rows].tolist()) == set(CLASSES) for rows in (inner.train, inner.val))
        in_fold = np.union1d(fold.held_out, fold.development.validated)
        assert in_fold.tolist() == np.flatnonzero((task.splits != "test") | (not has_test)).tolist()
        held_out += fold.held_out.tolist()
    assert sorted(held_out) == np.flatnonzero((task.splits != "test") | (not has_test)).tolist()


@pytest.mark.parametrize(
    ("groups", "n_folds", "message"),
    [
        ([0, 0, 1, 1], 3, r"--folds 3: there are 2 patients .* Use at most --folds 2"),
        ([0, 1, 2, 2], 2, r"--folds 2: the class 'malignant' has 1 patient\(s\)"),
    ],
)
def test_folds_that_cannot_be_are_refused_with_the_numbers(groups: list[int], n_folds: int, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        k_folds(np.array([0, 0, 1, 1]), np.array(groups), CLASSES, n_folds)


def test_every_head_and_reference_is_scored_on_the_pooled_predictions(tmp_path: Path) -> None:
    found = folds_of(cross_validated(write_labelled_cache(tmp_path / "c.h5", LABELS)))
    names = [result.name for result in found.results]
    assert names[:4] == [NESTED, "linear", "mlp:8", "mean"]
    assert "logistic regression" in names
    assert (found.n_folds, found.n_images, len(found.selected)) == (3, 100, 3)
    for result in found.results:
        assert result.pooled.n == 100
        assert len(result.fold_roc_aucs) == 3
        low, high = result.pooled.auc.interval
        assert low <= result.pooled.value("roc_auc") <= high


def test_embeddings_that_say_nothing_get_no_auc_out_of_it(tmp_path: Path) -> None:
    # A patient's images share an embedding: whoever let a patient into both sides would score high.
    rng = np.random.default_rng(0)
    patients = [f"p{i // 4}" for i in range(200)]
    by_patient = rng.standard_normal((50, 512)).astype(np.float32)
    labels = [CLASSES[int(number)] for number in np.repeat(rng.permutation(50) % 2, 4)]
    embeddings = np.repeat(by_patient, 4, axis=0) + 0.01 * rng.standard_normal((200, 512)).astype(np.float32)
    cache = write_labelled_cache(tmp_path / "c.h5", labels, patients=patients, embeddings=embeddings)
    for result in folds_of(cross_validated(cache, 5)).results:
        assert abs(result.pooled.value("roc_auc") - 0.5) < 0.25


def test_held_out_images_have_no_say_in_the_heads_of_their_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads: list[list[TrainedHead]] = []

    def watched(*arguments: Any, **options: Any) -> list[TrainedHead]:
        heads.append(train_heads(*arguments, **options))
        return heads[-1]

    monkeypatch.setattr("hoarfrost.experiment.variants.train_heads", watched)
    x = embeddings_of(LABELS)
    first = cross_validated(write_labelled_cache(tmp_path / "a" / "c.h5", LABELS, embeddings=x))
    assert first.out_of_fold is not None
    x[np.array(first.out_of_fold.folds) == 0] *= -3
    second = cross_validated(write_labelled_cache(tmp_path / "b" / "c.h5", LABELS, embeddings=x))
    assert second.out_of_fold is not None
    assert first.out_of_fold.folds == second.out_of_fold.folds
    assert folds_of(first).selected[0] == folds_of(second).selected[0]
    _, one, _, other = heads  # each run trains for the run itself, then in all folds at once
    n_inner = 1 + max(head.fold for head in one) // 3
    for before, after in zip(one, other, strict=True):
        pairs = zip(before.module.state_dict().values(), after.module.state_dict().values(), strict=True)
        assert all(torch.allclose(*pair, atol=1e-5) for pair in pairs) == (before.fold < n_inner)


def test_separable_classes_are_told_apart_in_every_fold(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, embeddings=embeddings_of(LABELS, distance=1))
    nested = folds_of(cross_validated(cache)).results[0]
    assert nested.pooled.value("roc_auc") == 1.0
    assert nested.fold_roc_aucs == (1.0, 1.0, 1.0)


def test_a_given_test_split_stays_out_of_all_folds(tmp_path: Path) -> None:
    splits = ["train"] * 60 + ["val"] * 20 + ["test"] * 20
    run = cross_validated(write_labelled_cache(tmp_path / "c.h5", LABELS, splits=splits))
    assert folds_of(run).n_images == 80
    assert run.out_of_fold is not None
    assert {fold for fold, split in zip(run.out_of_fold.folds, splits, strict=True) if split == "test"} == {-1}


def test_cross_validation_is_read_back_as_it_was(tmp_path: Path) -> None:
    run = cross_validated(write_labelled_cache(tmp_path / "c.h5", LABELS))
    assert read_run(tmp_path / "run").cross_validation == run.cross_validation


def test_pooled_auc_lies_between_chance_and_the_folds_own(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, embeddings=embeddings_of(LABELS, distance=0.1))
    found = folds_of(cross_validated(cache)).results[0]
    assert found.pooled.value("roc_auc") == pytest.approx(float(np.mean(found.fold_roc_aucs)), abs=0.15)


def test_a_handful_of_images_is_cross_validated_too(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", mixed({"benign": 12, "malignant": 7}))
    assert all(result.pooled.n == 19 for result in folds_of(cross_validated(cache, 5)).results)


def test_folds_that_leave_too_few_to_learn_from_are_refused_before_any_training(tmp_path: Path) -> None:
    splits = ["train", "train", "val", "val"] * 2
    labels = ["benign"] * 4 + ["malignant"] * 4
    cache = write_labelled_cache(tmp_path / "c.h5", labels, splits=splits)
    with pytest.raises(
        TrainingError, match=r"--folds 2: a fold has only 1 image\(s\) of the class 'benign' to learn from"
    ):
        cross_validated(cache, 2)
    assert not (tmp_path / "run").exists()


def test_seeds_beyond_32_bits_give_folds_too() -> None:
    y, groups = np.arange(20) % 2, np.arange(20)
    assert k_folds(y, groups, CLASSES, 2, seed=2**32 + 3).tolist() == k_folds(y, groups, CLASSES, 2, seed=3).tolist()
