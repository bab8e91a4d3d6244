"""Heads in use: what is unlike the training set, measured by several distances, and how often conformal sets are right."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.covariance import LedoitWolf

from hoarfrost.demo import write_demo
from hoarfrost.evaluation import macro_roc_auc, macro_roc_aucs, roc_auc
from hoarfrost.evaluation.conformal import calibrate, calibrate_classes, prediction_sets
from hoarfrost.evaluation.novelty import fit_novelty
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.experiment.task import Task, read_task
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.training import Fold, TrainingConfig, train_heads
from tests.benchmarks.extraction import BUSI, WEIGHTS, peak_mb
from tests.benchmarks.measurement import Measurement
from tests.support.builders import SHARED_DATA, write_npz

Floats = npt.NDArray[np.float64]
Embeddings = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Distances = Callable[[Embeddings], Floats]

FOREIGN = SHARED_DATA / "pneumoniamnist.npz"
OURS = "Mahalanobis, length one, 32 directions"
N_SPLITS, N_COVERED = 8, 200
NEIGHBOUR = 5
HEADS = ("linear", "mlp:256")
COVERAGE, FALSE_ALARMS = 0.9, 0.05


def novelty(folder: Path) -> list[Measurement]:
    """Detect chest X-rays by what was learnt from breast ultrasound, and the demo set's other scanner."""
    write_demo(folder / "demo")
    demo = [_of_scanners(_task(folder, folder / "demo", seed), seed) for seed in range(N_SPLITS)]
    found = [
        _measurement(f"the demo set's scanner {b}, by heads for {a}", "", [one[a] for one in demo])
        for a, b in ("AB", "BA")
    ]
    if not BUSI.is_dir():
        return found
    with EmbeddingCache(_cache(folder, FOREIGN)) as cache:
        foreign, _ = cache.arrays(cache.dataset())
    busi = []
    for seed in range(N_SPLITS):
        task = _task(folder, BUSI, seed)
        busi.append(_detected(task, *(_rows(task, name) for name in ("train", "val", "test")), foreign))
    return [_measurement("chest X-rays, by heads for BUSI", "0.99", busi), *found]


