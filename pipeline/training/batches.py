"""The rows of each step: one order for each seed and fold, in batches of even size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hoarfrost.heads.config import TrainingConfig
from hoarfrost.training.objective import Objective
from hoarfrost.training.plan import plan_for
from hoarfrost.training.records import Fold
from hoarfrost.training.rows import Rows

LEAST_WEIGHT = 1e-12  # the loss of a batch without any known label is zero, not undefined


@dataclass(frozen=True)
class Group:
    """Heads that see the same batches: one seed and one fold."""

    seed: int
    fold: int


@dataclass(frozen=True)
class Batch:
    """One step of G groups.

    `rows` (G, B) are row numbers in the data; `targets` (G, B, K) are the weights of the negative log-probabilities in
    the loss, with sum one for each group. Shorter groups are padded with rows of weight zero; `sizes`, length G, counts
    the others.
    """

    rows: Tensor
    targets: Tensor
    sizes: tuple[int, ...]


class Batches:
    """The order of the training rows, drawn for each epoch by the group's seed alone.

    All groups take the same number of steps: a fold's rows are distributed evenly over them.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        folds: Sequence[Fold],
        x: Rows,
        y: Tensor,
        objective: Objective,
        config: TrainingConfig,
    ) -> None:
        self.groups = list(groups)
        self.folds = folds
        self.plan = plan_for(config, max(len(fold.train) for fold in folds))
        self.n_steps = self.plan.steps_per_epoch
        self._orders = {one: torch.Generator().manual_seed(seed_of(f"order of batches {one.seed}")) for one in groups}
        balanced = config.class_weight == "balanced"
        self._rows = {fold: torch.from_numpy(folds[fold].train) for fold in sorted({one.fold for one in groups})}
        self._targets = {
            fold: objective.loss_weights(
                y[rows.to(y.device)].cpu(), balanced=balanced, smoothing=config.label_smoothing
            )
            for fold, rows in self._rows.items()
        }
        self.n_weighed = next(iter(self._targets.values()))[0].shape[1]  # K
        self._x = x
        self._n_epochs = 0

    def keep(self, groups: Sequence[Group]) -> None:
        """Continue with these groups; one may occur several times."""
        self.groups = list(groups)

    def epoch(self) -> "Iterator[Batch]":
        """Yield the steps of the next epoch."""
        self._n_epochs += 1
        orders = {group: self._steps(group) for group in dict.fromkeys(self.groups)}
        for step in range(self.n_steps):
            yield self._batch([orders[group][step] for group in self.groups])

    def _steps(self, group: Group) -> "list[tuple[int, npt.NDArray[np.int64]]]":
        order = self._x.shuffled(self.folds[group.fold].train, self._orders[group], self._n_epochs)
        return [(group.fold, part) for part in np.array_split(order, self.n_steps)]

    def _batch(self, parts: "list[tuple[int, npt.NDArray[np.int64]]]") -> Batch:
        size = max(len(part) for _, part in parts)
        rows, targets = [], []
        for fold, part in parts:
            padded = torch.from_numpy(np.resize(part, size))
            of_rows, of_images = self._targets[fold]
            weights = of_rows[padded] / of_images[padded[: len(part)]].sum().clamp(min=LEAST_WEIGHT)  # (B, K)
            weights[len(part) :] = 0
            rows.append(self._rows[fold][padded])
            targets.append(weights)
        sizes = tuple(len(part) for _, part in parts)
        return Batch(torch.stack(rows).to(self._x.device), torch.stack(targets).to(self._x.device), sizes)


def seed_of(text: str) -> int:
    """Return a seed derived from a text."""
    return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1
