"""Checkpoints that are refused: not a ResNet18, able to run code, or unreadable."""

import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torchvision.models import resnet18, resnet34, resnet50

from hoarfrost.features.encoder.backbone import load_weights
from hoarfrost.features.errors import WeightsError
from tests.encoder.test_backbone import State
from tests.encoder.test_checkpoints import Planted, constants, renamed, saved


def without(name: str) -> State:
    return {key: value for key, value in constants().items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: constants(resnet34), r"is not a ResNet18: it has layer1\.2\.conv1\.weight, which a ResNet18 does not"),
        (
            lambda: constants(resnet50),
            r"the tensor layer1\.0\.conv1\.weight has the shape \(64, 64, 1, 1\), not \(64, 64, 3, 3\)",
        ),
        (
            lambda: constants(**{"conv1.weight": torch.zeros(64, 1, 7, 7)}),
            r"the tensor conv1\.weight has the shape \(64, 1, 7, 7\), not \(64, 3, 7, 7\)",
        ),
        (lambda: without("layer3.1.bn2.running_var"), r"the tensor layer3\.1\.bn2\.running_var is missing"),
        (lambda: without("conv1.weight"), r"the tensor conv1\.weight is missing"),
        (lambda: renamed("module.", without("bn1.bias")), r"the tensor module\.bn1\.bias is missing"),
        (
            lambda: constants(**{"bn1.weight": torch.full((64,), torch.nan)}),
            r"the tensor bn1\.weight contains NaN or infinite",
        ),
        (
            lambda: constants(**{"bn1.weight": torch.full((64,), 1e300, dtype=torch.float64)}),
            r"the tensor bn1\.weight contains NaN or infinite",
        ),
        (lambda: constants(**{"bn1.running_var": -torch.ones(64)}), r"bn1\.running_var contains negative variances"),
        (
            lambda: constants(**{"bn1.bias": torch.ones(64, dtype=torch.int64)}),
            r"bn1\.bias \(.*\) does not contain plain floating-point",
        ),
        (
            lambda: constants(**{"bn1.bias": torch.ones(64, dtype=torch.complex64)}),
            r"bn1\.bias \(.*\) does not contain plain floating-point",
        ),
        (
            lambda: constants(**{"bn1.bias": torch.ones(64).to_sparse()}),
            r"bn1\.bias \(.*\) does not contain plain floating-point",
        ),
        (lambda: {**constants(), "bn1.bias": [0.0] * 64}, r"the tensor bn1\.bias is missing"),
        (lambda: {**constants(), "layer5.0.conv1.weight": torch.zeros(1)}, r"it has layer5\.0\.conv1\.weight"),
        (lambda: {**constants(), "conv1.bias": torch.zeros(64)}, r"it has conv1\.bias"),
        (
            lambda: {**renamed("encoder_q.", constants()), **renamed("encoder_k.", constants())},
            r"contains several networks \(encoder_q\.conv1, encoder_k\.conv1\).*Save the state_dict of one",
        ),
        (lambda: torch.nn.Linear(2, 2).state_dict(), r"is not a ResNet18: the tensor conv1\.weight is missing"),
        (lambda: {}, r"the tensor conv1\.weight is missing"),
        (lambda: torch.zeros(3), r"contains a Tensor, not a state_dict of named tensors"),
        (lambda: [constants()], r"contains a list, not a state_dict of named tensors"),
        (lambda: {"state_dict": 3}, r"the tensor conv1\.weight is missing"),
    ],
    ids=[
        "ResNet34",
        "ResNet50",
        "grey conv1",
        "missing",
        "missing first",
        "missing, prefix",
        "NaN",
        "overflow",
        "negative variance",
        "integers",
        "complex",
        "sparse",
        "list for a tensor",
        "fifth layer",
        "conv1 with bias",
        "two networks",
        "another network",
        "nothing",
        "tensor",
        "list",
        "number",
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants", "ignore:Sparse invariant checks")
def test_weights_that_are_not_a_resnet18_are_refused_by_its_first_wrong_tensor(
    tmp_path: Path, content: Callable[[], object], message: str
) -> None:
    with pytest.raises(WeightsError, match=rf"checkpoint\.pth.*{message}"):
        load_weights(saved(tmp_path / "checkpoint.pth", content()))


@pytest.mark.parametrize("form", ["zip", "old", "bare pickle", "beside the weights"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    planted, path = Planted(tmp_path / "ran"), tmp_path / "evil.pth"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(planted))
    else:
        content = {**constants(), "x": planted} if form == "beside the weights" else planted
        torch.save(content, path, _use_new_zipfile_serialization=form != "old")
    with pytest.raises(WeightsError, match="contains more than tensors, and loading it could run foreign code"):
        load_weights(str(path))
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = resnet18(weights=None)
    with pytest.raises(WeightsError, match=r"contains more than tensors.*Save only its state_dict\(\)"):
        load_weights(saved(tmp_path / "model.pth", network))


def test_pickled_hyperparameters_are_refused(tmp_path: Path) -> None:
    content = {"state_dict": constants(), "hyper_parameters": SimpleNamespace(lr=0.1)}
    with pytest.raises(WeightsError, match=r"contains more than tensors.*Save only its state_dict\(\)"):
        load_weights(saved(tmp_path / "lightning.ckpt", content))


@pytest.mark.parametrize("spec", ["nowhere.pth", "imagenet1k", "Random:0", ""])
def test_path_that_is_not_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        WeightsError, match=r"(no such|not a) file\. Pass a \.pth or \.safetensors checkpoint, imagenet, random:SEED"
    ):
        load_weights(spec)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"not a checkpoint \(it begins with b'version '\)"),
        (b"<!DOCTYPE html><html>404", r"not a checkpoint \(it begins with b'<!DOCTYP'\)"),
        (b"\x93NUMPY\1\0", r"not a checkpoint"),
        (b"\0" * 1000, r"not a checkpoint"),
        (b"PK\x03\x04" + b"\0" * 100, r"the checkpoint is truncated"),
        (b"\x80\x02", r"not a readable checkpoint \(.*\)\. Copy it again"),
    ],
    ids=["empty", "git-lfs", "HTML", "npy", "zeros", "zip's start", "pickle's start"],
)
def test_file_that_is_not_a_checkpoint_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=rf"x\.pth: {message}") as refused:
        load_weights(str(tmp_path / "x.pth"))
    assert "weights_only" not in str(refused.value)  # torch's own message advises to load it in an unsafe way


@pytest.mark.parametrize("old", [False, True], ids=["zip", "old"])
def test_truncated_checkpoint_is_refused(tmp_path: Path, old: bool) -> None:
    path = tmp_path / "x.pth"
    torch.save(constants(), path, _use_new_zipfile_serialization=not old)
    whole = path.read_bytes()
    for tenths in range(1, 10):
        path.write_bytes(whole[: len(whole) * tenths // 10])
        with pytest.raises(WeightsError, match=r"x\.pth: (the checkpoint is truncated|not a readable checkpoint)"):
            load_weights(str(path))


@pytest.mark.parametrize(
    "content", [b"", b"some text\n" * 9, b"\x08\0\0\0\0\0\0\0{}      "], ids=["empty", "text", "no tensors"]
)
def test_damaged_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"x\.safetensors(: not a readable checkpoint| is not a ResNet18)"):
        load_weights(str(tmp_path / "x.safetensors"))
