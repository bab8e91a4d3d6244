"""The frozen ResNet18 gives what plain torchvision gives, from weights of known origin or not at all."""

import contextlib
import errno
import logging
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import transforms
from torchvision.models import ResNet, WeightsEnum, resnet18, resnet34, resnet50
from torchvision.models._api import Weights as TorchvisionWeights

import features.backbone.weights
from features.backbone import DIM, Backbone, Weights, load_weights
from features.datasets import read_dataset
from features.errors import HoarfrostError, WeightsError
from features.images import load_image
from tests.builders import SHARED_DATA, encode, picture, upright_over_black

State = dict[str, torch.Tensor]

BUSI = SHARED_DATA / "busi"

RGB = picture(61, 47)
RGBA = RGB.convert("RGBA")
RGBA.putalpha(RGB.convert("L"))
IMAGES = {
    "PNG": encode(RGB),
    "PNG grey": encode(RGB.convert("L")),
    "PNG palette with alpha": encode(RGB.quantize(32), transparency=bytes(range(32))),
    "PNG RGBA": encode(RGBA),
    "PNG small": encode(picture(40, 30, seed=1)),
    "JPEG": encode(RGB, "JPEG"),
    "JPEG grey": encode(RGB.convert("L"), "JPEG"),
    "JPEG CMYK": encode(RGB.convert("CMYK"), "JPEG"),
    "JPEG large": encode(picture(1200, 900, seed=2), "JPEG"),
}


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:0")


@pytest.fixture(scope="module")
def backbone(weights: Weights) -> Backbone:
    return Backbone(weights)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    """Give the images as the extraction gives them to the backbone."""
    return torch.stack([load_image(content).expand(3, -1, -1) for content in IMAGES.values()])  # (9, 3, 224, 224)


@pytest.fixture(scope="module")
def embeddings(backbone: Backbone, pixels: torch.Tensor) -> torch.Tensor:
    return torch.cat([backbone.embed(pixels[:7]), backbone.embed(pixels[7:])])


# -- the forward pass ---------------------------------------------------------------------------------------------------


def plain_torchvision(weights: Weights) -> torch.Tensor:
    """Embed the images as everyone does."""
    network = resnet18(weights=None)
    assert not network.load_state_dict(dict(weights.tensors), strict=False).unexpected_keys
    network.fc = torch.nn.Identity()
    network.eval()
    preprocess = transforms.Compose(
        [
            transforms.Resize((224, 224)),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = [preprocess(upright_over_black(content)) for content in IMAGES.values()]
    with torch.no_grad():
        output: torch.Tensor = network(torch.stack(images))
    return output


@pytest.fixture(scope="module")
def plain(weights: Weights) -> torch.Tensor:
    return plain_torchvision(weights)


@pytest.mark.parametrize("kind", IMAGES)
def test_embedding_equals_plain_torchvisions(kind: str, embeddings: torch.Tensor, plain: torch.Tensor) -> None:
    i = list(IMAGES).index(kind)
    assert torch.nn.functional.cosine_similarity(embeddings[i], plain[i], dim=0) >= 0.9999
    # Untrained networks give all images much the same direction: the cosine alone would not tell much.
    assert torch.linalg.vector_norm(embeddings[i] - plain[i]) <= 0.005 * torch.linalg.vector_norm(plain[i])


def test_different_images_have_different_embeddings(embeddings: torch.Tensor) -> None:
    i, j = (list(IMAGES).index(kind) for kind in ("PNG", "PNG small"))
    assert torch.linalg.vector_norm(embeddings[i] - embeddings[j]) > 0.02 * torch.linalg.vector_norm(embeddings[i])


def test_an_embedding_is_bit_identical_whatever_its_batch(
    backbone: Backbone, pixels: torch.Tensor, embeddings: torch.Tensor
) -> None:
    """`embeddings` were computed in batches of 7 and 2."""
    for i in (0, 3, 7):
        assert torch.equal(backbone.embed(pixels[i : i + 1])[0], embeddings[i])


def test_embeddings_are_512_floats_on_the_cpu_without_gradients(embeddings: torch.Tensor) -> None:
    assert embeddings.shape == (len(IMAGES), DIM) == (len(IMAGES), 512)
    assert (embeddings.dtype, embeddings.device.type) == (torch.float32, "cpu")
    assert not embeddings.requires_grad
    assert torch.isfinite(embeddings).all()


def test_the_network_is_frozen_and_in_evaluation_mode(backbone: Backbone) -> None:
    assert not any(module.training for module in backbone.network.modules())
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())


def test_embedding_leaves_the_images_and_the_weights_as_they_were(
    backbone: Backbone, pixels: torch.Tensor, weights: Weights
) -> None:
    images, before = pixels[:1].clone(), weights.sha256
    backbone.embed(images)
    assert torch.equal(images, pixels[:1])
    assert weights.sha256 == before


def test_bfloat16_gives_float32_embeddings_near_float32s(
    weights: Weights, pixels: torch.Tensor, embeddings: torch.Tensor
) -> None:
    found = Backbone(weights, precision="bfloat16").embed(pixels[:1])
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found[0], embeddings[0], dim=0) >= 0.999


