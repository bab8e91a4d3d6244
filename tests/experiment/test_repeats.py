"""`train --repeats`: the whole procedure on random splits, in which nobody is predicted by heads that saw him."""

import csv
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.evaluation.discrimination import auc_influence
from hoarfrost.evaluation.stability import mean_over_splits
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.experiment.repeats import repeated_splits
from hoarfrost.experiment.task import read_task
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.errors import RunError, TrainingError
from hoarfrost.heads.specs import parse_heads
from hoarfrost.report.page import render
from hoarfrost.report.paper import named_figures, tables_of
from hoarfrost.runs import Run, read_run
from hoarfrost.training import TrainingConfig
from tests.support.labelled import mixed, write_labelled_cache

QUICK = TrainingConfig(epochs=3, seeds=1)
LABELS = mixed({"benign": 60, "malignant": 40})
PATIENTS = [f"p{i // 2}" for i in range(100)]


def repeated(cache: Path, n_repeats: int = 6, seed: int = 0, positive: tuple[str, ...] = ()) -> Run:
    training = TrainingConfig(epochs=3, seeds=1, seed=seed)
    config = ExperimentConfig(training=training, n_repeats=n_repeats, positive=positive, overwrite=True)
    return run_experiment(cache, cache.parent / "run", parse_heads(["linear", "mlp:8"]), config)


def test_splits_are_by_patient_hold_out_a_fifth_and_differ(tmp_path: Path) -> None:
    splits = ["test" if i >= 80 else "train" for i in range(100)]
    path = write_labelled_cache(tmp_path / "c.h5", LABELS, patients=PATIENTS, splits=splits)
    with EmbeddingCache(path) as cache:
        task = read_task(cache, None, (), 0)
    found = repeated_splits(task, 8, 0)
    for one in found:
        sides = [{PATIENTS[row] for row in rows} for rows in (one.held_out, one.development.rows)]
        assert not sides[0] & sides[1]
        assert {LABELS[row] for row in one.held_out} == {"benign", "malignant"}
        assert max(*one.held_out, *one.development.rows) < 80  # the test split that the dataset brings is in none
        assert len(one.held_out) == pytest.approx(16, abs=4)
    assert len({tuple(one.held_out.tolist()) for one in found}) == 8
    again = repeated_splits(task, 8, 0)
    assert [one.held_out.tolist() for one in again] == [one.held_out.tolist() for one in found]


def test_run_has_the_areas_and_each_images_probabilities(tmp_path: Path) -> None:
    run = repeated(write_labelled_cache(tmp_path / "c.h5", LABELS))
    found, probabilities = run.repeats, run.repeated
    assert found is not None
    assert probabilities is not None
    assert (found.n_splits, len(found.selected), probabilities.shape) == (6, 6, (6, 100, 2))
    held_out = np.isfinite(probabilities[:, :, 1])
    assert held_out.sum(1).tolist() == [20] * 6
    y = run.y_true()
    for number, area in enumerate(found.roc_aucs):
        p, truth = probabilities[number, held_out[number], 1], y[held_out[number]]
        pairs = [(a > b) + (a == b) / 2 for a in p[truth == 1] for b in p[truth == 0]]
        assert area == pytest.approx(np.mean(pairs))
    assert found.roc_auc.value == pytest.approx(np.mean(found.roc_aucs))
    influences = np.zeros((6, 100))
    for number in range(6):
        rows = held_out[number]
        influences[number, rows] = auc_influence(y[rows], probabilities[number, rows])[1]
    assert found.roc_auc.interval == mean_over_splits(found.roc_aucs, influences, y, None, 5).interval
    with (run.directory / "repeats.csv").open() as file:
        rows = list(csv.DictReader(file))
    for i, row in enumerate(rows):
        for number in range(6):
            cell = row[f"split {number + 1}"]
            assert (cell == "") == (not held_out[number, i])
            assert not cell or float(cell) == probabilities[number, i, 1]


def test_run_is_read_back_as_it_was_and_reported(tmp_path: Path) -> None:
    run = repeated(write_labelled_cache(tmp_path / "c.h5", mixed({"a": 40, "b": 40, "c": 40})))
    again = read_run(run.directory)
    assert again.repeats == run.repeats
    assert run.repeated is not None
    np.testing.assert_array_equal(again.repeated, run.repeated)
    page = render(again, with_images=False, with_map=False)
    assert "On 6 random splits" in page
    assert "Riley and Collins 2023, Biometrical Journal" in page
    assert {"instability 1", "instability 2"} <= named_figures(again).keys()
    assert len(tables_of(again)["random splits"].rows) == 6


def test_run_without_repeats_says_nothing_of_them(tmp_path: Path) -> None:
    config = ExperimentConfig(training=QUICK)
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS)
    run = run_experiment(cache, tmp_path / "run", parse_heads(["linear"]), config)
    assert run.repeats is None
    assert not (tmp_path / "run" / "repeats.csv").exists()
    assert "random splits" not in render(run, with_images=False, with_map=False)


def test_repeats_leave_all_other_results_as_they_are(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS)
    run = repeated(cache)
    plain = run_experiment(
        cache, tmp_path / "plain", parse_heads(["linear", "mlp:8"]), ExperimentConfig(training=QUICK)
    )
    assert run.heads == plain.heads
    for name, probabilities in plain.predictions.probabilities.items():
        np.testing.assert_array_equal(probabilities, run.predictions.probabilities[name])


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    run = repeated(write_labelled_cache(tmp_path / "c.h5", LABELS), n_repeats=2)
    (run.directory / "repeats.csv").unlink()
    with pytest.raises(RunError, match="repeats.csv is missing"):
        read_run(run.directory)


def test_a_class_in_one_patient_is_refused_before_training(tmp_path: Path) -> None:
    labels = ["a"] * 20 + ["b"] * 5
    splits = ["train"] * 18 + ["test"] * 2 + ["train"] * 3 + ["test"] * 2
    patients = [f"p{i}" for i in range(20)] + ["q"] * 3 + ["r", "s"]
    cache = write_labelled_cache(tmp_path / "c.h5", labels, patients=patients, splits=splits)
    config = ExperimentConfig(training=QUICK, n_repeats=3)
    with pytest.raises(TrainingError, match="one patient only"):
        run_experiment(cache, tmp_path / "run", parse_heads(["linear"]), config)
