"""The training of one stack: heads of one architecture on the same batches, each stopped by its own validation."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hoarfrost.features.devices import is_gpu
from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.config import TrainingConfig
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.training.areas import Areas
from hoarfrost.training.batches import Batch, Batches, Group, seed_of
from hoarfrost.training.device_steps import DeviceSteps
from hoarfrost.training.looks import look_rows
from hoarfrost.training.records import Material, TrainedEpoch, TrainedHead
from hoarfrost.training.stack import Member, Stack

VALIDATED_AT_ONCE = 8_000_000  # activations
_DRAWING = Lock()  # initial weights are drawn from torch's global generator, in the order of one seed

RocAucs = Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64]], npt.NDArray[np.float64]]


def is_host(device: torch.device) -> bool:
    """Return whether NumPy reads what is on a device."""
    return device.type == "cpu"


class StackRun:
    """The training of one stack, from its first epoch until its last head has stopped."""

    def __init__(
        self,
        specs: Sequence[HeadSpec],
        groups: Sequence[Group],
        material: Material,
        config: TrainingConfig,
        roc_aucs: RocAucs,
    ) -> None:
        self.x, self.y, self.folds, self.config, self.roc_aucs = (
            material.x, material.y, material.folds, config, roc_aucs,
        )  # fmt: skip
        self.objective = material.objective
        self.n_looks = material.n_looks
        counts = is_gpu(self.x.device)
        self.on_device = counts and self.x.place.type == self.x.device.type
        self.batches = Batches(
            groups, self.folds, self.x, self.y, self.objective, config, self.n_looks, on_device=self.on_device
        )
        self.standardise = material.standardise
        self.x.hold(np.unique(look_rows(np.concatenate([fold.val for fold in self.folds]), self.n_looks)))
        members = [Member(spec, group.seed, group.fold) for group in groups for spec in specs]
        initial = {(spec, seed): self._initial(spec, seed) for spec in specs for seed in {g.seed for g in groups}}
        modules = [initial[member.spec, member.seed] for member in members]
        self.stack = Stack(members, modules, len(groups), remembers=config.patience is not None, counts=counts)
        self.shape = specs[0].shape
        self.histories: dict[Member, list[TrainedEpoch]] = {member: [] for member in members}
        self.best: dict[Member, tuple[int, float]] = dict.fromkeys(members, (0, math.inf))
        self.stopped: set[Member] = set()
        self.finished: dict[Member, nn.Module] = {}
        self.failures: list[TrainingError] = []
        self._labels: dict[int, Tensor] = {}  # of each fold's validation rows, on the device
        self._areas_of: dict[int, Areas] = {}
        self._use_groups(groups)

    def _initial(self, spec: HeadSpec, seed: int) -> nn.Sequential:
        """Draw initial weights by the head's own name and seed: other heads of the run must not change them."""
        with _DRAWING, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(f"{seed} {spec.name}"))
            head = spec.build(self.x.n_features, self.objective.n_outputs)
            return head.to(self.x.device, self.x.dtype)

    def _use_groups(self, groups: Sequence[Group]) -> None:
        """Continue with these groups: their batches, and the figures that standardise their embeddings."""
        self.batches.keep(groups)
        of_groups = [self.standardise[group.fold] for group in groups]
        self.mean = torch.stack([one.get_buffer("mean") for one in of_groups])[:, None]  # (G, 1, D)
        self.std = torch.stack([one.get_buffer("std") for one in of_groups])[:, None]
        val = [look_rows(self.folds[group.fold].val, self.n_looks) for group in groups]
        longest = max(map(len, val))
        padded = np.stack([np.resize(rows, longest) for rows in val])  # (G, n)
        self._val_rows = torch.from_numpy(padded).to(self.x.place)
        self._loss_sums = torch.zeros(self.stack.n_heads, dtype=torch.float64, device=self.x.device)
        self._n_rows = torch.zeros_like(self._loss_sums)
        self._steps = DeviceSteps(self.batches, self._step) if self.on_device else None

    def train(self, on_epoch: Callable[[str, int], None]) -> list[TrainedHead | TrainingError]:
        """Train all heads; return those whose loss stayed finite, and the errors of the others."""
        started = time.monotonic()
        n_members = self.stack.n_heads
        for epoch in range(1, self.batches.plan.epochs + 1):
            train_losses = self._train_epoch(epoch)
            self._validate(epoch, train_losses)
            on_epoch(self.shape, epoch)
            if not self._drop_stopped():
                break
        self._finish(range(self.stack.n_heads) if len(self.stopped) < n_members else ())
        seconds = (time.monotonic() - started) / n_members
        trained = [
            TrainedHead(one.spec, one.seed, one.fold, module, tuple(self.histories[one]), self.best[one][0], seconds)
            for one, module in self.finished.items()
        ]
        return [*trained, *self.failures]

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def _train_epoch(self, epoch: int) -> npt.NDArray[np.float64]:
        """Train on all rows once; return each head's mean loss."""
        n_steps = self.batches.n_steps
        rates = [self.batches.plan.rate((epoch - 1) * n_steps + step) for step in range(n_steps)]
        self._loss_sums.zero_()
        self._n_rows.zero_()
        if self._steps is not None:
            self._steps.epoch(rates, self.x.device)
        else:
            for batch, rate in zip(self.batches.epoch(), rates, strict=True):
                self._step(batch, rate)
        return (self._loss_sums / self._n_rows).cpu().numpy()

    def _step(self, batch: Batch, rate: float | Tensor) -> None:
        """Take one step, and add up the losses."""
        losses = self._losses(batch)  # (M,)
        self.stack.step(losses, rate)
        n_rows = batch.n_rows[:, None].expand(-1, self.stack.n_variants).flatten()
        self._loss_sums += losses.detach() * n_rows
        self._n_rows += n_rows

    def _losses(self, batch: Batch) -> Tensor:
        x = self.x.take(batch.rows).sub_(self.mean).div_(self.std)  # (G, B, D)
        log_probabilities = self.objective.log_probabilities(self.stack.logits(x, sizes=batch.sizes))  # (M, B, K)
        by_group = log_probabilities.view(self.stack.n_groups, -1, *log_probabilities.shape[1:])  # (G, V, B, K)
        return -(by_group * batch.targets.to(x.dtype)[:, None]).sum((2, 3)).flatten()

    @torch.no_grad()
    def _validate(self, epoch: int, train_losses: npt.NDArray[np.float64]) -> None:
        """Score every head on its fold's validation rows, and keep the weights of those that improved."""
        rate = self.batches.plan.rate(epoch * self.batches.n_steps - 1)
        improved = torch.zeros(self.stack.n_heads, dtype=torch.bool)
        scores = [self._loss_and_area(*group) for group in self._validation_scores()]  # (2, V) each
        losses, areas = torch.cat(scores, dim=1).cpu().tolist()  # together: each copy waits for all that was started
        for head, member in enumerate(self.stack.members):
            if member in self.stopped:
                continue
            self.histories[member].append(
                TrainedEpoch(float(train_losses[head]), losses[head], areas[head], rate * member.spec.lr)
            )
            improved[head] = self._is_better(member, epoch, losses[head])
        if self.config.patience is not None:
            self.stack.remember(improved.to(self.x.device))

    def _loss_and_area(self, fold: int, log_probabilities: Tensor) -> Tensor:
        """Return the losses and ROC AUCs (2, V) float64 of one group's heads from log-probabilities (V, n, K)."""
        y_true = self._val_labels(fold)
        losses = self.objective.mean_losses(log_probabilities, y_true)
        probabilities = self.objective.probabilities(log_probabilities)  # (V, n, C)
        if is_host(self.x.device):
            found = torch.from_numpy(self.roc_aucs(y_true.numpy(), np.nan_to_num(probabilities.numpy())))
        else:
            found = self._areas(fold)(probabilities)
        return torch.stack([losses.double(), found])

    def _val_labels(self, fold: int) -> Tensor:
        if fold not in self._labels:
            self._labels[fold] = self.y[torch.from_numpy(self.folds[fold].val).to(self.y.device)].to(self.x.device)
        return self._labels[fold]

    def _areas(self, fold: int) -> Areas:
        if fold not in self._areas_of:
            self._areas_of[fold] = Areas.of(self._val_labels(fold), self.objective.n_outputs)
        return self._areas_of[fold]

    def _is_better(self, member: Member, epoch: int, loss: float) -> bool:
        """Return whether this epoch is a head's best so far; stop it if its loss is not finite, or it is out of patience.

        The best epoch is that of the lowest validation loss, or without patience the last.
        """
        if not math.isfinite(loss):
            self.stopped.add(member)
            self.failures.append(_diverged(member, epoch))
            return False
        best_epoch, least = self.best[member]
        if self.config.patience is None:
            self.best[member] = (epoch, loss)
            return True
        if loss < least:
            self.best[member] = (epoch, loss)
        elif epoch - best_epoch >= self.config.patience:
            self.stopped.add(member)
        return loss < least

    def _validation_scores(self) -> Iterator[tuple[int, Tensor]]:
        """Yield each group's fold and its heads' log-probabilities (V, n, K) there: the means over looks."""
        k, longest = self.n_looks, self._val_rows.shape[1]
        # In memory: a group's inputs, and one layer's outputs of all heads.
        n_activations = self.stack.n_groups * self.x.n_features + self.stack.n_activations
        at_once = max(1, VALIDATED_AT_ONCE // n_activations)
        # Results first: small tensors between large ones would keep the allocator from freeing these.
        found = self.mean.new_empty((self.stack.n_heads, longest, self.batches.n_weighed))
        for first in range(0, longest, at_once):
            x = self.x.take(self._val_rows[:, first : first + at_once]).sub_(self.mean).div_(self.std)  # (G, B, D)
            found[:, first : first + at_once] = self.objective.log_probabilities(self.stack.logits(x))
        if k > 1:
            found = found.view(len(found), -1, k, found.shape[-1]).logsumexp(2) - math.log(k)
        found = found.view(self.stack.n_groups, -1, *found.shape[1:])  # (G, V, n, K)
        for place, group in enumerate(self.batches.groups):
            yield group.fold, found[place, :, : len(self.folds[group.fold].val)]

    # -- early stopping -----------------------------------------------------------------------------------------------

    def _drop_stopped(self) -> bool:
        """Remove stopped heads from the stack where that saves time; return False if no head continues."""
        active = np.array([member not in self.stopped for member in self.stack.members])
        by_group = active.reshape(self.stack.n_groups, -1)
        groups, variants = np.any(by_group, axis=1, keepdims=True), np.any(by_group, axis=0, keepdims=True)
        if not active.any():
            self._finish(range(self.stack.n_heads))
            return False
        if active.sum() * 2 <= groups.sum() * variants.sum():  # half of the rectangle is idle: one group per head
            self._keep(np.flatnonzero(active), int(active.sum()))
        elif not (groups.all() and variants.all()):
            self._keep(np.flatnonzero((groups & variants).ravel()), int(groups.sum()))
        return True

    def _keep(self, heads: npt.NDArray[np.int64], n_groups: int) -> None:
        self._finish(sorted(set(range(self.stack.n_heads)) - set(heads.tolist())))
        self.stack.keep(heads.tolist(), n_groups)
        self._use_groups([Group(one.seed, one.fold) for one in self.stack.members[:: self.stack.n_variants]])

    def _finish(self, heads: Sequence[int]) -> None:
        """Store modules of heads with their best weights, but of no head whose loss became NaN or infinite."""
        for head in heads:
            member = self.stack.members[head]
            if member not in self.finished and all(math.isfinite(epoch.val_loss) for epoch in self.histories[member]):
                best = self.stack.best_module(head, self.x.n_features, self.objective.n_outputs)
                self.finished[member] = nn.Sequential(self.standardise[member.fold], best).eval()


def _diverged(member: Member, epoch: int) -> TrainingError:
    return TrainingError(
        f"{member.spec.name}: the loss is not a finite number in epoch {epoch}. Lower the learning rate (lr=) or the "
        "weight decay (weight_decay=)."
    )
