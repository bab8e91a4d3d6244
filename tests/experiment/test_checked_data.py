"""What is wrong with the data is said or refused before anything is trained, and on top of the report."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoarfrost import train
from hoarfrost.evaluation.leakage import Conflicting
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.first import grave_warnings, warnings_of
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Run, read_run
from hoarfrost.training import TrainingConfig
from tests.support.commands import Hoarfrost
from tests.support.labelled import write_labelled_cache

QUICK = TrainingConfig(epochs=1)
N = 120
LABELS = ["benign", "malignant"] * (N // 2)


def trained(cache: Path, **options: Any) -> Run:
    train(cache, cache.parent / "run", ["linear"], config=QUICK, **options)
    return read_run(cache.parent / "run")


def grave(run: Run) -> dict[str, str]:
    return {caution.title: caution.text for caution in grave_warnings(run, evaluation_of(run))}


# -- the same bytes under two labels ------------------------------------------------------------------------------------


def same_bytes(folder: Path, labels: Sequence[str] = LABELS, **columns: Any) -> Path:
    """Write a cache whose last image has the bytes of the first."""
    return write_labelled_cache(folder / "c.h5", labels, contents=[*range(N - 1), 0], **columns)


def test_same_bytes_under_two_labels_are_said_on_top_of_the_report(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    done = hoarfrost(
        "train", "--cache", same_bytes(tmp_path), "--run", tmp_path / "run", "--head", "linear", "--epochs", 1,
        "--json", "--allow-conflicts",
    )  # fmt: skip
    assert done.status == 0
    assert "warning: Conflicting labels: 2 files are 1 image" in done.stderr
    assert json.loads(done.stdout)["leakage"]["conflicting"]["n_images"] == 2
    run = read_run(tmp_path / "run")
    text = grave(run)["Conflicting labels"]
    assert text.startswith("Conflicting labels: 2 files")
    assert text in run.config.warnings
    assert [one.text for one in warnings_of(run, evaluation_of(run))].count(text) == 0


def test_many_images_with_two_labels_are_refused_and_few_are_not(
    tmp_path: Path, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = same_bytes(tmp_path)
    done = hoarfrost("train", "--cache", cache, "--run", tmp_path / "run", "--head", "linear", "--epochs", 1)
    assert done.status == 1
    assert "contradicts itself: 2 files are 1 image (the same bytes) under different labels" in done.stderr
    assert "--allow-conflicts" in done.stderr
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("hoarfrost.experiment.gate.MOST_CONFLICTING", 2 / N)
    assert conflicting(trained(cache)) is not None


def test_labels_that_positive_joins_are_no_conflict(tmp_path: Path) -> None:
    labels = [*(["benign", "normal", "malignant"] * (N // 3))[:-1], "normal"]
    cache = same_bytes(tmp_path, labels)
    assert conflicting(trained(cache, positive=["malignant"])) is None
    assert conflicting(trained(cache, overwrite=True, allow_conflicts=True)) is not None


def conflicting(run: Run) -> Conflicting | None:
    assert run.leakage is not None
    return run.leakage.conflicting


@pytest.mark.parametrize(("last", "is_said"), [("1", False), ("", False), ("0", True)])
def test_one_label_of_several_may_be_unknown_but_not_contradict(tmp_path: Path, last: str, is_said: bool) -> None:
    cells = ["1", "0"] * (N // 2)
    cells[-1] = last
    cache = same_bytes(tmp_path, ["benign"] * N, attributes={"mass": cells})
    found = conflicting(trained(cache, label_columns=["mass"], allow_conflicts=True))
    assert (found is not None) == is_said
    assert found is None or "2 files are 1 image" in found.text


# -- patients -----------------------------------------------------------------------------------------------------------


def named(folder: Path, pattern: str, **columns: Any) -> Path:
    paths = [pattern.format(label=label, patient=i // 2, i=i) for i, label in enumerate(LABELS)]
    return write_labelled_cache(folder / "c.h5", LABELS, paths=paths, **columns)


@pytest.mark.parametrize(
    ("pattern", "option"),
    [("{label}/BP{patient:03}_{i}.png", "--patient-from '"), ("{label}/p{patient}/{i}.png", "--patient-from parent")],
)
def test_patients_that_paths_suggest_are_on_top_of_the_report(tmp_path: Path, pattern: str, option: str) -> None:
    text = grave(trained(named(tmp_path, pattern)))["Patients unknown"]
    assert text.startswith("No patients are known, but the paths suggest 60 patients of 120 images.")
    assert option in text
    assert text in read_run(tmp_path / "run").config.warnings
    page = write_report(tmp_path / "run").read_text()
    assert page.index("No patients are known, but") < page.index("<h1>")


def test_nothing_is_said_of_patients_that_are_known_or_that_no_path_suggests(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    known = named(tmp_path / "a", "{label}/BP{patient:03}_{i}.png", patients=[f"p{i // 2}" for i in range(N)])
    assert "Patients unknown" not in grave(trained(known))
    assert "Patients unknown" not in grave(trained(write_labelled_cache(tmp_path / "b" / "c.h5", LABELS)))


def test_patients_of_both_classes_are_split_and_what_came_out_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, patients=[f"p{i // 2}" for i in range(N)])
    with caplog.at_level(logging.INFO):
        run = trained(cache)
    counts = run.config.dataset.counts
    assert counts["train"]["benign"] == counts["train"]["malignant"] == 60 - counts["test"]["benign"]
    assert "60 of 60 patients have images of several classes." in caplog.text
    assert f"test {counts['test']['benign']} benign, {counts['test']['malignant']} malignant" in caplog.text


# -- embeddings that are one and the same -------------------------------------------------------------------------------


def test_report_of_embeddings_that_are_all_the_same_is_written(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", LABELS, embeddings=np.ones((N, 512), np.float32))
    trained(cache)
    assert "PCA of 120 embeddings" in write_report(tmp_path / "run").read_text()
