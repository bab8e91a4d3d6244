"""Which hyperparameters win by validation, on BUSI and the demo set: where the defaults come from."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hoarfrost.demo import write_demo
from hoarfrost.evaluation import macro_roc_aucs
from hoarfrost.experiment.splits import split
from hoarfrost.experiment.task import Task, read_task
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.kinds import HeadSpec
from hoarfrost.heads.specs import cross_heads, parse_heads
from hoarfrost.training import Fold, TrainingConfig, train_heads
from tests.benchmarks.extraction import BUSI, WEIGHTS
from tests.benchmarks.measurement import Measurement

Floats = npt.NDArray[np.float64]

N_SPLITS = 8  # seeds of the split; the test rows of each are left alone
SHAPES = {
    "linear": ["lr=3e-4,1e-3,3e-3,1e-2", "weight_decay=0,1e-2,1e-1,1"],
    "mlp:256": ["lr=3e-4,1e-3,3e-3", "weight_decay=1e-2,1", "dropout=0,0.5"],
    "mlp:256x6": ["lr=3e-4,1e-3", "weight_decay=1e-2,1", "dropout=0,0.2"],
}
SETTINGS = {
    "as it is": TrainingConfig(),
    "--schedule cosine": TrainingConfig(schedule="cosine"),
    "--class-weight balanced": TrainingConfig(class_weight="balanced"),
    "--label-smoothing 0": TrainingConfig(label_smoothing=0),
    "--patience 20": TrainingConfig(patience=20),
    "--batch-size 32": TrainingConfig(batch_size=32),
    "--batch-size 256": TrainingConfig(batch_size=256),
}


def defaults(folder: Path) -> list[Measurement]:
    """Return the mean validation ROC AUC of the defaults and of the best others, over splits, for each architecture."""
    write_demo(folder / "phantoms")
    sources = [folder / "phantoms", *([BUSI] if BUSI.is_dir() else [])]
    tasks = [_task(source, folder / f"{i}.h5") for i, source in enumerate(sources)]
    results = []
    for shape, grids in SHAPES.items():
        specs = cross_heads(parse_heads([shape]), grids)
        found = np.mean([_validated(task, specs, TrainingConfig()) for task in tasks], axis=0)
        best = np.argsort(-found)[:3]
        default = found[specs.index(parse_heads([shape])[0])]
        others = ", ".join(f"`{specs[i].name}` {found[i]:.4f}" for i in best)
        results.append(
            Measurement(f"`{shape}`, of {len(specs)} variants", f"the default {default:.4f}; best: {others}", "")
        )
    specs = parse_heads([])
    for name, config in SETTINGS.items():
        found = np.mean([_validated(task, specs, config) for task in tasks], axis=0)
        values = ", ".join(f"`{spec.name}` {auc:.4f}" for spec, auc in zip(specs, found, strict=True))
        results.append(Measurement(f"the default heads, {name}", values, ""))
    return results


def _task(source: Path, cache: Path) -> Task:
    extract(source, cache, options=ExtractOptions(weights=WEIGHTS))
    with EmbeddingCache(cache) as opened:
        return read_task(opened, None, ["malignant"], 0)


def _validated(
    task: Task, specs: Sequence[HeadSpec], config: TrainingConfig
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    folds = []
    for seed in range(N_SPLITS):
        splits = split(task.y, task.groups, task.names, seed=seed)
        folds.append(Fold(np.flatnonzero(splits == "train"), np.flatnonzero(splits == "val")))
    found: dict[str, list[float]] = {spec.name: [] for spec in specs}
    for head in train_heads(specs, task.labelled(), folds, 2, replace(config, device="cpu"), macro_roc_aucs):
        found[head.spec.name].append(head.history[head.best_epoch - 1].val_roc_auc)
    return np.array([np.mean(aucs) for aucs in found.values()])
