"""The data that training takes, and the heads that it returns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.heads.layers import Standardise
from hoarfrost.training.objective import Objective
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
class Material:
    """What heads of one transform learn from: transformed embeddings, labels, and each fold's layer that standardises."""

    x: Rows
    y: Tensor
    folds: Sequence[Fold]
    standardise: Sequence[Standardise]
    objective: Objective


@dataclass(frozen=True)
class TrainedEpoch:
    """Results of one epoch: mean loss on train and val, ROC AUC on val, and the learning rate at its end."""

    train_loss: float
    val_loss: float
    val_roc_auc: float
    learning_rate: float


@dataclass(frozen=True)
class TrainedHead:
    """A head after its last epoch or, with early stopping, the one of the lowest validation loss.

    `best_epoch` is its number, counted from 1. A penalised head has no epochs: `history` is empty, `best_epoch` 0.
    `seconds` is its share of the time of the heads that were trained together with it.
    """

    spec: HeadSpec
    seed: int
    fold: int
    module: nn.Module
    history: tuple[TrainedEpoch, ...]
    best_epoch: int
    seconds: float
