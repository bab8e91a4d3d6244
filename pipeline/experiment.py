"""One experiment: from a cached data set to a run folder. Opens no image, and loads no backbone."""

import json
import platform
import shlex
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save

from features.cache import DIM, DatasetTable, EmbeddingCache, Embeddings, Header, library_versions
from features.devices import choose_device
from features.errors import TrainingError
from pipeline.heads import HeadSpec, count_parameters
from pipeline.metrics import roc_auc, score
from pipeline.runs import (
    SPLITS,
    DatasetFacts,
    EmbeddingFacts,
    Epoch,
    HeadResult,
    Predictions,
    Run,
    RunConfig,
    UnreadableImage,
    check_run_directory,
    class_numbers,
    write_run,
)
from pipeline.splits import carve_validation, merged_groups, split
from pipeline.train import Labelled, TrainedHead, TrainingConfig, predict_probabilities, train_head

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """What is to be told apart, on which images.

    Attributes
    ----------
    x : ndarray (n, 512) float32
        Embeddings of the readable images.
    y : ndarray (n,) int64
        Class numbers.
    splits : ndarray (n,) of "train", "val" or "test"
    names : tuple of str
        What the class numbers stand for.
    """

    table: DatasetTable
    readable: npt.NDArray[np.bool_]
    x: Embeddings
    y: Ints
    splits: npt.NDArray[np.str_]
    split_by: str
    classes: tuple[str, ...]
    positive: tuple[str, ...] | None
    names: tuple[str, ...]

    @property
    def scored_splits(self) -> tuple[str, ...]:
        """The splits that heads are scored on: val, and test where there is one."""
        return tuple(name for name in ("val", "test") if (self.splits == name).any())

    def labels(self) -> list[str]:
        """Give the data set's own labels of the readable images."""
        return [self.table.labels[i] for i in np.flatnonzero(self.readable)]


def run_experiment(
    cache: Path,
    directory: Path,
    heads: Sequence[HeadSpec],
    *,
    dataset: str | None = None,
    positive: Sequence[str] = (),
    config: TrainingConfig | None = None,
    command: Sequence[str] = (),
    on_head: Callable[[str], None] = lambda _: None,
) -> Run:
    """Train heads on a cached data set, select by validation, score, and write the run folder.

    Parameters
    ----------
    cache : Path
        The cache's HDF5 file.
    directory : Path
        The run folder; an earlier run there is replaced.
    heads : sequence of HeadSpec
    dataset : str, optional
        Which of the cache's data sets; not needed where there is one.
    positive : sequence of str
        Labels that count as class 1; makes the task binary.
    config : TrainingConfig, optional
    command : sequence of str
        What the user typed, for the record.
    on_head : callable
        Called with each head's name before it is trained.

    Returns
    -------
    Run

    Raises
    ------
    HoarfrostError
        One of its children: cache, labels, splits, heads, or the run folder.
    """
    started = time.monotonic()
    check_run_directory(directory)
    config = config or TrainingConfig()
    device = choose_device(config.device)
    with EmbeddingCache(cache) as opened:
        header = opened.header
        task = _task(opened, dataset, tuple(normalize("NFC", label) for label in positive), config.seed)
    trained = [_train(head, task, config, device, on_head) for head in heads]
    probabilities = {head.spec.name: _probabilities(head, task, device) for head in trained}
    results = tuple(_result(head, task, probabilities[head.spec.name]) for head in trained)
    selected = max(results, key=lambda result: (result.val["roc_auc"], -result.val["loss"])).name
    run = Run(
        directory,
        _run_config(task, header, str(cache), config, device, shlex.join(command), trained, time.monotonic() - started),
        selected,
        results,
        tuple(
            Epoch(head.spec.name, number, epoch.train_loss, epoch.val_loss, epoch.val_roc_auc)
            for head in trained
            for number, epoch in enumerate(head.history, start=1)
        ),
        _predictions(task, probabilities),
    )
    write_run(run, {f"{head.spec.slug}.safetensors": _head_file(head, task, run.config) for head in trained})
    return run


