"""The data that training takes, and the heads that it returns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from hoarfrost.heads.committee import Committee
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.heads.layers import Standardise
from hoarfrost.heads.views import member_views
from hoarfrost.training.looks import Looks
from hoarfrost.training.objective import Objective
from hoarfrost.training.rows import HeldRows, Rows


@dataclass(frozen=True)
class Labelled:
    """Embeddings (n, D), of one view or several; and class numbers (n,), or labels (n, C) of 0, 1 and -1 (unknown), int64."""

    x: Tensor | Rows | Looks
    y: Tensor

    @property
    def looks(self) -> Looks:
        """The embeddings by image and view, wherever they are."""
        if isinstance(self.x, Looks):
            return self.x
        return Looks(HeldRows(self.x) if isinstance(self.x, Tensor) else self.x)


@dataclass(frozen=True)
class Fold:
    """One division of the images: the rows to learn from, and the rows to validate on; int64."""

    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Material:
    """What heads of one transform, and of the same views and layers, learn from.

    `x` (n * n_looks, D) are transformed embeddings, image by image; `y` has a label for each image, and `folds` the numbers
    of images. `standardise` are the folds' layers.
    """

    x: Rows
    y: Tensor
    folds: Sequence[Fold]
    standardise: Sequence[Standardise]
    objective: Objective
    n_looks: int = 1


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


def committee_of(
    heads: Sequence[TrainedHead], weights: Sequence[float], views: Sequence[str], *, is_multilabel: bool
) -> Committee:
    """Return trained heads as a committee on embeddings of these views."""
    return Committee(
        [head.module for head in heads],
        weights,
        is_multilabel=is_multilabel,
        views=[member_views(head.spec, views) for head in heads],
    )
