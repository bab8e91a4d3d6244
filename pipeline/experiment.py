"""One experiment: from a cached data set to a run folder. Opens no image, and loads no backbone."""

import json
import logging
import platform
import shlex
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save

from features.cache import DIM, EmbeddingCache, library_versions
from features.devices import choose_device
from features.errors import TrainingError
from pipeline.crossval import cross_validate, outer_folds
from pipeline.curve import learning_curve
from pipeline.heads import HeadSpec, count_parameters
from pipeline.metrics import macro_roc_auc, macro_roc_aucs
from pipeline.references import LOGISTIC_REGRESSION, fitted_rows, reference_probabilities
from pipeline.runs import (
    EmbeddingFacts,
    Epoch,
    HeadResult,
    Predictions,
    ReferenceResult,
    Run,
    RunConfig,
    SeedResult,
    check_run_directory,
    require_tensorboard,
    write_run,
)
from pipeline.task import Task, dataset_facts, read_task
from pipeline.train import Fold, StreamedRows, TrainedHead, TrainingConfig, train_heads

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)


def run_experiment(
    cache: Path,
    directory: Path,
    heads: Sequence[HeadSpec],
    *,
    dataset: str | None = None,
    positive: Sequence[str] = (),
    label_columns: Sequence[str] | None = None,
    config: TrainingConfig | None = None,
    memory_limit: int | None = None,
    n_folds: int | None = None,
    with_learning_curve: bool = False,
    with_tensorboard: bool = False,
    command: Sequence[str] = (),
    on_epoch: Callable[[str, int], None] = lambda *_: None,
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
    label_columns : sequence of str, optional
        Columns of 0 and 1 that are labels, of which an image may have several; if empty, all such columns.
    config : TrainingConfig, optional
    memory_limit : int, optional
        Bytes that embeddings may take; by default half of the memory that this process may use.
    n_folds : int, optional
        Cross-validate the whole procedure, selection included, over so many folds.
    with_learning_curve : bool
        Train the selected head on growing shares of the training patients too.
    with_tensorboard : bool
        Write the training curves for TensorBoard too.
    command : sequence of str
        What the user typed, for the record.
    on_epoch : callable
        Called with an architecture and the number of the epoch that its heads have finished.

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
    if with_tensorboard:
        require_tensorboard()
    config = config or TrainingConfig()
    device = choose_device(config.device)
    with EmbeddingCache(cache) as opened:  # open to the end: embeddings may be streamed from it
        task = read_task(
            opened, dataset, positive, config.seed,
            label_columns=label_columns, memory_limit=memory_limit, device=device,
        )  # fmt: skip
        folds = outer_folds(task, n_folds, config.seed) if n_folds else []  # refused before anything is trained
        variants = _train(heads, task, config, on_epoch)
        folded, out_of_fold = (
            cross_validate(heads, task, folds, config, macro_roc_aucs, on_epoch) if folds else (None, None)
        )
        references = _references(task)
        probabilities = {name: _probabilities(trained, task) for name, trained in variants.items()}
        results = tuple(_result(variants[name], task, found, references) for name, found in probabilities.items())
        selected = max(results, key=_selection_order).name
        chosen = next(spec for spec in heads if spec.name == selected)
        curve = learning_curve(chosen, task, config, macro_roc_aucs, on_epoch) if with_learning_curve else ()
        head_seconds = {name: sum(head.seconds for head in trained) for name, trained in variants.items()}
        run = Run(
            directory,
            _run_config(task, opened, config, device, shlex.join(command), head_seconds, time.monotonic() - started),
            selected,
            results,
            tuple(references),
            folded,
            curve,
            tuple(_epochs(variants)),
            _predictions(task, {name: found.mean(axis=0) for name, found in probabilities.items()}),
            out_of_fold,
        )
    heads_of_run = [head for trained in variants.values() for head in trained]
    files = {_file_name(head, config): _head_file(head, task, run.config) for head in heads_of_run}
    write_run(run, files, with_tensorboard=with_tensorboard)
    return run


def _selection_order(result: HeadResult) -> tuple[float, float]:
    """Select by validation alone: the mean ROC AUC over seeds, then the loss."""
    return float(np.mean([seed.val_roc_auc for seed in result.seeds])), -float(result.val["loss"])


def _run_config(
    task: Task,
    cache: EmbeddingCache,
    config: TrainingConfig,
    device: str,
    command: str,
    head_seconds: dict[str, float],
    seconds: float,
) -> RunConfig:
    header = cache.header
    return RunConfig(
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        head_seconds=head_seconds,
        seed=config.seed,
        seeds=config.seeds,
        epochs=config.epochs,
        patience=config.patience,
        batch_size=config.batch_size,
        schedule=config.schedule,
        class_weight=config.class_weight,
        label_smoothing=config.label_smoothing,
        device=device,
        streamed_bytes=task.x.limit_bytes if isinstance(task.x, StreamedRows) else None,
        dataset=dataset_facts(task),
        embeddings=EmbeddingFacts(
            cache=str(cache.path),
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


# -- heads --------------------------------------------------------------------------------------------------------------


def _train(
    specs: Sequence[HeadSpec], task: Task, config: TrainingConfig, on_epoch: Callable[[str, int], None]
) -> dict[str, list[TrainedHead]]:
    """Train all variants with all seeds; give the heads of each variant by its name."""
    fold = Fold(np.flatnonzero(task.splits == "train"), np.flatnonzero(task.splits == "val"))
    trained = train_heads(specs, task.labelled(), [fold], len(task.names), config, macro_roc_aucs, on_epoch)
    variants: dict[str, list[TrainedHead]] = {}
    for head in trained:
        variants.setdefault(head.spec.name, []).append(head)
    for spec in specs:
        n_lost = config.seeds - len(variants.get(spec.name, ()))
        if n_lost:
            variants.pop(spec.name, None)
            logger.warning("%s: left out, its loss is no longer a number with %d of its seeds", spec.name, n_lost)
    if not variants:
        raise TrainingError(
            "Each head's loss stopped being a number with one of its seeds. Lower the learning rates (lr=)."
        )
    return variants


def _probabilities(trained: Sequence[TrainedHead], task: Task) -> Floats:
    """Give each seed's class probabilities of all images, (S, n, C)."""
    found = np.stack([task.predicted(head.module) for head in trained])
    if not np.isfinite(found).all():
        raise TrainingError(
            f"{trained[0].spec.name}: its predictions overflow on some images. Lower the learning rate (lr=)."
        )
    return found


def _scores(task: Task, probabilities: Floats) -> dict[str, dict[str, Any]]:
    """Score probabilities (n, C) on each split that heads are scored on."""
    return {
        name: task.score(np.flatnonzero(task.splits == name), probabilities[task.splits == name])
        for name in task.scored_splits
    }


def _result(
    trained: Sequence[TrainedHead], task: Task, probabilities: Floats, references: Sequence[ReferenceResult]
) -> HeadResult:
    """Score one variant: the mean of its seeds' probabilities, and each seed's own AUC."""
    first, spec = trained[0], trained[0].spec
    scores = _scores(task, probabilities.mean(axis=0))
    rows = {name: task.splits == name for name in task.scored_splits}
    aucs = [
        {name: macro_roc_auc(task.y[which], found[which]) for name, which in rows.items()} for found in probabilities
    ]
    seeds = tuple(
        SeedResult(head.seed, auc["val"], auc.get("test"), head.best_epoch, len(head.history))
        for head, auc in zip(trained, aucs, strict=True)
    )
    return HeadResult(
        name=spec.name,
        n_parameters=count_parameters(first.module),
        learning_rate=spec.lr,
        weight_decay=spec.weight_decay,
        dropout=spec.dropout,
        best_epoch=first.best_epoch,
        epochs=len(first.history),
        weights_file=f"heads/{spec.slug}.safetensors",
        val=scores["val"],
        test=scores.get("test"),
        seeds=seeds,
        alarms=tuple(_alarms(task, probabilities.mean(axis=0), seeds, references)),
    )


def _alarms(
    task: Task, probabilities: Floats, seeds: Sequence[SeedResult], references: Sequence[ReferenceResult]
) -> list[str]:
    """Say what is wrong with a head, by its validation split."""
    alarms = []
    answers = np.unique(task.answers(probabilities[task.splits == "val"]))
    if len(answers) == 1:
        alarms.append(f"collapsed: it calls every validation image {answers[0]}")
    found = float(np.mean([seed.val_roc_auc for seed in seeds]))
    to_beat = next(float(reference.val["roc_auc"]) for reference in references if reference.name == LOGISTIC_REGRESSION)
    if found < to_beat:
        alarms.append(f"loses to {LOGISTIC_REGRESSION}: validation ROC AUC {found:.3f} against {to_beat:.3f}")
    return alarms


def _references(task: Task) -> list[ReferenceResult]:
    train = np.flatnonzero(task.splits == "train")
    scored = np.flatnonzero(np.isin(task.splits, task.scored_splits))
    probabilities = np.full((len(task.y), len(task.names)), np.nan)
    results = []
    for name, found in reference_probabilities(task.x, task.y, train, scored).items():
        probabilities[scored] = found
        scores = _scores(task, probabilities)
        results.append(ReferenceResult(name, len(fitted_rows(task.y, train)), scores["val"], scores.get("test")))
    return results


def _file_name(head: TrainedHead, config: TrainingConfig) -> str:
    seed = f"-seed{head.seed}" if head.seed != config.seed else ""
    return f"{head.spec.slug}{seed}.safetensors"


def _head_file(head: TrainedHead, task: Task, config: RunConfig) -> bytes:
    """Give the head's tensors, standardisation included, with what is needed to use them alone."""
    description = {
        "format": "hoarfrost-head",
        "format_version": 1,
        "head": head.spec.name,
        "classes": task.names,
        "activation": "sigmoid" if task.is_multilabel else "softmax",
        "fingerprint": config.embeddings.fingerprint,
        "n_inputs": DIM,
    }
    # One JSON text: a label may hold any character, even one that is not UTF-8, and safetensors
    # writes several entries in random order, so that the same head would not be the same bytes.
    metadata = {"hoarfrost": json.dumps(description, sort_keys=True)}
    tensors = {name: tensor.cpu().contiguous() for name, tensor in head.module.state_dict().items()}
    content: bytes = save(tensors, metadata=metadata)
    return content


def _epochs(variants: dict[str, list[TrainedHead]]) -> list[Epoch]:
    return [
        Epoch(name, head.seed, number, *(epoch.train_loss, epoch.val_loss, epoch.val_roc_auc, epoch.learning_rate))
        for name, trained in variants.items()
        for head in trained
        for number, epoch in enumerate(head.history, start=1)
    ]


def _predictions(task: Task, probabilities: dict[str, Floats]) -> Predictions:
    places = np.flatnonzero(task.readable)
    names, number = np.unique(task.splits, return_inverse=True)
    patients = task.table.patients
    return Predictions(
        paths=tuple(task.table.paths[i] for i in places),
        patients=tuple(patients[i] for i in places) if patients is not None else ("",) * len(places),
        splits=tuple(names.astype(object)[number]),  # three texts, not one an image
        labels=tuple(task.labels()),
        probabilities=probabilities,
        truth=task.y if task.is_multilabel else None,
    )
