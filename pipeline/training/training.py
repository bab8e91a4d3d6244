"""The training loop: stacks of heads on the same batches, each head stopped by its own validation."""

import copy
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import expit
from torch import Tensor, nn

from hoarfrost.features.errors import TrainingError
from hoarfrost.heads.config import TrainingConfig
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.heads.specs import count_parameters
from hoarfrost.heads.layers import Standardise
from hoarfrost.training.batches import Batch, Batches, Group, seed_of
from hoarfrost.training.objective import objective_for
from hoarfrost.training.records import Fold, Labelled, TrainedEpoch, TrainedHead
from hoarfrost.training.rows import HeldRows, Rows, moments
from hoarfrost.training.stack import Member, Stack

NEARLY_CONSTANT = 1e-6  # deviation over mean: below it float32 contains only rounding errors
# Parameters. Measured on two cores: below this a second thread saves a tenth of the time where the cores are
# idle, and takes four to twelve times as long where something else uses one of them.
SMALL_STACK = 1_000_000
# Parameters; AdamW needs five times that, and the best weights once more. On a CPU beyond four million a step's tensors
# do not fit the caches, and the allocator no longer reuses them: measured, a fifth slower.
LARGEST_STACK = {"cpu": 4_000_000, "cuda": 32_000_000}
WARM_UP = 0.05  # of all steps, with the cosine schedule
VALIDATED_AT_ONCE = 8_000_000  # activations

RocAucs = Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64]], npt.NDArray[np.float64]]


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
    roc_aucs : callable
        From class numbers (n,) and probabilities (V, n, C) to V validation ROC AUCs of an epoch.
    on_epoch : callable
        Takes the architecture and the epoch's number after each epoch.

    Returns
    -------
    list of TrainedHead
        By spec, seed and fold, in this order. Heads whose loss became NaN or infinite are omitted.

    Raises
    ------
    TrainingError
        If all heads fail in this way.
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


