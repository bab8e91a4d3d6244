"""Near-identical images stay in one split and one fold where patients are unknown, and the run states it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoarfrost.evaluation.leakage import Leakage
from hoarfrost.experiment import duplicates
from hoarfrost.experiment.gate import check_leakage
from hoarfrost.experiment.splits import k_folds
from hoarfrost.experiment.task import Task, read_task
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.runs import leakage_warnings, together_text
from hoarfrost.runs.decoding import from_json, to_json
from tests.support.labelled import embeddings_of, write_labelled_cache

N = 60
LABELS = ["benign", "malignant"] * (N // 2)
COPIES = {40: 4, 41: 5, 42: 4, 50: 6}  # of 4 there are three; 6 and 50 are of one class
SPLITS = ["train"] * 36 + ["val"] * 12 + ["test"] * 12


def embeddings(copies: dict[int, int] = COPIES) -> Any:
    x = embeddings_of(LABELS)
    for copy, original in copies.items():
        x[copy] = x[original] + np.random.default_rng(copy).normal(0, 0.05, x.shape[1]).astype(np.float32)
    return x


def task_of(folder: Path, near_duplicates: str = "group", *, seed: int = 0, **columns: Any) -> tuple[Task, Leakage]:
    columns = {"embeddings": embeddings(), "labels": LABELS, **columns}
    labels = columns.pop("labels")
    cache = write_labelled_cache(folder / "c.h5", labels, **columns)
    with EmbeddingCache(cache) as opened:
        task = read_task(opened, None, (), seed, near_duplicates=near_duplicates)
        return task, check_leakage(task, allowed=True)


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_in_one_split_and_one_fold(tmp_path: Path, seed: int) -> None:
    task, leakage = task_of(tmp_path, seed=seed)
    folds = k_folds(task.y, task.groups, task.names, 5, seed=seed)
    for copy, original in COPIES.items():
        assert task.splits[copy] == task.splits[original]
        assert folds[copy] == folds[original]
    assert leakage.together is not None
    assert (leakage.together.n_images, leakage.together.n_groups, leakage.together.largest) == (7, 3, 3)
    assert (leakage.n_near_duplicates, leakage.near_duplicates_mode) == (0, "group")


def test_warn_divides_them_and_warns_and_ignore_does_not_search(tmp_path: Path) -> None:
    found = [task_of(tmp_path, "warn", seed=seed)[1] for seed in range(5)]
    assert any(one.n_near_duplicates for one in found)
    assert all(one.together is None and one.near_duplicates_mode == "warn" for one in found)
    task, ignored = task_of(tmp_path, "ignore")
    assert ignored.not_compared == "--near-duplicates ignore"
    assert (ignored.n_near_duplicates, len(set(task.groups.tolist()))) == (0, N)


def test_given_splits_stay_as_they_are_and_their_copies_are_a_warning(tmp_path: Path) -> None:
    task, leakage = task_of(tmp_path, splits=SPLITS)
    assert task.splits.tolist() == SPLITS
    assert leakage.n_near_duplicates == 4  # 4-40, 4-42, 5-41, 6-50; 40-42 is within validation


def test_copies_in_given_training_images_are_not_divided_by_folds(tmp_path: Path) -> None:
    x = embeddings({20: 4, 21: 5})
    task, leakage = task_of(tmp_path, embeddings=x, splits=SPLITS)
    assert leakage.n_near_duplicates == 0
    assert (task.groups[20], task.groups[21]) == (task.groups[4], task.groups[5])


def test_where_patients_are_known_nothing_is_regrouped(tmp_path: Path) -> None:
    task, leakage = task_of(tmp_path, patients=[f"p{i}" for i in range(N)])
    assert len(set(task.groups.tolist())) == N
    assert leakage.together is None


def test_groups_with_two_labels_are_counted_with_an_example(tmp_path: Path) -> None:
    labels = list(LABELS)
    labels[50] = "malignant"
    _, leakage = task_of(tmp_path, labels=labels)
    assert leakage.together is not None
    assert leakage.together.n_with_different_labels == 1
    pair = leakage.together.different_labels[0]
    assert {(pair.first, pair.first_label), (pair.second, pair.second_label)} == {
        ("benign/6.png", "benign"), ("malignant/50.png", "malignant"),
    }  # fmt: skip
    (text,) = leakage_warnings(leakage)
    assert text.startswith(
        "1 group of near-identical images contains different labels, for example benign/6.png (benign)"
    )


def test_streamed_and_too_many_images_are_not_grouped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MOST_COMPARED", N - 1)
    task, leakage = task_of(tmp_path)
    assert leakage.not_compared == "60 images are too many to compare with one another"
    assert (leakage.together, len(set(task.groups.tolist()))) == (None, N)


def test_sentence_has_the_numbers_and_the_record_is_read_back(tmp_path: Path) -> None:
    _, leakage = task_of(tmp_path)
    assert together_text(leakage) == (
        "7 images in 3 groups of near-identical images stay together in the splits and folds that are drawn here "
        "(cosine above 0.75; largest group: 3 images)."
    )
    assert from_json(to_json(leakage), Leakage) == leakage
    old = {key: value for key, value in to_json(leakage).items() if key not in {"together", "near_duplicates_mode"}}
    assert from_json(old, Leakage) == replace(leakage, together=None, near_duplicates_mode="warn")
    assert together_text(from_json(old, Leakage)) == ""
