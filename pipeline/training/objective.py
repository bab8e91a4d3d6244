"""What heads are trained for: one of several classes, or several labels per image."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

UNKNOWN = -1  # a label that an image may or may not have


class Objective(Protocol):
    """From a head's C logits to probabilities and loss. The loss weighs K log-probabilities per image."""

    @property
    def n_outputs(self) -> int:
        """C."""

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return log-probabilities (..., K) from logits (..., C)."""

    def probabilities(self, log_probabilities: Tensor) -> Tensor:
        """Return probabilities (..., C) float64 from log-probabilities (..., K)."""

    def loss_weights(self, y: Tensor, *, balanced: bool, smoothing: float) -> tuple[Tensor, Tensor]:
        """Return the weight of each negative log-probability in each image's loss, and the weight of each image.

        Parameters
        ----------
        y : Tensor (n,) or (n, C) int64
        balanced : bool
            Each class counts the same.
        smoothing : float
            Share of each label that is spread evenly.

        Returns
        -------
        (Tensor (n, K), Tensor (n,)), float64
            The loss is the sum over the first, divided by the sum of the second.
        """

    def mean_losses(self, log_probabilities: Tensor, y: Tensor) -> Tensor:
        """Return the plain loss of many heads, without weights or smoothing: (V,) float64 from (V, n, K)."""


@dataclass(frozen=True)
class SingleLabel:
    """One of `n_outputs` classes per image, y (n,): softmax, and cross-entropy as torch's, weighted and smoothed."""

    n_outputs: int

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return (..., C) from (..., C)."""
        if self.n_outputs == 2:  # the same; softmax over two is slow, as it cannot be vectorised
            difference = logits[..., 1] - logits[..., 0]
            return torch.stack([F.logsigmoid(-difference), F.logsigmoid(difference)], dim=-1)
        return logits.log_softmax(-1)

    def probabilities(self, log_probabilities: Tensor) -> Tensor:
        """Return (..., C), rows summing to one."""
        return log_probabilities.double().softmax(-1)

    def loss_weights(self, y: Tensor, *, balanced: bool, smoothing: float) -> tuple[Tensor, Tensor]:
        """Return weights of one for each image, or balanced n / (C n_c) for class c."""
        counts = torch.bincount(y, minlength=self.n_outputs).double()
        weights = len(y) / (self.n_outputs * counts.clamp(min=1))
        of_class = weights if balanced else torch.ones(self.n_outputs, dtype=torch.float64)
        targets = torch.full((len(y), self.n_outputs), smoothing / self.n_outputs, dtype=torch.float64)
        targets[torch.arange(len(y)), y] += 1 - smoothing
        return targets * of_class, of_class[y]

    def mean_losses(self, log_probabilities: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy, nats."""
        return -log_probabilities[:, torch.arange(len(y), device=y.device), y].double().mean(1)


@dataclass(frozen=True)
class MultiLabel:
    """Any of `n_outputs` labels per image, y (n, C) of 0, 1 and -1 (unknown): sigmoids, binary cross-entropy.

    The log-probabilities are those of having each label, then those of not having each: K = 2 C. Unknown labels have
    weight zero; all known labels have the same weight.
    """

    n_outputs: int

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Return (..., 2 C) from (..., C)."""
        return torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)

    def probabilities(self, log_probabilities: Tensor) -> Tensor:
        """Return (..., C), each independent of the others."""
        return log_probabilities[..., : self.n_outputs].double().exp()

    def loss_weights(self, y: Tensor, *, balanced: bool, smoothing: float) -> tuple[Tensor, Tensor]:
        """Return weights of one for each known label, or balanced n / (2 n_0) and n / (2 n_1)."""
        known, has = (y != UNKNOWN).double(), (y == 1).double()  # (n, C) each
        n_known, n_with = known.sum(0), has.sum(0)
        of_with = n_known / (2 * n_with.clamp(min=1)) if balanced else torch.ones(self.n_outputs, dtype=torch.float64)
        of_without = n_known / (2 * (n_known - n_with).clamp(min=1)) if balanced else of_with
        weights = known * torch.where(has == 1, of_with, of_without)
        share = has * (1 - smoothing) + smoothing / 2  # of having the label
        return torch.cat([weights * share, weights * (1 - share)], dim=1), weights.sum(1)

    def mean_losses(self, log_probabilities: Tensor, y: Tensor) -> Tensor:
        """Return the mean binary cross-entropy over the known labels, nats."""
        of_with, of_without = log_probabilities.double().chunk(2, dim=2)
        losses = -torch.where(y == 1, of_with, of_without)  # (V, n, C)
        return losses[:, y != UNKNOWN].mean(1)


def objective_for(y: Tensor, n_classes: int) -> Objective:
    """Return the objective that fits the shape of the labels, (n,) or (n, C)."""
    return SingleLabel(n_classes) if y.ndim == 1 else MultiLabel(n_classes)
