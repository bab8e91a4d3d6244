"""The network in 8-bit integers, by OpenVINO: two to four times as fast on a CPU, with embeddings close to float32's.

Activations are unsigned 8-bit, from zero to the largest value found on a few hundred of the dataset's own images. Weights
are signed 8-bit, with one scale for each output channel, rounded so that kernels keep their sums. Pixels go in as they are:
normalisation is part of the first convolution. The ranges, and how the rest is rounded, decide every embedding: they are
part of the precision's name, and so of the fingerprint.

Notes
-----
Measured on 130 images of BUSI that were not among those of the calibration, with trained weights: the mean and least
cosine to float32, with the mean embedding subtracted, are 0.997 and 0.993. They were 0.991 and 0.977 with weights rounded
to the nearest and normalised pixels in 8 bits ("int8:" and ranges alone, which caches may still have). Smaller ranges of
activations, by their squared error, make the mean better (0.998) and images unlike the others worse. NNCF 3.4 (preset
"mixed") had 0.892 and 0.721, ONNX Runtime's static quantisation 0.988 and 0.971.
"""

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hoarfrost.features.encoder.backbone.network import CPU_GROUP, Network, frozen_layers
from hoarfrost.features.encoder.backbone.rounding import LEVELS as WEIGHT_LEVELS
from hoarfrost.features.encoder.backbone.rounding import rounded
from hoarfrost.features.encoder.backbone.weights import Weights
from hoarfrost.features.encoder.drift import Drift, drift_between
from hoarfrost.features.encoder.registry import EncoderSpec, Stage
from hoarfrost.features.encoder.resnet import BasicBlock, ResNet
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.processors import usable_cpus

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt
    import openvino

    Weighing = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]  # a convolution's weights, rounded or not

PREFIX = "int8:"
ROUNDING = "kernel-sums"  # after the prefix, before the ranges; without it the network is that of earlier versions
DRIFT_SHARE = 4  # one image in four is kept from the calibration, for the drift
FEWEST_TO_HOLD = 32  # images; with fewer, all are used for both
STEM_PADDING = 3  # of the first convolution, on each side
_LEVELS = 256


def calibrated(weights: Weights, images: torch.Tensor) -> tuple[str, Drift]:
    """Return the precision calibrated on most of some images, and its drift on the others; on all if they are few.

    `images` are some hundred of the dataset's own, (N, 3, S, S) uint8.
    """
    for_drift = slice(None, None, DRIFT_SHARE)
    is_held = torch.zeros(len(images), dtype=torch.bool)
    is_held[for_drift] = len(images) >= FEWEST_TO_HOLD
    held = images[is_held] if is_held.any() else images
    precision = calibrated_precision(weights, images[~is_held])
    network = Network(weights).to_precision(torch.float32)
    with torch.inference_mode():
        in_float32 = torch.cat([network(group) for group in torch.split(held, CPU_GROUP)])
    return precision, drift_between(Int8Network(weights, precision)(held).numpy(), in_float32.numpy())


