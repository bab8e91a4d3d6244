"""One module from pixels to probabilities: views, normalisation, backbone, standardisation, head, temperature."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from hoarfrost.features.decoding.looks import boxes
from hoarfrost.features.decoding.views import View, parse_views
from hoarfrost.features.encoder.backbone import Weights
from hoarfrost.features.encoder.backbone.network import Network
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.heads.files import SavedHead

# Probabilities below float32's smallest are clipped to it before their logarithm is scaled, as in `apply_temperature`.
LEAST_LOGARITHM = math.log(torch.finfo(torch.float32).tiny)


class Look(nn.Module):
    """A look at an image that was stretched to the largest view's size: uint8 (N, 3, L, L) to (N, 3, S, S) uint8.

    Resizing is linear in the rows and in the columns, so it is two products with constant matrices.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, view: View, tile: int, largest: int) -> None:
        super().__init__()
        top, left, bottom, right = boxes(view, largest, largest)[tile]
        self.register_buffer("rows", _resizing(top, bottom, largest, view.size))  # (S, L)
        self.register_buffer("columns", _resizing(left, right, largest, view.size))
        self.turn, self.flip = view.turn // 90, view.flip

    def forward(self, images: Tensor) -> Tensor:
        """Return the looks."""
        across = _rounded(images.float() @ self.columns.T)  # rounded in between too, as torch resizes uint8
        found = _rounded(self.rows @ across)
        if self.turn:
            found = torch.rot90(found, self.turn, (2, 3))
        return (found.flip(3) if self.flip else found).to(torch.uint8)


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


def _resizing(start: float, end: float, length: int, size: int) -> Tensor:
    """Return the matrix (size, length) that cuts out part of an axis and resizes it as `looks_at` does."""
    first, last = round(start), round(end)
    pixels = torch.eye(length)[first:last]  # (last - first) pixels in terms of all
    return F.interpolate(pixels[None, None], (size, length), mode="bilinear", antialias=True)[0, 0]


def looks_of(views: Sequence[View]) -> list[Look]:
    """Return the looks of some views, view by view, from an image at the size of the largest.

    Raises
    ------
    HoarfrostError
        If a view cannot be made of a stretched image.
    """
    largest = max(view.size for view in views)
    for view in views:
        if view.geometry != "stretch":
            raise HoarfrostError(
                f"The head looks at the view {view.name}, which needs the image's own aspect ratio. An exported model takes "
                f"images that are stretched to {largest} x {largest}. Train without this view: hoarfrost train --views …"
            )
        if view.seed is not None:
            raise HoarfrostError(
                f"The head looks at the view {view.name}, which is drawn from the file's bytes. An exported model sees "
                "pixels alone. Train without this view: hoarfrost train --views …"
            )
    return [Look(view, tile, largest) for view in views for tile in range(view.n_looks)]


class Classifier(nn.Module):
    """From images (N, 3, S, S) uint8 RGB to calibrated and uncalibrated probabilities (N, C) float32.

    `size` S is that of the largest view; the others are made of it.
    """

    temperatures: Tensor

    def __init__(self, weights: Weights, head: SavedHead) -> None:
        super().__init__()
        self.encoder = weights.encoder
        self.views = parse_views(",".join(head.views), weights.encoder)
        self.size = max(view.size for view in self.views)
        self.looks = nn.ModuleList(looks_of(self.views))
        self.backbone = Network(weights, head.header.fingerprint.layers)
        self.committee = head.committee
        self.register_buffer("temperatures", torch.tensor(head.validated[0].temperatures, dtype=torch.float32))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return calibrated probabilities, and those before calibration."""
        logits = self.committee(self._embedded(images))
        if not self.committee.is_multilabel:
            logarithms = F.log_softmax(logits, 1).clamp(min=LEAST_LOGARITHM)
            return (logarithms / self.temperatures).softmax(1), logits.softmax(1)
        present, absent = (F.logsigmoid(sign * logits).clamp(min=LEAST_LOGARITHM) for sign in (1, -1))
        return ((present - absent) / self.temperatures).sigmoid(), logits.sigmoid()

    def _embedded(self, images: Tensor) -> Tensor:
        """Return embeddings (N, D) of the only view, or (N, V, D)."""
        if len(self.looks) == 1:
            seen: Tensor = self.backbone(images if self.views[0] == View(self.size) else self.looks[0](images))
            return seen
        embeddings = iter([self.backbone(look(images)) for look in self.looks])
        of_views = [torch.stack([next(embeddings) for _ in range(view.n_looks)]).mean(0) for view in self.views]
        return torch.stack(of_views, 1)
