"""`heads` lists the heads of a run; a head file works alone, and none has patient data."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from hoarfrost import open_predictor
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.errors import RunError
from hoarfrost.heads.files import head_bytes, read_head
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import list_heads
from hoarfrost.runs.digests import write_digests
from hoarfrost.training import TrainingConfig
from tests.support.commands import Hoarfrost
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache

LABELS = mixed({"benign": 60, "malignant": 40})
PATIENTS = [f"SECRETPATIENT{i // 2}" for i in range(100)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train two heads with two seeds."""
    folder = tmp_path_factory.mktemp("run")
    cache = write_labelled_cache(folder / "c.h5", LABELS, patients=PATIENTS)
    config = TrainingConfig(epochs=3, seeds=2)
    run_experiment(
        cache, folder / "run", parse_heads(["linear", "mlp:8x2,dropout=0.2"]), ExperimentConfig(training=config)
    )
    return folder / "run"


@pytest.fixture
def head(run: Path, tmp_path: Path) -> Path:
    """Copy a head file, which the test then damages."""
    return Path(shutil.copy(run / "heads" / "linear.safetensors", tmp_path / "mine.safetensors"))


def test_heads_are_listed_with_their_scores_and_files(run: Path, hoarfrost: Hoarfrost) -> None:
    document = json.loads(hoarfrost("heads", run, "--json").stdout)
    metrics = json.loads((run / "metrics.json").read_text())
    assert [head["name"] for head in document["heads"]] == ["linear", "mlp:8x2,dropout=0.2", "mean"]
    for listed, scored in zip(document["heads"], metrics["heads"], strict=True):
        assert listed["val_roc_auc"] == scored["val"]["roc_auc"]
        assert listed["test_roc_auc"] == scored["test"]["roc_auc"]
        assert listed["selected"] == (scored["name"] == metrics["selected"])
        assert listed["parameters"] == scored["n_parameters"]
        assert listed["members"] == len(read_head(Path(listed["file"])).members)
        assert Path(listed["file"]).stat().st_size == listed["bytes"]
        assert listed["problem"] == ""
    text = hoarfrost("heads", run).stdout
    assert [line.startswith("*") for line in text.splitlines()[1:4]] == [h["selected"] for h in document["heads"]]


def test_head_that_cannot_be_used_is_listed_with_its_reason(run: Path, hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (copied / "heads" / "linear.safetensors").unlink()
    (copied / "heads" / "mlp-8x2-dropout=0.2.safetensors").write_bytes(b"x")
    missing, damaged, mean = list_heads(copied)
    assert "no such file" in missing.problem
    assert "was changed after the run was written" in damaged.problem
    assert (missing.members, damaged.members, mean.problem) == (0, 0, "")
    output = hoarfrost("heads", copied)
    assert output.status == 0
    assert "linear cannot be used: " in output.stdout


def test_folder_that_is_no_run_is_refused(hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    output = hoarfrost("heads", tmp_path)
    assert output.status == 1
    assert "is not a run folder" in output.stderr


def test_head_read_back_is_the_one_that_was_written(run: Path) -> None:
    for path in (run / "heads").iterdir():
        saved = read_head(path)
        assert head_bytes(saved) == path.read_bytes()
        assert {one.seed for one in saved.members} == {0, 1}


def test_nothing_of_a_patient_and_no_path_is_in_a_heads_file(run: Path) -> None:
    paths = [f"{label}/{i}.png" for i, label in enumerate(LABELS)]
    for path in (run / "heads").iterdir():
        content = path.read_bytes()
        assert b"SECRETPATIENT" not in content
        assert not any(name.encode() in content for name in paths)
        assert str(run.parent).encode() not in content
        with safe_open(path, "pt") as file:
            tensors = [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118 - not a mapping
        rows = [row for tensor in tensors if tensor.ndim == 2 and tensor.shape[1] == 512 for row in tensor.numpy()]
        unit = embeddings_of(LABELS) / np.linalg.norm(embeddings_of(LABELS), axis=1, keepdims=True)
        scaled = [row / np.linalg.norm(row) for row in rows]
        assert np.abs(np.array(scaled) @ unit.T).max() < 0.9  # no row of it is an image's embedding


def test_head_of_another_run_in_its_place_is_refused(run: Path, head: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    saved = read_head(head)
    other = replace(saved.header, fingerprint=replace(saved.header.fingerprint, precision="bfloat16"))
    (copied / "heads" / "linear.safetensors").write_bytes(head_bytes(replace(saved, header=other)))
    with pytest.raises(RunError, match="was changed after the run was written"):
        open_predictor(copied, "linear")
    write_digests(copied)  # as in runs of earlier versions, which have none
    with pytest.raises(
        RunError, match="belongs to another run: the head was trained on embeddings with another fingerprint"
    ):
        open_predictor(copied, "linear")