def _run_config(
    task: Task,
    header: Header,
    cache: str,
    config: TrainingConfig,
    device: str,
    command: str,
    trained: Sequence[TrainedHead],
    seconds: float,
) -> RunConfig:
    return RunConfig(
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        head_seconds={head.spec.name: head.seconds for head in trained},
        seed=config.seed,
        epochs=config.epochs,
        patience=config.patience,
        batch_size=config.batch_size,
        device=device,
        dataset=_dataset_facts(task),
        embeddings=EmbeddingFacts(
            cache=cache,
            fingerprint=header.fingerprint.digest,
            backbone=header.fingerprint.backbone,
            weights=header.weights,
            weights_sha256=header.fingerprint.weights_sha256,
            preprocessing=dict(header.fingerprint.preprocessing),
            precision=header.fingerprint.precision,
        ),
        versions={"python": platform.python_version(), **library_versions()},
        machine=f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    )


# -- the task -----------------------------------------------------------------------------------------------------------


def _task(cache: EmbeddingCache, dataset: str | None, positive: tuple[str, ...], seed: int) -> Task:
    table = cache.dataset(dataset)
    x, readable = cache.arrays(table)
    _check_embeddings(x, [table.paths[i] for i in np.flatnonzero(readable)], cache)
    labels = [table.labels[i] for i in np.flatnonzero(readable)]
    classes = tuple(sorted(set(labels), key=_label_order))
    positive_labels = _positive_labels(classes, positive, table.name)
    y = class_numbers(labels, classes, positive_labels)
    names = _class_names(classes, positive_labels)
    splits, split_by = _splits(table, readable, y, names, seed)
    task = Task(table, readable, x, y, splits, split_by, classes, positive_labels, names)
    _check_splits(task)
    return task


def _check_embeddings(x: Embeddings, paths: Sequence[str], cache: EmbeddingCache) -> None:
    """Refuse NaN and infinity: standardisation would spread one image's over all."""
    broken = np.flatnonzero(~np.isfinite(x).all(axis=1))
    if len(broken):
        raise TrainingError(
            f"{cache.path}: the embeddings of {len(broken)} of {len(paths)} images are not finite (first: "
            f"{paths[broken[0]]}). The weights {cache.header.weights} are probably damaged: extract with others."
        )


def _label_order(label: str) -> tuple[bool, int, str]:
    """Sort numbers as numbers (10 after 9), and before texts."""
    number = label.isascii() and label.isdigit()
    return (not number, int(label) if number else 0, label)


def _positive_labels(classes: tuple[str, ...], positive: tuple[str, ...], dataset: str) -> tuple[str, ...] | None:
    if len(classes) < 2:
        raise TrainingError(
            f"The data set {dataset!r} has readable images of one class only ({', '.join(classes)}); a head tells at least "
            "two apart. Mend the unreadable images or add others, and extract again."
        )
    for label in positive:
        if label not in classes:
            raise TrainingError(
                f"--positive {label}: the data set {dataset!r} has no such label. It has: {', '.join(classes)}."
            )
    if set(positive) == set(classes):
        raise TrainingError(f"--positive names all labels ({', '.join(classes)}); leave at least one for class 0.")
    if positive:
        return tuple(label for label in classes if label in positive)
    return classes[1:] if len(classes) == 2 else None


def _class_names(classes: tuple[str, ...], positive: tuple[str, ...] | None) -> tuple[str, ...]:
    if positive is None:
        return classes
    return " + ".join(label for label in classes if label not in positive), " + ".join(positive)


def _splits(
    table: DatasetTable, readable: npt.NDArray[np.bool_], y: Ints, names: tuple[str, ...], seed: int
) -> tuple[npt.NDArray[np.str_], str]:
    """Take the data set's own splits, or make them by patient; the same bytes are never in two splits of ours."""
    places = np.flatnonzero(readable)
    known = [[column[i] for i in places] for column in (table.patients,) if column is not None]
    groups = merged_groups(table.rows[readable].tolist(), *known)
    if table.splits is None:
        return split(y, groups, names, seed=seed), "patient" if known else "image"
    given = np.array([table.splits[i] for i in places], dtype="<U5")
    train = given == "train"
    if not train.any():
        raise TrainingError(f"The data set {table.name!r} has no images in the split train.")
    if (given == "val").any():
        return given, "given"
    given[train] = carve_validation(y[train], groups[train], names, seed=seed)
    return given, "given, val from train"


