"""Kinds of head that the product does not have: what someone who adds one writes, and nothing else."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

from hoarfrost.heads.kinds import HeadSpec, Mlp, StackedLayer, apply_directly, option


@dataclass(frozen=True, kw_only=True)
class Gelu(Mlp):
    """An mlp with GELU in place of ReLU."""

    KIND: ClassVar[str] = "gelu"
    GRAMMAR: ClassVar[str] = "gelu:WIDTH or gelu:WIDTHxDEPTH"

    @staticmethod
    def activation() -> nn.Module:
        return nn.GELU(approximate="tanh")


def normalised(layer: nn.Module, parameters: Sequence[Tensor], y: Tensor) -> Tensor:
    """Run M layer normalisations at once."""
    assert isinstance(layer, nn.LayerNorm)
    scale, shift = (value[:, None] for value in parameters)  # (M, 1, out)
    return F.layer_norm(y, layer.normalized_shape, eps=layer.eps) * scale + shift


@dataclass(frozen=True, kw_only=True)
class Narrow(HeadSpec):
    """A bottleneck: a few directions, normalised, dropped out from; with a layer whose parameters are no matrix."""

    KIND: ClassVar[str] = "narrow"
    GRAMMAR: ClassVar[str] = "narrow"

    dropout: float = option(0.25, "from 0 to 0.5", lambda value: 0 <= value <= 0.5)

    def build(self, n_inputs: int, n_classes: int) -> nn.Sequential:
        dropout = [nn.Dropout(self.dropout)] if self.dropout else []
        return nn.Sequential(nn.Linear(n_inputs, 3), nn.LayerNorm(3), nn.Tanh(), *dropout, nn.Linear(3, n_classes))

    @classmethod
    def stacked_layers(cls) -> Mapping[type[nn.Module], StackedLayer]:
        return {nn.LayerNorm: normalised, nn.Tanh: apply_directly}


class Waves(nn.Module):
    """Random Fourier features: cosines of fixed directions."""

    def __init__(self, n_inputs: int, n_waves: int, gamma: float) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(n_inputs, n_waves, generator=generator, device="cpu")
        self.register_buffer("directions", directions * math.sqrt(2 * gamma))
        self.register_buffer("phases", torch.rand(n_waves, generator=generator, device="cpu") * 2 * math.pi)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.get_buffer("directions") + self.get_buffer("phases")).cos()


@dataclass(frozen=True, kw_only=True)
class Kernel(HeadSpec):
    """A kernel machine on random Fourier features: constants before the first linear layer, in all heads the same."""

    KIND: ClassVar[str] = "kernel"
    GRAMMAR: ClassVar[str] = "kernel"

    gamma: float = option(0.01, "above 0", lambda value: value > 0)

    @property
    def stack_key(self) -> Hashable:
        return self.KIND, self.gamma

    def build(self, n_inputs: int, n_classes: int) -> nn.Sequential:
        return nn.Sequential(Waves(n_inputs, 16, self.gamma), nn.Linear(16, n_classes))

    @classmethod
    def stacked_layers(cls) -> Mapping[type[nn.Module], StackedLayer]:
        return {Waves: apply_directly}


NEW_KINDS = {kind.KIND: kind for kind in (Gelu, Narrow, Kernel)}
