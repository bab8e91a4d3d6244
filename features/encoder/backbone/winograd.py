"""3 x 3 convolutions by Winograd's minimal filtering, for processors that multiply nothing faster than float32."""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

TILE = 4  # outputs per tile along each axis; it reads two more inputs

# F(4 x 4, 3 x 3): transforms of the input tile, of the filter, and back to outputs.
_INPUT = torch.tensor([
    [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
    [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
], dtype=torch.float64)  # fmt: skip
_FILTER = torch.tensor(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], dtype=torch.float64
) / torch.tensor([[24.0]], dtype=torch.float64)
_OUTPUT = torch.tensor(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], dtype=torch.float64
)


class WinogradConv2d(nn.Module):
    """A frozen 3 x 3 convolution of stride 1 and padding 1, in a quarter of the multiplications.

    Each tile of 4 x 4 outputs costs 36 products per pair of channels instead of 144; the rest is 36 matrix products.
    It pays for 256 channels or more: with fewer, moving the tiles takes the time that the products save. Float32
    rounding is about ten times that of the direct sum, 1e-5 of the largest output.

    Parameters
    ----------
    convolution : nn.Conv2d
        Its weights are copied.

    References
    ----------
    Lavin and Gray (2016), Fast Algorithms for Convolutional Neural Networks, CVPR.
    """

    filters: torch.Tensor
    bias: torch.Tensor
    to_tiles: torch.Tensor
    to_outputs: torch.Tensor

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight = convolution.weight.detach().double()
        filters = torch.einsum("ia,jb,kcab->ijck", _FILTER, _FILTER, weight)  # (6, 6, C, K)
        assert convolution.bias is not None
        self.register_buffer("filters", filters.flatten(0, 1).float().contiguous())  # (36, C, K)
        self.register_buffer("bias", convolution.bias.detach().clone())
        self.register_buffer("to_tiles", torch.kron(_INPUT, _INPUT).float())  # (36, 36)
        self.register_buffer("to_outputs", torch.kron(_OUTPUT, _OUTPUT).float())  # (16, 36)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve (B, C, H, W) float32 to (B, K, H, W), both channels last."""
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        n, height, width, channels = x.shape
        rows, columns = -(-height // TILE), -(-width // TILE)
        x = F.pad(x, (0, 0, 1, TILE * columns + 1 - width, 1, TILE * rows + 1 - height))
        tiles = x.unfold(1, TILE + 2, TILE).unfold(2, TILE + 2, TILE)  # (B, rows, columns, C, 6, 6)
        tiles = self.to_tiles @ tiles.permute(4, 5, 0, 1, 2, 3).reshape(36, -1)
        products = torch.bmm(tiles.view(36, -1, channels), self.filters)  # (36, B * rows * columns, K)
        outputs = self.to_outputs @ products.view(36, -1)
        y = outputs.view(TILE, TILE, n, rows, columns, -1).permute(2, 3, 0, 4, 1, 5)  # (B, rows, 4, columns, 4, K)
        y = y.reshape(n, TILE * rows, TILE * columns, -1)[:, :height, :width] + self.bias
        return y.permute(0, 3, 1, 2)
