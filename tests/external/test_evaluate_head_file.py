"""A head file alone finds its training images in a cohort, by short digests, and states what it cannot check."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.external.cohort import CohortConfig, evaluate_cohort
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.files import head_bytes, read_head
from hoarfrost.heads.seen import digests_of
from hoarfrost.heads.specs import parse_heads
from hoarfrost.runs import Run
from hoarfrost.runs.lock import read_looks
from hoarfrost.training import TrainingConfig
from tests.support.builders import write_csv
from tests.support.cohorts import write_cohort
from tests.support.predicted import Trained, read_csv, train_on_pictures
from tests.support.saved_heads import saved_head

pytestmark = pytest.mark.usefixtures("free_backbone")


def checks(found: Run) -> dict[str, int | None]:
    assert found.external is not None
    return {one.what: one.n for one in found.external.overlap}


def with_images_of(trained: Trained, folder: Path, split: str) -> Path:
    """Add a training cohort's images of a split, under other names and patients, to another hospital's."""
    cohort = write_cohort(folder, n=40)
    rows = [list(row.values()) for row in read_csv(cohort / "labels.csv")]
    given = [row for row in read_csv(trained.images / "labels.csv") if row["split"] == split][:3]
    for row in given:
        shutil.copy(trained.images / row["path"], cohort / f"x{row['path']}")
        rows.append([f"x{row['path']}", row["label"], f"x{row['patient']}", "north", "50"])
    write_csv(cohort / "labels.csv", [["path", "label", "patient", "site", "age"], *rows])
    return cohort


@pytest.mark.parametrize("split", ["train", "val"])
def test_images_that_the_head_saw_are_found_by_its_file(trained: Trained, tmp_path: Path, split: str) -> None:
    cohort, head = with_images_of(trained, tmp_path / "b", split), str(trained.run / "heads" / "linear.safetensors")
    with pytest.raises(
        TrainingError, match="3 identical images are in the training images, by the digests in the head"
    ):
        evaluate_cohort(cohort, tmp_path / "e", head=head)
    found = evaluate_cohort(cohort, tmp_path / "e", head=head, config=CohortConfig(allow_leakage=True))
    assert checks(found) == {"patients": None, "identical images": 3, "near-identical images": None}


def test_images_that_the_head_saw_are_found_by_its_file_where_the_runs_cache_is_gone(tmp_path: Path) -> None:
    trained = train_on_pictures(tmp_path / "t")
    cohort = with_images_of(trained, tmp_path / "b", "train")
    trained.cache.rename(tmp_path / "away.h5")
    with pytest.raises(TrainingError, match="3 identical images are in the training images, by the digests"):
        evaluate_cohort(cohort, tmp_path / "e", run=trained.run, config=CohortConfig(weights="random:0"))
    config = CohortConfig(weights="random:0", allow_leakage=True)
    found = checks(evaluate_cohort(cohort, tmp_path / "e", run=trained.run, config=config))
    assert found == {"patients": 0, "identical images": 3, "near-identical images": None}


def test_head_file_of_a_locked_run_is_a_look_and_a_copy_is_none(trained: Trained, tmp_path: Path) -> None:
    config = ExperimentConfig(training=TrainingConfig(epochs=2, seeds=1), lock_test=True)
    locked = run_experiment(trained.cache, tmp_path / "locked", parse_heads(["linear"]), config).directory
    cohort, head = write_cohort(tmp_path / "b"), locked / "heads" / "linear.safetensors"
    copy = shutil.copy(head, tmp_path)
    evaluate_cohort(cohort, tmp_path / "e", head=str(copy))
    assert read_looks(locked) == ()
    evaluate_cohort(cohort, tmp_path / "f", head=str(head))
    assert [look.command for look in read_looks(locked)] == [f"evaluate {cohort}"]


def test_images_of_the_test_split_are_no_training_images(trained: Trained, tmp_path: Path) -> None:
    cohort, head = with_images_of(trained, tmp_path / "b", "test"), str(trained.run / "heads" / "linear.safetensors")
    assert checks(evaluate_cohort(cohort, tmp_path / "e", head=head))["identical images"] == 0


def test_file_without_digests_states_that_nothing_was_checked(trained: Trained, tmp_path: Path) -> None:
    config = ExperimentConfig(training=TrainingConfig(epochs=2, seeds=1), with_digests=False)
    run = run_experiment(trained.cache, tmp_path / "run", parse_heads(["linear"]), config).directory
    cohort, head = with_images_of(trained, tmp_path / "b", "train"), str(run / "heads" / "linear.safetensors")
    found = evaluate_cohort(cohort, tmp_path / "e", head=head)
    assert checks(found) == {"patients": None, "identical images": None, "near-identical images": None}
    assert found.external is not None
    assert "has no digests" in found.external.overlap[1].text


def test_digests_take_8_bytes_each_and_are_no_keys(trained: Trained, tmp_path: Path) -> None:
    with safe_open(trained.run / "heads" / "linear.safetensors", "np") as file:
        seen = file.get_tensor("seen")
    assert (seen.dtype, len(seen)) == (np.int64, 100)
    assert seen.tolist() == sorted(set(seen.tolist()))
    keys = [bytes(range(32)), bytes(32)]
    assert digests_of(keys).tolist() == digests_of(keys[::-1]).tolist()[::-1]
    assert int(digests_of(keys)[0]) != int.from_bytes(keys[0][:8], "little", signed=True)
    plain = saved_head()
    path = tmp_path / "plain.safetensors"
    path.write_bytes(head_bytes(plain))  # as earlier versions wrote it
    assert len(read_head(path).seen) == 0
