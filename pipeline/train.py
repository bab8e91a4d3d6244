"""AdamW and cross-entropy over cached tensors. Gets tensors, knows no files."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from features.errors import TrainingError
from pipeline.heads import HeadSpec, build_head, count_parameters

NEARLY_CONSTANT = 1e-6  # deviation over mean: float32 has no digits left there, only its own rounding
# Measured on two cores: with so few parameters a second thread gains a tenth where the cores are
# idle, and takes four to twelve times as long where something else uses one of them.
SMALL_HEAD = 1_000_000


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
    device : str
        "auto", "cpu" or "cuda".
    """

    epochs: int = 100
    patience: int = 10
    batch_size: int = 64
    seed: int = 0
    device: str = "auto"


@dataclass(frozen=True)
class Labelled:
    """One split: embeddings (n, 512) float32 and class numbers (n,) int64."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class TrainedEpoch:
    """What one epoch came to: mean cross-entropy on train and val, ROC AUC on val."""

    train_loss: float
    val_loss: float
    val_roc_auc: float


@dataclass(frozen=True)
class TrainedHead:
    """A head at its best epoch, which is the one with the lowest validation loss."""

    spec: HeadSpec
    module: nn.Module
    history: tuple[TrainedEpoch, ...]
    best_epoch: int  # counted from 1
    seconds: float


class Standardise(nn.Module):
    """Embeddings to zero mean and unit deviation, by the training split's figures, kept as buffers."""

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)  # (512,)
        self.register_buffer("std", std)  # (512,)

    def forward(self, x: Tensor) -> Tensor:
        """Standardise (B, 512)."""
        return (x - self.get_buffer("mean")) / self.get_buffer("std")


def train_head(
    spec: HeadSpec,
    train: Labelled,
    val: Labelled,
    n_classes: int,
    config: TrainingConfig,
    roc_auc: Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64]], float],
) -> TrainedHead:
    """Train one head, and keep the epoch that validates best.

    Parameters
    ----------
    spec : HeadSpec
    train, val : Labelled
    n_classes : int
    config : TrainingConfig
    roc_auc : callable
        From class numbers (n,) and probabilities (n, C) to the validation ROC AUC of an epoch.

    Returns
    -------
    TrainedHead

    Raises
    ------
    TrainingError
        If the loss stops being a number.
    """
    started = time.monotonic()
    with _own_randomness(spec, config, train.x.device):
        module = nn.Sequential(_standardise(train.x), build_head(spec, train.x.shape[1], n_classes)).to(train.x.device)
        with _threads_for(module):
            history, best_epoch = _fit(module, spec, train, val, config, roc_auc)
    return TrainedHead(spec, module.eval(), tuple(history), best_epoch, time.monotonic() - started)


@contextmanager
def _own_randomness(spec: HeadSpec, config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Seed weights, order and dropout by the head's own name: what else is in the run must not change them."""
    seed = int.from_bytes(sha256(f"{config.seed} {spec.name}".encode()).digest()[:8]) >> 1
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def _threads_for(module: nn.Module) -> Iterator[None]:
    """Keep a small head on one thread; its result then does not depend on the machine's number of cores either."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if count_parameters(module) < SMALL_HEAD else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _standardise(x: Tensor) -> Standardise:
    """Take mean and deviation of the training split alone: the test split's would leak."""
    std, mean = torch.std_mean(x.double(), dim=0, correction=0)  # (512,) each
    # A feature that is constant here must neither divide by zero nor blow up where it is not.
    usable = std > NEARLY_CONSTANT * mean.abs() + 1e-12
    return Standardise(mean.float(), torch.where(usable, std, 1.0).float())


def _fit(
    module: nn.Module,
    spec: HeadSpec,
    train: Labelled,
    val: Labelled,
    config: TrainingConfig,
    roc_auc: Callable[[npt.NDArray[np.int64], npt.NDArray[np.float64]], float],
) -> tuple[list[TrainedEpoch], int]:
    """Train until validation gets no better, and leave the module at its best epoch."""
    optimizer = torch.optim.AdamW(_parameter_groups(module, spec), lr=spec.lr)
    history: list[TrainedEpoch] = []
    best_epoch, best_loss, best_state = 0, float("inf"), deepcopy(module.state_dict())
    for epoch in range(1, config.epochs + 1):
        train_loss = _train_epoch(module, optimizer, train, config.batch_size)
        logits = _logits(module, val.x)  # (n_val, C)
        val_loss = float(cross_entropy(logits, val.y))
        if not np.isfinite(val_loss):
            raise TrainingError(
                f"{spec.name}: the loss is no longer a number in epoch {epoch}. Lower the learning rate (lr=) or the "
                "weight decay (weight_decay=)."
            )
        probabilities = logits.double().softmax(1).cpu().numpy()
        history.append(TrainedEpoch(train_loss, val_loss, roc_auc(val.y.cpu().numpy(), probabilities)))
        if val_loss < best_loss:
            best_epoch, best_loss, best_state = epoch, val_loss, deepcopy(module.state_dict())
        elif epoch - best_epoch >= config.patience:
            break
    module.load_state_dict(best_state)
    return history, best_epoch


def _parameter_groups(module: nn.Module, spec: HeadSpec) -> list[dict[str, object]]:
    """Decay matrices, not biases: pulling a bias towards zero is no simpler a function."""
    matrices = [parameter for parameter in module.parameters() if parameter.ndim >= 2]
    others = [parameter for parameter in module.parameters() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": others, "weight_decay": 0.0}]


def _train_epoch(module: nn.Module, optimizer: torch.optim.Optimizer, train: Labelled, batch_size: int) -> float:
    """Pass over the training split once, in a new order; give the mean loss."""
    module.train()
    total = torch.zeros((), dtype=torch.float64, device=train.x.device)
    order = torch.randperm(len(train.y)).to(train.x.device)
    for rows in torch.split(order, batch_size):
        loss = cross_entropy(module(train.x[rows]), train.y[rows])  # (B, C) logits against (B,) classes
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.detach() * len(rows)
    return float(total) / len(train.y)


@torch.no_grad()
def _logits(module: nn.Module, x: Tensor) -> Tensor:
    module.eval()
    return torch.cat([module(part) for part in torch.split(x, 65_536)])  # (n, C)


def predict_probabilities(module: nn.Module, x: Tensor) -> npt.NDArray[np.float64]:
    """Give class probabilities, (n, C) float64, of embeddings (n, 512)."""
    return _logits(module, x).double().softmax(1).cpu().numpy()
