"""From a cached dataset to a run folder: unreadable images, cache and run folder, no image at all."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from hoarfrost.features.errors import CacheError, RunError, TrainingError
from hoarfrost.runs import read_run
from tests.experiment.test_experiment import THREE, TWO, given_splits, train
from tests.support.commands import Output, RunPython
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache

# -- images that could not be read --------------------------------------------------------------------------------------


def test_unreadable_images_are_left_out_and_listed(tmp_path: Path) -> None:
    labels = mixed(TWO)
    run = train(write_labelled_cache(tmp_path / "cache.h5", labels, unreadable=(3, 50)))
    listed = [(image.path, image.error) for image in run.config.dataset.unreadable]
    assert listed == [(f"{labels[i]}/{i}.png", f"truncated after {i} bytes") for i in (3, 50)]
    assert [path for path, _ in listed if path in run.predictions.paths] == []
    assert run.config.dataset.n_images == 100
    assert sum(sum(by_label.values()) for by_label in run.config.dataset.counts.values()) == 98


def test_embeddings_that_are_no_numbers_are_refused_by_path(tmp_path: Path) -> None:
    labels = mixed(TWO)
    x = embeddings_of(labels)
    x[7, 5], x[9, 0] = np.nan, np.inf
    cache = write_labelled_cache(tmp_path / "cache.h5", labels, embeddings=x)
    message = rf"embeddings of 2 of 100 images are not finite \(first: {labels[7]}/7.png\).*weights random:0 .*extract"
    with pytest.raises(TrainingError, match=message):
        train(cache)


def test_head_whose_predictions_overflow_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels, splits = mixed(TWO), given_splits(100, "train", "train", "val", "test")
    x = embeddings_of(labels)
    x[[i for i, name in enumerate(splits) if name == "test"]] *= 1e37
    cache = write_labelled_cache(tmp_path / "cache.h5", labels, splits=splits, embeddings=x)
    run = train(cache, heads=("linear,lr=100,transform=none", "linear,lr=1e-9,transform=none"))
    assert [head.name for head in run.heads] == ["linear,lr=1e-09,transform=none"]
    assert list(read_run(run.directory).predictions.probabilities) == ["linear,lr=1e-09,transform=none"]
    assert [path.name for path in (run.directory / "heads").iterdir()] == ["linear-lr=1e-09-transform=none.safetensors"]
    assert "linear,lr=100,transform=none: skipped, because its predictions overflow on some images" in caplog.text
    with pytest.raises(TrainingError, match=r"predictions of every head overflow on some images.*learning rates"):
        train(cache, heads=("linear,lr=100,transform=none",))


# -- cache and run folder -----------------------------------------------------------------------------------------------


def test_missing_cache_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match=r"No cache at .*\. Create it with: hoarfrost extract DATA --cache"):
        train(tmp_path / "cache.h5")


def test_unknown_dataset_is_refused_with_those_there_are(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed(TWO))
    with pytest.raises(CacheError, match="does not have a dataset 'busi'. Choose one with --dataset: phantoms"):
        train(cache, dataset="busi")


def test_several_datasets_need_a_choice(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed(TWO))
    write_labelled_cache(cache, mixed(THREE), name="others")
    with pytest.raises(CacheError, match="has 2 datasets. Choose one with --dataset: others, phantoms"):
        train(cache)
    assert train(cache, dataset="others").config.dataset.name == "others"


def test_place_that_is_taken_is_refused_before_any_training(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "cache.h5", mixed(TWO))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"dear")
    begun: list[str] = []
    with pytest.raises(RunError, match="photos is not empty and does not contain an earlier run"):
        train(cache, tmp_path / "photos", on_progress=lambda _: begun.append("begun"))
    assert begun == []


# -- no image, no backbone ----------------------------------------------------------------------------------------------


class Watched(NamedTuple):
    """What a `hoarfrost train` in its own process loaded and opened."""

    output: Output
    modules: set[str]
    opened: list[str]
    images: Path


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, run_python: RunPython) -> Watched:
    """Train on a cache whose images lie where they were; note every file that is opened, by whatever library."""
    folder = tmp_path_factory.mktemp("watched")
    labels = mixed({"benign": 30, "malignant": 30})
    for i, label in enumerate(labels):
        (folder / "images" / label).mkdir(parents=True, exist_ok=True)
        (folder / "images" / label / f"{i}.png").write_bytes(b"an image")
    write_labelled_cache(folder / "cache.h5", labels, source=str(folder / "images"))
    code = f"""
import json, sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(str(arguments[0])) if event == "open" else None)
from hoarfrost.cli import main
try:
    main(["train", "--cache", {str(folder / "cache.h5")!r}, "--run", {str(folder / "run")!r}, "--epochs", "2"])
finally:
    with open({str(folder / "seen.json")!r}, "w") as file:
        json.dump([sorted(sys.modules), opened], file)
"""
    output = run_python("-c", code)
    modules, opened = json.loads((folder / "seen.json").read_text())
    return Watched(output, set(modules), opened, folder / "images")


@pytest.mark.slow
def test_train_imports_nothing_for_images_pages_or_compiling(watched: Watched) -> None:
    assert watched.output.status == 0, watched.output.stderr
    assert {"torch", "h5py"} <= watched.modules
    unneeded = {
        "torchvision",
        "PIL",
        "torch._dynamo",
        "triton",
        "sympy",
        "matplotlib",
        "jinja2",
        "hoarfrost.report.page",
    }
    assert not unneeded & watched.modules


@pytest.mark.slow
def test_train_opens_no_image(watched: Watched) -> None:
    assert any(path.endswith("config.json") for path in watched.opened)  # the watch works
    assert [path for path in watched.opened if path.startswith(str(watched.images)) or path.endswith(".png")] == []


def test_train_needs_no_image_to_be_there(tmp_path: Path) -> None:
    source = tmp_path / "images that were removed"
    run = train(write_labelled_cache(tmp_path / "cache.h5", mixed(TWO), source=str(source)))
    assert run.config.dataset.source == str(source)
    assert not source.exists()
