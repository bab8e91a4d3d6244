"""Images that a head was trained on are named when it predicts them."""

import json
import shutil
from pathlib import Path

import pytest

from hoarfrost.inference.predict import predict_dataset
from hoarfrost.inference.sources import training_keys
from hoarfrost.runs import read_run
from hoarfrost.runs.digests import write_digests
from tests.support.predicted import Trained, flat, train_on_pictures


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_pictures(tmp_path_factory.mktemp("trained"))


pytestmark = pytest.mark.usefixtures("free_backbone")


def test_training_images_are_named_whatever_their_files_are_called(
    trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = read_run(trained.run)
    chosen = {name: run.predictions.splits.index(name) for name in ("train", "test")}
    (tmp_path / "new").mkdir()
    for name, place in chosen.items():
        shutil.copy(trained.images / run.predictions.paths[place], tmp_path / "new" / f"renamed_{name}.png")
    summary = predict_dataset(tmp_path / "new", tmp_path / "found.csv", run=trained.run)
    assert summary.in_training_split == ("renamed_train.png",)
    assert "1 of 2 images were in the run's training split (by their bytes): renamed_train.png. The head" in caplog.text
    assert any("renamed_train.png" in note for note in summary.notes)


def test_all_training_images_are_those_of_the_run_and_three_are_shown(trained: Trained, tmp_path: Path) -> None:
    run = read_run(trained.run)
    data = flat(trained, tmp_path / "some", range(120))
    summary = predict_dataset(data, tmp_path / "found.csv", run=trained.run)
    n_train = run.predictions.splits.count("train")
    assert len(training_keys(trained.run)) == n_train
    assert summary.in_training_split is not None
    assert len(summary.in_training_split) == n_train
    assert sum(".png" in word for word in next(n for n in summary.notes if "training split" in n).split()) == 3


def test_unreadable_file_is_no_training_image(trained: Trained, tmp_path: Path) -> None:
    data = flat(trained, tmp_path / "some", range(3))
    (data / "broken.png").write_bytes(b"")
    summary = predict_dataset(data, tmp_path / "found.csv", run=trained.run)
    assert summary.in_training_split is not None
    assert "broken.png" not in summary.in_training_split


def test_it_is_not_known_of_a_head_file_alone_nor_without_the_runs_cache(trained: Trained, tmp_path: Path) -> None:
    data = flat(trained, tmp_path / "some", range(3))
    head = next((trained.run / "heads").glob("*.safetensors"))
    assert predict_dataset(data, tmp_path / "a.csv", head=str(head)).in_training_split is None
    away = trained.cache.rename(tmp_path / "away.h5")
    try:
        summary = predict_dataset(data, tmp_path / "b.csv", run=trained.run)
    finally:
        away.rename(trained.cache)
    assert summary.in_training_split is None
    assert summary.notes[0].startswith("Whether images were in the training split is not known. The cache ")
    assert summary.predicted == 3


def test_head_of_a_run_knows_its_training_images(trained: Trained) -> None:
    pytest.importorskip("fastapi_offline")
    from hoarfrost.inference.serve.limits import Limits
    from hoarfrost.inference.serve.reader import opened_reader

    run = read_run(trained.run)
    with opened_reader(trained.run, None, Limits(), weights=None, device="cpu", notes=[]) as reader:
        for name, is_known in (("train", True), ("test", False)):
            path = run.predictions.paths[run.predictions.splits.index(name)]
            assert reader.trained_on((trained.images / path).read_bytes()) is is_known


def test_a_head_of_a_run_with_covariates_says_that_it_takes_images_alone(trained: Trained, tmp_path: Path) -> None:
    data = flat(trained, tmp_path / "some", range(3))
    plain = predict_dataset(data, tmp_path / "a.csv", run=trained.run)
    assert not any("covariates" in note for note in plain.notes)
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "covariates": ["age", "sex"]}))
    write_digests(run)
    found = predict_dataset(data, tmp_path / "b.csv", run=run)
    assert "The run compared its heads with covariates (age, sex). Heads predict from the images alone." in found.notes
