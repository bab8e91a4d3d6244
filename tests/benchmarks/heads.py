"""Stage two: many heads in one pass against one after another, and against the original's way."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hoarfrost.evaluation import compare_heads
from hoarfrost.experiment.crossval import NESTED
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.devices import choose_device
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.kinds import HeadSpec, Linear, Mlp
from hoarfrost.heads.specs import parse_heads
from hoarfrost.runs import Run
from hoarfrost.training import Fold, Labelled, TrainingConfig, train_heads
from hoarfrost.training.references import LOGISTIC_REGRESSION
from tests.benchmarks import usual
from tests.benchmarks.extraction import BUSI, COMPARED_IMAGES, WEIGHTS, peak_mb
from tests.benchmarks.large import write_large_cache
from tests.benchmarks.measurement import Measurement
from tests.benchmarks.nested import defaults, nested, precisions, times

N_ROWS, N_EPOCHS, BATCH = 4_000, 50, 256
ALONE = 4  # heads trained one after another, by turns with the stack; 64 would only take longer
VARIANTS = ("linear", "linear,lr=1e-4", "mlp:256", "mlp:512,dropout=0.2", "mlp:256x6")
ORIGINAL_EPOCHS = 10
N_LARGE = 2_000_000
N_FOLDS = 5

DEVICE = choose_device("auto")


def stacked(_: Path) -> list[Measurement]:
    """64 variants together, and as many one after another in a plain PyTorch loop over tensors."""
    return [_stacked(shape, demanded) for shape, demanded in ((Linear(), 10), (Mlp(width=256), 3))]


def _stacked(shape: HeadSpec, demanded: int) -> Measurement:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N_ROWS, 512, generator=generator)
    y = (x[:, :5].sum(1) + torch.randn(N_ROWS, generator=generator) > 0).long()
    data = Labelled(x.to(DEVICE), y.to(DEVICE))
    rates, decays = np.logspace(-4, -2, 8).tolist(), np.logspace(-4, -0.5, 8).tolist()
    specs = [replace(shape, lr=lr, weight_decay=decay) for lr in rates for decay in decays]
    alone = _seconds_alone(shape, data, ALONE // 2)
    config = TrainingConfig(epochs=N_EPOCHS, patience=N_EPOCHS, batch_size=BATCH)
    fold = Fold(np.arange(N_ROWS), np.arange(N_ROWS - 400, N_ROWS))
    started = time.perf_counter()
    train_heads(specs, data, [fold], 2, config, lambda _, found: np.zeros(len(found)))
    together = time.perf_counter() - started
    alone = (alone + _seconds_alone(shape, data, ALONE // 2)) / 2 * len(specs)
    return Measurement(
        f"{len(specs)} variants of `{shape.name}`, {N_ROWS:,} embeddings, {N_EPOCHS} epochs, in one pass",
        f"{together:.1f} s against {alone:.0f} s one after another ({alone / together:.1f} times)",
        f"{demanded} times", {"together_s": together, "alone_s": alone, "ratio": alone / together},
    )  # fmt: skip


def _seconds_alone(shape: HeadSpec, data: Labelled, n_heads: int) -> float:
    """Train heads one after another as everyone does; seconds a head."""
    started = time.perf_counter()
    for _ in range(n_heads):
        module = shape.build(512, 2).to(DEVICE)
        optimizer = torch.optim.AdamW(module.parameters(), lr=shape.lr)
        for _ in range(N_EPOCHS):
            for rows in torch.randperm(N_ROWS).to(DEVICE).split(BATCH):
                loss = nn.functional.cross_entropy(module(data.x[rows]), data.y[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    return (time.perf_counter() - started) / n_heads


def busi(folder: Path) -> list[Measurement]:
    """Five variants with five seeds on BUSI's cache, against the original's way: the backbone in each epoch of each head."""
    if not BUSI.is_dir():
        return []
    extract(BUSI, folder / "c.h5", options=ExtractOptions(weights=WEIGHTS))
    started = time.perf_counter()
    run = run_experiment(
        folder / "c.h5",
        folder / "run",
        parse_heads(VARIANTS),
        ExperimentConfig(positive=["malignant"], training=TrainingConfig(seeds=5), n_folds=N_FOLDS),
    )
    ours_s = time.perf_counter() - started
    n_heads = sum(len(head.seeds) for head in run.heads) * (1 + N_FOLDS)
    original_s = (
        usual.usual(BUSI, COMPARED_IMAGES) * 780 * ORIGINAL_EPOCHS
    )  # of one head; its own training comes on top
    return [
        Measurement(
            f"BUSI, {len(run.heads)} variants x 5 seeds, on the split and {N_FOLDS} folds, early stopping, references",
            f"{ours_s:.1f} s for {n_heads} heads; the backbone's {ORIGINAL_EPOCHS} epochs for one head of the original's "
            f"way {original_s:.0f} s ({original_s / (ours_s / n_heads):.0f} times a head)",
            "60 s", {"seconds": ours_s, "heads": n_heads, "original_s": original_s},
        ),
        _against_logistic_regression(run),
    ]  # fmt: skip


def _against_logistic_regression(run: Run) -> Measurement:
    """Compare what each fold selected with logistic regression on the same folds, by DeLong's paired test."""
    assert run.out_of_fold is not None
    assert run.cross_validation is not None
    areas = {result.name: result.pooled.value("roc_auc") for result in run.cross_validation.results}
    both = {name: run.out_of_fold.probabilities[name] for name in (LOGISTIC_REGRESSION, NESTED)}
    (found,) = compare_heads(run.y_true(), both, LOGISTIC_REGRESSION)
    return Measurement(
        f"BUSI, pooled over the {N_FOLDS} folds: ROC AUC of what each fold selected, and of logistic regression",
        f"{areas[NESTED]:.3f} and {areas[LOGISTIC_REGRESSION]:.3f}, difference {found.difference.value:+.3f} "
        f"({found.difference.low:+.3f} to {found.difference.high:+.3f}), p {found.p:.2g}",
        "0.80, not below logistic regression",
        {"nested": areas[NESTED], "logistic_regression": areas[LOGISTIC_REGRESSION], "p": found.p or 0.0},
    )