def _of_scanners(task: Task, seed: int) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Learn from each scanner alone, by patient, and detect the other."""
    scanners = np.array(task.attributes()["scanner"])
    found = {}
    for scanner in ("A", "B"):
        own = np.flatnonzero(scanners == scanner)
        order = np.random.default_rng(seed).permutation(task.groups.max() + 1)[task.groups[own]] / (
            task.groups.max() + 1
        )
        train, val, test = own[order < 0.6], own[(order >= 0.6) & (order < 0.8)], own[order >= 0.8]
        other = task.embeddings(np.flatnonzero(scanners != scanner))
        found[scanner] = _detected(task, train, val, test, other)
    return found


def _detected(
    task: Task, train: Ints, val: Ints, test: Ints, foreign: Embeddings
) -> dict[str, tuple[float, float, float]]:
    """Return by distance the ROC AUC of foreign images against test images, and the shares of both beyond the threshold."""
    found = {}
    for name, distances in _distances(task.embeddings(train), task.y[train]).items():
        threshold = calibrate(distances(task.embeddings(val)), task.groups[val]).quantile(1 - FALSE_ALARMS)
        own, others = distances(task.embeddings(test)), distances(foreign)
        y = np.repeat([0, 1], [len(own), len(others)])
        area = roc_auc(y, np.concatenate([own, others]))
        found[name] = (area, float((own > threshold).mean()), float((others > threshold).mean()))
    return found


def _distances(x: Embeddings, y: Ints) -> Mapping[str, Distances]:
    """Fit each distance on training embeddings and classes."""
    mean, std = x.mean(axis=0), x.std(axis=0) + 1e-12
    classes = np.stack([x[y == number].mean(axis=0) for number in np.unique(y)])
    within = LedoitWolf(assume_centered=True).fit(x - classes[y]).precision_
    overall = LedoitWolf().fit(x)

    def of_class(z: Embeddings) -> Floats:
        centred = [z - centre for centre in classes]
        return np.min([np.einsum("ij,jk,ik->i", c, within, c) for c in centred], axis=0)

    return {
        OURS: fit_novelty([x]).distances,
        "Mahalanobis": of_class,
        "relative Mahalanobis": lambda z: of_class(z) - overall.mahalanobis(z),
        f"{NEIGHBOUR}th neighbour, cosine": lambda z: _neighbour(_unit(x), _unit(z)),
        f"{NEIGHBOUR}th neighbour, standardised": lambda z: _neighbour((x - mean) / std, (z - mean) / std),
    }


def _unit(x: Embeddings) -> Embeddings:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def _neighbour(x: Embeddings, z: Embeddings) -> Floats:
    squares = (z**2).sum(axis=1)[:, None] + (x**2).sum(axis=1) - 2 * z @ x.T
    return np.sort(squares, axis=1)[:, NEIGHBOUR - 1].astype(np.float64)


def _measurement(what: str, demanded: str, runs: list[dict[str, tuple[float, float, float]]]) -> Measurement:
    """Put our distance first, and what the others come to."""
    means = {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}
    least = min(run[OURS][0] for run in runs)
    area, alarms, found = means[OURS]
    others = ", ".join(f"{name} {of_name[0]:.3f}" for name, of_name in means.items() if name != OURS)
    return Measurement(
        f"out of distribution: {what}, over {N_SPLITS} splits: ROC AUC of the distance",
        f"{area:.4f} (least {least:.4f}); flagged {found:.1%} of them, {alarms:.1%} of the test images. Others: {others}",
        demanded,
        {"roc_auc": float(area), "least": least, "flagged": float(found), "false_alarms": float(alarms)},
    )


def coverage(folder: Path) -> list[Measurement]:
    """Split BUSI again and again; each time train, select and calibrate on validation, and count on test."""
    if not BUSI.is_dir():
        return []
    return [_coverage(folder, positive) for positive in (("malignant",), ())]


def _coverage(folder: Path, positive: tuple[str, ...]) -> Measurement:
    covered, sizes = [], []
    for seed in range(N_COVERED):
        task = _task(folder, BUSI, seed, positive)
        val, test = _rows(task, "val"), _rows(task, "test")
        heads = train_heads(
            parse_heads(HEADS), task.labelled(), [Fold(_rows(task, "train"), val)], len(task.names),
            TrainingConfig(seed=seed), macro_roc_aucs,
        )  # fmt: skip
        head = max(heads, key=lambda one: macro_roc_auc(task.y[val], task.predicted_by([one], val)[0]))
        calibrations = calibrate_classes(task.y[val], task.predicted_by([head], val)[0])
        sets = prediction_sets(task.predicted_by([head], test)[0], calibrations, COVERAGE)
        covered.append(float(sets[np.arange(len(test)), task.y[test]].mean()))
        sizes.append(float(sets.sum(axis=1).mean()))
    what = f"{positive[0]} or not" if positive else f"{len(task.names)} classes"
    return Measurement(
        f"conformal sets of {COVERAGE:.0%}, BUSI, {what}: coverage on test over {N_COVERED} random splits",
        f"{np.mean(covered):.1%} (from split to split ± {np.std(covered):.1%}); {np.mean(sizes):.2f} classes a set",
        "88 to 92%",
        {"coverage": float(np.mean(covered)), "deviation": float(np.std(covered)), "size": float(np.mean(sizes))},
    )


def memory(folder: Path) -> list[Measurement]:
    """Take the peak memory of predictions of 2,000 and of 50,000 images, by the tests' backbone; that of the table grows."""
    peaks = []
    for n in (2_000, 50_000):
        data = folder / f"{n}.npz"
        write_npz(data, {"train": n // 2, "val": n // 4, "test": n // 4}, compressed=False)
        if not peaks:
            peak_mb(
                "tests.support.standin",
                "0",
                "extract",
                str(data),
                "--cache",
                str(folder / "c.h5"),
                "--weights",
                WEIGHTS,
            )
            run_experiment(
                folder / "c.h5",
                folder / "run",
                parse_heads(["linear"]),
                ExperimentConfig(training=TrainingConfig(epochs=2)),
            )
        arguments = ["predict", str(data), "--run", str(folder / "run"), "--output", str(folder / f"{n}.csv")]
        peaks.append(peak_mb("tests.support.standin", "0", *arguments))
    few, many = peaks
    return [
        Measurement(
            "peak memory of `predict`, 2,000 images; 50,000 against 2,000, by a backbone that computes nothing",
            f"{few:.0f} MB; {many - few:+.0f} MB ({(many - few) * 1e6 / 48_000:,.0f} bytes an image)",
            "not growing beyond the table", {"few_mb": few, "many_mb": many},
        )
    ]  # fmt: skip


def _cache(folder: Path, data: Path) -> Path:
    cache = folder / f"{data.stem}.h5"
    if not cache.exists():
        extract(data, cache, options=ExtractOptions(weights=WEIGHTS, precision="float32"))
    return cache


def _task(folder: Path, data: Path, seed: int, positive: tuple[str, ...] = ("malignant",)) -> Task:
    with EmbeddingCache(_cache(folder, data)) as cache:
        return read_task(cache, None, positive, seed, cross_fit=False)


def _rows(task: Task, split: str) -> Ints:
    return np.flatnonzero(task.splits == split)


MEASUREMENTS = {"novelty": novelty, "coverage": coverage, "memory": memory}
