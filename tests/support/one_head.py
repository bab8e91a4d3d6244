"""One head trained on one division of the data."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.training import Fold, Labelled, TrainedHead, TrainingConfig, train_heads


def train_head(
    spec: HeadSpec,
    train: Labelled,
    val: Labelled,
    n_classes: int,
    config: TrainingConfig,
    roc_auc: Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64]], float],
) -> TrainedHead:
    """Train one head with one seed, as `train_heads` trains many."""
    x = torch.cat([part.looks.rows.take(torch.arange(len(part.y))) for part in (train, val)])
    data = Labelled(x, torch.cat([train.y, val.y]))
    fold = Fold(np.arange(len(train.y)), np.arange(len(train.y), len(data.y)))

    def roc_aucs(y_true: npt.NDArray[np.int64], found: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([roc_auc(y_true, probabilities) for probabilities in found])

    return train_heads([spec], data, [fold], n_classes, replace(config, seeds=1), roc_aucs)[0]