@pytest.mark.slow
@pytest.mark.skipif(not BUSI.is_dir(), reason="../shared/data/busi is not on this machine")
def test_bfloat16_is_near_float32_on_every_image_of_busi(weights: Weights, backbone: Backbone) -> None:
    dataset = read_dataset(BUSI)
    chosen = range(0, len(dataset), len(dataset) // 40)  # all over it
    images = torch.stack([load_image(read()).expand(3, -1, -1) for _, read in dataset.images.contents(chosen)])
    in_bfloat16 = Backbone(weights, precision="bfloat16").embed(images)
    assert (torch.nn.functional.cosine_similarity(in_bfloat16, backbone.embed(images)) >= 0.999).all()


# -- large JPEGs --------------------------------------------------------------------------------------------------------


def textured(width: int, height: int) -> Image.Image:
    """Draw waves in all directions, from fine to coarse, and noise: what scaling changes most."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    waves = np.sin(x**2 / (4 * width)) * np.cos(y**2 / (4 * height))
    return Image.fromarray((128 + 80 * waves + rng.normal(0, 6, waves.shape)).clip(0, 255).astype(np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray((127 + 60 * np.sin(x / 200) + 60 * np.cos(y / 150)).astype(np.uint8))


LARGE = {
    "colour": encode(picture(1800, 1000, seed=3), "JPEG"),
    "colour, progressive": encode(picture(950, 2000, seed=4), "JPEG", progressive=True),
    "grey": encode(picture(2048, 2048, seed=5).convert("L"), "JPEG"),
    "smooth": encode(smooth(2048, 1024), "JPEG", quality=95),
    "textured": encode(textured(1500, 1000), "JPEG", quality=95),
    "textured, by a quarter": encode(textured(2000, 1900), "JPEG"),
}


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_jpegs_embedding_is_that_of_the_fully_decoded_image(
    monkeypatch: pytest.MonkeyPatch, backbone: Backbone, kind: str
) -> None:
    scaled = load_image(LARGE[kind]).expand(3, -1, -1)
    monkeypatch.setattr("features.images.JPEG_SHORT_SIDE", 10**6)  # larger than any: nothing is scaled
    whole = load_image(LARGE[kind]).expand(3, -1, -1)
    found, expected = backbone.embed(torch.stack([scaled, whole]))
    assert not torch.equal(scaled, whole)
    assert torch.nn.functional.cosine_similarity(found, expected, dim=0) >= 0.995
    assert torch.linalg.vector_norm(found - expected) <= 0.04 * torch.linalg.vector_norm(expected)


# -- out of memory ------------------------------------------------------------------------------------------------------


MEMORY_ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


def with_memory_for(n_images: int, backbone: Backbone, error: RuntimeError = MEMORY_ERRORS[0]) -> Backbone:
    """Let a backbone take 16 images at once, as a GPU would, and run out of memory on more than `n_images`."""
    forward = backbone._forward

    def limited(images: torch.Tensor) -> torch.Tensor:
        if len(images) > n_images:
            raise type(error)(*error.args)  # a new one: a raised error keeps all that its frames hold
        return forward(images)

    backbone._forward, backbone._group = limited, 16
    return backbone


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=str)
def test_out_of_memory_halves_the_batch_and_goes_on(
    weights: Weights, pixels: torch.Tensor, caplog: pytest.LogCaptureFixture, error: RuntimeError
) -> None:
    reference = Backbone(weights)
    reference._group = 4
    backbone = with_memory_for(4, Backbone(weights), error)
    assert torch.equal(backbone.embed(pixels), reference.embed(pixels))
    assert caplog.messages == [
        "cpu: out of memory with batches of 16; going on with 8",
        "cpu: out of memory with batches of 8; going on with 4",
    ]


def test_after_running_out_of_memory_the_batch_stays_small(
    weights: Weights, pixels: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = with_memory_for(4, Backbone(weights))
    backbone.embed(pixels[:1])
    caplog.clear()
    backbone.embed(pixels[:5])
    assert caplog.messages == []


def test_no_memory_for_a_single_image_is_an_error(
    weights: Weights, pixels: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = with_memory_for(0, Backbone(weights))
    with pytest.raises(
        HoarfrostError, match="cpu: not enough memory for a single image. Free it, or pass --device cpu"
    ):
        backbone.embed(pixels[:1])
    assert len(caplog.messages) == 4  # 8, 4, 2, 1


def test_another_error_of_the_device_is_not_taken_for_it(weights: Weights, pixels: torch.Tensor) -> None:
    backbone = with_memory_for(0, Backbone(weights), RuntimeError("CUDA error: an illegal memory access"))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        backbone.embed(pixels[:1])


def test_compiled_code_is_given_up_where_a_batch_is_halved(
    weights: Weights, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(images: torch.Tensor) -> torch.Tensor:
        if warmed.pop():
            return torch.zeros((len(images), 512))
        raise torch.OutOfMemoryError("CUDA out of memory")

    warmed = [False, True]
    monkeypatch.setattr(torch, "compile", lambda *_, **__: too_large)
    backbone = Backbone(weights, batch_size=16)
    backbone.compile()
    assert backbone.compute == "compiled"
    found = backbone.embed(pixels)
    assert (backbone.compute, backbone.group) == ("eager", 8)
    assert torch.equal(found, Backbone(weights).embed(pixels))


def test_no_memory_to_try_compiled_code_is_a_compile_that_failed(
    weights: Weights, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def too_large(_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: too_large)
    backbone = Backbone(weights, batch_size=16)
    group = backbone.group
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        backbone.compile()
    assert (backbone.compute, backbone.group, caplog.messages) == ("eager", group, [])


def test_a_batch_that_cannot_even_be_copied_goes_in_pieces(
    weights: Weights, pixels: torch.Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    class Copied:
        """Images on the host, of which no more than 4 fit on the device."""

        def __init__(self, images: torch.Tensor) -> None:
            self.images = images

        def split(self, n_images: int, dim: int) -> list["Copied"]:
            return [Copied(piece) for piece in torch.split(self.images, n_images, dim)]

        def to(self, _: torch.device) -> torch.Tensor:
            if len(self.images) > 4:
                raise RuntimeError("CUDA error: out of memory")
            return self.images

    backbone = Backbone(weights)
    reference = Backbone(weights)
    reference._group = 4
    found = backbone._in_pieces(Copied(pixels))  # type: ignore[arg-type]
    assert torch.equal(found, reference.embed(pixels))
    assert caplog.messages == ["cpu: out of memory with batches of 8; going on with 4"]


# -- random weights -----------------------------------------------------------------------------------------------------


def test_random_weights_are_the_same_for_the_same_seed(weights: Weights) -> None:
    assert load_weights("random:0").sha256 == weights.sha256
    assert (load_weights("random:00").name, weights.name) == ("random:0", "random:0")


def test_random_weights_differ_between_seeds(weights: Weights) -> None:
    assert load_weights("random:1").sha256 != weights.sha256


def test_random_weights_are_those_that_torchvision_draws(weights: Weights) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = resnet18(weights=None).state_dict()
    assert all(torch.equal(tensor, drawn[name]) for name, tensor in weights.tensors.items())
    assert {name for name in drawn if "fc." not in name and "num_batches" not in name} == set(weights.tensors)


def test_the_callers_random_state_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    load_weights("random:1")
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    "seed", ["", "x", "-1", "1.5", " 1", "1 ", "²", "٣", str(2**63), "9" * 5000], ids=lambda seed: seed[:22]
)
def test_seed_that_is_no_whole_number_is_refused(seed: str) -> None:
    with pytest.raises(WeightsError, match="the seed must be a whole number from 0"):
        load_weights(f"random:{seed}")


# -- checkpoints --------------------------------------------------------------------------------------------------------


def constants(network: Callable[..., ResNet] = resnet18, **changed: torch.Tensor) -> State:
    """Give a network's tensors, each of one value: as files they have some kB, since torch saves what they share."""
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
    """Give the digest that the constants must have in whatever form they come."""
    return Weights("", features.backbone.weights._backbone_tensors(constants(), "")).sha256


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


def test_loaded_weights_reach_the_network(tmp_path: Path, pixels: torch.Tensor) -> None:
    """With all that leads to the last addition at zero, an embedding is the last bias."""
    zeros = {
        f"layer4.{name}": torch.zeros(512)
        for name in ("0.bn2.weight", "0.bn2.bias", "0.downsample.1.weight", "0.downsample.1.bias", "1.bn2.weight")
    }
    bias = torch.linspace(-1, 1, 512)
    state = constants(**zeros, **{"layer4.1.bn2.bias": bias})
    embedding = Backbone(load_weights(saved(tmp_path / "x.pth", state))).embed(pixels[:1])
    assert torch.allclose(embedding[0], bias.clamp(min=0))


# -- checkpoints that are refused ---------------------------------------------------------------------------------------


def without(name: str) -> State:
    return {key: value for key, value in constants().items() if key != name}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: constants(resnet34), r"is no ResNet18: it has layer1\.2\.conv1\.weight, which a ResNet18 does not"),
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
            r"the tensor bn1\.weight holds NaN or infinite",
        ),
        (
            lambda: constants(**{"bn1.weight": torch.full((64,), 1e300, dtype=torch.float64)}),
            r"the tensor bn1\.weight holds NaN or infinite",
        ),
        (lambda: constants(**{"bn1.running_var": -torch.ones(64)}), r"bn1\.running_var holds negative variances"),
        (
            lambda: constants(**{"bn1.bias": torch.ones(64, dtype=torch.int64)}),
            r"bn1\.bias holds no plain floating-point",
        ),
        (
            lambda: constants(**{"bn1.bias": torch.ones(64, dtype=torch.complex64)}),
            r"bn1\.bias holds no plain floating-point",
        ),
        (lambda: constants(**{"bn1.bias": torch.ones(64).to_sparse()}), r"bn1\.bias holds no plain floating-point"),
        (lambda: {**constants(), "bn1.bias": [0.0] * 64}, r"the tensor bn1\.bias is missing"),
        (lambda: {**constants(), "layer5.0.conv1.weight": torch.zeros(1)}, r"it has layer5\.0\.conv1\.weight"),
        (lambda: {**constants(), "conv1.bias": torch.zeros(64)}, r"it has conv1\.bias"),
        (
            lambda: {**renamed("encoder_q.", constants()), **renamed("encoder_k.", constants())},
            r"holds several networks \(encoder_q\.conv1, encoder_k\.conv1\).*Save the state_dict of one",
        ),
        (lambda: torch.nn.Linear(2, 2).state_dict(), r"is no ResNet18: the tensor conv1\.weight is missing"),
        (lambda: {}, r"the tensor conv1\.weight is missing"),
        (lambda: torch.zeros(3), r"holds a Tensor, not a state_dict of named tensors"),
        (lambda: [constants()], r"holds a list, not a state_dict of named tensors"),
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
def test_what_is_no_resnet18_is_refused_by_its_first_wrong_tensor(
    tmp_path: Path, content: Callable[[], object], message: str
) -> None:
    with pytest.raises(WeightsError, match=rf"checkpoint\.pth.*{message}"):
        load_weights(saved(tmp_path / "checkpoint.pth", content()))


