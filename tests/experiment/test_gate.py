"""The leakage gate before training: shared patients and bytes are refused, near-duplicates are told of."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hoarfrost.demo import write_demo
from hoarfrost.experiment import duplicates
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.errors import TrainingError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.runs import Run, read_run
from hoarfrost.training import TrainingConfig
from tests.support.commands import Hoarfrost
from tests.support.labelled import embeddings_of, write_labelled_cache

QUICK = TrainingConfig(epochs=3, patience=2)
N = 60
LABELS = ["benign", "malignant"] * (N // 2)
SPLITS = ["train"] * 36 + ["val"] * 12 + ["test"] * 12


def train(cache: Path, **options: Any) -> Run:
    return run_experiment(
        cache, cache.parent / "run", parse_heads(["linear"]), ExperimentConfig(training=QUICK, **options)
    )


def patients_shared() -> list[str]:
    return [f"p{i}" for i in range(N - 1)] + ["p4"]


def test_patient_in_train_and_test_is_refused_with_an_example_and_nothing_is_written(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, splits=SPLITS, patients=patients_shared())
    with pytest.raises(
        TrainingError,
        match=r"'phantoms' leak: 1 patient is in two splits \(the patient 'p4': benign/4.png in train, "
        r"malignant/59.png in test\).*--allow-leakage",
    ):
        train(cache)
    assert not (tmp_path / "run").exists()


def test_same_bytes_in_train_and_test_are_refused_and_counted(tmp_path: Path) -> None:
    contents = [*range(N - 2), 0, 1]
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, splits=SPLITS, contents=contents)
    with pytest.raises(TrainingError, match="2 identical images are in two splits .*benign/0.png in train"):
        train(cache)


def test_leakage_that_is_allowed_is_on_top_of_everything(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, splits=SPLITS, patients=patients_shared())
    done = hoarfrost(
        "train",
        "--cache",
        cache,
        "--run",
        tmp_path / "run",
        "--head",
        "linear",
        "--epochs",
        3,
        "--allow-leakage",
        "--json",
    )
    assert done.status == 0
    assert "warning: Leakage, allowed by --allow-leakage: 1 patient is in two splits" in done.stderr
    leakage = json.loads(done.stdout)["leakage"]
    assert (leakage["allowed"], leakage["n_patients"], leakage["n_contents"]) == (True, 1, 0)
    pair = leakage["patients"][0]
    assert (pair["first"], pair["first_split"], pair["second"], pair["second_split"]) == (
        "benign/4.png", "train", "malignant/59.png", "test",
    )  # fmt: skip
    assert read_run(tmp_path / "run").config.warnings[0].startswith("Leakage, allowed by --allow-leakage: 1 patient")


def test_allowing_leakage_on_a_clean_set_changes_nothing(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, splits=SPLITS, patients=[f"p{i}" for i in range(N)])
    allowed, plain = train(cache, allow_leakage=True), train(cache)
    assert allowed.leakage == plain.leakage
    assert allowed.config.warnings == ()
    assert plain.leakage is not None
    assert (plain.leakage.n_patients, plain.leakage.n_contents, plain.leakage.n_near_duplicates) == (0, 0, 0)


def test_near_duplicate_is_a_warning_with_both_paths(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    x = embeddings_of(LABELS)
    x[55] = x[5] + np.random.default_rng(1).normal(0, 0.05, x.shape[1]).astype(np.float32)
    run = train(write_labelled_cache(tmp_path / "c.h5", LABELS, splits=SPLITS, embeddings=x))
    assert run.leakage is not None
    (pair,) = run.leakage.near_duplicates
    assert {pair.first, pair.second} == {"malignant/5.png", "malignant/55.png"}
    assert {pair.first_split, pair.second_split} == {"train", "test"}
    assert 0.9 < pair.cosine < 1
    assert "1 pair of near-identical images is split between training and test (cosine above 0.75)" in caplog.text
    assert "malignant/5.png (train) and malignant/55.png (test)" in run.config.warnings[0]


def test_streamed_and_too_many_embeddings_are_not_compared_and_the_run_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, splits=SPLITS)
    streamed = train(cache, memory_limit=40_000)
    assert streamed.leakage is not None
    assert streamed.leakage.not_compared == "the embeddings do not fit into the memory limit"
    monkeypatch.setattr(duplicates, "MOST_COMPARED", N - 1)
    many = train(cache)
    assert many.leakage is not None
    assert many.leakage.not_compared == "60 images are too many to compare with one another"


def test_own_splits_never_leak_patients_or_bytes(tmp_path: Path) -> None:
    contents = [i // 2 for i in range(N)]
    labels = [LABELS[i // 4 % 2] for i in range(N)]
    cache = write_labelled_cache(
        tmp_path / "c.h5", labels, contents=contents, patients=[f"p{i // 4}" for i in range(N)]
    )
    run = train(cache)
    assert run.leakage is not None
    assert (run.leakage.n_patients, run.leakage.n_contents) == (0, 0)


@pytest.mark.slow
def test_planted_patient_file_and_reencoded_image_are_all_caught_by_the_commands(
    tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    images = tmp_path / "images"
    write_demo(images, n_images=120)
    rows = (images / "labels.csv").read_text().splitlines()[1:]
    patients = sorted({row.split(",")[2] for row in rows})
    test, val = set(patients[::5]), set(patients[1::5])
    split = {name: "test" if name in test else "val" if name in val else "train" for name in patients}
    lines = [f"{row},{split[row.split(',')[2]]}" for row in rows]
    header = "path,label,patient,scanner,split"
    (tmp_path / "images" / "labels.csv").write_text("\n".join([header, *lines]) + "\n")
    extract(images, tmp_path / "clean.h5", options=ExtractOptions(weights="random:0"))
    arguments = ("--run", tmp_path / "run", "--head", "linear", "--epochs", 2, "--positive", "malignant")
    clean = hoarfrost("train", "--cache", tmp_path / "clean.h5", *arguments)
    assert (clean.status, "near-identical" in clean.stderr) == (0, False)

    victim = next(row.split(",") for row in lines if row.endswith(",train"))
    visitor = next(row.split(",") for row in lines if row.endswith(",train") and row.split(",")[2] != victim[2])
    (images / "same.png").write_bytes((images / victim[0]).read_bytes())
    with Image.open(images / victim[0]) as image:
        image.convert("L").save(images / "again.jpg", quality=90)
        image.convert("L").rotate(90, expand=True).save(images / "other.png")
    planted = [
        f"same.png,{victim[1]},new1,A,test",
        f"again.jpg,{victim[1]},new2,A,test",
        f"other.png,{visitor[1]},{visitor[2]},A,test",
    ]
    (images / "labels.csv").write_text("\n".join([header, *lines, *planted]) + "\n")
    extract(images, tmp_path / "leaky.h5", options=ExtractOptions(weights="random:0"))
    refused = hoarfrost("train", "--cache", tmp_path / "leaky.h5", *arguments)
    assert refused.status == 1
    assert f"the patient {visitor[2]!r}" in refused.stderr
    assert "same.png in test" in refused.stderr
    allowed = hoarfrost("train", "--cache", tmp_path / "leaky.h5", *arguments, "--allow-leakage", "--json")
    leakage = json.loads(allowed.stdout)["leakage"]
    assert (leakage["n_patients"], leakage["n_contents"]) == (1, 1)
    pairs = [{pair["first"], pair["second"]} for pair in leakage["near_duplicates"]]
    assert {victim[0], "again.jpg"} in pairs
