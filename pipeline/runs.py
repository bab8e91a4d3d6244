"""The run folder: what one `train` did, written whole and read back.

```
DIR/config.json      what was asked and where it came from
DIR/metrics.json     every head's scores, and which head was selected
DIR/predictions.csv  path, patient, split, label, one probability column per head
DIR/history.csv      head, epoch, losses and validation ROC AUC
DIR/heads/*.safetensors   weights; the head's description is in the file's metadata
```
"""

import csv
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from features.errors import RunError

if TYPE_CHECKING:
    import numpy.typing as npt

FORMAT = "hoarfrost-run"
FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
OWN_FILES = frozenset({"config.json", "metrics.json", "predictions.csv", "history.csv", "heads", "report.html"})


@dataclass(frozen=True)
class UnreadableImage:
    """An image that has no embedding, and why."""

    path: str
    error: str


@dataclass(frozen=True)
class DatasetFacts:
    """What the heads were trained and scored on.

    `positive` names the labels that count as class 1; it is None with more than two classes.
    `n_images` counts the unreadable too. `split_by` is "given" (the data set says), "patient" or "image" (we split, by what).
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
    """All that configures a run, saved beside its results."""

    command: str
    created: str
    seconds: float
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
    seconds: float
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


def metrics_document(selected: str, heads: Iterable[HeadResult]) -> dict[str, Any]:
    """Give what `metrics.json` holds and `train --json` prints."""
    return {"selected": selected, "heads": [asdict(head) for head in heads]}


def check_run_directory(directory: Path) -> None:
    """Refuse to write a run where something else lives.

    Raises
    ------
    RunError
        If `directory` is a file, or a folder with content that is no run of ours.
    """
    if directory.exists() and not directory.is_dir():
        raise RunError(f"{directory} is a file, not a folder to write a run into. Name another folder with --run.")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    if not (directory / "config.json").is_file():
        raise RunError(
            f"{directory} is not empty and holds no earlier run (no config.json), so nothing was written there. "
            "Name another folder with --run."
        )
    _read_config(directory)  # an earlier run may be replaced, somebody else's config.json may not
    foreign = sorted(entry.name for entry in directory.iterdir() if entry.name not in OWN_FILES)
    if foreign:
        raise RunError(
            f"{directory} holds an earlier run, but also {foreign[0]}, which would be lost with it. "
            "Move it away, or name another folder with --run."
        )


def write_run(run: Run, head_files: Mapping[str, bytes]) -> None:
    """Write a run folder whole, replacing an earlier run in the same place.

    Parameters
    ----------
    run : Run
        Its `directory` is where the folder goes.
    head_files : mapping of file name -> bytes
        The heads' weights, for `DIR/heads/`.

    Raises
    ------
    RunError
        If the place is taken by something that is not a run, or cannot be written.
    """
    check_run_directory(run.directory)
    staging = run.directory.with_name(f".{run.directory.name}.{os.getpid()}.tmp")
    try:
        (staging / "heads").mkdir(parents=True)
        _write_json(staging / "config.json", {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(run.config)})
        _write_json(staging / "metrics.json", metrics_document(run.selected, run.heads))
        _write_predictions(staging / "predictions.csv", run.predictions, run.config.dataset)
        _write_history(staging / "history.csv", run.history)
        for name, content in head_files.items():
            (staging / "heads" / name).write_bytes(content)
        _sync_tree(staging)
        _swap(staging, run.directory)
    except OSError as error:
        raise RunError(
            f"{run.directory}: the run cannot be written: {error}. Name another folder with --run."
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def read_run(directory: Path) -> Run:
    """Read a run folder back.

    Raises
    ------
    RunError
        If the folder is missing, is no run, was written by a newer version or is damaged.
    """
    config = _read_config(directory)
    try:
        metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8", errors="surrogateescape"))
        heads = tuple(_from_dict(HeadResult, head) for head in metrics["heads"])
        predictions = _read_predictions(directory / "predictions.csv", [head.name for head in heads], config.dataset)
        history = _read_history(directory / "history.csv")
        run = Run(directory, config, metrics["selected"], heads, history, predictions)
        _check_run(run)
        return run
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{directory}: the run is incomplete or damaged ({error!r}). Train it again.") from error


def _check_run(run: Run) -> None:
    """Refuse a run whose files contradict one another."""
    if run.selected not in [head.name for head in run.heads]:
        raise ValueError(f"the selected head {run.selected!r} is none of the run's heads")
    present = set(run.predictions.splits)
    if "val" not in present or ("test" not in present and any(head.test for head in run.heads)):
        raise ValueError("predictions.csv lacks the rows of a split that metrics.json scores")
    run.y_true()


def _swap(staging: Path, directory: Path) -> None:
    """Put the finished folder in its place; the earlier run is gone only when the new one is there."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    if not directory.exists():
        staging.rename(directory)
        return
    retired = staging.with_suffix(".old")
    directory.rename(retired)
    try:
        staging.rename(directory)
    except OSError:
        retired.rename(directory)
        raise
    shutil.rmtree(retired)