class Planted:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "old", "bare pickle", "beside the weights"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    planted, path = Planted(tmp_path / "ran"), tmp_path / "evil.pth"
    if form == "bare pickle":
        path.write_bytes(pickle.dumps(planted))
    else:
        content = {**constants(), "x": planted} if form == "beside the weights" else planted
        torch.save(content, path, _use_new_zipfile_serialization=form != "old")
    with pytest.raises(WeightsError, match="holds more than tensors, and loading it could run foreign code; refused"):
        load_weights(str(path))
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = resnet18(weights=None)
    with pytest.raises(WeightsError, match=r"holds more than tensors.*Save its state_dict\(\) alone"):
        load_weights(saved(tmp_path / "model.pth", network))


def test_pickled_hyperparameters_are_refused(tmp_path: Path) -> None:
    content = {"state_dict": constants(), "hyper_parameters": SimpleNamespace(lr=0.1)}
    with pytest.raises(WeightsError, match=r"holds more than tensors.*Save its state_dict\(\) alone"):
        load_weights(saved(tmp_path / "lightning.ckpt", content))


@pytest.mark.parametrize("spec", ["nowhere.pth", "imagenet1k", "Random:0", ""])
def test_what_is_no_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        WeightsError, match=r"no such file\. Give a \.pth or \.safetensors checkpoint, imagenet, random:SEED"
    ):
        load_weights(spec)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", r"no checkpoint \(it begins with b'version '\)"),
        (b"<!DOCTYPE html><html>404", r"no checkpoint \(it begins with b'<!DOCTYP'\)"),
        (b"\x93NUMPY\1\0", r"no checkpoint"),
        (b"\0" * 1000, r"no checkpoint"),
        (b"PK\x03\x04" + b"\0" * 100, r"the checkpoint is truncated"),
        (b"\x80\x02", r"not a readable checkpoint \(.*\)\. Copy it again"),
    ],
    ids=["empty", "git-lfs", "HTML", "npy", "zeros", "zip's start", "pickle's start"],
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
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
    with pytest.raises(WeightsError, match=r"x\.safetensors(: not a readable checkpoint| is no ResNet18)"):
        load_weights(str(tmp_path / "x.safetensors"))


