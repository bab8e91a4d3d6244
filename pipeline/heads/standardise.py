"""Standardised embeddings: the first layer of every head."""

from torch import Tensor, nn


class Standardise(nn.Module):
    """Scale embeddings to zero mean and unit deviation, by the training split's figures, kept as buffers."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)  # (D,)
        self.register_buffer("std", std)  # (D,)

    def forward(self, x: Tensor) -> Tensor:
        """Return standardised embeddings (B, D)."""
        return (x - self.get_buffer("mean")) / self.get_buffer("std")
