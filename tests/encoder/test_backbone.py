"""The frozen ResNet18 gives what plain torchvision gives, from weights of known origin or not at all."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import resnet18

from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.encoder.backbone import Backbone, Weights, load_weights
from hoarfrost.features.errors import HoarfrostError, WeightsError
from tests.support.builders import SHARED_DATA, encode, picture, upright_over_black

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
    """Return the images as the extraction passes them to the backbone."""
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


def test_an_embedding_is_bit_identical_in_any_batch(
    backbone: Backbone, pixels: torch.Tensor, embeddings: torch.Tensor
) -> None:
    """`embeddings` were computed in batches of 7 and 2."""
    for i in (0, 3, 7):
        assert torch.equal(backbone.embed(pixels[i : i + 1])[0], embeddings[i])


def test_embeddings_are_512_floats_on_the_cpu_without_gradients(embeddings: torch.Tensor) -> None:
    assert embeddings.shape == (len(IMAGES), 512)
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
    monkeypatch.setattr(
        "hoarfrost.features.decoding.images.jpeg_short_side", lambda _: 10**6
    )  # larger than any: nothing is scaled
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

    backbone._forward, backbone.group = limited, 16
    return backbone


@pytest.mark.parametrize("error", MEMORY_ERRORS, ids=str)
def test_out_of_memory_halves_the_batch_and_continues(
    weights: Weights, pixels: torch.Tensor, caplog: pytest.LogCaptureFixture, error: RuntimeError
) -> None:
    reference = Backbone(weights)
    reference.group = 4
    backbone = with_memory_for(4, Backbone(weights), error)
    assert torch.equal(backbone.embed(pixels), reference.embed(pixels))
    assert caplog.messages == [
        "cpu: out of memory with batches of 16; continuing with 8",
        "cpu: out of memory with batches of 8; continuing with 4",
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
        HoarfrostError, match="cpu: not enough memory for a single image. Free memory, or pass --device cpu"
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
            self.images, self.shape = images, images.shape

        def split(self, n_images: int, dim: int) -> list["Copied"]:
            return [Copied(piece) for piece in torch.split(self.images, n_images, dim)]

        def to(self, _: torch.device) -> torch.Tensor:
            if len(self.images) > 4:
                raise RuntimeError("CUDA error: out of memory")
            return self.images

    backbone = Backbone(weights)
    reference = Backbone(weights)
    reference.group = 4
    found = backbone._in_pieces(Copied(pixels))  # type: ignore[arg-type]
    assert torch.equal(found, reference.embed(pixels))
    assert caplog.messages == ["cpu: out of memory with batches of 8; continuing with 4"]


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
def test_seed_that_is_not_a_whole_number_is_refused(seed: str) -> None:
    with pytest.raises(WeightsError, match="the seed must be a whole number from 0"):
        load_weights(f"random:{seed}")