def calibrated_precision(weights: Weights, images: torch.Tensor) -> str:
    """Return the precision's name: "int8:kernel-sums" and the largest input of each block's convolutions, to four digits.

    `images` are a few hundred of the dataset's own, (N, 3, S, S) uint8.
    """
    network = Network(weights).to_precision(torch.float32)
    convolutions = [layer for block in _blocks(network.layers) for layer in (block.conv1, block.conv2)]
    largest: dict[nn.Module, float] = dict.fromkeys(convolutions, 0.0)

    def record(convolution: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        largest[convolution] = max(largest[convolution], float(inputs[0].max()))

    for convolution in convolutions:
        convolution.register_forward_pre_hook(record)
    with torch.inference_mode():
        for group in torch.split(images, CPU_GROUP):
            network(group)
    return PREFIX + ",".join([ROUNDING, *(f"{value:.4g}" for value in largest.values())])


class Int8Network:
    """The quantised network: (B, 3, S, S) uint8 to (B, D) float32, on the CPU.

    `precision` is what `calibrated_precision` returned. HoarfrostError is raised if OpenVINO is not installed.
    """

    def __init__(self, weights: Weights, precision: str, layers: Sequence[int] = ()) -> None:
        require_openvino()
        parts = precision.removeprefix(PREFIX).split(",")
        self._keeps_sums = parts[0] == ROUNDING
        self._ranges = [float(value) for value in parts[self._keeps_sums :]]
        self._encoder, self._stages = weights.encoder, weights.encoder.stages_of(layers)
        self._layers = frozen_layers(weights)
        self._models: dict[int, openvino.CompiledModel] = {}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of images."""
        size = images.shape[-1]
        if size not in self._models:  # one of any size would be slower
            self._models[size] = self._compiled(size)
        pixels = _padded(images.numpy(), self._encoder) if self._keeps_sums else images.numpy()
        return torch.from_numpy(np.array(self._models[size](pixels)[0]))

    def _compiled(self, size: int) -> "openvino.CompiledModel":
        import openvino

        stem = _stem if self._keeps_sums else _stem_of_earlier_versions
        images, first = stem(self._encoder, self._layers, size)
        weights = rounded if self._keeps_sums else np.asarray
        embeddings = _blocks_of(first, self._layers, self._ranges, self._stages, weights)
        model = openvino.Model([embeddings], [images], self._encoder.name)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": usable_cpus()}
        return _core().compile_model(model, "CPU", settings)


@cache
def _core() -> "openvino.Core":
    """Return this process's only core, which is never released.

    A core allocates a stack for signals in the thread that made it, and unmaps it on release. If another thread releases
    it, the next signal to the first thread kills the process.
    """
    import openvino

    return openvino.Core()


def require_openvino() -> None:
    """Raise HoarfrostError if OpenVINO is not installed."""
    if importlib.util.find_spec("openvino") is None:
        raise HoarfrostError("--precision int8 needs OpenVINO. Run pip install openvino, or pass --precision auto.")


def _blocks(layers: nn.Module) -> list[BasicBlock]:
    return [module for module in layers.modules() if isinstance(module, BasicBlock)]


def _padded(images: "npt.NDArray[np.uint8]", encoder: EncoderSpec) -> "npt.NDArray[np.uint8]":
    """Surround images (B, 3, S, S) by the mean colour, which is zero once it is normalised."""
    n, _, height, width = images.shape
    whole = np.empty((n, 3, height + 2 * STEM_PADDING, width + 2 * STEM_PADDING), np.uint8)
    whole[:] = np.rint(np.array(encoder.mean) * 255).reshape(1, 3, 1, 1)
    whole[:, :, STEM_PADDING:-STEM_PADDING, STEM_PADDING:-STEM_PADDING] = images
    return whole


def _stem(encoder: EncoderSpec, resnet: nn.Module, size: int) -> "tuple[openvino.Node, openvino.Node]":
    """Return the input, padded pixels of images, and the first convolution: the 8 bits of pixels lose nothing."""
    from openvino import opset13 as ops

    assert isinstance(resnet, ResNet)
    side = size + 2 * STEM_PADDING
    images = ops.parameter([-1, 3, side, side], np.uint8, name="images")
    mean, std = (np.array(each, np.float64).reshape(1, 3, 1, 1) * 255 for each in (encoder.mean, encoder.std))
    weight = rounded((resnet.conv1.weight.detach().numpy() / std).astype(np.float32))
    assert resnet.conv1.bias is not None
    bias = resnet.conv1.bias.detach().numpy() - (weight * mean).sum((1, 2, 3))
    pixels = _quantised(ops.convert(images, "f32"), 0, _LEVELS - 1)
    return images, _convolved(pixels, weight, bias.astype(np.float32), resnet.conv1.stride, [0, 0])


def _stem_of_earlier_versions(
    encoder: EncoderSpec, resnet: nn.Module, size: int
) -> "tuple[openvino.Node, openvino.Node]":
    """Return the input, pixels of images, and the first convolution, of normalised pixels in 8 bits."""
    from openvino import opset13 as ops

    assert isinstance(resnet, ResNet)
    mean, std = (np.array(each, np.float32).reshape(1, 3, 1, 1) * 255 for each in (encoder.mean, encoder.std))
    images = ops.parameter([-1, 3, size, size], np.uint8, name="images")
    x = ops.divide(ops.subtract(ops.convert(images, "f32"), ops.constant(mean)), ops.constant(std))
    # One range for all three colours: with one for each, the first convolution would run in float32.
    x = _quantised(x, float((-mean / std).min()), float(((255 - mean) / std).max()))
    return images, _convolution(x, resnet.conv1, np.asarray)


def _blocks_of(
    x: "openvino.Node", resnet: nn.Module, ranges: "Sequence[float]", stages: Sequence[Stage], weights: "Weighing"
) -> "openvino.Node":
    """Return the embeddings from the first convolution's output, with inputs and weights of convolutions quantised."""
    from openvino import opset13 as ops

    x = _quantised(ops.relu(x), 0, ranges[0])  # before pooling, which is exact in integers
    x = ops.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3], index_element_type="i64").output(0)
    last_blocks = [_blocks(resnet.get_submodule(stage.layer))[-1] for stage in stages]
    means = []
    for i, block in enumerate(_blocks(resnet)):
        if i > 0:
            x = _quantised(x, 0, ranges[2 * i])
        y = _quantised(ops.relu(_convolution(x, block.conv1, weights)), 0, ranges[2 * i + 1])
        shortcut = x if block.downsample is None else _convolution(x, block.downsample[0], weights)
        x = ops.relu(ops.add(_convolution(y, block.conv2, weights), shortcut))
        if block in last_blocks:
            means.append(ops.reduce_mean(x, ops.constant(np.array([2, 3])), keep_dims=False))
    return means[0] if len(means) == 1 else ops.concat(means, 1)


def _quantised(x: "openvino.Node", low: float, high: float) -> "openvino.Node":
    from openvino import opset13 as ops

    ends = [ops.constant(np.float32(end)) for end in (low, high, low, high)]
    return ops.fake_quantize(x, *ends, levels=_LEVELS)


def _convolution(x: "openvino.Node", layer: nn.Module, weights: "Weighing") -> "openvino.Node":
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    weight: npt.NDArray[np.float32] = layer.weight.detach().contiguous().numpy()
    return _convolved(x, weights(weight), layer.bias.detach().numpy(), layer.stride, layer.padding)


def _convolved(
    x: "openvino.Node",
    weight: "npt.NDArray[np.float32]",
    bias: "npt.NDArray[np.float32]",
    stride: Sequence[int],
    padding: "Sequence[int] | str",
) -> "openvino.Node":
    from openvino import opset13 as ops

    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)  # (K, 1, 1, 1)
    ends = [ops.constant(end) for end in (-largest, largest, -largest, largest)]
    weight_8bit = ops.fake_quantize(ops.constant(weight), *ends, levels=WEIGHT_LEVELS)
    sides = [int(one) for one in padding]
    found = ops.convolution(x, weight_8bit, list(stride), sides, sides, [1, 1])
    return ops.add(found, ops.constant(bias.reshape(1, -1, 1, 1)))
