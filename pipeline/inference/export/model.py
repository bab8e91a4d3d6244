"""One module from pixels to probabilities: normalisation, backbone, standardisation, head, temperature."""

import math
from collections.abc import Sequence

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
        self.heads = nn.ModuleList(head.modules)
        self.is_multilabel = head.is_multilabel
        self.register_buffer("temperatures", torch.tensor(head.validated[0].temperatures, dtype=torch.float32))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return calibrated probabilities, and those before calibration."""
        embeddings = self.backbone(images)
        logits = [head(embeddings) for head in self.heads]
        return self._of_labels(logits) if self.is_multilabel else self._of_classes(logits)

    def _of_classes(self, logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        logarithms = _mean([F.log_softmax(each, 1) for each in logits])
        calibrated = (logarithms.clamp(min=LEAST_LOGARITHM) / self.temperatures).softmax(1)
        return calibrated, logarithms.exp()

    def _of_labels(self, logits: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        present, absent = (_mean([F.logsigmoid(sign * each) for each in logits]) for sign in (1, -1))
        odds = present.clamp(min=LEAST_LOGARITHM) - absent.clamp(min=LEAST_LOGARITHM)
        return (odds / self.temperatures).sigmoid(), present.exp()


def _mean(logarithms: Sequence[Tensor]) -> Tensor:
    """Return the logarithm of the mean of the seeds' probabilities, which are given as logarithms."""
    if len(logarithms) == 1:
        return logarithms[0]
    return torch.stack(list(logarithms)).logsumexp(0) - math.log(len(logarithms))
