"""The rows of each step: one order for each seed and fold, in batches of even size."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.train.records import Fold, Labelled, TrainingConfig


@dataclass(frozen=True)
class Group:
    """Heads that see the same batches: one seed and one fold."""

    seed: int
    fold: int


@dataclass(frozen=True)
class Batch:
    """One step of G groups.

    `rows` (G, B) are rows of the data; `targets` (G, B, C) what each class's negative log-probability weighs in
    the loss, all together one for each group. Shorter groups are filled up with rows that weigh nothing;
    `sizes`, length G, counts the others.
    """

    rows: Tensor
    targets: Tensor
    sizes: tuple[int, ...]


class Batches:
    """Orders of the training rows, a new one each epoch, by the group's seed alone.

    All groups take the same number of steps: a fold's rows are shared out evenly over them.
    """

    def __init__(
        self, groups: Sequence[Group], folds: Sequence[Fold], data: Labelled, n_classes: int, config: TrainingConfig
    ) -> None:
        self.groups = list(groups)
        self.folds = folds
        self.n_steps = max(-(-len(fold.train) // config.batch_size) for fold in folds)
        self._orders = {
            group: torch.Generator().manual_seed(seed_of(f"order of batches {group.seed}")) for group in groups
        }
        self._targets = [loss_weights(data.y, fold.train, n_classes, config) for fold in folds]
        self._rows = [torch.from_numpy(fold.train) for fold in folds]
        self._device = data.x.device

    def keep(self, groups: Sequence[Group]) -> None:
        """Go on with these groups; one may stand several times."""
        self.groups = list(groups)

    def epoch(self) -> "list[Batch]":
        """Give an epoch's steps."""
        orders = {group: self._shared_out(group) for group in dict.fromkeys(self.groups)}
        return [self._batch([orders[group][step] for group in self.groups]) for step in range(self.n_steps)]

    def _shared_out(self, group: Group) -> "list[tuple[int, npt.NDArray[np.int64]]]":
        order = torch.randperm(len(self._rows[group.fold]), generator=self._orders[group]).numpy()
        return [(group.fold, part) for part in np.array_split(order, self.n_steps)]

    def _batch(self, parts: "list[tuple[int, npt.NDArray[np.int64]]]") -> Batch:
        size = max(len(part) for _, part in parts)
        rows, targets = [], []
        for fold, part in parts:
            padded = torch.from_numpy(np.resize(part, size))
            of_rows, of_images = self._targets[fold]
            weights = of_rows[padded] / of_images[padded[: len(part)]].sum()  # (B, C)
            weights[len(part) :] = 0
            rows.append(self._rows[fold][padded])
            targets.append(weights)
        sizes = tuple(len(part) for _, part in parts)
        return Batch(torch.stack(rows).to(self._device), torch.stack(targets).to(self._device), sizes)


def loss_weights(
    y: Tensor, rows: npt.NDArray[np.int64], n_classes: int, config: TrainingConfig
) -> tuple[Tensor, Tensor]:
    """Give what each class's negative log-probability weighs in the loss of each row, and each row's own weight.

    Returns
    -------
    (Tensor (n, C), Tensor (n,)), float64
        The loss is the sum over the first, divided by the sum of the second: torch's cross-entropy with
        `weight` and `label_smoothing`. A row's own weight is one, or with "balanced" n / (C n_c) for class c.
    """
    labels = y[torch.from_numpy(rows).to(y.device)].cpu()
    counts = torch.bincount(labels, minlength=n_classes).double()
    balanced = len(labels) / (n_classes * counts.clamp(min=1))
    of_class = balanced if config.class_weight == "balanced" else torch.ones(n_classes, dtype=torch.float64)
    smooth = config.label_smoothing
    targets = torch.full((len(labels), n_classes), smooth / n_classes, dtype=torch.float64)
    targets[torch.arange(len(labels)), labels] += 1 - smooth
    return targets * of_class, of_class[labels]


def seed_of(text: str) -> int:
    """Turn a text into a seed."""
    return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1
