"""Winograd's convolutions give what the direct ones give, and an embedding's bits do not depend on its place."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from hoarfrost.features.encoder.backbone import Backbone, Weights, load_weights
from hoarfrost.features.encoder.backbone.network import CPU_GROUP, Network
from hoarfrost.features.encoder.backbone.winograd import WinogradConv2d


def random_convolution(n_inputs: int, n_outputs: int, seed: int = 0) -> nn.Conv2d:
    """Make a 3 x 3 convolution of stride 1, with weights of the usual size."""
    generator = torch.Generator().manual_seed(seed)
    convolution = nn.Conv2d(n_inputs, n_outputs, 3, padding=1).requires_grad_(False)
    convolution.weight.copy_(torch.randn(convolution.weight.shape, generator=generator) / (9 * n_inputs) ** 0.5)
    convolution.bias.copy_(torch.randn(n_outputs, generator=generator))
    return convolution


def random_input(*shape: int, seed: int = 0) -> torch.Tensor:
    """Make what a convolution in the network gets: float32, after a ReLU, channels last."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()
    return x.contiguous(memory_format=torch.channels_last)


def direct(convolution: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    """Convolve in float64, as the definition says."""
    assert convolution.bias is not None
    return F.conv2d(x.double(), convolution.weight.double(), convolution.bias.double(), padding=1)


def assert_equal_but_for_rounding(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found.dtype, found.shape) == (torch.float32, expected.shape)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


# -- one convolution ----------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(
    n_images=st.integers(1, 5),
    n_inputs=st.integers(1, 20),
    n_outputs=st.integers(1, 20),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_small_convolution_equals_the_direct_one(
    n_images: int, n_inputs: int, n_outputs: int, height: int, width: int, seed: int
) -> None:
    convolution = random_convolution(n_inputs, n_outputs, seed)
    x = random_input(n_images, n_inputs, height, width, seed=seed + 1)
    assert_equal_but_for_rounding(WinogradConv2d(convolution)(x), direct(convolution, x))


@pytest.mark.parametrize("size", [(n, n) for n in range(1, 10)] + [(14, 14), (1, 9), (8, 5)], ids=str)
def test_every_size_of_tile_and_remainder_equals_the_direct_one(size: tuple[int, int]) -> None:
    convolution, x = random_convolution(16, 24), random_input(2, 16, *size)
    assert_equal_but_for_rounding(WinogradConv2d(convolution)(x), direct(convolution, x))


@pytest.mark.parametrize(("channels", "size"), [(256, 14), (512, 7)])
def test_the_networks_own_convolutions_equal_the_direct_ones(channels: int, size: int) -> None:
    convolution, x = random_convolution(channels, channels), random_input(8, channels, size, size)
    assert_equal_but_for_rounding(WinogradConv2d(convolution)(x), direct(convolution, x))


def test_the_result_is_channels_last_and_the_input_stays() -> None:
    convolution, x = random_convolution(16, 24), random_input(2, 16, 7, 7)
    before = x.clone()
    assert WinogradConv2d(convolution)(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)


def test_an_input_in_another_memory_order_gives_the_same() -> None:
    convolution, x = random_convolution(16, 24), random_input(2, 16, 7, 7)
    winograd = WinogradConv2d(convolution)
    assert torch.equal(winograd(x.contiguous()), winograd(x))


# -- in the network -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:0")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (17, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def is_wide_3_x_3_of_stride_1(module: nn.Module) -> bool:
    shape = (3, 3), (1, 1)
    return isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride) == shape and module.in_channels >= 256


def test_only_wide_3_x_3_convolutions_of_stride_1_are_replaced(weights: Weights) -> None:
    network = Network(weights)
    before = dict(network.named_modules())
    network.use_winograd()
    after = dict(network.named_modules())
    replaced = {name for name, module in after.items() if isinstance(module, WinogradConv2d)}
    assert replaced == {name for name, module in before.items() if is_wide_3_x_3_of_stride_1(module)}
    assert len(replaced) == 6  # of 20: those of the last two stages that neither stride nor project
    assert all(after[name] is module for name, module in before.items() if name not in replaced)
    assert not any(module.training for module in after.values())


def test_the_network_gives_the_same_embeddings_as_without(weights: Weights, images: torch.Tensor) -> None:
    network = Network(weights).to_precision(torch.float32)
    winograd = copy.deepcopy(network)
    winograd.use_winograd()
    with torch.inference_mode():
        assert_equal_but_for_rounding(winograd(images[:2]), network(images[:2]))


@pytest.mark.parametrize(("precision", "n_replaced"), [("float32", 6), ("bfloat16", 0)])
def test_the_backbone_uses_winograd_in_float32_alone(weights: Weights, precision: str, n_replaced: int) -> None:
    modules = Backbone(weights, precision=precision).network.modules()
    assert sum(isinstance(module, WinogradConv2d) for module in modules) == n_replaced


# -- an embedding's bits ------------------------------------------------------------------------------------------------

# bfloat16 is slow where the processor does not multiply it.
PRECISIONS = ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=PRECISIONS)
def backbone(request: pytest.FixtureRequest, weights: Weights) -> Backbone:
    return Backbone(weights, precision=request.param)


@pytest.fixture(scope="module")
def whole(backbone: Backbone, images: torch.Tensor) -> torch.Tensor:
    return backbone.embed(images)


@pytest.mark.parametrize("n_images", [1, 3, 8, 9])
def test_embeddings_of_some_images_have_the_bits_of_those_of_all(
    backbone: Backbone, images: torch.Tensor, whole: torch.Tensor, n_images: int
) -> None:
    assert torch.equal(backbone.embed(images[-n_images:]), whole[-n_images:])


def test_embeddings_follow_their_images_bit_for_bit_in_another_order(
    backbone: Backbone, images: torch.Tensor, whole: torch.Tensor
) -> None:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1))
    assert torch.equal(backbone.embed(images[order]), whole[order])


def test_the_network_is_given_whole_groups_alone(weights: Weights, images: torch.Tensor) -> None:
    """On some processors the bits would be the same even so; on others they depend on the product's shape."""
    backbone = Backbone(weights)
    forward, given = backbone._forward, []
    backbone._forward = lambda group: forward(given.append(len(group)) or group)
    for n_images in (1, 3, 8, 9):
        backbone.embed(images[:n_images])
    assert given == [CPU_GROUP] * 5
