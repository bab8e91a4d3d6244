"""Class activation maps: what each cell of the last feature map adds to the evidence for a class. Arrays in, arrays out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hoarfrost.features.encoder.registry import EncoderSpec
from hoarfrost.heads.committee import Committee

Floats = npt.NDArray[np.float64]


def evidence_maps(committee: Committee, features: npt.NDArray[np.float32], numbers: Sequence[int]) -> Floats:
    """Divide a head's evidence for a class among the cells of the last feature map.

    Parameters
    ----------
    committee : Committee
        The head in float64, see `Committee.exact`.
    features : ndarray (n, D, cells, cells) float32
        As `hoarfrost.features.encoder.backbone.Backbone.feature_maps` returns them.
    numbers : sequence of int, length n
        The class, or label, of each image's map.

    Returns
    -------
    ndarray (n, cells, cells) float64
        Their sums over the cells are the evidence, see `evidence`.

    Notes
    -----
    The embedding is the mean of the feature map over its cells. A cell adds, over the number of cells, each activation
    times the slope of its feature's standardisation times the gradient of the evidence by the standardised feature. The
    slope allows for the transform, see `Standardise.slope`. What remains belongs to no cell, and is spread evenly, so the
    sum is the evidence.

    For one member that is linear in standardised features this is an exact division of its logit. For hidden layers,
    products of features, and the mean of several members' probabilities, it is that of the function's tangent: the map
    then shows what small changes would do, and not what the absence of a cell would. In the mean, a member counts by its
    weight, and by how much its own probability would change. Temperature divides logits, and so maps.

    References
    ----------
    Zhou et al. (2016), Learning Deep Features for Discriminative Localization, CVPR. Shrikumar et al. (2017),
    Learning Important Features Through Propagating Activation Differences, ICML (gradient times input, and the slope
    between a reference and the input for transforms).
    """
    x = torch.from_numpy(features).double()
    embeddings = x.mean((2, 3))  # (n, D)
    parts = committee.parts()
    standardised = [standardise(embeddings).requires_grad_() for standardise, _ in parts]
    logits = [layers(z) for (_, layers), z in zip(parts, standardised, strict=True)]
    found = evidence(committee.joined(logits), numbers, multilabel=committee.is_multilabel)  # (n,)
    gradients = torch.autograd.grad(found.sum(), standardised)
    slopes = [standardise.slope(embeddings) for standardise, _ in parts]
    weights = (torch.stack(gradients) * torch.stack(slopes)).sum(0)  # (n, D)
    n_cells = x.shape[2] * x.shape[3]
    maps = torch.einsum("nk,nkij->nij", weights, x) / n_cells
    rest = found.detach() - maps.sum((1, 2))
    return np.asarray((maps + rest[:, None, None] / n_cells).numpy())


def evidence(logits: Tensor, numbers: Sequence[int], *, multilabel: bool) -> Tensor:
    """Return the evidence for a class against the others: its own logit minus the mean of theirs.

    Parameters
    ----------
    logits : Tensor (n, C)
    numbers : sequence of int, length n
        Of the classes.
    multilabel : bool
        Each class is an independent label: its own logit alone.

    Returns
    -------
    Tensor (n,)
        With two classes, or of a label, the logarithm of the odds. What all logits share cancels, as it does in softmax.
    """
    own = logits[torch.arange(len(logits)), torch.tensor(numbers)]
    return own if multilabel else own - (logits.sum(1) - own) / (logits.shape[1] - 1)


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
