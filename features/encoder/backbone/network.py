"""The network: ResNet18 without its classifier, frozen, BatchNorm folded, normalisation inside."""

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock, ResNet

from hoarfrost.features.encoder.backbone.weights import Weights
from hoarfrost.features.encoder.backbone.winograd import WinogradConv2d
from hoarfrost.features.fingerprint import PREPROCESSING

WINOGRAD_CHANNELS = 256  # from so many on it is faster than the direct convolution

# Images in one pass through the layers on a CPU: their activations stay in its caches. Always whole groups, the last
# one padded, so that no product's shape, and no embedding's bits, depend on the batch.
CPU_GROUP = 8


class Network(nn.Module):
    """Images (B, 3, 224, 224) uint8 to embeddings (B, 512) float32, in the precision of its weights."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.resnet = folded_resnet(weights)
        self.register_buffer("mean", torch.tensor(PREPROCESSING["mean"]).view(1, 3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(PREPROCESSING["std"]).view(1, 3, 1, 1) * 255)
        self.eval().requires_grad_(False)

    @property
    def dtype(self) -> torch.dtype:
        """What the convolutions compute in."""
        return self.resnet.conv1.weight.dtype  # type: ignore[no-any-return]

    def use_winograd(self) -> None:
        """Replace the wide 3 x 3 convolutions of stride 1; for float32 on a CPU."""
        for block in self.resnet.modules():
            if isinstance(block, BasicBlock):
                block.conv1, block.conv2 = _winograd(block.conv1), _winograd(block.conv2)
        self.eval()

    def to_precision(self, dtype: torch.dtype) -> "Network":
        """Convert the convolutions; normalisation stays in float32."""
        self.resnet.to(dtype=dtype, memory_format=torch.channels_last)
        return self

    def feature_maps(self, images: torch.Tensor) -> torch.Tensor:
        """Give what global average pooling makes the embeddings of, (B, 512, 7, 7) float32."""
        found: list[torch.Tensor] = []
        watch = self.resnet.layer4.register_forward_hook(lambda _, __, output: found.append(output))
        try:
            self(images)  # the very same computation
        finally:
            watch.remove()
        return found[0].float()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed."""
        x = ((images.float() - self.mean) / self.std).to(self.dtype, memory_format=torch.channels_last)
        embeddings: torch.Tensor = self.resnet(x)
        return embeddings.float()


def folded_resnet(weights: Weights) -> ResNet:
    """Build the ResNet18 with each frozen BatchNorm in its convolution: the same function in fewer passes over memory."""
    with torch.device("meta"):  # no time spent on initial values
        network = resnet18(weights=None)
    network.fc = nn.Identity()
    # Not strict: BatchNorm's counters are absent, and gone once it is folded. The rest was checked on loading.
    network.load_state_dict(dict(weights.tensors), strict=False, assign=True)
    network.eval().requires_grad_(False)
    network.conv1, network.bn1 = fuse_conv_bn_eval(network.conv1, network.bn1), nn.Identity()
    for module in network.modules():
        if isinstance(module, BasicBlock):
            module.conv1, module.bn1 = fuse_conv_bn_eval(module.conv1, module.bn1), nn.Identity()
            module.conv2, module.bn2 = fuse_conv_bn_eval(module.conv2, module.bn2), nn.Identity()
            if module.downsample is not None:
                convolution, norm = module.downsample
                module.downsample = nn.Sequential(fuse_conv_bn_eval(convolution, norm))
    return network


def _winograd(convolution: nn.Conv2d) -> nn.Module:
    if convolution.stride != (1, 1) or convolution.in_channels < WINOGRAD_CHANNELS:
        return convolution
    return WinogradConv2d(convolution)
