"""The network: an encoder without its classifier, frozen, with normalisation inside and the fast paths of its entry."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - its usual name
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hoarfrost.features.encoder.backbone.weights import Weights
from hoarfrost.features.encoder.backbone.winograd import WinogradConv2d

WINOGRAD_CHANNELS = 256  # with fewer the direct convolution is faster

# Images in one pass through the layers on a CPU: their activations stay in its caches. Groups are always whole, the last
# one padded, so that no product's shape, and no embedding's bits, depend on the batch.
CPU_GROUP = 8


class Network(nn.Module):
    """Images (B, 3, S, S) uint8 to embeddings (B, D) float32, in the precision of its weights."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, weights: Weights, layers: Sequence[int] = ()) -> None:
        super().__init__()
        self.encoder = weights.encoder
        self.stages = self.encoder.stages_of(layers)
        self._layers_wanted = tuple(layers)
        self.layers = frozen_layers(weights)
        self.dtype = torch.float32  # of the layers
        self.register_buffer("mean", torch.tensor(self.encoder.mean).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(self.encoder.std).view(1, 3, 1, 1) * 255)
        self.eval().requires_grad_(False)

    def use_winograd(self) -> None:
        """Replace the wide 3 x 3 convolutions of stride 1; for float32 on a CPU."""
        for parent in list(self.layers.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Conv2d) and _suits_winograd(layer):
                    setattr(parent, name, WinogradConv2d(layer))
        self.eval()

    def to_precision(self, dtype: torch.dtype) -> "Network":
        """Convert the layers; normalisation stays in float32."""
        if self.encoder.opened is None:  # a traced network may depend on the order of its weights in memory
            self.layers.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.dtype = dtype
        return self

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps of each stage whose means are the embeddings, (B, dim, cells, cells) float32.

        Raises
        ------
        EncoderError
            If the encoder has no maps.
        """
        self.encoder.require_feature_map(self._layers_wanted)
        return [found.float() for found in self._maps(self._normalised(images))]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return embeddings."""
        x = self._normalised(images)
        if not self._layers_wanted:
            embeddings: torch.Tensor = self.layers(x)
            return embeddings.float()
        return torch.cat([F.adaptive_avg_pool2d(found, 1).flatten(1) for found in self._maps(x)], 1).float()

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        return ((images.float() - self.mean) / self.std).to(self.dtype, memory_format=torch.channels_last)

    def _maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Run the network up to its last wanted stage; return the wanted stages' outputs."""
        if self.encoder.last_map is not None:
            return [self.encoder.last_map(self.layers, x)]
        wanted = [stage.layer for stage in self.stages]
        found = []
        for name, layer in self.layers.named_children():
            x = layer(x)
            if name in wanted:
                found.append(x)
            if name == wanted[-1]:
                break
        return found


def frozen_layers(weights: Weights) -> nn.Module:
    """Return the encoder's network with these weights; each BatchNorm is part of its convolution if the entry allows it."""
    if weights.encoder.opened is not None:
        return weights.encoder.opened(weights.tensors)
    is_folded = "folded" in weights.encoder.fast_paths
    # "meta" spends no time on initial values. BatchNorm's counters, which weights omit, need memory if BatchNorm stays.
    with torch.random.fork_rng(devices=[]), torch.device("meta" if is_folded else "cpu"):
        network = weights.encoder.build()
    # Not strict: BatchNorm's counters are missing. Everything else was checked on loading.
    network.load_state_dict(dict(weights.tensors), strict=False, assign=True)
    network.eval().requires_grad_(False)
    if is_folded:
        _fold(network)
    return network


def _fold(network: nn.Module) -> None:
    """Merge each frozen BatchNorm into the convolution before it: the same function in fewer passes over memory."""
    for parent in list(network.modules()):
        for (name, layer), (next_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, norm))
                setattr(parent, next_name, nn.Identity())


def _suits_winograd(layer: nn.Conv2d) -> bool:
    shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups)
    return shape == ((3, 3), (1, 1), (1, 1), (1, 1), 1) and layer.in_channels >= WINOGRAD_CHANNELS
