"""The learning curve: growing shares of the training patients, several draws, scored on the test split."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoarfrost.cli.console.training import train_text
from hoarfrost.experiment.curve import N_DRAWS, SHARES
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.heads.specs import parse_heads
from hoarfrost.runs import Run, metrics_document, outlook_of, outlook_text, read_run
from hoarfrost.training import TrainingConfig
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache

QUICK = TrainingConfig(epochs=10, patience=5)


def with_curve(cache: Path, **options: Any) -> Run:
    heads = parse_heads(["linear"])
    return run_experiment(
        cache, cache.parent / "run", heads, ExperimentConfig(training=QUICK, with_learning_curve=True, **options)
    )


def test_more_training_patients_make_a_better_head(tmp_path: Path) -> None:
    labels = mixed({"benign": 300, "malignant": 200})
    cache = write_labelled_cache(tmp_path / "c.h5", labels, embeddings=embeddings_of(labels, distance=0.1))
    points = with_curve(cache).learning_curve
    assert [point.share for point in points] == list(SHARES)
    assert [len(point.roc_aucs) for point in points] == [N_DRAWS] * 4 + [1]
    assert [point.n_images for point in points] == sorted(point.n_images for point in points)
    means = [np.mean(point.roc_aucs) for point in points]
    assert means[0] < means[2] < means[-1]


def test_the_last_point_is_the_whole_training_split_and_the_selected_head(tmp_path: Path) -> None:
    run = with_curve(write_labelled_cache(tmp_path / "c.h5", mixed({"benign": 60, "malignant": 40})))
    last = run.learning_curve[-1]
    assert last.n_images == sum(run.config.dataset.counts["train"].values())
    assert last.roc_aucs[0] == pytest.approx(run.heads[0].test.value("roc_auc"), abs=1e-12)  # type: ignore[union-attr]


def test_patients_are_drawn_whole(tmp_path: Path) -> None:
    labels = [label for label in mixed({"benign": 60, "malignant": 40}) for _ in range(3)]
    cache = write_labelled_cache(tmp_path / "c.h5", labels, patients=[f"p{i // 3}" for i in range(300)])
    for point in with_curve(cache).learning_curve:
        assert point.n_images == 3 * point.n_patients


def test_every_share_is_there_and_has_each_class_where_one_is_small(tmp_path: Path) -> None:
    run = with_curve(write_labelled_cache(tmp_path / "c.h5", mixed({"benign": 40, "malignant": 10})))
    assert [point.share for point in run.learning_curve] == list(SHARES)
    n_train = run.config.dataset.n_split["train"]
    for point in run.learning_curve:  # the share of each class, at least one image of it
        assert point.n_images == pytest.approx(point.share * n_train, abs=1.5)


def test_every_share_has_each_label_where_one_is_rare(tmp_path: Path) -> None:
    cells = {"mass": [str(i % 2) for i in range(100)], "rare": [str(int(i % 12 == 0)) for i in range(100)]}
    cache = write_labelled_cache(tmp_path / "c.h5", [""] * 100, attributes=cells)
    assert [point.share for point in with_curve(cache, label_columns=()).learning_curve] == list(SHARES)


def test_shares_that_leave_out_the_absence_of_a_label_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cells = {"mass": [str((i + 1) % 2) for i in range(100)], "body": [str(int(i % 12 > 0)) for i in range(100)]}
    splits = ["test" if i % 5 == 0 else "val" if i % 5 == 1 else "train" for i in range(100)]
    cache = write_labelled_cache(tmp_path / "c.h5", [""] * 100, attributes=cells, splits=splits)
    run = with_curve(cache, label_columns=())
    left_out = [share for share in SHARES if share not in [point.share for point in run.learning_curve]]
    assert SHARES[0] in left_out
    assert SHARES[-1] not in left_out
    assert [message.split(" of the")[0] for message in caplog.messages] == [
        f"learning curve: {share:.0%}" for share in left_out
    ]
    assert read_run(tmp_path / "run").learning_curve == run.learning_curve


def test_curve_is_extrapolated_from_its_draws_and_not_without_them(tmp_path: Path) -> None:
    labels = mixed({"benign": 300, "malignant": 200})
    cache = write_labelled_cache(tmp_path / "c.h5", labels, embeddings=embeddings_of(labels, distance=0.1))
    run = with_curve(cache)
    for point in run.learning_curve:
        assert np.mean(point.by_draw) == pytest.approx(np.mean(point.roc_aucs))
    found = outlook_of(run)
    assert found is not None
    assert found.n_images[-2:] == (2 * run.learning_curve[-1].n_images, 4 * run.learning_curve[-1].n_images)
    assert outlook_text(found) in train_text(run)
    assert metrics_document(run)["extrapolation"]["values"] == list(found.values)
    of_before = replace(run, learning_curve=tuple(replace(point, by_draw=()) for point in run.learning_curve))
    assert "No extrapolation: runs of earlier versions" in train_text(of_before)
