"""Class activation maps: what each cell of the last feature map adds to a head's logits. Arrays in, arrays out."""

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hoarfrost.features.encoder.registry import EncoderSpec
from hoarfrost.heads.layers import Standardise

Floats = npt.NDArray[np.float64]


def logit_maps(modules: Sequence[nn.Module], features: npt.NDArray[np.float32]) -> Floats:
    """Divide a head's logits among the cells of the last feature map.

    Parameters
    ----------
    modules : sequence of nn.Module
        The head, one module per seed: standardisation, then linear layers and ReLUs.
    features : ndarray (n, D, cells, cells) float32
        As `hoarfrost.features.encoder.backbone.Backbone.feature_maps` returns them.

    Returns
    -------
    ndarray (n, C, cells, cells) float64
        Their sums over the cells are the logits, (n, C); of several seeds the means.

    Notes
    -----
    The embedding is the mean of the feature map over its cells, so a linear head's logit is a sum over cells: each
    adds weight times (activation - training mean) / training deviation, over the number of cells. What remains, the
    bias, belongs to no cell, and is spread evenly. A head with hidden layers is linear as long as the same ReLUs are open:
    the map is of that linear function, gradient times (activation - training mean), and what remains, which comes from
    the biases of the open units, is spread evenly too. So the sum is the logit in both cases; with hidden layers the map
    shows what small changes would do, and not what the absence of a cell would. Temperature divides logits, and so maps.

    References
    ----------
    Zhou et al. (2016), Learning Deep Features for Discriminative Localization, CVPR. Shrikumar et al. (2017),
    Learning Important Features Through Propagating Activation Differences, ICML (gradient times input).
    """
    maps = [_logit_maps(module, torch.from_numpy(features).double()) for module in modules]
    found: Floats = torch.stack(maps).mean(0).numpy()
    return found


def _logit_maps(module: nn.Module, features: Tensor) -> Tensor:
    """Return one seed's maps (n, C, cells, cells) float64."""
    module = copy.deepcopy(module).double().requires_grad_(False)
    standardise = next(part for part in module.modules() if isinstance(part, Standardise))
    mean = standardise.get_buffer("mean")
    embeddings = features.mean((2, 3)).requires_grad_()  # (n, D)
    logits = module(embeddings)
    of_class = [
        torch.autograd.grad(logits[:, c].sum(), embeddings, retain_graph=True)[0] for c in range(logits.shape[1])
    ]
    gradients = torch.stack(of_class, 1)  # (n, C, D)
    n_cells = features.shape[2] * features.shape[3]
    maps = torch.einsum("nck,nkij->ncij", gradients, features - mean[:, None, None]) / n_cells
    constants = logits.detach() - maps.sum((2, 3))
    found: Tensor = maps + constants[:, :, None, None] / n_cells
    return found


def evidence(values: Floats, number: int, *, multilabel: bool) -> Floats:
    """Return the evidence for a class against the others: its own part minus the mean of theirs.

    Parameters
    ----------
    values : ndarray (n, C, ...) float64
        Logits or maps.
    number : int
        Of the class.
    multilabel : bool
        Each class is an independent label: its own part alone.

    Returns
    -------
    ndarray (n, ...) float64
        With two classes, or of a label, its sum over the cells is the logarithm of the odds. What all logits share
        cancels, as it does in softmax.
    """
    if multilabel:
        return values[:, number]
    others: Floats = np.delete(values, number, axis=1).mean(axis=1)
    return values[:, number] - others


def upsampled(cells: Floats, height: int, width: int, encoder: EncoderSpec) -> Floats:
    """Return a map at the size of a picture of the whole image, (height, width), bilinear between the cells' centres.

    Parameters
    ----------
    cells : ndarray (cells, cells) float64
    height, width : int
        Of the picture, in any shape: the encoder saw it squeezed to a square.
    encoder : EncoderSpec
        The network that the feature map is of.

    Notes
    -----
    Cell (i, j) is centred at pixel (i, j) times `cell_pixels` of the encoder's input, where its receptive field is, and
    not in the middle of its share of it. Beyond the last centre the value stays.
    """
    rows, columns = (_cell_positions(n, len(cells), encoder) for n in (height, width))
    return _interpolated(_interpolated(cells, rows).T, columns).T


def _cell_positions(n_pixels: int, n_cells: int, encoder: EncoderSpec) -> Floats:
    """Return each pixel's position in units of cells, (n_pixels,)."""
    seen = (np.arange(n_pixels) + 0.5) * (encoder.size / n_pixels) - 0.5
    return np.clip(seen / encoder.require_feature_map().cell_pixels, 0, n_cells - 1)


def _interpolated(cells: Floats, positions: Floats) -> Floats:
    """Interpolate along the first axis."""
    low = np.minimum(positions.astype(np.int64), len(cells) - 2)
    share = (positions - low)[:, None]
    found: Floats = cells[low] * (1 - share) + cells[low + 1] * share
    return found
