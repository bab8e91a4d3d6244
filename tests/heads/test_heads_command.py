"""`heads` lists the heads of a run; a head file works alone, a damaged one is refused, and none has patient data."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from hoarfrost import open_predictor
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.errors import HoarfrostError, RunError
from hoarfrost.heads.files import DIGEST, FORMAT_VERSION, KEY, content_digest, head_bytes, read_head
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import list_heads
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
    assert [head["name"] for head in document["heads"]] == ["linear", "mlp:8x2,dropout=0.2"]
    for listed, scored in zip(document["heads"], metrics["heads"], strict=True):
        assert listed["val_roc_auc"] == scored["val"]["roc_auc"]
        assert listed["test_roc_auc"] == scored["test"]["roc_auc"]
        assert listed["selected"] == (scored["name"] == metrics["selected"])
        assert (listed["parameters"], listed["seeds"]) == (scored["n_parameters"], 2)
        assert Path(listed["file"]).stat().st_size == listed["bytes"]
        assert listed["problem"] == ""
    text = hoarfrost("heads", run).stdout
    assert [line.startswith("*") for line in text.splitlines()[1:3]] == [h["selected"] for h in document["heads"]]


def test_head_that_cannot_be_used_is_listed_with_its_reason(run: Path, hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    (copied / "heads" / "linear.safetensors").unlink()
    (copied / "heads" / "mlp-8x2-dropout=0.2.safetensors").write_bytes(b"x")
    missing, damaged = list_heads(copied)
    assert "no such file" in missing.problem
    assert "not a readable .safetensors" in damaged.problem
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
        assert saved.seeds == (0, 1)


def test_second_seed_is_one_training_more_and_the_mean_is_the_heads(run: Path) -> None:
    predictor, x = open_predictor(run, "linear"), embeddings_of(LABELS)
    with torch.no_grad():
        of_seeds = [module(torch.from_numpy(x)).double().softmax(1).numpy() for module in predictor.head.modules]
    assert not np.allclose(*of_seeds)
    assert predictor.predict(x).probabilities == pytest.approx(np.mean(of_seeds, axis=0), abs=1e-6)


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


# -- damaged, foreign, newer --------------------------------------------------------------------------------------------


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], object]) -> Path:
    """Write a head file again, after a change to its description or its tensors."""
    with safe_open(path, "pt") as file:
        description = json.loads(file.metadata()[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    change(description, tensors)
    description[DIGEST] = content_digest(description, tensors)
    save_file(tensors, path, metadata={KEY: json.dumps(description)})
    return path


DAMAGES: dict[str, tuple[Callable[[dict[str, Any], dict[str, torch.Tensor]], object], str]] = {
    "newer": (lambda d, _: d.update(format_version=FORMAT_VERSION + 1), r"newer hoarfrost \(head format 3.*Upgrade"),
    "older": (lambda d, _: d.update(format_version=1), r"older hoarfrost \(head format 1\).*this needs only the cache"),
    "foreign": (lambda d, _: d.update(format="other"), "not a hoarfrost head, but 'other'"),
    "no classes": (lambda d, _: d.pop("classes"), "damaged: 'classes' is missing"),
    "other inputs": (lambda d, _: d.update(n_inputs=7), "0.mean is not a finite float32 tensor of shape"),
    "other fingerprint": (lambda d, _: d.update(fingerprint="0" * 64), "its fingerprint does not match"),
    "other activation": (lambda d, _: d.update(activation="relu"), "damaged: 'relu' is missing"),
    "odd head": (lambda d, _: d.update(head="tree"), "tree"),
    "another head": (lambda d, _: d.update(head="mlp:8"), r"'1\.2\.weight' is missing|not a finite float32"),
    "huge head": (lambda d, _: d.update(head="mlp:60000x2"), "more than 100,000,000|60000|not a finite|is missing"),
    "no temperature": (lambda d, _: d["validated"][0].update(temperatures=[]), "temperatures for image"),
    "odd temperature": (lambda d, _: d["validated"][0].update(temperatures=[-1.0]), "temperatures for image"),
    "no points": (lambda d, _: d["validated"][0].update(points=[]), "operating points for image"),
    "no threshold": (
        lambda d, _: d["validated"][0]["points"][0][0].update(threshold=None), "operating points for image",
    ),
    "nothing validated": (lambda d, _: d.update(validated=[]), "calibration for images are missing"),
    "odd novelty": (lambda d, _: d.update(novelty_rest=0.0), "variances for novelty must be above zero"),
    "no scores": (lambda _, t: t.pop("conformal.image.0.scores"), "'conformal.image.0.scores' is missing"),
    "unsorted": (lambda _, t: t.update({"distances.scores": t["distances.scores"].flip(0)}), "contains unsorted scores"),
    "NaN": (lambda _, t: t["1.0.weight"].fill_(torch.nan), r"1\.0\.weight is not a finite float32"),
    "another shape": (lambda _, t: t.update({"1.0.bias": torch.zeros(3)}), r"1\.0\.bias is not a finite float32 tensor"),
    "no deviation": (lambda _, t: t["0.std"].zero_(), r"0\.std must be above zero"),
    "no second seed": (lambda _, t: t.pop("seed1.1.0.bias"), r"'seed1\.1\.0\.bias' is missing"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_file_that_is_not_as_it_was_written_is_refused_by_what_is_wrong(head: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    with pytest.raises(HoarfrostError, match=message):
        read_head(rewritten(head, change))


def test_file_of_a_backbone_is_no_head(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet18.safetensors")
    with pytest.raises(RunError, match=r"resnet18\.safetensors: not a hoarfrost head"):
        read_head(tmp_path / "resnet18.safetensors")


@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
@settings(max_examples=60)
def test_any_flipped_byte_and_any_cut_is_found(run: Path, share: float, flipped: int) -> None:
    content = (run / "heads" / "linear.safetensors").read_bytes()
    place, path = int(len(content) * share), run.parent / "damaged.safetensors"
    byte = bytes([content[place] ^ flipped])
    for damaged in (content[:place] + byte + content[place + 1 :], content[:place]):
        path.write_bytes(damaged)
        with pytest.raises(RunError, match=r"damaged\.safetensors"):
            read_head(path)


def test_head_of_another_run_in_its_place_is_refused(run: Path, head: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    saved = read_head(head)
    other = replace(saved.header, fingerprint=replace(saved.header.fingerprint, precision="bfloat16"))
    (copied / "heads" / "linear.safetensors").write_bytes(head_bytes(replace(saved, header=other)))
    with pytest.raises(
        RunError, match="belongs to another run: the head was trained on embeddings with another fingerprint"
    ):
        open_predictor(copied, "linear")
