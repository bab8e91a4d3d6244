"""Several trained members that predict as one head, by the weighted mean of their probabilities."""

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from hoarfrost.heads.layers import Standardise
from hoarfrost.heads.views import ONE_VIEW, MemberViews

AT_ONCE = 1_024  # embeddings; each member's hidden layers are in memory for so many

Floats = npt.NDArray[np.float64]


def seen(x: Tensor, places: Sequence[int]) -> Tensor:
    """Return the mean embedding (B, D) of some views of (B, V, D); of (B, D) itself, which has one view."""
    if x.ndim == 2:
        return x
    return x[:, places[0]] if len(places) == 1 else x[:, list(places)].mean(1)


def probabilities_of(logits: Tensor, *, multilabel: bool) -> Floats:
    """Return the probabilities (n, C) float64 of one module's logits (n, C) float64.

    The logits are rounded to float32 first: a sum's last digits depend on the number of rows that are predicted together,
    and on the machine.
    """
    rounded = logits.float().cpu().double()
    if multilabel:  # not torch's sigmoid, whose last digits differ at the end of an array
        return np.asarray(expit(rounded.numpy()))
    return rounded.softmax(1).numpy()


def weighted_mean(of_members: Sequence[Floats], weights: Sequence[float]) -> Floats:
    """Return the weighted mean of the members' probabilities, always added in the same order; `weights` sum to one."""
    first, *others = (weight * each for weight, each in zip(weights, of_members, strict=True))
    return np.minimum(sum(others, first), 1.0)  # rounded weights may have a sum a little above one


class Reading(NamedTuple):
    """One opinion in a committee: of a member, on the mean embedding of some views, with its weight."""

    member: int
    places: tuple[int, ...]
    weight: float


def _readings(weights: Sequence[float], views: Sequence[MemberViews]) -> Iterator[Reading]:
    for member, (weight, own) in enumerate(zip(weights, views, strict=True)):
        if own.averages:
            yield Reading(member, own.places, weight)
        else:
            yield from (Reading(member, (place,), weight / len(own.places)) for place in own.places)


class Committee(nn.Module):
    """The members of a head as one module, from embeddings (B, D), or of several views (B, V, D), to logits (B, C).

    The softmax of these logits, or in a multi-label task their sigmoid, is the weighted mean of the members'
    probabilities; a member that does not average its views has the mean of its probabilities for each.

    Parameters
    ----------
    modules : sequence of nn.Module
        The members, each a `Standardise` and the layers that follow.
    weights : sequence of float
        Above zero, with the sum one.
    views : sequence of MemberViews, optional
        Those of each member; by default all have the only view.
    """

    log_weights: Tensor

    def __init__(
        self,
        modules: Sequence[nn.Module],
        weights: Sequence[float],
        *,
        is_multilabel: bool,
        views: Sequence[MemberViews] = (),
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(modules)
        self.is_multilabel = is_multilabel
        self.readings = tuple(_readings(weights, views or [ONE_VIEW] * len(modules)))
        self.weights = tuple(reading.weight for reading in self.readings)
        self.register_buffer("log_weights", torch.tensor(self.weights, dtype=torch.float64).log().float())

    def exact(self) -> "Committee":
        """Return a copy that computes in float64."""
        found = copy.deepcopy(self).eval().requires_grad_(False).double()
        found.log_weights = torch.tensor(self.weights, dtype=torch.float64).log()
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        return self.joined(self._of_readings(x))

    def _of_readings(self, x: Tensor) -> list[Tensor]:
        """Return the logits (B, C) of each reading."""
        return [self.members[one.member](seen(x, one.places)) for one in self.readings]

    def joined(self, of_readings: Sequence[Tensor]) -> Tensor:
        """Return the committee's logits (B, C) from those of its readings, (B, C) each."""
        logits = torch.stack(list(of_readings))  # (R, B, C)
        if self.is_multilabel:
            return self._log_mean(F.logsigmoid(logits)) - self._log_mean(F.logsigmoid(-logits))
        return self._log_mean(F.log_softmax(logits, 2))

    def _log_mean(self, logarithms: Tensor) -> Tensor:
        """Return the logarithm of the weighted mean of probabilities, which are given as logarithms (R, B, C)."""
        if len(self.weights) == 1:
            return logarithms[0]
        return (logarithms + self.log_weights[:, None, None]).logsumexp(0)

    @torch.no_grad()
    def probabilities(self, x: Tensor) -> Floats:
        """Return the probabilities (n, C) of embeddings (n, D), or of several views (n, V, D).

        An image's do not depend on the others, see `exact`.
        """
        blocks = []
        for some in torch.split(x.to(self.log_weights.dtype), AT_ONCE):
            found = [probabilities_of(logits, multilabel=self.is_multilabel) for logits in self._of_readings(some)]
            blocks.append(weighted_mean(found, self.weights))
        return np.concatenate(blocks)

    def parts(self) -> list[tuple[Standardise, nn.Module]]:
        """Return each member's first layer, and the layers that follow."""
        found = []
        for member in self.members:
            assert isinstance(member, nn.Sequential)
            standardise, layers = member
            assert isinstance(standardise, Standardise)
            found.append((standardise, layers))
        return found
