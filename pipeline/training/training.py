"""The training loop: stacks of heads over the same batches, each head stopped by its own validation."""

import copy
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor, nn

from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.config import TrainingConfig
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.heads.specs import count_parameters
from hoarfrost.training.batches import Batch, Batches, Group, seed_of
from hoarfrost.training.objective import objective_for
from hoarfrost.training.records import Fold, Labelled, TrainedEpoch, TrainedHead
from hoarfrost.training.rows import HeldRows, Rows, moments
from hoarfrost.training.stack import Member, Stack

NEARLY_CONSTANT = 1e-6  # deviation over mean: float32 has no digits left there, only its own rounding
# Measured on two cores: with so few parameters a second thread gains a tenth where the cores are
# idle, and takes four to twelve times as long where something else uses one of them.
SMALL_STACK = 1_000_000
# Parameters; AdamW holds five times that, and the best weights once more. On a CPU beyond four million a step's tensors
# leave the caches, and are no longer recycled by the allocator: measured, a fifth slower.
LARGEST_STACK = {"cpu": 4_000_000, "cuda": 32_000_000}
WARM_UP = 0.05  # of all steps, with the cosine schedule
VALIDATED_AT_ONCE = 8_000_000  # activations

RocAucs = Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64]], npt.NDArray[np.float64]]


