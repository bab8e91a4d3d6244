"""`replay` computes a run again from its cache and its heads, and names what differs and what it could not compute."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from hoarfrost.evaluation import wilson
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.external.cohort import CohortConfig, evaluate_cohort
from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
from hoarfrost.external.table import ColumnOptions
from hoarfrost.features.errors import RunError
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.replay.replaying import replay
from hoarfrost.runs.digests import write_digests
from hoarfrost.training import TrainingConfig
from tests.support.builders import write_csv
from tests.support.cohorts import write_cohort
from tests.support.commands import Hoarfrost
from tests.support.labelled import embeddings_of, write_labelled_cache
from tests.support.predicted import Trained, train_on_pictures


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_pictures(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def cross_fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("crossed"), np.random.default_rng(0)
    labels = [str(one) for one in rng.choice(["benign", "malignant"], 160)]
    cache = write_labelled_cache(
        folder / "c.h5", labels, embeddings=embeddings_of(labels, distance=0.1),
        patients=[f"p{i // 2}" for i in range(len(labels))],
        attributes={"scanner": [str(one) for one in rng.choice(list("AB"), len(labels))]},
    )  # fmt: skip
    config = ExperimentConfig(positive=["malignant"], training=TrainingConfig(epochs=4, seeds=1), n_folds=3)
    run_experiment(cache, folder / "run", parse_heads(["logistic,C=1", "mlp:8"]), config)
    return folder / "run"


def changed(run: Path, folder: Path, name: str, old: str, new: str) -> Path:
    """Copy a run and change a file of it, with its digest."""
    shutil.copytree(run, folder)
    path = folder / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    write_digests(folder)
    return folder


def test_run_of_an_earlier_version_with_wilsons_intervals_of_patients_images_is_equal(
    cross_fitted: Path, tmp_path: Path
) -> None:
    shutil.copytree(cross_fitted, tmp_path / "run")
    path = tmp_path / "run" / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8"))
    n_changed = 0
    for point in metrics["assessment"]["classes"][0]["points"]:
        for name in point["by_patient"] or ():
            share = point["result"][name]
            plain = wilson(share["n_hits"], share["n"])
            share |= {"low": plain.low, "high": plain.high}
            n_changed += share.pop("method") == "bootstrap over patients"
    assert n_changed
    path.write_text(json.dumps(metrics), encoding="utf-8")
    write_digests(tmp_path / "run")
    found = replay(tmp_path / "run")
    assert found.is_equal, found.differing


def test_run_with_a_validation_split_is_equal(trained: Trained) -> None:
    found = replay(trained.run)
    assert found.is_equal, found.differing
    assert found.n_probabilities == 3 * 120
    assert found.n_figures > 500


def test_cross_fitted_run_with_folds_is_equal(cross_fitted: Path) -> None:
    found = replay(cross_fitted)
    assert found.is_equal, found.differing
    assert found.largest < 1e-6
    assert not any(one.startswith("references: ") for one in found.skipped)
    assert any(one.startswith("folds: ") for one in found.skipped)


def test_changed_figure_is_named_with_its_place_and_size(trained: Trained, tmp_path: Path) -> None:
    metrics = json.loads((trained.run / "metrics.json").read_text())
    area = metrics["heads"][0]["test"]["roc_auc"]
    value = area["value"] if isinstance(area, dict) else area
    run = changed(trained.run, tmp_path / "r", "metrics.json", f"{value!r}", f"{value - 0.01!r}")
    found = replay(run)
    assert not found.is_equal
    assert any(one.size == pytest.approx(0.01) for one in found.differing)


def test_changed_prediction_is_named_by_its_image(trained: Trained, tmp_path: Path) -> None:
    line = (trained.run / "predictions.csv").read_text().splitlines()[5]
    *facts, p = line.split(",")
    changed_line = ",".join([*facts, repr(1 - float(p))])
    found = replay(changed(trained.run, tmp_path / "r", "predictions.csv", line, changed_line))
    assert any(facts[0] in one.place for one in found.differing)


def test_changed_figure_of_a_reference_or_an_audit_is_named(cross_fitted: Path, tmp_path: Path) -> None:
    metrics = json.loads((cross_fitted / "metrics.json").read_text())
    places = []
    for number, (part, figure) in enumerate(
        (
            ("references", metrics["references"][1]["val"]["loss"]),
            ("acquisition", metrics["acquisition"]["val"]["value"]),
        )
    ):
        run = changed(cross_fitted, tmp_path / str(number), "metrics.json", f"{figure!r}", f"{figure + 0.01!r}")
        places = [one.place for one in replay(run).differing]
        assert places
        assert all(place.startswith(part) for place in places)


def test_retrained_run_is_equal_in_every_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    labels = [str(one) for one in rng.choice(["benign", "malignant"], 140)]
    columns = {"site": [f"s{i % 2}" for i in range(140)], "age": [str(int(one)) for one in rng.integers(30, 80, 140)]}
    cache = write_labelled_cache(
        tmp_path / "c.h5", labels, embeddings=embeddings_of(labels, distance=0.1), attributes=columns
    )
    config = ExperimentConfig(
        positive=["malignant"], training=TrainingConfig(epochs=3, seeds=2), n_folds=3, n_repeats=2, leave_out="site",
        with_learning_curve=True, covariates=("age",),
    )  # fmt: skip
    run = run_experiment(cache, tmp_path / "run", parse_heads(["linear", "mlp:8"]), config).directory
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    found = replay(run, retrain=True)
    assert found.is_equal, found.differing
    assert found.skipped == ()
    assert found.n_probabilities == 3 * 140
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files  # nothing is written
    site = json.loads((run / "metrics.json").read_text())["left_out"]["sites"][0]["held_out"]["value"]
    other = changed(run, tmp_path / "other", "metrics.json", f"{site!r}", f"{site / 2!r}")
    assert replay(other).is_equal  # its heads are not saved
    assert [one.place[:8] for one in replay(other, retrain=True).differing] == ["left_out"]


def test_only_trained_runs_with_their_settings_are_retrained(trained: Trained, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier"
    shutil.copytree(trained.run, earlier)
    config = json.loads((earlier / "config.json").read_text())
    del config["options"]
    (earlier / "config.json").write_text(json.dumps(config))
    write_digests(earlier)
    with pytest.raises(RunError, match="does not record all its settings"):
        replay(earlier, retrain=True)
    found = replay(earlier)
    assert found.is_equal, found.differing
    assert any(one.startswith("references: An earlier version") for one in found.skipped)
    options = ColumnOptions(positive=("malignant",))
    evaluate_predictions([trained.run / "predictions.csv"], tmp_path / "e", config=PredictionsConfig(columns=options))
    with pytest.raises(RunError, match="is an evaluation"):
        replay(tmp_path / "e", retrain=True)


def test_file_with_another_digest_is_named_and_nothing_else_is_compared(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.run, tmp_path / "r")
    (tmp_path / "r" / "history.csv").write_text("")
    (tmp_path / "r" / "heads" / "linear.safetensors").unlink()
    found = replay(tmp_path / "r")
    assert set(found.changed) == {"history.csv", "heads/linear.safetensors"}
    assert not found.is_equal
    assert found.n_figures == 0


def test_without_the_cache_figures_are_computed_and_predictions_are_named(trained: Trained, tmp_path: Path) -> None:
    moved = tmp_path / "moved.h5"
    shutil.move(trained.cache, moved)
    try:
        found = replay(trained.run)
    finally:
        shutil.move(moved, trained.cache)
    assert found.is_equal, found.differing
    assert found.n_probabilities == 0
    assert any("no longer exists" in one for one in found.skipped)


def test_evaluation_of_predictions_is_equal(trained: Trained, tmp_path: Path) -> None:
    config = PredictionsConfig(columns=ColumnOptions(positive=("malignant",)))
    evaluate_predictions([trained.run / "predictions.csv"], tmp_path / "e", config=config)
    found = replay(tmp_path / "e")
    assert found.is_equal, found.differing
    rows = [["id", "label", "score"], *([str(i), str(i % 2), str(i % 3 + i % 2)] for i in range(60))]
    evaluate_predictions([write_csv(tmp_path / "s.csv", rows)], tmp_path / "s")
    assert replay(tmp_path / "s").is_equal


@pytest.mark.usefixtures("free_backbone")
def test_evaluation_of_a_cohort_is_computed_again_from_its_own_cache(trained: Trained, tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "hospital_b")
    config = CohortConfig(cache=tmp_path / "b.h5", options=ExtractOptions(device="cpu"))
    found = replay(evaluate_cohort(cohort, tmp_path / "e", run=trained.run, config=config).directory)
    assert found.is_equal, found.differing
    assert found.n_probabilities > 0
    without = replay(evaluate_cohort(cohort, tmp_path / "f", run=trained.run).directory)
    assert without.is_equal, without.differing
    assert any("embeddings were not kept" in one for one in without.skipped)


def test_run_of_several_labels_per_image_is_equal(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    labels = [str(one) for one in rng.choice(["a", "b"], 120)]
    columns = {"mass": [str(int(one == "a")) for one in labels], "fluid": [str(i % 3 % 2) for i in range(len(labels))]}
    cache = write_labelled_cache(
        tmp_path / "c.h5", labels, embeddings=embeddings_of(labels, distance=0.1), attributes=columns
    )
    config = ExperimentConfig(label_columns=["mass", "fluid"], training=TrainingConfig(epochs=3, seeds=1))
    run_experiment(cache, tmp_path / "run", parse_heads(["mlp:8"]), config)
    found = replay(tmp_path / "run")
    assert found.is_equal, found.differing


def test_command_exits_with_0_or_1_and_prints_plain_words(
    trained: Trained, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    status, out, _ = hoarfrost("replay", trained.run)
    assert status == 0
    assert "no difference" in out
    assert "not computed again:" in out
    run = changed(trained.run, tmp_path / "r", "metrics.json", '"n": 20', '"n": 21')
    status, out, _ = hoarfrost("replay", run, "--json")
    assert status == 1
    assert json.loads(out)["is_equal"] is False
    status, _, error = hoarfrost("replay", tmp_path)
    assert status == 1
    assert "not a run folder" in error


def test_run_of_another_device_is_computed_again_on_the_cpu(
    cross_fitted: Path, tmp_path: Path, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    run = changed(cross_fitted, tmp_path / "r", "config.json", '"device": "cpu"', '"device": "cuda"')
    found = replay(run)
    assert found.is_equal, found.differing
    assert not any(one.startswith("references: ") for one in found.skipped)
    status, _, error = hoarfrost("replay", run, "--retrain")
    assert status == 1
    assert "was trained on cuda, which does not work on this machine" in error


def test_cache_with_more_images_is_named(tmp_path: Path) -> None:
    labels = [str(one) for one in np.random.default_rng(3).choice(["benign", "malignant"], 140)]
    cache = write_labelled_cache(tmp_path / "c.h5", labels[:120], embeddings=embeddings_of(labels)[:120])
    config = ExperimentConfig(positive=["malignant"], training=TrainingConfig(epochs=3, seeds=1))
    run = run_experiment(cache, tmp_path / "run", parse_heads(["linear"]), config).directory
    write_labelled_cache(cache, labels, embeddings=embeddings_of(labels))
    found = replay(run)
    assert found.is_equal, found.differing
    assert found.n_probabilities == 120
    for part in ("references", "leakage", "suspects"):
        assert f"{part}: The dataset has other images in the cache now than the run has." in found.skipped
    with pytest.raises(RunError, match="has other images.*omit --retrain"):
        replay(run, retrain=True)