def _sync_tree(directory: Path) -> None:
    """Force every file to the disk before the folder gets its name."""
    for path in [*directory.rglob("*"), directory]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(
        text + "\n", encoding="utf-8", errors="surrogateescape"
    )  # names that are not UTF-8 stay as they are


def _read_config(directory: Path) -> RunConfig:
    path = directory / "config.json"
    if not path.is_file():
        raise RunError(
            f"{directory} is not a run folder (no config.json). "
            f"Make one with `hoarfrost train --cache FILE --run {directory}`."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
        if content["format"] != FORMAT:
            raise RunError(f"{path} is not a run's configuration (format {content['format']!r}).")
        if content["format_version"] > FORMAT_VERSION:
            raise RunError(
                f"{directory} was written by a newer hoarfrost (run format {content['format_version']}, "
                f"this one reads up to {FORMAT_VERSION}). Upgrade hoarfrost, or train again."
            )
        dataset = content["dataset"]
        dataset["unreadable"] = tuple(_from_dict(UnreadableImage, row) for row in dataset["unreadable"])
        dataset["classes"] = tuple(dataset["classes"])
        dataset["positive"] = None if dataset["positive"] is None else tuple(dataset["positive"])
        content["dataset"] = _from_dict(DatasetFacts, dataset)
        content["embeddings"] = _from_dict(EmbeddingFacts, content["embeddings"])
        content["warnings"] = tuple(content["warnings"])
        return _from_dict(RunConfig, content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: not a readable run configuration ({error!r}). Train the run again.") from error


T = TypeVar("T")


def _from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """Make a dataclass of a JSON object; keys of a later minor version are passed over."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: value for key, value in values.items() if key in known})


def _columns(head: str, dataset: DatasetFacts) -> list[tuple[str, int]]:
    """Give a head's columns in predictions.csv: (name, class number)."""
    if dataset.positive is not None:
        return [(head, 1)]
    return [(f"{head}:{label}", number) for number, label in enumerate(dataset.classes)]


def _write_predictions(path: Path, predictions: Predictions, dataset: DatasetFacts) -> None:
    columns = [
        (name, scores[:, number])
        for head, scores in predictions.probabilities.items()
        for name, number in _columns(head, dataset)
    ]
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "patient", "split", "label", *(name for name, _ in columns)])
        facts = zip(predictions.paths, predictions.patients, predictions.splits, predictions.labels, strict=True)
        for i, row in enumerate(facts):
            writer.writerow([*row, *(repr(float(scores[i])) for _, scores in columns)])


def _read_predictions(path: Path, heads: Sequence[str], dataset: DatasetFacts) -> Predictions:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.DictReader(file))
    probabilities = {}
    for head in heads:
        scores = np.array([[float(row[name]) for name, _ in _columns(head, dataset)] for row in rows])
        binary = dataset.positive is not None
        probabilities[head] = np.column_stack([1 - scores[:, 0], scores[:, 0]]) if binary else scores
    paths, patients, splits, labels = (tuple(row[key] for row in rows) for key in ("path", "patient", "split", "label"))
    return Predictions(paths, patients, splits, labels, probabilities)


def _write_history(path: Path, history: Iterable[Epoch]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([field.name for field in fields(Epoch)])
        writer.writerows([e.head, e.epoch, e.train_loss, e.val_loss, e.val_roc_auc] for e in history)


def _read_history(path: Path) -> tuple[Epoch, ...]:
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return tuple(
            Epoch(
                row["head"],
                int(row["epoch"]),
                float(row["train_loss"]),
                float(row["val_loss"]),
                float(row["val_roc_auc"]),
            )
            for row in csv.DictReader(file)
        )
