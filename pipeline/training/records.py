"""The data that training takes, and the heads that it returns."""

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
    """One division of the images: the rows to learn from, and the rows to validate on; int64."""

    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainedEpoch:
    """Results of one epoch: mean loss on train and val, ROC AUC on val, and the learning rate at its end."""

    train_loss: float
    val_loss: float
    val_roc_auc: float
    learning_rate: float


@dataclass(frozen=True)
class TrainedHead:
    """A head at its best epoch, the one with the lowest validation loss; `seconds` is its share of its stack's time."""

    spec: HeadSpec
    seed: int
    fold: int
    module: nn.Module
    history: tuple[TrainedEpoch, ...]
    best_epoch: int  # counted from 1
    seconds: float
