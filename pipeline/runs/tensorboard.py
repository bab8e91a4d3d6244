"""Training curves for TensorBoard. The sole user of tensorboard."""

import importlib.util
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from hoarfrost.features.errors import RunError
from hoarfrost.heads.kinds import slug_of
from hoarfrost.runs.records import Epoch


def require_tensorboard() -> None:
    """Raise RunError, with the way to install it, if TensorBoard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise RunError("--tensorboard needs the package tensorboard. Install it: pip install tensorboard.")


def write_tensorboard(directory: Path, history: Iterable[Epoch]) -> None:
    """Write one log per head and seed, in a folder of the head's name: losses, validation ROC AUC, learning rate.

    The epochs of each head and seed must be together and in order.
    """
    from torch.utils.tensorboard import SummaryWriter

    for (head, seed), epochs in groupby(history, key=lambda epoch: (epoch.head, epoch.seed)):
        with SummaryWriter(str(directory / slug_of(head) / f"seed{seed}")) as writer:
            for epoch in epochs:
                values = {
                    "loss/train": epoch.train_loss, "loss/validation": epoch.val_loss,
                    "roc_auc/validation": epoch.val_roc_auc, "learning_rate": epoch.learning_rate,
                }  # fmt: skip
                for tag, value in values.items():
                    writer.add_scalar(tag, value, epoch.epoch)
