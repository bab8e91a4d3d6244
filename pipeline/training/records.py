"""What training is asked for, and what it gives."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from hoarfrost.heads.specs import HeadSpec
from hoarfrost.training.rows import HeldRows, Rows


@dataclass(frozen=True)
class TrainingConfig:
    """How all heads of a run are trained.

    Attributes
    ----------
    epochs : int
        At most so many passes over the training split.
    patience : int
        Stop a head after so many epochs in which its validation loss did not fall.
    batch_size : int
    seed : int
        The first of `seeds` seeds; it decides the splits too.
    seeds : int
        Train each variant so many times, with other initial weights and orders.
    device : str
        "auto", "cpu" or "cuda".
    schedule : str
        "constant", or "cosine": each step's learning rate rises over the first twentieth of all steps, and
        then falls to zero along a cosine.
    class_weight : str
        "none", or "balanced": each class counts the same, however many images it has.
    label_smoothing : float
        Share of each label that is spread evenly over all classes, 0 <= label_smoothing < 1.
    """

    epochs: int = 100
    patience: int = 10
    batch_size: int = 64
    seed: int = 0
    seeds: int = 1
    device: str = "auto"
    schedule: str = "constant"
    class_weight: str = "none"
    label_smoothing: float = 0.1


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
