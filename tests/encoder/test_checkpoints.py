"""Weights: checkpoints of one's own, and ImageNet's as torchvision publishes them."""

import contextlib
import errno
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet, ResNet18_Weights, resnet18

import hoarfrost.features.encoder.backbone.weights
from hoarfrost.features.encoder.backbone import Backbone, Weights, load_weights
from hoarfrost.features.encoder.registry import RESNET18
from hoarfrost.features.errors import WeightsError
from tests.encoder.test_backbone import State

assert RESNET18.published is not None
PUBLISHED = RESNET18.published


class Planted:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


# -- checkpoints --------------------------------------------------------------------------------------------------------


def constants(network: Callable[..., ResNet] = resnet18, **changed: torch.Tensor) -> State:
    """Return a network's tensors, each of one value: as files they have some kB, since torch saves what they share."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in network(weights=None).state_dict().items()}
    values = {name: torch.tensor(0.001 * (i % 50 + 1)).expand(shape) for i, (name, shape) in enumerate(shapes.items())}
    counters = {name: torch.tensor(7) for name in values if name.endswith("num_batches_tracked")}
    return {**values, **counters, **changed}


def renamed(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def saved(path: Path, content: object) -> str:
    torch.save(content, path)
    return str(path)


@pytest.fixture(scope="module")
def digest() -> str:
    """Return the digest that the constants must have in any form."""
    tensors = hoarfrost.features.encoder.backbone.weights._encoder_tensors(constants(), "", RESNET18)
    return Weights("", tensors, RESNET18).sha256


WITHOUT_FC = {name: value for name, value in constants().items() if not name.startswith("fc.")}


OTHER_FC = {"fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [
        constants(),
        OrderedDict(constants()),
        WITHOUT_FC,
        {name: value for name, value in WITHOUT_FC.items() if "num_batches" not in name},
        {**WITHOUT_FC, **OTHER_FC},
        {**WITHOUT_FC, "fc.0.weight": torch.zeros(9, 512), "fc.2.bias": torch.zeros(2)},
        renamed("module.", constants()),
        {**renamed("backbone.", WITHOUT_FC), "head.weight": torch.zeros(2, 512), "step": torch.tensor(3)},
        renamed("module.backbone.", WITHOUT_FC),
        renamed("model.", constants()),
        renamed("player.layered.net.", constants()),
        {**constants(), "decoder.conv1.weight": torch.zeros(1, 1)},
        {"state_dict": renamed("model.", constants()), "epoch": 3, "pytorch-lightning_version": "2.4.0"},
        {"model_state_dict": constants(), "optimizer_state_dict": {"state": {}, "param_groups": []}},
        {"model": renamed("module.", constants()), "args": {"lr": 0.1}},
        {"state_dict": {"model": constants()}},
        {**constants(), 0: "odd", ("a", 1): None},
        {
            name: torch.nn.Parameter(value, requires_grad=value.is_floating_point())
            for name, value in constants().items()
        },
        {name: value.double() if value.is_floating_point() else value for name, value in constants().items()},
    ],
    ids=[
        "plain",
        "ordered",
        "no fc",
        "no counters",
        "other fc",
        "fc of several layers",
        "module.",
        "backbone.",
        "module.backbone.",
        "model.",
        "names with layer",
        "another conv1",
        "Lightning",
        "model_state_dict",
        "model",
        "nested",
        "odd keys",
        "parameters",
        "float64",
    ],
)
def test_the_same_weights_in_any_form_are_the_same(tmp_path: Path, digest: str, content: Mapping[str, Any]) -> None:
    weights = load_weights(saved(tmp_path / "checkpoint.pth", content))
    assert weights.sha256 == digest
    assert weights.name == "checkpoint.pth"
    assert all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in weights.tensors.values())


def test_checkpoint_in_the_old_format_is_the_same(tmp_path: Path, digest: str) -> None:
    torch.save(constants(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_weights(str(tmp_path / "old.pth")).sha256 == digest


@pytest.fixture
def safetensors(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "checkpoint.SafeTensors"
    save_file({name: value.contiguous() for name, value in renamed("backbone.", constants()).items()}, path)
    yield path
    path.unlink()  # 45 MB


def test_the_same_weights_as_safetensors_are_the_same(safetensors: Path, digest: str) -> None:
    assert load_weights(str(safetensors)).sha256 == digest


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_checkpoints_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    half = {name: value.to(dtype) if value.is_floating_point() else value for name, value in constants().items()}
    weights = load_weights(saved(tmp_path / "half.pth", half))
    assert weights.tensors["conv1.weight"].dtype == torch.float32
    assert weights.tensors["conv1.weight"][0, 0, 0, 0] == half["conv1.weight"][0, 0, 0, 0].float()


def test_loaded_weights_reach_the_network(tmp_path: Path) -> None:
    """With all that leads to the last addition at zero, an embedding is the last bias."""
    zeros = {
        f"layer4.{name}": torch.zeros(512)
        for name in ("0.bn2.weight", "0.bn2.bias", "0.downsample.1.weight", "0.downsample.1.bias", "1.bn2.weight")
    }
    bias = torch.linspace(-1, 1, 512)
    state = constants(**zeros, **{"layer4.1.bn2.bias": bias})
    embedding = Backbone(load_weights(saved(tmp_path / "x.pth", state))).embed(
        torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    )
    assert torch.allclose(embedding[0], bias.clamp(min=0))


# -- ImageNet's weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which torch keeps checkpoints, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


Publish = Callable[..., Path]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Make a file what torchvision's IMAGENET1K_V1 means; return the file to download."""

    def publish(content: object = None, *, hash_prefix: str | None = None) -> Path:
        path = tmp_path / "published.pth"
        torch.save(constants() if content is None else content, path)
        prefix = hash_prefix or sha256(path.read_bytes()).hexdigest()[:8]
        path = path.rename(tmp_path / f"resnet18-{prefix}.pth")

        published = replace(PUBLISHED, url=path.as_uri())
        monkeypatch.setattr(hoarfrost.features.encoder.backbone.weights, "_published", lambda *_: published)
        return path

    return publish


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every download fail at once, as without a network."""

    def unreachable(*_: object, **__: object) -> None:
        raise URLError(OSError(errno.ENETUNREACH, "Network is unreachable"))

    monkeypatch.setattr("torch.hub.urlopen", unreachable)


def test_imagenet_weights_are_downloaded_into_torchs_own_cache(
    torch_home: Path, publish: Publish, digest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    published = publish()
    weights = load_weights("imagenet")
    assert (weights.name, weights.sha256) == ("imagenet", digest)
    assert (torch_home / published.name).read_bytes() == published.read_bytes()
    assert capsys.readouterr().out == ""  # stdout belongs to --json


@pytest.mark.usefixtures("offline")
def test_imagenet_weights_that_are_there_need_no_network(torch_home: Path, publish: Publish, digest: str) -> None:
    published = publish()
    torch_home.mkdir(parents=True)
    published.rename(torch_home / published.name)
    assert load_weights("imagenet").sha256 == digest
    assert load_weights("auto").name == "imagenet"


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("damage", ["truncated", "another file", "empty"])
def test_imagenet_weights_with_another_hash_are_refused(torch_home: Path, publish: Publish, damage: str) -> None:
    published = publish()
    torch_home.mkdir(parents=True)
    whole = published.read_bytes()
    wrong = {"truncated": whole[:-1], "another file": whole + b"x", "empty": b""}[damage]
    (torch_home / published.name).write_bytes(wrong)
    prefix = published.stem.removeprefix("resnet18-")
    with pytest.raises(WeightsError, match=rf"{published.name}: damaged, or not .*, not {prefix}\. Remove the file"):
        load_weights("imagenet")


def test_download_with_another_hash_is_refused_and_not_kept(torch_home: Path, publish: Publish) -> None:
    publish(hash_prefix="01234567")
    with pytest.raises(WeightsError, match=r'could not be downloaded \(invalid hash value \(expected "01234567"'):
        load_weights("imagenet")
    assert list(torch_home.iterdir()) == []


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("spec", ["imagenet"])
def test_offline_without_weights_names_the_file_to_copy_and_where(torch_home: Path, spec: str) -> None:
    with pytest.raises(WeightsError, match="not on this machine and could not be downloaded") as refused:
        load_weights(spec)
    for words in (
        "resnet18-f37072fd.pth",
        "f37072fd",
        str(torch_home),
        "Network is unreachable",
        "https://",
        "--weights",
        "random:0 for a trial",
    ):
        assert words in str(refused.value)


@pytest.mark.usefixtures("offline", "torch_home")
def test_auto_continues_with_random_weights_and_warns(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = load_weights("auto")
    assert (found.name, found.sha256) == ("random:0", load_weights("random:0").sha256)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(r"could not be downloaded .*Continuing with random:0, an untrained encoder", record.getMessage())


@pytest.mark.usefixtures("torch_home")
def test_imagenet_weights_that_hold_code_do_not_run_it(tmp_path: Path, publish: Publish) -> None:
    publish({**constants(), "x": Planted(tmp_path / "ran")})  # of the right hash: its 32 bits can be forged
    with pytest.raises(WeightsError, match="could not be"):
        load_weights("imagenet")
    assert not (tmp_path / "ran").exists()


def test_imagenet_weights_that_cannot_be_read_are_refused(torch_home: Path, publish: Publish) -> None:
    published = publish()
    (torch_home / published.name).mkdir(parents=True)
    with pytest.raises(WeightsError, match=rf"{published.name}: the ImageNet weights cannot be read: Is a directory"):
        load_weights("imagenet")


@pytest.mark.usefixtures("torch_home")
def test_download_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    timeouts = []

    def unreachable(*_: object, **__: object) -> None:
        timeouts.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    before = socket.getdefaulttimeout()
    with contextlib.suppress(WeightsError):
        load_weights("imagenet")
    assert timeouts == [hoarfrost.features.encoder.backbone.weights.DOWNLOAD_TIMEOUT_S]
    assert socket.getdefaulttimeout() == before


def test_the_true_imagenet_file_is_the_one_asked_for() -> None:
    assert hoarfrost.features.encoder.backbone.weights.imagenet_path().name == "resnet18-f37072fd.pth"
    assert (
        PUBLISHED.url
        == str(ResNet18_Weights.IMAGENET1K_V1.url)
        == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    )
    assert PUBLISHED.sha256_prefix == "f37072fd"
