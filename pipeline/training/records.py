"""What training is given, and what it returns."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.training.rows import HeldRows, Rows


@dataclass(frozen=True)
class Labelled:
    """Embeddings (n, D), and class numbers (n,) int64, or labels (n, C) int64 of 0, 1 and -1 (unknown)."""

    x: Tensor | Rows
    y: Tensor

    @property
    def rows(self) -> Rows:
        """The embeddings by row, wherever they are."""
        return HeldRows(self.x) if isinstance(self.x, Tensor) else self.x


@dataclass(frozen=True)
class Fold:
    """One division of the images: the rows that are learnt from, and those that heads are validated on; int64."""

    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainedEpoch:
    """What one epoch came to: mean loss on train and val, ROC AUC on val, and the learning rate at its end."""

    train_loss: float
    val_loss: float
    val_roc_auc: float
    learning_rate: float


@dataclass(frozen=True)
class TrainedHead:
    """A head at its best epoch, which is the one with the lowest validation loss.

    `seconds` is its share of the time that its stack took.
    """

    spec: HeadSpec
    seed: int
    fold: int
    module: nn.Module
    history: tuple[TrainedEpoch, ...]
    best_epoch: int  # counted from 1
    seconds: float
