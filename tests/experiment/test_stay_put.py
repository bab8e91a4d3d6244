"""A member keeps its split when a dataset grows; an earlier run's splits can be kept whatever happens."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hoarfrost import train
from hoarfrost.experiment.identities import identities_of
from hoarfrost.experiment.splits import carve_validation, merged_groups, split
from hoarfrost.features.errors import RunError, TrainingError
from hoarfrost.runs import Run
from hoarfrost.training import TrainingConfig
from tests.support.labelled import embeddings_of, write_labelled_cache

QUICK = TrainingConfig(epochs=1)
NAMES = ["benign", "malignant"]


def identities(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**63, n).astype(np.uint64)


@pytest.mark.parametrize("seed", range(20))
def test_no_image_changes_its_split_when_others_are_added(seed: int) -> None:
    y, own = np.arange(2_000) % 2, identities(2_000)
    few = split(y[:200], np.arange(200), NAMES, seed=seed, identities=own[:200])
    order = np.random.default_rng(seed).permutation(2_000)  # added anywhere, not at the end alone
    many = split(y[order], np.arange(2_000), NAMES, seed=seed, identities=own[order])
    assert (many[np.argsort(order)][:200] == few).all()


def test_patient_keeps_its_split_when_an_image_of_another_class_is_added() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (300, 32)).astype(np.uint8)
    patients = [f"p{i // 3}" for i in range(300)]
    y = np.repeat(np.arange(100) % 2, 3)
    before = split(y, merged_groups(patients), NAMES, identities=identities_of(keys, patients))
    more_keys = np.concatenate([keys, keys[:100] + 1])
    more_patients, more_y = [*patients, *(f"p{i}" for i in range(100))], np.concatenate([y, np.arange(1, 101) % 2])
    after = split(more_y, merged_groups(more_patients), NAMES, identities=identities_of(more_keys, more_patients))
    assert (after[:300] == before).all()
    assert (after[300:] == before[::3]).all()


def test_validation_that_is_carved_stays_too() -> None:
    y, own = np.arange(1_000) % 2, identities(1_000)
    few = carve_validation(y[:300], np.arange(300), NAMES, identities=own[:300])
    many = carve_validation(y, np.arange(1_000), NAMES, identities=own)
    assert (many[:300] == few).all()


def test_unknown_patient_counts_as_its_image() -> None:
    keys = np.random.default_rng(0).integers(0, 256, (3, 32)).astype(np.uint8)
    with_patients, without = identities_of(keys, ["p", "", "p"]), identities_of(keys, None)
    assert with_patients[0] == with_patients[2] != without[0]
    assert with_patients[1] == without[1]


@pytest.mark.parametrize("n_others", [0, 40])
def test_dataset_whose_patients_all_have_both_classes_is_split(n_others: int) -> None:
    """Two eyes of each patient: no patient is of one class alone."""
    patients = np.concatenate([np.repeat(np.arange(30), 2), np.arange(30, 30 + n_others)])
    y = np.concatenate([np.tile([0, 1], 30), np.zeros(n_others, np.int64)])
    splits = split(y, patients, NAMES)
    for name in ("train", "val", "test"):
        for number in (0, 1):
            assert len(set(patients[(splits == name) & (y == number)].tolist())) >= 2
    assert all(len(set(splits[patients == one])) == 1 for one in range(30))


# -- in a run -----------------------------------------------------------------------------------------------------------


def labels_of(n: int) -> list[str]:
    return [NAMES[i % 2] for i in range(n)]


def cached(folder: Path, n: int, seed: int = 0, **columns: object) -> Path:
    x = embeddings_of(labels_of(400))[:n]
    return write_labelled_cache(folder / f"{n}-{seed}.h5", labels_of(n), embeddings=x, **columns)  # type: ignore[arg-type]


def split_by_path(run: Run) -> dict[str, str]:
    return dict(zip(run.predictions.paths, run.predictions.splits, strict=True))


def moved(first: Run, second: Run) -> list[str]:
    before, after = split_by_path(first), split_by_path(second)
    return [path for path, split in before.items() if after[path] != split]


def test_ten_images_more_move_none_of_a_runs_images(tmp_path: Path) -> None:
    first = train(cached(tmp_path, 120), tmp_path / "a", ["linear"], config=QUICK)
    second = train(cached(tmp_path, 130), tmp_path / "b", ["linear"], config=QUICK)
    assert len(second.predictions.paths) == 130
    assert moved(first, second) == []


def test_splits_of_another_seed_are_kept_where_they_are_asked_for(tmp_path: Path) -> None:
    first = train(cached(tmp_path, 120), tmp_path / "a", ["linear"], config=TrainingConfig(epochs=1, seed=5))
    more = cached(tmp_path, 160)
    assert moved(first, train(more, tmp_path / "b", ["linear"], config=QUICK)) != []
    kept = train(more, tmp_path / "c", ["linear"], config=QUICK, splits_from=tmp_path / "a")
    assert moved(first, kept) == []
    assert kept.config.dataset.split_by == "earlier run"
    assert set(kept.predictions.splits[120:]) == {"train", "test"}


def test_new_image_of_a_known_patient_joins_its_split(tmp_path: Path) -> None:
    def patients(n: int) -> list[str]:
        return [f"p{i % 60}" for i in range(n)]

    first = train(
        cached(tmp_path, 120, patients=patients(120)), tmp_path / "a", ["linear"], config=TrainingConfig(epochs=1, seed=5)
    )  # fmt: skip
    more = cached(tmp_path, 150, patients=patients(150))
    kept = train(more, tmp_path / "b", ["linear"], config=QUICK, splits_from=tmp_path / "a")
    of_patient = dict(zip(first.predictions.patients, first.predictions.splits, strict=True))
    assert all(of_patient[p] == s for p, s in zip(kept.predictions.patients, kept.predictions.splits, strict=True))


def test_validation_split_is_carved_from_a_run_that_had_none(tmp_path: Path) -> None:
    cache = cached(tmp_path, 120)
    first = train(cache, tmp_path / "a", ["linear"], config=QUICK)
    assert "val" not in first.predictions.splits
    kept = train(cache, tmp_path / "b", ["linear"], config=QUICK, splits_from=tmp_path / "a", cross_fit=False)
    was = split_by_path(first)
    assert "val" in kept.predictions.splits
    assert {path for path, split in split_by_path(kept).items() if split == "test"} == {
        path for path, split in was.items() if split == "test"
    }


def refused(folder: Path, cache: Path, splits_from: Path, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        train(cache, folder / "new", ["linear"], config=QUICK, splits_from=splits_from)


def test_run_of_other_images_a_folder_without_a_run_and_a_dataset_with_splits_are_refused(tmp_path: Path) -> None:
    train(cached(tmp_path, 120), tmp_path / "a", ["linear"], config=QUICK)
    other = write_labelled_cache(tmp_path / "other.h5", ["cat", "dog"] * 60)
    refused(tmp_path, other, tmp_path / "a", TrainingError, "--splits-from: that run has none of the images")
    refused(tmp_path, other, tmp_path / "nothing", RunError, "not a run folder")
    splits: Sequence[str] = ["train", "train", "test", "test"] * 30
    given = write_labelled_cache(tmp_path / "given.h5", labels_of(120), splits=list(splits))
    refused(tmp_path, given, tmp_path / "a", TrainingError, "has splits of its own")


def test_latest_run_of_the_dataset_with_other_splits_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    splits, cache = ["train", "train", "train", "train", "test", "test"] * 20, tmp_path / "given.h5"
    write_labelled_cache(cache, labels_of(120), splits=splits)
    train(cache, tmp_path / "runs" / "a", ["linear"], config=QUICK)
    with caplog.at_level(logging.WARNING):
        train(cache, tmp_path / "runs" / "b", ["linear"], config=QUICK)
    assert "The splits differ" not in caplog.text
    cache.unlink()
    write_labelled_cache(cache, labels_of(120), splits=splits[2:] + splits[:2])
    train(cache, tmp_path / "runs" / "c", ["linear"], config=TrainingConfig(epochs=1, seed=1))
    assert "The splits differ" not in caplog.text
    train(cache, tmp_path / "runs" / "d", ["linear"], config=QUICK)
    assert "40 of its test images are training images now, and 40 of its training images are test images" in caplog.text
