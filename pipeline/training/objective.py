"""What heads are trained for: one of several classes, or several labels an image."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - everyone's name for it

UNKNOWN = -1  # a label that an image may or may not have


class Objective(Protocol):
    """From a head's C logits to probabilities and loss. K numbers an image are weighed in the loss."""

    @property
    def n_outputs(self) -> int:
        """C."""

    @property
    def n_weighed(self) -> int:
        """K."""

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Turn logits (..., C) into log-probabilities (..., K)."""

    def probabilities(self, log_probabilities: Tensor) -> Tensor:
        """Turn log-probabilities (..., K) into probabilities (..., C) float64."""

    def loss_weights(self, y: Tensor, *, balanced: bool, smoothing: float) -> tuple[Tensor, Tensor]:
        """Give what each negative log-probability weighs in the loss of each image, and each image's own weight.

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
        """Give the plain loss, without weights or smoothing, of many heads: (V,) float64 of (V, n, K)."""


@dataclass(frozen=True)
class SingleLabel:
    """One of `n_outputs` classes an image, y (n,): softmax, and torch's cross-entropy with `weight` and `label_smoothing`."""

    n_outputs: int

    @property
    def n_weighed(self) -> int:
        """C."""
        return self.n_outputs

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Give (..., C) of (..., C)."""
        if self.n_outputs == 2:  # the same; softmax over two is slow, as it cannot be vectorised
            difference = logits[..., 1] - logits[..., 0]
            return torch.stack([F.logsigmoid(-difference), F.logsigmoid(difference)], dim=-1)
        return logits.log_softmax(-1)

    def probabilities(self, log_probabilities: Tensor) -> Tensor:
        """Give (..., C), rows summing to one."""
        return log_probabilities.double().softmax(-1)

    def loss_weights(self, y: Tensor, *, balanced: bool, smoothing: float) -> tuple[Tensor, Tensor]:
        """Weigh each image one, or balanced n / (C n_c) for class c."""
        counts = torch.bincount(y, minlength=self.n_outputs).double()
        weights = len(y) / (self.n_outputs * counts.clamp(min=1))
        of_class = weights if balanced else torch.ones(self.n_outputs, dtype=torch.float64)
        targets = torch.full((len(y), self.n_outputs), smoothing / self.n_outputs, dtype=torch.float64)
        targets[torch.arange(len(y)), y] += 1 - smoothing
        return targets * of_class, of_class[y]

    def mean_losses(self, log_probabilities: Tensor, y: Tensor) -> Tensor:
        """Give the mean cross-entropy, nats."""
        return -log_probabilities[:, torch.arange(len(y)), y].double().mean(1)


@dataclass(frozen=True)
class MultiLabel:
    """Any of `n_outputs` labels an image, y (n, C) of 0, 1 and -1 where it is unknown: sigmoids, binary cross-entropy.

    The log-probabilities are those of having each label, and then those of not having each: K = 2 C. What is
    unknown weighs nothing; each label that is known weighs the same.
    """

    n_outputs: int

    @property
    def n_weighed(self) -> int:
        """2 C."""
        return 2 * self.n_outputs

    def log_probabilities(self, logits: Tensor) -> Tensor:
        """Give (..., 2 C) of (..., C)."""
        return torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=-1)

    def probabilities(self, log_probabilities: Tensor) -> Tensor:
        """Give (..., C), each for itself."""
        return log_probabilities[..., : self.n_outputs].double().exp()

    def loss_weights(self, y: Tensor, *, balanced: bool, smoothing: float) -> tuple[Tensor, Tensor]:
        """Weigh each label that is known one, or balanced n / (2 n_0) and n / (2 n_1)."""
        known, has = (y != UNKNOWN).double(), (y == 1).double()  # (n, C) each
        n_known, n_with = known.sum(0), has.sum(0)
        of_with = n_known / (2 * n_with.clamp(min=1)) if balanced else torch.ones(self.n_outputs, dtype=torch.float64)
        of_without = n_known / (2 * (n_known - n_with).clamp(min=1)) if balanced else of_with
        weights = known * torch.where(has == 1, of_with, of_without)
        share = has * (1 - smoothing) + smoothing / 2  # of having the label
        return torch.cat([weights * share, weights * (1 - share)], dim=1), weights.sum(1)

    def mean_losses(self, log_probabilities: Tensor, y: Tensor) -> Tensor:
        """Give the mean binary cross-entropy over the labels that are known, nats."""
        of_with, of_without = log_probabilities.double().chunk(2, dim=2)
        losses = -torch.where(y == 1, of_with, of_without)  # (V, n, C)
        return losses[:, y != UNKNOWN].mean(1)


def objective_for(y: Tensor, n_classes: int) -> Objective:
    """Tell by the labels' shape, (n,) or (n, C), what heads are trained for."""
    return SingleLabel(n_classes) if y.ndim == 1 else MultiLabel(n_classes)