def _stacks(
    specs: Sequence[HeadSpec], groups: Sequence[Group], x: Rows, n_classes: int
) -> Iterator[tuple[Sequence[HeadSpec], Sequence[Group]]]:
    """Yield variants of one architecture with their groups, as many as the largest stack may have."""
    stackable: dict[Hashable, list[HeadSpec]] = {}
    for spec in specs:
        stackable.setdefault(spec.stack_key, []).append(spec)
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
    """The training of one stack, from its first epoch until its last head has stopped."""

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
        """Draw initial weights by the head's own name and seed: other heads of the run must not change them."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(f"{seed} {spec.name}"))
            head = spec.build(self.x.n_features, self.objective.n_outputs)
            return head.to(self.x.device, self.x.dtype)

    def _use_groups(self, groups: Sequence[Group]) -> None:
        """Continue with these groups: their batches, and the figures that standardise their embeddings."""
        self.batches.keep(groups)
        of_groups = [self.standardise[group.fold] for group in groups]
        self.mean = torch.stack([one.get_buffer("mean") for one in of_groups])[:, None]  # (G, 1, D)
        self.std = torch.stack([one.get_buffer("std") for one in of_groups])[:, None]

    def train(self, on_epoch: Callable[[str, int], None]) -> list[TrainedHead]:
        """Train all heads; return those whose loss stayed finite."""
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
            TrainedHead(one.spec, one.seed, one.fold, module, tuple(self.histories[one]), self.best[one][0], seconds)
            for one, module in self.finished.items()
        ]

    # -- one epoch ----------------------------------------------------------------------------------------------------

    def _train_epoch(self, epoch: int) -> npt.NDArray[np.float64]:
        """Train on all rows once; return each head's mean loss."""
        total = torch.zeros(self.stack.n_heads, dtype=torch.float64, device=self.x.device)
        n_rows = torch.zeros_like(total)
        for step, batch in enumerate(self.batches.epoch()):
            losses = self._losses(batch)  # (M,)
            self.stack.step(losses, self._rate((epoch - 1) * self.batches.n_steps + step))
            sizes = torch.tensor(batch.sizes, device=total.device).repeat_interleave(self.stack.n_variants)
            total += losses.detach() * sizes
            n_rows += sizes
        return (total / n_rows).cpu().numpy()

    def _losses(self, batch: Batch) -> Tensor:
        x = (self.x.take(batch.rows) - self.mean) / self.std  # (G, B, D)
        log_probabilities = self.objective.log_probabilities(self.stack.logits(x, sizes=batch.sizes))  # (M, B, K)
        by_group = log_probabilities.view(self.stack.n_groups, -1, *log_probabilities.shape[1:])  # (G, V, B, K)
        return -(by_group * batch.targets.to(x.dtype)[:, None]).sum((2, 3)).flatten()

    def _rate(self, step: int) -> float:
        """Return the share of the learning rate that a step uses."""
        if self.config.schedule == "constant":
            return 1.0
        n_steps = self.config.epochs * self.batches.n_steps
        n_warm = max(1, round(WARM_UP * n_steps))
        if step < n_warm:
            return (step + 1) / n_warm
        return 0.5 * (1 + math.cos(math.pi * (step - n_warm) / max(1, n_steps - n_warm)))

    @torch.no_grad()
    def _validate(self, epoch: int, train_losses: npt.NDArray[np.float64]) -> None:
        """Score every head on its fold's validation rows, and keep the weights of those that improved."""
        rate = self._rate(epoch * self.batches.n_steps - 1)
        improved = torch.zeros(self.stack.n_heads, dtype=torch.bool)
        for place, (y_true, log_probabilities) in enumerate(self._validation_scores()):
            losses = self.objective.mean_losses(log_probabilities, y_true)  # (V,)
            probabilities = self.objective.probabilities(log_probabilities).cpu().numpy()  # (V, n, C)
            aucs = self.roc_aucs(y_true.cpu().numpy(), np.nan_to_num(probabilities))
            for variant, loss in enumerate(losses.tolist()):
                head = place * self.stack.n_variants + variant
                member = self.stack.members[head]
                if member in self.stopped:
                    continue
                self.histories[member].append(
                    TrainedEpoch(float(train_losses[head]), loss, float(aucs[variant]), rate * member.spec.lr)
                )
                improved[head] = self._is_better(member, epoch, loss)
        self.stack.remember(improved.to(self.x.device))

    def _is_better(self, member: Member, epoch: int, loss: float) -> bool:
        """Return whether a head's validation loss is its lowest; stop the head if it is not finite, or out of patience."""
        if not math.isfinite(loss):
            self.stopped.add(member)
            self.failures.append(_diverged(member, epoch))
            return False
        best_epoch, least = self.best[member]
        if loss < least:
            self.best[member] = (epoch, loss)
        elif epoch - best_epoch >= self.config.patience:
            self.stopped.add(member)
        return loss < least

    def _validation_scores(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each group's validation labels and its heads' log-probabilities (V, n, K)."""
        folds = [self.folds[group.fold] for group in self.batches.groups]
        longest = max(len(fold.val) for fold in folds)
        rows = torch.stack([torch.from_numpy(np.resize(fold.val, longest)) for fold in folds]).to(self.x.device)
        # In memory: a group's inputs three times (gathered, centred, scaled), and one layer's outputs of all heads.
        n_activations = 3 * self.stack.n_groups * self.x.n_features + self.stack.n_activations
        at_once = max(1, VALIDATED_AT_ONCE // n_activations)
        # Results first: small tensors between large ones would keep the allocator from freeing these.
        found = self.mean.new_empty((self.stack.n_heads, longest, self.batches.n_weighed))
        for first in range(0, longest, at_once):
            x = (self.x.take(rows[:, first : first + at_once]) - self.mean) / self.std  # (G, B, D)
            found[:, first : first + at_once] = self.objective.log_probabilities(self.stack.logits(x))
        found = found.view(self.stack.n_groups, -1, *found.shape[1:])  # (G, V, n, K)
        for place, fold in enumerate(folds):
            yield self.y[rows[place, : len(fold.val)].to(self.y.device)], found[place, :, : len(fold.val)]

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


@contextmanager
def _threads_for(stack: Stack) -> Iterator[None]:
    """Use one thread for a small stack; its result then does not depend on the machine's number of cores either."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if sum(value.numel() for value in stack.parameters) < SMALL_STACK else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _standardise(x: Rows, rows: npt.NDArray[np.int64]) -> Standardise:
    """Return the layer for the training split's mean and deviation: other splits' figures would leak."""
    mean, std = moments(x, rows)  # (D,) each
    # A feature that is constant here must not divide by zero, nor become huge in images where it varies.
    usable = std > NEARLY_CONSTANT * mean.abs() + 1e-12
    return Standardise(mean.to(x.dtype), torch.where(usable, std, 1.0).to(x.dtype))


@torch.no_grad()
def predict_probabilities(
    module: nn.Module, x: Tensor | Rows, rows: npt.NDArray[np.int64] | None = None, *, multilabel: bool = False
) -> npt.NDArray[np.float64]:
    """Return a head's probabilities.

    Parameters
    ----------
    module : nn.Module
        A trained head.
    x : Tensor (n, D) or Rows
    rows : ndarray (m,) int64, optional
        Rows to predict; all by default.
    multilabel : bool
        Whether an image may have several labels.

    Returns
    -------
    ndarray (m, C) float64
        Class probabilities, which sum to one; with `multilabel` those of having each label.

    Notes
    -----
    Logits are computed in float64 and rounded to float32: in float32 a sum's last digit would depend on the number of
    rows that are predicted together, and on the machine.
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
    if multilabel:  # not torch's sigmoid, whose last digits differ at the end of an array
        return np.asarray(expit(logits.double().numpy()))
    return logits.double().softmax(1).numpy()


def mean_probabilities(of_seeds: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.float64]:
    """Return the mean of several trainings' probabilities, always added in the same order."""
    return np.asarray(sum(of_seeds[1:], of_seeds[0]) / len(of_seeds))
