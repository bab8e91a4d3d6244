"""The steps of training on a GPU: one CUDA graph, started once a step, reads what is on the GPU already."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hoarfrost.features.devices import captured
from hoarfrost.training.batches import Batch, Batches

WARM_UP = 3  # steps before a graph is captured, so that libraries have loaded what they need
NUMBERS_AT_ONCE = 16_000_000  # places of rows on the GPU, 128 MB; a longer epoch is copied in several parts

logger = logging.getLogger(__name__)


class DeviceSteps:
    """The steps of a stack's epochs, from orders that are copied to the GPU once an epoch.

    A counter on the GPU says which step it is, and shorter batches are padded: all steps are the same kernels on the same
    tensors. After a few they are captured as a CUDA graph. If this fails, each step continues to start its kernels one by
    one, with the same results.

    Parameters
    ----------
    batches : Batches
        With `on_device`.
    take : callable
        Takes one step, from its batch and its share of the learning rate, a tensor () float32.
    """

    def __init__(self, batches: Batches, take: Callable[[Batch, Tensor], None]) -> None:
        self._batches, self._take = batches, take
        self._n_at_once = 0
        self._run = self._step
        self._n_run = 0

    def epoch(self, rates: Sequence[float], device: torch.device) -> None:
        """Take the steps of the next epoch."""
        order = self._batches.order()
        places, n_rows = torch.from_numpy(order.places), torch.from_numpy(order.n_rows)  # (S, U, B) and (S, U)
        of_steps = places, n_rows, torch.tensor(rates, dtype=torch.float32)
        if not self._n_at_once:
            self._n_at_once = min(len(rates), max(1, NUMBERS_AT_ONCE // places[0].numel()))
            self._inputs = [torch.empty_like(one[: self._n_at_once], device=device) for one in of_steps]
            self._number = torch.zeros(1, dtype=torch.int64, device=device)  # of the step, among the inputs
        for first in range(0, len(rates), self._n_at_once):
            for there, one in zip(self._inputs, of_steps, strict=True):
                some = one[first : first + self._n_at_once]
                there[: len(some)].copy_(some)
            self._number.zero_()
            for _ in range(min(self._n_at_once, len(rates) - first)):
                self._capture_if_warm()
                self._run()

    def _capture_if_warm(self) -> None:
        """Capture the step once, after the warm-up."""
        self._n_run += 1
        if self._n_run != WARM_UP + 1:
            return
        try:
            self._run = captured(self._step)
        except RuntimeError as error:
            logger.debug("The steps of training are not a CUDA graph (%s): they start their kernels one by one.", error)

    def _step(self) -> None:
        places, n_rows, rate = (one.index_select(0, self._number)[0] for one in self._inputs)
        self._take(self._batches.batch_on_device(places, n_rows), rate)
        self._number += 1