# -- ImageNet's weights -------------------------------------------------------------------------------------------------


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the folder in which torch keeps checkpoints, empty."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


Publish = Callable[..., Path]


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Make a file the one that torchvision's IMAGENET1K_V1 stands for; give the file to download."""

    def publish(content: object = None, *, hash_prefix: str | None = None) -> Path:
        path = tmp_path / "published.pth"
        torch.save(constants() if content is None else content, path)
        prefix = hash_prefix or sha256(path.read_bytes()).hexdigest()[:8]
        path = path.rename(tmp_path / f"resnet18-{prefix}.pth")

        class Published(WeightsEnum):
            IMAGENET1K_V1 = TorchvisionWeights(url=path.as_uri(), transforms=torch.nn.Identity, meta={})

        monkeypatch.setattr(features.backbone.weights, "IMAGENET", Published.IMAGENET1K_V1)
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
    with pytest.raises(WeightsError, match=rf"{published.name}: damaged, or not .*, not {prefix}\. Remove it"):
        load_weights("imagenet")


def test_download_with_another_hash_is_refused_and_not_kept(torch_home: Path, publish: Publish) -> None:
    publish(hash_prefix="01234567")
    with pytest.raises(WeightsError, match=r'could not be downloaded \(invalid hash value \(expected "01234567"'):
        load_weights("imagenet")
    assert list(torch_home.iterdir()) == []


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("spec", ["imagenet"])
def test_offline_without_weights_says_what_to_bring_and_where(torch_home: Path, spec: str) -> None:
    with pytest.raises(WeightsError, match="not on this machine and could not be downloaded") as refused:
        load_weights(spec)
    for words in (
        "resnet18-f37072fd.pth",
        "f37072fd",
        str(torch_home),
        "Network is unreachable",
        "https://",
        "--weights",
    ):
        assert words in str(refused.value)


@pytest.mark.usefixtures("offline", "torch_home")
def test_auto_goes_on_with_random_weights_and_says_so(caplog: pytest.LogCaptureFixture, weights: Weights) -> None:
    with caplog.at_level(logging.WARNING):
        found = load_weights("auto")
    assert (found.name, found.sha256) == ("random:0", weights.sha256)
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert re.search(r"could not be downloaded .*Going on with random:0, an untrained backbone", record.getMessage())


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
    assert timeouts == [features.backbone.weights.DOWNLOAD_TIMEOUT_S]
    assert socket.getdefaulttimeout() == before


def test_the_true_imagenet_file_is_the_one_asked_for() -> None:
    assert features.backbone.weights.imagenet_path().name == "resnet18-f37072fd.pth"
    assert features.backbone.weights.IMAGENET.url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
