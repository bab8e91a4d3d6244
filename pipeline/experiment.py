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

from features.cache import DIM, EmbeddingCache, Header, library_versions
from features.devices import choose_device
from features.errors import TrainingError
from pipeline.crossval import cross_validate, outer_folds
from pipeline.curve import learning_curve
from pipeline.heads import HeadSpec, count_parameters
from pipeline.metrics import macro_roc_auc, macro_roc_aucs, score
from pipeline.references import LOGISTIC_REGRESSION, reference_probabilities
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
    write_run,
)
from pipeline.task import Task, dataset_facts, read_task
from pipeline.train import Fold, Labelled, TrainedHead, TrainingConfig, predict_probabilities, train_heads

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
    config: TrainingConfig | None = None,
    n_folds: int = 0,
    with_learning_curve: bool = False,
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
    config : TrainingConfig, optional
    n_folds : int
        Cross-validate the whole procedure, selection included, over so many folds; 0 leaves it out.
    with_learning_curve : bool
        Train the selected head on growing shares of the training patients too.
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
    config = config or TrainingConfig()
    device = choose_device(config.device)
    with EmbeddingCache(cache) as opened:
        header = opened.header
        task = read_task(opened, dataset, positive, config.seed)
    folds = outer_folds(task, n_folds, config.seed) if n_folds else []  # refused before anything is trained
    data = Labelled(torch.from_numpy(task.x).to(device), torch.from_numpy(task.y).to(device))
    variants = _train(heads, task, data, config, on_epoch)
    folded = cross_validate(heads, task, data, folds, config, macro_roc_aucs, on_epoch) if folds else None
    references = _references(task)
    probabilities = {name: _probabilities(trained, data) for name, trained in variants.items()}
    results = tuple(_result(variants[name], task, found, references) for name, found in probabilities.items())
    selected = max(results, key=_selection_order).name
    chosen = next(spec for spec in heads if spec.name == selected)
    curve = learning_curve(chosen, task, data, config, macro_roc_aucs, on_epoch) if with_learning_curve else ()
    run = Run(
        directory,
        _run_config(
            task, header, str(cache), config, device, shlex.join(command), variants, time.monotonic() - started
        ),
        selected,
        results,
        tuple(references),
        folded,
        curve,
        tuple(_epochs(variants)),
        _predictions(task, {name: found.mean(axis=0) for name, found in probabilities.items()}),
    )
    files = {
        _file_name(head, config): _head_file(head, task, run.config)
        for trained in variants.values()
        for head in trained
    }
    write_run(run, files)
    return run


def _selection_order(result: HeadResult) -> tuple[float, float]:
    """Select by validation alone: the mean ROC AUC over seeds, then the loss."""
    return float(np.mean([seed.val_roc_auc for seed in result.seeds])), -float(result.val["loss"])


def _run_config(
    task: Task,
    header: Header,
    cache: str,
    config: TrainingConfig,
    device: str,
    command: str,
    variants: dict[str, list[TrainedHead]],
    seconds: float,
) -> RunConfig:
    return RunConfig(
        command=command,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        head_seconds={name: sum(head.seconds for head in trained) for name, trained in variants.items()},
        seed=config.seed,
        seeds=config.seeds,
        epochs=config.epochs,
        patience=config.patience,
        batch_size=config.batch_size,
        schedule=config.schedule,
        class_weight=config.class_weight,
        label_smoothing=config.label_smoothing,
        device=device,
        dataset=dataset_facts(task),
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


# -- heads --------------------------------------------------------------------------------------------------------------


def _train(
    specs: Sequence[HeadSpec], task: Task, data: Labelled, config: TrainingConfig, on_epoch: Callable[[str, int], None]
) -> dict[str, list[TrainedHead]]:
    """Train all variants with all seeds; give the heads of each variant by its name."""
    fold = Fold(np.flatnonzero(task.splits == "train"), np.flatnonzero(task.splits == "val"))
    trained = train_heads(specs, data, [fold], len(task.names), config, macro_roc_aucs, on_epoch)
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


def _probabilities(trained: Sequence[TrainedHead], data: Labelled) -> Floats:
    """Give each seed's class probabilities of all images, (S, n, C)."""
    found = np.stack([predict_probabilities(head.module, data.x) for head in trained])
    if not np.isfinite(found).all():
        raise TrainingError(
            f"{trained[0].spec.name}: its predictions overflow on some images. Lower the learning rate (lr=)."
        )
    return found


def _scores(task: Task, probabilities: Floats) -> dict[str, dict[str, Any]]:
    """Score probabilities (n, C) on each split that heads are scored on."""
    return {
        name: score(task.y[task.splits == name], probabilities[task.splits == name], task.names)
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
    answers = np.unique(probabilities[task.splits == "val"].argmax(axis=1))
    if len(answers) == 1:
        alarms.append(f"collapsed: it calls every validation image {task.names[answers[0]]!r}")
    found = float(np.mean([seed.val_roc_auc for seed in seeds]))
    to_beat = next(float(reference.val["roc_auc"]) for reference in references if reference.name == LOGISTIC_REGRESSION)
    if found < to_beat:
        alarms.append(f"loses to {LOGISTIC_REGRESSION}: validation ROC AUC {found:.3f} against {to_beat:.3f}")
    return alarms


def _references(task: Task) -> list[ReferenceResult]:
    train = task.splits == "train"
    found = reference_probabilities(task.x[train], task.y[train], task.x)
    results = []
    for name, probabilities in found.items():
        scores = _scores(task, probabilities)
        results.append(ReferenceResult(name, scores["val"], scores.get("test")))
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
    patients = task.table.patients
    return Predictions(
        paths=tuple(task.table.paths[i] for i in places),
        patients=tuple(patients[i] for i in places) if patients is not None else ("",) * len(places),
        splits=tuple(task.splits.tolist()),
        labels=tuple(task.labels()),
        probabilities=probabilities,
    )
