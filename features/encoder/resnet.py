"""ResNets of basic blocks, with torchvision's names and random weights; importing torchvision itself takes seconds.

He et al. (2016), Deep Residual Learning for Image Recognition, CVPR, 770-778.
"""

from collections.abc import Sequence

import torch
from torch import nn

N_CLASSES = 1000  # of the classifier whose initial weights torchvision draws before the others


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, and their input added: (B, in, H, W) to (B, out, H / stride, W / stride)."""

    downsample: nn.Sequential | None

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        shortcut = None
        if stride != 1 or n_in != n_out:
            shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        x += shortcut
        output: torch.Tensor = self.relu(x)
        return output


class ResNet(nn.Module):
    """A ResNet of basic blocks without its classifier: normalised images (B, 3, S, S) to (B, 512).

    Parameters
    ----------
    n_blocks : sequence of four int
        Blocks in each stage: 2, 2, 2, 2 for ResNet18.
    """

    def __init__(self, n_blocks: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        n_in = 64
        for number, n in enumerate(n_blocks):
            n_out, stride = 64 * 2**number, 1 if number == 0 else 2
            blocks = [BasicBlock(n_in if i == 0 else n_out, n_out, stride if i == 0 else 1) for i in range(n)]
            setattr(self, f"layer{number + 1}", nn.Sequential(*blocks))
            n_in = n_out
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        nn.Linear(n_in, N_CLASSES)  # its draws, so that random weights are those of torchvision
        self.fc = nn.Identity()
        for module in self.modules():
            # On "meta" there is nothing to draw, and torch would load its compiler for that: a second.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return embeddings."""
        for layer in self.children():
            x = layer(x)
            if layer is self.avgpool:
                x = torch.flatten(x, 1)
        return x