class Standardise(nn.Module):
    """Embeddings to zero mean and unit deviation, by the training split's figures, kept as buffers."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)  # (D,)
        self.register_buffer("std", std)  # (D,)

    def forward(self, x: Tensor) -> Tensor:
        """Standardise (B, D)."""
        return (x - self.get_buffer("mean")) / self.get_buffer("std")


def train_heads(
    specs: Sequence[HeadSpec],
    data: Labelled,
    folds: Sequence[Fold],
    n_classes: int,
    config: TrainingConfig,
    roc_aucs: RocAucs,
    on_epoch: Callable[[str, int], None] = lambda *_: None,
) -> list[TrainedHead]:
    """Train every variant with every seed on every fold, those of one architecture together.

    Parameters
    ----------
    specs : sequence of HeadSpec
    data : Labelled
    folds : sequence of Fold
    n_classes : int
    config : TrainingConfig
    roc_aucs : callable
        From class numbers (n,) and probabilities (V, n, C) to V validation ROC AUCs of an epoch.
    on_epoch : callable
        Called with the architecture and the epoch's number after each.

    Returns
    -------
    list of TrainedHead
        By spec, seed and fold, in this order. Without the heads whose loss stopped being a number.

    Raises
    ------
    TrainingError
        If no head is left.
    """
    seeds = range(config.seed, config.seed + config.seeds)
    groups = [Group(seed, fold) for seed in seeds for fold in range(len(folds))]
    trained: list[TrainedHead] = []
    failures: list[TrainingError] = []
    for stacked, of_groups in _stacks(specs, groups, data.rows, n_classes):
        run = _StackRun(stacked, of_groups, data, folds, n_classes, config, roc_aucs)
        trained += run.train(on_epoch)
        failures += run.failures
    data.rows.release()
    if not trained:
        raise failures[0]
    order = {spec: i for i, spec in enumerate(specs)}
    return sorted(trained, key=lambda head: (order[head.spec], head.seed, head.fold))


def train_head(
    spec: HeadSpec,
    train: Labelled,
    val: Labelled,
    n_classes: int,
    config: TrainingConfig,
    roc_auc: Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64]], float],
) -> TrainedHead:
    """Train one head, and keep the epoch that validates best. As `train_heads`, of one head and one fold."""
    x = torch.cat([part.rows.take(torch.arange(len(part.y))) for part in (train, val)])
    data = Labelled(x, torch.cat([train.y, val.y]))
    fold = Fold(np.arange(len(train.y)), np.arange(len(train.y), len(data.y)))

    def roc_aucs(y_true: npt.NDArray[np.int64], found: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.array([roc_auc(y_true, probabilities) for probabilities in found])

    return train_heads([spec], data, [fold], n_classes, replace(config, seeds=1), roc_aucs)[0]


def _stacks(
    specs: Sequence[HeadSpec], groups: Sequence[Group], x: Rows, n_classes: int
) -> Iterator[tuple[Sequence[HeadSpec], Sequence[Group]]]:
    """Put variants of one architecture and their groups together, as many as the memory is for."""
    stackable: dict[Hashable, list[HeadSpec]] = {}
    for spec in specs:
        stackable.setdefault(spec.stacked_by, []).append(spec)
    for alike in stackable.values():
        with torch.device("meta"):
            n_parameters = count_parameters(alike[0].build(x.n_features, n_classes))
        n_heads = max(1, LARGEST_STACK[x.device.type] // max(1, n_parameters))
        n_groups = min(len(groups), n_heads)
        n_specs = max(1, n_heads // n_groups)
        for first in range(0, len(alike), n_specs):
            for first_group in range(0, len(groups), n_groups):
                yield alike[first : first + n_specs], groups[first_group : first_group + n_groups]


class _StackRun:
    """One stack from its first epoch until the last of its heads has stopped."""

    def __init__(
        self,
        specs: Sequence[HeadSpec],
        groups: Sequence[Group],
        data: Labelled,
        folds: Sequence[Fold],
        n_classes: int,
        config: TrainingConfig,
        roc_aucs: RocAucs,
    ) -> None:
        self.x, self.y, self.folds, self.config, self.roc_aucs = data.rows, data.y, folds, config, roc_aucs
        self.objective = objective_for(data.y, n_classes)
        self.batches = Batches(groups, folds, self.x, self.y, self.objective, config)
        self.standardise = [_standardise(self.x, fold.train) for fold in folds]
        self.x.hold(np.unique(np.concatenate([fold.val for fold in folds])))
        members = [Member(spec, group.seed, group.fold) for group in groups for spec in specs]
        initial = {(spec, seed): self._initial(spec, seed) for spec in specs for seed in {g.seed for g in groups}}
        self.stack = Stack(members, [initial[member.spec, member.seed] for member in members], len(groups))
        self.shape = specs[0].shape
        self.histories: dict[Member, list[TrainedEpoch]] = {member: [] for member in members}
        self.best: dict[Member, tuple[int, float]] = dict.fromkeys(members, (0, math.inf))
        self.stopped: set[Member] = set()
        self.finished: dict[Member, nn.Module] = {}
        self.failures: list[TrainingError] = []
        self._use_groups(groups)

    def _initial(self, spec: HeadSpec, seed: int) -> nn.Sequential:
        """Draw initial weights by the head's own name and seed: what else is in the run must not change them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(f"{seed} {spec.name}"))
            head = spec.build(self.x.n_features, self.objective.n_outputs)
            return head.to(self.x.device, self.x.dtype)

    def _use_groups(self, groups: Sequence[Group]) -> None:
        """Make what each group of the stack standardises by and validates on."""
        self.batches.keep(groups)
        of_groups = [self.standardise[group.fold] for group in groups]
        self.mean = torch.stack([one.get_buffer("mean") for one in of_groups])[:, None]  # (G, 1, D)
        self.std = torch.stack([one.get_buffer("std") for one in of_groups])[:, None]

    def train(self, on_epoch: Callable[[str, int], None]) -> list[TrainedHead]:
        """Train all heads."""
        started = time.monotonic()
        n_members = self.stack.n_heads
        with _threads_for(self.stack):
            for epoch in range(1, self.config.epochs + 1):
                train_losses = self._train_epoch(epoch)
                self._validate(epoch, train_losses)
                on_epoch(self.shape, epoch)
                if not self._drop_stopped():
                    break
            self._finish(range(self.stack.n_heads) if len(self.stopped) < n_members else ())
        seconds = (time.monotonic() - started) / n_members
        return [
            TrainedHead(
                member.spec, member.seed, member.fold, module, tuple(self.histories[member]), self.best[member][0], seconds
            )
            for member, module in self.finished.items()
        ]  # fmt: skip

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def _train_epoch(self, epoch: int) -> npt.NDArray[np.float64]:
        """Pass over the training rows once; give each head's mean loss."""
        total = torch.zeros(self.stack.n_heads, dtype=torch.float64, device=self.x.device)
        n_rows = torch.zeros_like(total)
        for step, batch in enumerate(self.batches.epoch()):
            losses = self._losses(batch)  # (M,)
            self.stack.step(losses, self._rate((epoch - 1) * self.batches.n_steps + step))
            sizes = torch.tensor(batch.sizes, device=total.device)
            sizes = sizes.repeat_interleave(self.stack.n_heads // self.stack.n_groups)
            total += losses.detach() * sizes
            n_rows += sizes
        return (total / n_rows).cpu().numpy()

    def _losses(self, batch: Batch) -> Tensor:
        x = (self.x.take(batch.rows) - self.mean) / self.std  # (G, B, D)
        log_probabilities = self.objective.log_probabilities(self.stack.logits(x, sizes=batch.sizes))  # (M, B, K)
        n_variants = self.stack.n_heads // self.stack.n_groups
        by_group = log_probabilities.view(self.stack.n_groups, n_variants, *log_probabilities.shape[1:])
        return -(by_group * batch.targets.to(x.dtype)[:, None]).sum((2, 3)).flatten()

    def _rate(self, step: int) -> float:
        """Give the share of its learning rate that a step takes."""
        if self.config.schedule == "constant":
            return 1.0
        n_steps = self.config.epochs * self.batches.n_steps
        n_warm = max(1, round(WARM_UP * n_steps))
        if step < n_warm:
            return (step + 1) / n_warm
        return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))

    @torch.no_grad()
    def _validate(self, epoch: int, train_losses: npt.NDArray[np.float64]) -> None:
        """Score every head on its fold's validation rows, and remember those that are better than before."""
        n_variants = self.stack.n_heads // self.stack.n_groups
        rate = self._rate(epoch * self.batches.n_steps - 1)
        improved = torch.zeros(self.stack.n_heads, dtype=torch.bool)
        for place, (y_true, log_probabilities) in enumerate(self._validation_scores()):
            losses = self.objective.mean_losses(log_probabilities, y_true)  # (V,)
            probabilities = self.objective.probabilities(log_probabilities).cpu().numpy()  # (V, n, C)
            aucs = self.roc_aucs(y_true.cpu().numpy(), np.nan_to_num(probabilities))
            for variant in range(n_variants):
                head = place * n_variants + variant
                member, loss = self.stack.members[head], float(losses[variant])
                if member in self.stopped:
                    continue
                self.histories[member].append(
                    TrainedEpoch(float(train_losses[head]), loss, float(aucs[variant]), rate * member.spec.lr)
                )
                improved[head] = self._is_better(member, epoch, loss)
        self.stack.remember(improved.to(self.x.device))

    def _is_better(self, member: Member, epoch: int, loss: float) -> bool:
        """Tell whether a head's validation loss is its least; stop it where it is no number, or was not for too long."""
        if not math.isfinite(loss):
            self.stopped.add(member)
            self.failures.append(_exploded(member, epoch))
            return False
        best_epoch, least = self.best[member]
        if loss < least:
            self.best[member] = (epoch, loss)
        elif epoch - best_epoch >= self.config.patience:
            self.stopped.add(member)
        return loss < least

    def _validation_scores(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Give for each group its validation labels and its heads' log-probabilities (V, n, K)."""
        folds = [self.folds[group.fold] for group in self.batches.groups]
        longest = max(len(fold.val) for fold in folds)
        rows = torch.stack([torch.from_numpy(np.resize(fold.val, longest)) for fold in folds]).to(self.x.device)
        # The inputs of a group three times (gathered, centred, scaled), and a layer's outputs of all its heads.
        n_activations = 3 * self.stack.n_groups * self.x.n_features + self.stack.n_activations
        at_once = max(1, VALIDATED_AT_ONCE // n_activations)
        # All results' place first: small ones between large ones would keep the allocator from giving these back.
        found = self.mean.new_empty((self.stack.n_heads, longest, self.objective.n_weighed))
        for first in range(0, longest, at_once):
            x = (self.x.take(rows[:, first : first + at_once]) - self.mean) / self.std  # (G, B, D)
            found[:, first : first + at_once] = self.objective.log_probabilities(self.stack.logits(x))
        found = found.view(self.stack.n_groups, -1, *found.shape[1:])  # (G, V, n, K)
        for place, fold in enumerate(folds):
            yield self.y[rows[place, : len(fold.val)].to(self.y.device)], found[place, :, : len(fold.val)]

    # -- early stopping -----------------------------------------------------------------------------------------------

    def _drop_stopped(self) -> bool:
        """Take heads that have stopped out of the stack, where that saves something; False if none goes on."""
        going_on = np.array([member not in self.stopped for member in self.stack.members])
        by_group = going_on.reshape(self.stack.n_groups, -1)
        groups, variants = np.any(by_group, axis=1, keepdims=True), np.any(by_group, axis=0, keepdims=True)
        if not going_on.any():
            self._finish(range(self.stack.n_heads))
            return False
        if going_on.sum() * 2 <= groups.sum() * variants.sum():  # half of the rectangle is idle: each head for itself
            self._keep(np.flatnonzero(going_on), int(going_on.sum()))
        elif not (groups.all() and variants.all()):
            self._keep(np.flatnonzero((groups & variants).ravel()), int(groups.sum()))
        return True

    def _keep(self, heads: npt.NDArray[np.int64], n_groups: int) -> None:
        self._finish(sorted(set(range(self.stack.n_heads)) - set(heads.tolist())))
        self.stack.keep(heads.tolist(), n_groups)
        n_variants = self.stack.n_heads // n_groups
        self._use_groups([Group(member.seed, member.fold) for member in self.stack.members[::n_variants]])

    def _finish(self, heads: Sequence[int]) -> None:
        """Make modules of heads at their best; those whose loss stopped being a number are left out."""
        failed = {member for member in self.stack.members if not self._is_sound(member)}
        for head in heads:
            member = self.stack.members[head]
            if member not in failed and member not in self.finished:
                best = self.stack.best_module(head, self.x.n_features, self.objective.n_outputs)
                self.finished[member] = nn.Sequential(self.standardise[member.fold], best).eval()

    def _is_sound(self, member: Member) -> bool:
        return all(math.isfinite(epoch.val_loss) for epoch in self.histories[member])


def _exploded(member: Member, epoch: int) -> TrainingError:
    return TrainingError(
        f"{member.spec.name}: the loss is no longer a number in epoch {epoch}. Lower the learning rate (lr=) or the "
        "weight decay (weight_decay=)."
    )


@contextmanager
def _threads_for(stack: Stack) -> Iterator[None]:
    """Keep a small stack on one thread; its result then does not depend on the machine's number of cores either."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if sum(value.numel() for value in stack.parameters) < SMALL_STACK else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _standardise(x: Rows, rows: npt.NDArray[np.int64]) -> Standardise:
    """Take mean and deviation of the training split alone: the test split's would leak."""
    mean, std = moments(x, rows)  # (D,) each
    # A feature that is constant here must neither divide by zero nor blow up where it is not.
    usable = std > NEARLY_CONSTANT * mean.abs() + 1e-12
    return Standardise(mean.to(x.dtype), torch.where(usable, std, 1.0).to(x.dtype))


@torch.no_grad()
def predict_probabilities(
    module: nn.Module, x: Tensor | Rows, rows: npt.NDArray[np.int64] | None = None, *, multilabel: bool = False
) -> npt.NDArray[np.float64]:
    """Predict.

    Parameters
    ----------
    module : nn.Module
        A trained head.
    x : Tensor (n, D) or Rows
    rows : ndarray (m,) int64, optional
        Which rows; all by default.
    multilabel : bool
        Each class is a label for itself.

    Returns
    -------
    ndarray (m, C) float64
        Class probabilities, which sum to one; or with `multilabel` those of having each label.

    Notes
    -----
    Logits are computed in float64 and rounded to float32: a sum's last digit in float32 would depend on how many rows
    are predicted together, and on the machine.
    """
    exact = copy.deepcopy(module).eval().double()
    held = HeldRows(x) if isinstance(x, Tensor) else x
    wanted = np.arange(len(held)) if rows is None else rows
    logits: Tensor | None = None
    for places, part in held.blocks(wanted):
        found = exact(part.double()).float().cpu()
        logits = found.new_empty((len(wanted), found.shape[1])) if logits is None else logits
        logits[torch.from_numpy(places)] = found
    if logits is None:
        raise ValueError("there are no rows to predict")
    if multilabel:  # not by torch, whose sigmoid has other last digits at the end of an array
        return np.asarray(expit(logits.double().numpy()))
    return logits.double().softmax(1).numpy()


def mean_probabilities(of_seeds: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Give the mean of several trainings' probabilities, always added in the same order."""
    return np.asarray(sum(of_seeds[1:], of_seeds[0]) / len(of_seeds))
