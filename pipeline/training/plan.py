"""How long heads are trained: batches, steps and epochs from the number of training images, and the learning rate's schedule.

A head learns in steps, not epochs. Ten images need many passes, a million less than three. So the numbers that the
configuration leaves open follow from the training images of the largest fold, n:

- the batch is the smallest power of two from 32 to 512 with which thirty passes are at most 4,000 steps;
- the number of steps is that of thirty passes, but at least 300 and at most 4,000, in whole epochs.

=========  =====  ===============  ======  =====
n          batch  steps per epoch  epochs  steps
=========  =====  ===============  ======  =====
40            32                2     150    300
253           32                8      38    304
780           32               25      30    750
4,000         32              125      30  3,750
10,000       128               79      30  2,370
100,000      512              196      21  4,116
1,000,000    512            1,954       3  5,862
=========  =====  ===============  ======  =====
"""

import math
from dataclasses import dataclass

from hoarfrost.heads.config import TrainingConfig

PASSES = 30
FEWEST_STEPS, MOST_STEPS = 300, 4_000
SMALLEST_BATCH, LARGEST_BATCH = 32, 512
WARM_UP = 0.05  # of all steps, with the schedule "cosine"
RISE = 0.3  # of all steps, with the schedule "one-cycle"
FIRST_RATE, LAST_RATE = 1 / 25, 1 / 25e4  # shares of the learning rate at the ends of the schedule "one-cycle"


@dataclass(frozen=True)
class Plan:
    """The steps of a training.

    Attributes
    ----------
    batch_size : int
        Most images in a step.
    steps_per_epoch, epochs : int
    schedule : str
        See `hoarfrost.heads.config.TrainingConfig`.
    """

    batch_size: int
    steps_per_epoch: int
    epochs: int
    schedule: str

    def rate(self, step: int) -> float:
        """Return the share of the learning rate that a step uses; steps are counted from 0."""
        n_steps = self.epochs * self.steps_per_epoch
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            n_warm = max(1, round(WARM_UP * n_steps))
            return (step + 1) / n_warm if step < n_warm else _eased(1, 0, (step - n_warm) / max(1, n_steps - n_warm))
        peak = max(0.0, RISE * n_steps - 1)  # as torch's OneCycleLR counts
        if step < peak:
            return _eased(FIRST_RATE, 1, step / peak)
        return _eased(1, LAST_RATE, (step - peak) / max(1, n_steps - 1 - peak))


def _eased(first: float, last: float, share: float) -> float:
    """Return the value at a share of the way from first to last along half a cosine."""
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))


def plan_for(config: TrainingConfig, n_train: int) -> Plan:
    """Return the steps for a number of training images; epochs and batch size of the configuration take precedence."""
    batch_size = config.batch_size or _batch_size(n_train)
    steps_per_epoch = max(1, -(-n_train // batch_size))
    n_steps = min(max(PASSES * n_train / batch_size, FEWEST_STEPS), MOST_STEPS)
    return Plan(batch_size, steps_per_epoch, config.epochs or math.ceil(n_steps / steps_per_epoch), config.schedule)


def _batch_size(n_train: int) -> int:
    size = SMALLEST_BATCH
    while size < LARGEST_BATCH and PASSES * n_train / size > MOST_STEPS:
        size *= 2
    return size