def _check_splits(task: Task) -> None:
    """Refuse a split in which a class is missing: nothing could be learnt or scored there."""
    for name in ("train", *task.scored_splits):
        counts = np.bincount(task.y[task.splits == name], minlength=len(task.names))
        for label, count in zip(task.names, counts.tolist(), strict=True):
            if count < 2:
                all_counts = ", ".join(f"{n} {other}" for other, n in zip(task.names, counts.tolist(), strict=True))
                raise TrainingError(
                    f"The split {name} has {count} image(s) of the class {label!r}; at least 2 are needed to learn or "
                    f"score it (the split has {all_counts}). Add images, or change the data set's split column or folders."
                )


def _dataset_facts(task: Task) -> DatasetFacts:
    table = task.table
    found = Counter(zip(task.splits.tolist(), task.labels(), strict=True))
    present = [name for name in SPLITS if (task.splits == name).any()]
    return DatasetFacts(
        name=table.name,
        source=table.source,
        classes=task.classes,
        positive=task.positive,
        split_by=task.split_by,
        n_images=len(table),
        n_patients=len(set(table.patients)) if table.patients is not None else None,
        counts={name: {label: found[name, label] for label in task.classes} for name in present},
        unreadable=tuple(UnreadableImage(table.paths[i], table.errors[i]) for i in np.flatnonzero(~task.readable)),
    )


# -- heads --------------------------------------------------------------------------------------------------------------


def _tensor(x: Embeddings, device: str) -> torch.Tensor:
    return torch.from_numpy(x).to(device)


def _train(
    spec: HeadSpec, task: Task, config: TrainingConfig, device: str, on_head: Callable[[str], None]
) -> TrainedHead:
    on_head(spec.name)
    parts = {}
    for name in ("train", "val"):
        rows = task.splits == name
        parts[name] = Labelled(_tensor(task.x[rows], device), torch.from_numpy(task.y[rows]).to(device))
    return train_head(spec, parts["train"], parts["val"], len(task.names), config, _roc_auc)


def _probabilities(head: TrainedHead, task: Task, device: str) -> npt.NDArray[np.float64]:
    found = predict_probabilities(head.module, _tensor(task.x, device))  # (n, C)
    if not np.isfinite(found).all():
        raise TrainingError(
            f"{head.spec.name}: its predictions overflow on some images. Lower the learning rate (lr=)."
        )
    return found


def _roc_auc(y_true: Ints, probabilities: npt.NDArray[np.float64]) -> float:
    """ROC AUC of an epoch: of class 1, or the macro mean of one-vs-rest."""
    n_classes = probabilities.shape[1]
    numbers = [1] if n_classes == 2 else range(n_classes)
    return float(np.mean([roc_auc((y_true == c).astype(np.int64), probabilities[:, c]) for c in numbers]))


def _result(head: TrainedHead, task: Task, probabilities: npt.NDArray[np.float64]) -> HeadResult:
    scores: dict[str, dict[str, Any]] = {}
    for name in task.scored_splits:
        rows = task.splits == name
        scores[name] = score(task.y[rows], probabilities[rows], task.names)
    return HeadResult(
        name=head.spec.name,
        n_parameters=count_parameters(head.module),
        learning_rate=head.spec.lr,
        weight_decay=head.spec.weight_decay,
        dropout=head.spec.dropout,
        best_epoch=head.best_epoch,
        epochs=len(head.history),
        weights_file=f"heads/{head.spec.slug}.safetensors",
        val=scores["val"],
        test=scores.get("test"),
    )


def _head_file(head: TrainedHead, task: Task, config: RunConfig) -> bytes:
    """Give the head's tensors, standardisation included, with what is needed to use them alone."""
    description = {
        "format": "hoarfrost-head",
        "format_version": 1,
        "head": head.spec.name,
        "classes": task.names,
        "fingerprint": config.embeddings.fingerprint,
        "n_inputs": DIM,
    }
    # One JSON text: a label may hold any character, even one that is not UTF-8, and safetensors
    # writes several entries in random order, so that the same head would not be the same bytes.
    metadata = {"hoarfrost": json.dumps(description, sort_keys=True)}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in head.module.state_dict().items()}
    content: bytes = save(tensors, metadata=metadata)
    return content


def _predictions(task: Task, probabilities: dict[str, npt.NDArray[np.float64]]) -> Predictions:
    places = np.flatnonzero(task.readable)
    patients = task.table.patients
    return Predictions(
        paths=tuple(task.table.paths[i] for i in places),
        patients=tuple(patients[i] for i in places) if patients is not None else ("",) * len(places),
        splits=tuple(task.splits.tolist()),
        labels=tuple(task.labels()),
        probabilities=probabilities,
    )
