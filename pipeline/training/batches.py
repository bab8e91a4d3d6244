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
    log-probabilities in the loss, with sum one for each group. Shorter groups are padded with rows of weight zero; `n_rows`
    (G,) counts the others, as does `sizes`, of length G, or 0 where the counts are on a GPU alone.
    """

    rows: Tensor
    targets: Tensor
    n_rows: Tensor
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Order:
    """The S steps of an epoch for U different groups: places (S, U, B) in the training rows, and how many count (S, U).

    The others repeat the step's first ones. With several looks a place is one of a look.
    """

    places: npt.NDArray[np.int64]
    n_rows: npt.NDArray[np.int64]


class Batches:
    """The order of the training rows, drawn for each epoch by the group's seed alone.

    All groups take the same number of steps: a fold's images are distributed evenly over them. Of several looks at an image
    one is drawn for each epoch. With `on_device` the steps of an order are looked up on the device of `x`.
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
        *,
        on_device: bool = False,
    ) -> None:
        self._n_looks = n_looks
        self._place = x.device if on_device else torch.device("cpu")  # where the rows of a step are looked up
        self.groups = list(groups)
        self.folds = folds
        self.plan = plan_for(config, max(len(fold.train) for fold in folds))
        self.n_steps = self.plan.steps_per_epoch
        self._orders = {one: torch.Generator().manual_seed(seed_of(f"order of batches {one.seed}")) for one in groups}
        self._x = x
        self._n_epochs = 0
        of_groups = sorted({one.fold for one in groups})
        ends = np.cumsum([len(folds[fold].train) for fold in of_groups])
        self._starts = {fold: int(end) - len(folds[fold].train) for fold, end in zip(of_groups, ends, strict=True)}
        labels = [y[torch.from_numpy(folds[fold].train).to(y.device)].cpu() for fold in of_groups]
        balanced = config.class_weight == "balanced"
        weights = [objective.loss_weights(y, balanced=balanced, smoothing=config.label_smoothing) for y in labels]
        # As in the loss: of each row and of its image, (n, K) and (n,).
        self._of_rows, self._of_images = (torch.cat(parts).to(self._place) for parts in zip(*weights, strict=True))
        self._rows = torch.cat([torch.from_numpy(folds[fold].train) for fold in of_groups]).to(self._place)
        self.n_weighed = self._of_rows.shape[1]  # K
        self.keep(groups)

    def keep(self, groups: Sequence[Group]) -> None:
        """Continue with these groups; one may occur several times."""
        self.groups = list(groups)
        self._different = list(dict.fromkeys(groups))
        places = {group: place for place, group in enumerate(self._different)}
        self._which = torch.tensor([places[group] for group in groups], device=self._place)

    def epoch(self) -> "Iterator[Batch]":
        """Yield the steps of the next epoch."""
        order, which = self.order(), self._which.numpy()
        for places, n_rows in zip(order.places, order.n_rows[:, which], strict=True):
            looks = torch.from_numpy(places[which, : n_rows.max()])
            yield self._batch(looks, torch.from_numpy(n_rows), tuple(n_rows.tolist()))

    def batch_on_device(self, places: Tensor, n_rows: Tensor) -> Batch:
        """Return one step of an order, (U, B) and (U,), that is on the device already. Nothing waits for the device."""
        return self._batch(places[self._which], n_rows[self._which], ())

    def order(self) -> Order:
        """Draw the order of the next epoch."""
        self._n_epochs += 1
        sizes = np.stack([self._sizes(len(self.folds[group.fold].train)) for group in self._different], axis=1)
        places = np.empty((*sizes.shape, sizes.max()), np.int64)
        for i, group in enumerate(
            self._different
        ):  # one by one: a million rows take 8 MB, and there may be many groups
            order, n = self._order(group), sizes[:, i, None]
            # A group's steps are consecutive parts of its order. A short one, or an empty one, is padded.
            at = np.cumsum(n, axis=0) - n + np.arange(places.shape[2]) % n.clip(min=1)
            places[:, i] = order[at.clip(max=len(order) - 1)]
        return Order(places, sizes)

    def _sizes(self, n_rows: int) -> npt.NDArray[np.int64]:
        """Return how many rows of a fold each step has: as even as possible, the longer steps first."""
        sizes: npt.NDArray[np.int64] = n_rows // self.n_steps + (np.arange(self.n_steps) < n_rows % self.n_steps)
        return sizes

    def _order(self, group: Group) -> "npt.NDArray[np.int64]":
        """Return a group's places in `self._rows`, times the number of looks, plus the look that was drawn."""
        generator = self._orders[group]
        first_looks = self.folds[group.fold].train * self._n_looks
        order = self._x.shuffled(first_looks, generator, self._n_epochs) + self._starts[group.fold]
        if self._n_looks > 1:
            order = order * self._n_looks + torch.randint(self._n_looks, (len(order),), generator=generator).numpy()
        return order

    def _batch(self, looks: Tensor, n_rows: Tensor, sizes: tuple[int, ...]) -> Batch:
        places = looks // self._n_looks
        of_rows, of_images = self._of_rows[places], self._of_images[places]  # (G, B, K) and (G, B)
        if not sizes or min(sizes) < looks.shape[1]:
            counts = torch.arange(looks.shape[1], device=looks.device) < n_rows[:, None]  # (G, B): not those that pad
            of_rows, of_images = of_rows * counts[..., None], of_images * counts
        targets = of_rows / of_images.sum(1).clamp(min=LEAST_WEIGHT)[:, None, None]
        rows = self._rows[places] * self._n_looks + looks % self._n_looks
        return Batch(rows, targets.to(self._x.device), n_rows.to(self._x.device), sizes)


def seed_of(text: str) -> int:
    """Return a seed derived from a text."""
    return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1
