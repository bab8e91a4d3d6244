"""Torchvision's networks without their classifiers, and the names in checkpoints of them. Torch is loaded by a call."""

import re
from collections import OrderedDict
from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

State = Mapping[str, object]


def basic_resnet(*n_blocks: int) -> "nn.Module":
    """Return a ResNet of basic blocks, so many in each stage."""
    from hoarfrost.features.encoder.resnet import ResNet

    return ResNet(n_blocks)


def torchvisions(name: str, head: str = "") -> "nn.Module":
    """Return torchvision's network; its last layer, of the name `head`, does nothing."""
    import torchvision
    from torch import nn

    network: nn.Module = getattr(torchvision.models, name)(weights=None)
    if head:
        setattr(network, head, nn.Identity())
    return network


def densenet121() -> "nn.Module":
    """Return DenseNet121 as parts that run one after another."""
    from torch import nn

    parts = nn.Sequential(OrderedDict(torchvisions("densenet121").get_submodule("features").named_children()))
    for name, layer in (("relu5", nn.ReLU()), ("avgpool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten())):
        parts.add_module(name, layer)
    return parts


def densenet_names(state: State) -> State:
    """Return a state_dict by today's names: the published file still has "denselayer1.norm.1"."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2", name): x for name, x in state.items()}


def convnext_tiny() -> "nn.Module":
    """Return ConvNeXt-Tiny as parts that run one after another, without the LayerNorm of its classifier."""
    from torch import nn

    features = torchvisions("convnext_tiny").get_submodule("features")
    # New networks begin with residual branches scaled by 1e-6: frozen so, they would hardly see the image.
    for name, values in features.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.ones_(values)
    return nn.Sequential(*features.children(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def vit_map(network: "nn.Module", x: "Tensor") -> "Tensor":
    """Return the patch tokens of torchvision's ViT as a map."""
    import torch

    patches = network._process_input(x)  # type: ignore[operator]
    tokens = torch.cat([network.class_token.expand(len(x), -1, -1), patches], 1)  # type: ignore[operator]
    return token_map(network.encoder(tokens)[:, 1:])  # type: ignore[operator]


def token_map(tokens: "Tensor") -> "Tensor":
    """Return the tokens (B, cells * cells, D) of a square image's patches as a map (B, D, cells, cells)."""
    n, n_tokens, dim = tokens.shape
    return tokens.transpose(1, 2).reshape(n, dim, isqrt(n_tokens), -1)


def resnet_names(state: State) -> State:
    """Return a state_dict by names where it has numbers: RadImageNet's files are of a sequence of ResNet50's parts."""
    ends = ("0.weight", "4.0.conv1.weight")
    starts = [name.removesuffix(ends[1]) for name in state if name == ends[1] or name.endswith(f".{ends[1]}")]
    if len(starts) != 1 or starts[0] + ends[0] not in state:
        return state
    parts = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
    own = {f"{starts[0]}{number}.": f"{starts[0]}{part}." for number, part in enumerate(parts)}
    return {
        next((own[old] + name.removeprefix(old) for old in own if name.startswith(old)), name): x
        for name, x in state.items()
    }
