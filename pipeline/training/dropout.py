"""Activations dropped in training: what a head drops follows from its own seed, whatever heads it is trained with."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF  # the lower 32 bits


class Dropout(ABC):
    """Dropout after each of L layers of M heads, each head at its own rates.

    Parameters
    ----------
    rates : sequence of L sequences of M floats
    seeds : sequence of int, length M
        Below 2**63.
    like : Tensor
        Has the device and the data type of the activations.
    """

    SPAN = 1.0  # draws are at least 0, and less than this

    def __init__(self, rates: Sequence[Sequence[float]], seeds: Sequence[int], like: Tensor) -> None:
        self._rates = torch.tensor(rates, dtype=torch.float64)  # (L, M), on the CPU
        self._device, self._dtype = like.device, like.dtype
        self._seed(seeds)
        self.keep(range(len(seeds)))

    @abstractmethod
    def _seed(self, seeds: Sequence[int]) -> None:
        """Prepare the draws of each head."""

    @abstractmethod
    def _draw(self, y: Tensor, layer: int, n_steps: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return a draw for each activation."""

    def keep(self, heads: Sequence[int]) -> None:
        """Continue with some of the heads."""
        self._rates = self._rates[:, list(heads)]
        of_heads = self._rates[..., None, None]
        self._least = (of_heads.float() * self.SPAN).to(self._device)  # (L, M, 1, 1)
        self._scale = (1 / (1 - of_heads)).to(self._dtype).to(self._device)
        self._drops = self._rates.any(1).tolist()

    def __call__(self, y: Tensor, layer: int, n_steps: Tensor, sizes: Sequence[int]) -> Tensor:
        """Drop activations y (M, B, out) after a layer.

        `n_steps` () is the number of steps before this one. Draws are needed for `sizes` of the B rows, one for each group.
        """
        if not self._drops[layer]:
            return y
        drawn = self._draw(y, layer, n_steps, sizes)
        return y * ((drawn >= self._least[layer]) * self._scale[layer])


class DrawnDropout(Dropout):
    """Draws by a generator for each head, one after another."""

    def _seed(self, seeds: Sequence[int]) -> None:
        self._generators = [torch.Generator(self._device).manual_seed(seed) for seed in seeds]

    def keep(self, heads: Sequence[int]) -> None:
        """Continue with some of the heads."""
        self._generators = [self._generators[head] for head in heads]
        super().keep(heads)

    def _draw(self, y: Tensor, layer: int, n_steps: Tensor, sizes: Sequence[int]) -> Tensor:  # noqa: ARG002 - any dropout's
        drawn = torch.ones(y.shape, device=y.device)
        n_variants = len(y) // len(sizes)
        for head, rate in enumerate(self._rates[layer].tolist()):
            if rate:
                part = drawn[head, : sizes[head // n_variants]]
                torch.rand(part.shape, generator=self._generators[head], out=part)
        return drawn


class CountedDropout(Dropout):
    """Draws of all heads at once, for a GPU: hashes of a head's seed, the step, the layer and the activation's place.

    A draw for each head would be a kernel for each. A single generator for all would let a head's masks depend on the other
    heads, and its state is on the host, where a CUDA graph cannot read it.
    """

    SPAN = 2.0**32

    def _seed(self, seeds: Sequence[int]) -> None:
        halves = [[seed & _LOW, seed >> 32] for seed in seeds]
        self._keys = torch.tensor(halves)[..., None, None].to(self._device)  # (M, 2, 1, 1)

    def keep(self, heads: Sequence[int]) -> None:
        """Continue with some of the heads."""
        self._keys = self._keys[list(heads)]
        super().keep(heads)

    def _draw(self, y: Tensor, layer: int, n_steps: Tensor, sizes: Sequence[int]) -> Tensor:  # noqa: ARG002 - any dropout's
        count = n_steps.long() * len(self._drops) + layer
        keys = _hashed((self._keys + count) & _LOW, 0)  # of this step and layer
        places = torch.arange(y[0].numel(), device=y.device).view(y.shape[1:])
        return _hashed(places ^ keys[:, 0], keys[:, 1])


def _hashed(x: Tensor, key: Tensor | int) -> Tensor:
    """Hash 32-bit numbers, int64, in place; products stay below 2**63.

    References
    ----------
    Wellons, hash-prospector (2018-2023): constants of least bias for this form of hash.
    """
    x ^= x >> 16
    x *= 0x21F0AAAD
    x &= _LOW
    x ^= key
    x ^= x >> 15
    x *= 0x735A2D97
    x &= _LOW
    x ^= x >> 15
    return x
