"""One module from pixels to probabilities: normalisation, backbone, standardisation, head, temperature."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from hoarfrost.features.encoder.backbone import Weights
from hoarfrost.features.encoder.backbone.network import Network
from hoarfrost.heads.files import SavedHead

# Probabilities below float32's smallest are clipped to it before their logarithm is scaled, as in `apply_temperature`.
LEAST_LOGARITHM = math.log(torch.finfo(torch.float32).tiny)


class Classifier(nn.Module):
    """From images (N, 3, S, S) uint8 RGB to calibrated and uncalibrated probabilities (N, C) float32."""

    temperatures: Tensor

    def __init__(self, weights: Weights, head: SavedHead) -> None:
        super().__init__()
        self.encoder = weights.encoder
        self.backbone = Network(weights)
        self.committee = head.committee
        self.register_buffer("temperatures", torch.tensor(head.validated[0].temperatures, dtype=torch.float32))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return calibrated probabilities, and those before calibration."""
        logits = self.committee(self.backbone(images))
        if not self.committee.is_multilabel:
            logarithms = F.log_softmax(logits, 1).clamp(min=LEAST_LOGARITHM)
            return (logarithms / self.temperatures).softmax(1), logits.softmax(1)
        present, absent = (F.logsigmoid(sign * logits).clamp(min=LEAST_LOGARITHM) for sign in (1, -1))
        return ((present - absent) / self.temperatures).sigmoid(), logits.sigmoid()