def streamed(folder: Path) -> list[Measurement]:
    """Train on two million embeddings, streamed and in memory, each in a process of its own; the same loop over both."""
    cache = write_large_cache(folder / "large.h5", N_LARGE)
    seconds, peaks = {}, {}
    for name, limit in (("streamed", "1GB"), ("in memory", "64GB")):
        run = folder / name.replace(" ", "-")
        command = ["train", "--cache", str(cache), "--run", str(run), "--head", "linear", "--epochs", "3", "--json"]
        peaks[name] = peak_mb("hoarfrost", *command, "--memory-limit", limit)
        config = json.loads((run / "config.json").read_text(encoding="utf-8"))
        seconds[name] = sum(config["head_seconds"].values())
    ratio = seconds["in memory"] / seconds["streamed"]
    n_rows = 3 * 0.7 * N_LARGE
    return [
        Measurement(
            f"{N_LARGE:,} embeddings streamed with `--memory-limit 1GB`, one linear head, batches of 64",
            f"{n_rows / seconds['streamed']:,.0f} rows/s, {ratio:.2f} of the speed in memory; peak memory of the whole "
            f"command {peaks['streamed'] * 1.048576:,.0f} MB (in memory {peaks['in memory'] * 1.048576:,.0f} MB)",
            "0.5, under 2,000 MB",
            {"streamed_s": seconds["streamed"], "held_s": seconds["in memory"], "peak_mib": peaks["streamed"]},
        )
    ]  # fmt: skip


MEASUREMENTS = {
    "stacked": stacked, "busi": busi, "streamed": streamed, "nested": nested, "defaults": defaults, "precisions": precisions,
    "times": times,
}  # fmt: skip
