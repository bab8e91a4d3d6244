"""Class activation maps: what each cell of the last feature map adds to a head's logits. Knows no files."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hoarfrost.features.encoder.registry import EncoderSpec
from hoarfrost.heads.standardise import Standardise

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Contributions:
    """What the cells of n images add to the logits of C classes.

    Attributes
    ----------
    maps : ndarray (n, C, cells, cells) float64
        Their sums over the cells are the logits.
    logits : ndarray (n, C) float64
        Of several seeds their mean.
    constants : ndarray (n, C) float64
        The part of each logit that is of no cell; `maps` have it spread evenly.
    """

    maps: Floats
    logits: Floats
    constants: Floats


def contributions(modules: Sequence[nn.Module], features: npt.NDArray[np.float32]) -> Contributions:
    """Divide a head's logits among the cells of the last feature map.

    Parameters
    ----------
    modules : sequence of nn.Module
        The head, one a seed: standardisation, then linear layers and ReLUs.
    features : ndarray (n, D, cells, cells) float32
        As `hoarfrost.features.encoder.backbone.Backbone.feature_maps` gives them.

    Returns
    -------
    Contributions

    Notes
    -----
    The embedding is the mean of the feature map over its cells, so a linear head's logit is a sum over cells: each
    adds weight times (activation - training mean) / training deviation, over the number of cells. What is left, the
    bias, is of no cell, and is spread evenly. A head with hidden layers is linear as long as the same ReLUs are open:
    the map is of that linear function, gradient times (activation - training mean), and what is left, which the biases
    of the open units come to, is spread evenly too. So the sum is the logit in both cases; with hidden layers it says
    what small changes would do, and not what the absence of a cell would. Temperature divides logits, and so maps.

    References
    ----------
    Zhou et al. (2016), Learning Deep Features for Discriminative Localization, CVPR. Shrikumar et al. (2017),
    Learning Important Features Through Propagating Activation Differences, ICML (gradient times input).
    """
    found = [_contributions(module, torch.from_numpy(features).double()) for module in modules]
    maps, logits, constants = (torch.stack(parts).mean(0).numpy() for parts in zip(*found, strict=True))
    return Contributions(maps, logits, constants)


def _contributions(module: nn.Module, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give one seed's maps (n, C, cells, cells), logits (n, C) and constants (n, C), in float64."""
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
    logits = logits.detach()
    constants = logits - maps.sum((2, 3))
    return maps + constants[:, :, None, None] / n_cells, logits, constants


def evidence(values: Floats, number: int, *, multilabel: bool) -> Floats:
    """Give what speaks for a class against the others: its own part less the mean of theirs.

    Parameters
    ----------
    values : ndarray (n, C, ...) float64
        Logits or maps.
    number : int
        Of the class.
    multilabel : bool
        Each class is a label for itself: its own part alone.

    Returns
    -------
    ndarray (n, ...) float64
        With two classes, or of a label, its sum over the cells is the logarithm of the odds. Softmax does not see what
        all logits have in common, and neither does this.
    """
    if multilabel:
        return values[:, number]
    others: Floats = np.delete(values, number, axis=1).mean(axis=1)
    return values[:, number] - others


def upsampled(cells: Floats, height: int, width: int, encoder: EncoderSpec) -> Floats:
    """Draw a map at the size of a picture of the whole image, bilinearly between the centres of the cells.

    Parameters
    ----------
    cells : ndarray (cells, cells) float64
    height, width : int
        Of the picture, whatever its shape: the encoder saw it squeezed to a square.
    encoder : EncoderSpec
        Whose feature map the cells are of.

    Returns
    -------
    ndarray (height, width) float64

    Notes
    -----
    Cell (i, j) is centred at pixel (i, j) times `cell_pixels` of what the encoder sees, where its receptive field is, and
    not in the middle of its share of it. Beyond the last centre the value stays.
    """
    sizes = zip((height, width), cells.shape, strict=True)
    rows, columns = (_places(n_pixels, n_cells, encoder) for n_pixels, n_cells in sizes)
    return _between(_between(cells, rows).T, columns).T


def _places(n_pixels: int, n_cells: int, encoder: EncoderSpec) -> Floats:
    """Give each pixel's place in units of cells."""
    seen = (np.arange(n_pixels) + 0.5) * (encoder.size / n_pixels) - 0.5
    return np.clip(seen / encoder.require_feature_map().cell_pixels, 0, n_cells - 1)


def _between(cells: Floats, places: Floats) -> Floats:
    """Interpolate along the first axis."""
    low = np.minimum(places.astype(np.int64), len(cells) - 2)
    share = (places - low)[:, None]
    found: Floats = cells[low] * (1 - share) + cells[low + 1] * share
    return found
