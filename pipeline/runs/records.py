"""What a run is made of: configuration, scores, training curves, predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class UnreadableImage:
    """An image that has no embedding, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class DatasetFacts:
    """What the heads were trained and scored on.

    `positive` names the labels that count as class 1; it is None with more than two classes.
    `n_images` counts the unreadable too. `split_by` is "given" (the data set says), "given, val
    from train" (it has no validation split), "patient" or "image" (we split, by what).
    `counts` maps split -> label -> number of images with an embedding.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    positive: tuple[str, ...] | None
    split_by: str
    n_images: int
    n_patients: int | None
    counts: dict[str, dict[str, int]]
    unreadable: tuple[UnreadableImage, ...]


@dataclass(frozen=True)
class EmbeddingFacts:
    """Where the embeddings came from: the cache's own account of itself."""

    cache: str
    fingerprint: str
    backbone: str
    weights: str
    weights_sha256: str
    preprocessing: dict[str, Any]
    precision: str


@dataclass(frozen=True)
class RunConfig:
    """All that configures a run, saved beside its results. Times stand here: the scores are the same each time.

    `head_seconds` maps each head's name to how long its training took.
    """

    command: str
    created: str
    seconds: float
    head_seconds: dict[str, float]
    seed: int
    epochs: int
    patience: int
    batch_size: int
    device: str
    dataset: DatasetFacts
    embeddings: EmbeddingFacts
    versions: dict[str, str]
    machine: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class HeadResult:
    """One head's scores. `test` is None where the data set has no test split.

    `val` and `test` map a metric's name to a float, or to `[low, high]` for an interval.
    """

    name: str
    n_parameters: int
    learning_rate: float
    weight_decay: float
    dropout: float
    best_epoch: int
    epochs: int
    weights_file: str
    val: dict[str, Any]
    test: dict[str, Any] | None


@dataclass(frozen=True)
class Epoch:
    """One line of a head's training curve."""

    head: str
    epoch: int
    train_loss: float
    val_loss: float
    val_roc_auc: float


@dataclass(frozen=True)
class Predictions:
    """Every image's probabilities: one row an image, in the data set's order.

    `probabilities[head]` is (n, C) float64, rows summing to one, columns in the order of the classes.
    `labels` are the data set's own (before `--positive` made them binary).
    """

    paths: tuple[str, ...]
    patients: tuple[str, ...]
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    probabilities: "Mapping[str, npt.NDArray[np.float64]]"


@dataclass(frozen=True)
class Run:
    """One run folder, read back."""

    directory: Path
    config: RunConfig
    selected: str
    heads: tuple[HeadResult, ...]
    history: tuple[Epoch, ...]
    predictions: Predictions

    def head(self, name: str) -> HeadResult:
        """Give the result of one head by its name."""
        return next(head for head in self.heads if head.name == name)

    def y_true(self) -> "npt.NDArray[np.int64]":
        """Give each image's class number, (n,) int64: 1 for the positive labels, or the label's place in `classes`."""
        return class_numbers(self.predictions.labels, self.config.dataset.classes, self.config.dataset.positive)


def class_numbers(
    labels: Sequence[str], classes: Sequence[str], positive: Sequence[str] | None
) -> "npt.NDArray[np.int64]":
    """Turn labels into class numbers.

    Parameters
    ----------
    labels : sequence of str, length n
    classes : sequence of str
        All labels there may be, in the order of their numbers where `positive` is None.
    positive : sequence of str or None
        The labels that are class 1; all others are class 0.

    Returns
    -------
    ndarray (n,) int64

    Raises
    ------
    ValueError
        If a label is none of the classes.
    """
    number = {label: i for i, label in enumerate(classes)}
    unknown = next((label for label in labels if label not in number), None)
    if unknown is not None:
        raise ValueError(f"{unknown!r} is none of the classes {', '.join(classes)}")
    if positive is not None:
        number = {label: int(label in positive) for label in classes}
    return np.array([number[label] for label in labels], dtype=np.int64)
