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

    `rows` (G, B) are row numbers in the data, one look at each image; `targets` (G, B, K) are the weights of the negative
    log-probabilities in the loss, with sum one for each group. Shorter groups are padded with rows of weight zero; `sizes`,
    length G, counts the others.
    """

    rows: Tensor
    targets: Tensor
    sizes: tuple[int, ...]


class Batches:
    """The order of the training rows, drawn for each epoch by the group's seed alone.

    All groups take the same number of steps: a fold's images are distributed evenly over them. Of several looks at an image
    one is drawn for each epoch.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        folds: Sequence[Fold],
        x: Rows,
        y: Tensor,
        objective: Objective,
        config: TrainingConfig,
        n_looks: int = 1,
    ) -> None:
        self._n_looks = n_looks
        self.groups = list(groups)
        self.folds = folds
        self.plan = plan_for(config, max(len(fold.train) for fold in folds))
        self.n_steps = self.plan.steps_per_epoch
        self._orders = {one: torch.Generator().manual_seed(seed_of(f"order of batches {one.seed}")) for one in groups}
        balanced = config.class_weight == "balanced"
        of_groups = sorted({one.fold for one in groups})
        self._rows = torch.cat([torch.from_numpy(folds[fold].train) for fold in of_groups])
        labels = [y[torch.from_numpy(folds[fold].train).to(y.device)].cpu() for fold in of_groups]
        weights = [objective.loss_weights(y, balanced=balanced, smoothing=config.label_smoothing) for y in labels]
        self._of_rows, self._of_images = (torch.cat(parts) for parts in zip(*weights, strict=True))  # as in the loss
        ends = np.cumsum([len(folds[fold].train) for fold in of_groups])
        self._starts = {fold: int(end) - len(folds[fold].train) for fold, end in zip(of_groups, ends, strict=True)}
        self.n_weighed = self._of_rows.shape[1]  # K
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

    def _steps(self, group: Group) -> "list[npt.NDArray[np.int64]]":
        """Return each step's places in `self._rows`, times the number of looks, plus the look that was drawn."""
        generator = self._orders[group]
        first_looks = self.folds[group.fold].train * self._n_looks
        order = self._x.shuffled(first_looks, generator, self._n_epochs) + self._starts[group.fold]
        if self._n_looks > 1:
            order = order * self._n_looks + torch.randint(self._n_looks, (len(order),), generator=generator).numpy()
        return np.array_split(order, self.n_steps)

    def _batch(self, parts: "list[npt.NDArray[np.int64]]") -> Batch:
        sizes = tuple(map(len, parts))
        longest = max(sizes)
        if min(sizes) == longest:
            looks, weights = torch.from_numpy(np.stack(parts)), None
        else:
            looks = torch.from_numpy(np.stack([np.resize(part, longest) for part in parts]))
            weights = torch.arange(longest) < torch.tensor(sizes)[:, None]  # (G, B): not those that pad
        places = looks // self._n_looks
        of_rows, of_images = self._of_rows[places], self._of_images[places]  # (G, B, K) and (G, B)
        if weights is not None:
            of_rows, of_images = of_rows * weights[..., None], of_images * weights
        targets = of_rows / of_images.sum(1).clamp(min=LEAST_WEIGHT)[:, None, None]
        rows = self._rows[places] * self._n_looks + looks % self._n_looks
        return Batch(rows.to(self._x.device), targets.to(self._x.device), sizes)


def seed_of(text: str) -> int:
    """Return a seed derived from a text."""
    return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1
