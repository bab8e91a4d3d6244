"""A forward pass repeated as a CUDA graph: the same kernels and bits, started at once rather than one by one from Python."""

import logging
from collections.abc import Callable

import torch

from hoarfrost.features.devices import captured

WARM_UP = 3  # passes before it is captured, so that libraries have chosen and loaded their kernels

logger = logging.getLogger(__name__)


class Repeated:
    """A forward pass on a GPU, for groups of one shape; groups of other shapes go through it one kernel after another.

    Python's lock is free in the meantime: the threads that decode need it.

    Parameters
    ----------
    forward : callable
        From images (B, 3, S, S) uint8 to embeddings (B, D); its kernels may depend on nothing but the images' shape.
    shape : tuple of int
        That of the groups.
    """

    def __init__(self, forward: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...]) -> None:
        self._forward, self._shape = forward, shape
        self._n_left = WARM_UP
        self._replay: Callable[[], None] | None = None

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return embeddings (B, D)."""
        if tuple(images.shape) != self._shape:
            return self._forward(images)
        if self._n_left == 0:
            self._capture(images)
        self._n_left -= 1
        if self._replay is None:
            return self._forward(images)
        self._images.copy_(images)
        self._replay()
        return self._embeddings.clone()  # the next group's replace them

    def _capture(self, images: torch.Tensor) -> None:
        found: list[torch.Tensor] = []
        try:
            images = images.clone()
            replay = captured(lambda: found.append(self._forward(images)))
        except RuntimeError as error:  # also where a GPU's memory does not hold the graph's own
            logger.debug("The forward pass is not a CUDA graph (%s): its kernels are started one by one.", error)
            return
        self._images, (self._embeddings,), self._replay = images, found, replay
