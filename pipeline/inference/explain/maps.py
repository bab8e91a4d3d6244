"""Class activation maps: what each cell of the last feature map adds to the evidence for a class. Arrays in, arrays out."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hoarfrost.features.decoding.looks import boxes
from hoarfrost.features.decoding.views import View
from hoarfrost.features.encoder.registry import EncoderSpec, Stage
from hoarfrost.heads.committee import Committee, seen

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """How the cells of a look's map lie in the grid of the picture, for n images.

    `rows` and `columns` (n, T, cells) are the shares of each cell's height and width that are in each row and column of
    the grid. A quarter turn exchanges rows and columns of the map first, if `is_turned`.
    """

    rows: Tensor
    columns: Tensor
    is_turned: bool

    def onto_grid(self, maps: Tensor) -> Tensor:
        """Return maps (n, cells, cells) on the grid, (n, T, T), with the same sums."""
        turned = maps.transpose(1, 2) if self.is_turned else maps
        return self.rows @ turned @ self.columns.transpose(1, 2)


@dataclass(frozen=True)
class LookMaps:
    """The feature maps of one look at n images.

    Attributes
    ----------
    stages : tuple of ndarray (n, dim, cells, cells) float32
        As `hoarfrost.features.encoder.backbone.Backbone.feature_maps` returns them; side by side, their means over the
        cells are the embedding.
    view : int
        The place of the view among those of the head.
    share : float
        Of the look in the view's embedding: one, or of a tile one over the number of tiles.
    spread : tuple of Spread
        For each stage where its cells lie in the picture's grid; none if they are the grid.
    """

    stages: tuple[npt.NDArray[np.float32], ...]
    view: int = 0
    share: float = 1.0
    spread: tuple[Spread, ...] = ()

    def embedding(self) -> Tensor:
        """Return the looks' embeddings (n, D) float64."""
        return torch.cat([torch.from_numpy(found).double().mean((2, 3)) for found in self.stages], 1)

    def divided(self, weights: Tensor) -> Tensor:
        """Return what each cell of the grid adds, (n, T, T), from the weights (n, D) of the embedding's numbers."""
        total, first = torch.zeros(()), 0
        for number, found in enumerate(self.stages):
            dim, n_cells = found.shape[1], found.shape[2] * found.shape[3]
            of_stage = weights[:, first : first + dim]
            maps = torch.einsum("nk,nkij->nij", of_stage, torch.from_numpy(found).double()) / n_cells
            total = total + (self.spread[number].onto_grid(maps) if self.spread else maps)
            first += dim
        return total * self.share


def embeddings_of(looks: Sequence[LookMaps]) -> Tensor:
    """Return the embeddings (n, V, D) float64 of all views."""
    n_views = max(look.view for look in looks) + 1
    return torch.stack(
        [
            sum((one.share * one.embedding() for one in looks if one.view == view), torch.zeros(()))
            for view in range(n_views)
        ],
        dim=1,
    )


def evidence_maps(committee: Committee, looks: Sequence[LookMaps], numbers: Sequence[int]) -> Floats:
    """Divide a head's evidence for a class among the cells of its feature maps.

    Parameters
    ----------
    committee : Committee
        The head in float64, see `Committee.exact`.
    looks : sequence of LookMaps
        All looks at n images.
    numbers : sequence of int, length n
        The class, or label, of each image's map.

    Returns
    -------
    ndarray (n, T, T) float64
        Their sums over the cells are the evidence, see `evidence`.

    Notes
    -----
    An embedding is the mean of feature maps over their cells. A cell adds, over the number of cells, each activation times
    the slope of its feature's standardisation times the gradient of the evidence by the standardised feature. The slope
    allows for the transform, see `Standardise.slope`. What several views and layers add is summed where they show the same
    place. What remains belongs to no cell, and is spread evenly, so the sum is the evidence.

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
    found, weights = _divided(committee, embeddings_of(looks), numbers)
    maps = sum((look.divided(weights[:, look.view]) for look in looks), torch.zeros(()))
    n_cells = maps.shape[1] * maps.shape[2]
    rest = found - maps.sum((1, 2))
    return np.asarray((maps + rest[:, None, None] / n_cells).numpy())


def _divided(committee: Committee, x: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the evidence (n,) of embeddings (n, V, D), and the weight (n, V, D) of each number in it."""
    parts = committee.parts()
    inputs = [seen(x, reading.places) for reading in committee.readings]
    own = [parts[reading.member] for reading in committee.readings]
    standardised = [standardise(e).requires_grad_() for (standardise, _), e in zip(own, inputs, strict=True)]
    logits = [layers(z) for (_, layers), z in zip(own, standardised, strict=True)]
    found = evidence(committee.joined(logits), numbers, multilabel=committee.is_multilabel)
    gradients = torch.autograd.grad(found.sum(), standardised)
    weights = torch.zeros_like(x)
    for reading, (standardise, _), e, gradient in zip(committee.readings, own, inputs, gradients, strict=True):
        places = list(reading.places)
        of_columns = (gradient * standardise.slope(e))[:, None] / len(places)
        start = 0
        for first, end in standardise.columns or ((0, x.shape[2]),):
            weights[:, places, first:end] += of_columns[:, :, start : start + end - first]
            start += end - first
    return found.detach(), weights


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


def spread_of(
    view: View, tile: int, shapes: Sequence[tuple[int, int]], stage: Stage, grid: tuple[int, Stage]
) -> Spread:
    """Return where a look's cells lie in the picture.

    Parameters
    ----------
    view : View
    tile : int
        Which of its looks, row by row.
    shapes : sequence of (int, int), length n
        Height and width of each image.
    stage : Stage
        Of the look's map.
    grid : tuple of int and Stage
        The size in pixels of the largest view, and the stage whose cells are the grid's.

    Notes
    -----
    A random turn of a few degrees is not undone.
    """
    down = across = _intervals(view.size, stage)
    across = _mirrored(across) if view.flip else across
    if view.turn == 90:
        down, across = across, _mirrored(down)
    elif view.turn == 180:
        down, across = _mirrored(down), _mirrored(across)
    elif view.turn == 270:
        down, across = _mirrored(across), down
    target = _intervals(*grid)
    rows, columns = [], []
    for height, width in shapes:
        top, left, bottom, right = boxes(view, height, width)[tile]
        rows.append(_overlaps((top + down * (bottom - top)) / height, target))
        columns.append(_overlaps((left + across * (right - left)) / width, target))
    return Spread(torch.from_numpy(np.stack(rows)), torch.from_numpy(np.stack(columns)), view.turn in {90, 270})


def _intervals(size: int, stage: Stage) -> Floats:
    """Return the start and end of each cell as shares of the input's side, (cells, 2)."""
    middles = np.arange(size // stage.cell_pixels) * stage.cell_pixels + stage.first_pixel
    edges = np.append(np.maximum(middles - stage.cell_pixels / 2, 0), size) / size
    return np.column_stack([edges[:-1], edges[1:]])


def _mirrored(intervals: Floats) -> Floats:
    return 1 - intervals[:, ::-1]


def _overlaps(cells: Floats, target: Floats) -> Floats:
    """Return the share of each cell (c, 2) in each interval of the target (T, 2), (T, c); columns have the sum one."""
    start, end = cells.clip(0, 1).T
    shared = np.minimum(end, target[:, 1:]) - np.maximum(start, target[:, :1])
    length = end - start
    is_point = length <= 1e-12  # a cell beyond the image: what it adds is shown at the border
    found = np.maximum(shared, 0) / np.where(is_point, 1, length)
    nearest = np.minimum(np.searchsorted(target[:, 1], start), len(target) - 1)
    found[:, is_point] = 0
    found[nearest[is_point], np.flatnonzero(is_point)] = 1
    return np.asarray(found / found.sum(axis=0))


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
    Cell (i, j) is centred where its receptive field is in the encoder's input (see `Stage`), which need not be the middle
    of its share of it. Beyond the last centre the value stays.
    """
    rows, columns = (_cell_positions(n, len(cells), encoder) for n in (height, width))
    return _interpolated(_interpolated(cells, rows).T, columns).T


def _cell_positions(n_pixels: int, n_cells: int, encoder: EncoderSpec) -> Floats:
    """Return each pixel's position in units of cells, (n_pixels,)."""
    stage = encoder.require_feature_map()
    shown = (np.arange(n_pixels) + 0.5) * (n_cells / n_pixels) - (0.5 + stage.first_pixel) / stage.cell_pixels
    return np.clip(shown, 0, n_cells - 1)


def _interpolated(cells: Floats, positions: Floats) -> Floats:
    """Interpolate along the first axis."""
    low = np.minimum(positions.astype(np.int64), len(cells) - 2)
    share = (positions - low)[:, None]
    found: Floats = cells[low] * (1 - share) + cells[low + 1] * share
    return found
