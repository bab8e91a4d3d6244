"""The default heads, each kind alone and scikit-learn's classifiers, by nested cross-validation on every data set at hand."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from hoarfrost.demo import write_demo
from hoarfrost.experiment.crossval import NESTED
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.report.words import several
from hoarfrost.runs import Run
from hoarfrost.training import TrainingConfig
from tests.benchmarks.extraction import peak_mb
from tests.benchmarks.large import write_large_cache
from tests.benchmarks.measurement import Measurement

SHARED = Path(__file__).parents[3] / "shared"
TRAINED, UNTRAINED = SHARED / "weights" / "resnet18-imagenet.safetensors", "random:0"
BUSI, PNEUMONIA = SHARED / "data" / "busi", SHARED / "data" / "pneumoniamnist.npz"
N_FOLDS, N_REPEATS = 5, 3
N_LARGE = 100_000


@dataclass(frozen=True)
class DataSet:
    """A data set, its positive labels, what is done about near-duplicates, and how often it is divided into folds."""

    name: str
    source: Path
    positive: tuple[str, ...] = ()
    near_duplicates: str = "group"
    repeats: int = N_REPEATS
    demanded: str = ""


def _data_sets(folder: Path) -> Iterator[DataSet]:
    if BUSI.is_dir():
        yield DataSet("BUSI, malignant, near-duplicates together", BUSI, ("malignant",), demanded="0.921 / 0.308")
        yield DataSet(
            "BUSI, malignant, near-duplicates apart", BUSI, ("malignant",), "ignore", demanded="0.944 / 0.265"
        )
        yield DataSet("BUSI, three classes", BUSI)
    if PNEUMONIA.is_file():
        yield DataSet("pneumoniamnist", PNEUMONIA, repeats=1)
    write_demo(folder / "demo")
    yield DataSet("demo, malignant", folder / "demo", ("malignant",))


def nested(folder: Path) -> list[Measurement]:
    """Pooled ROC AUC and log loss of nested cross-validation: what is selected, each kind alone, and each reference."""
    weights = {"ImageNet-trained (CNTK)": str(TRAINED)} if TRAINED.is_file() else {}
    rows = []
    for name, where in (weights | {UNTRAINED: UNTRAINED}).items():
        by_set = {}
        for data in _data_sets(folder):
            repeats = data.repeats if where != UNTRAINED else 1  # untrained weights are no result: once is enough
            runs = [_run(data, where, folder, seed) for seed in range(repeats)]
            by_set[data.name] = found = _areas(runs)
            rows.append(
                Measurement(
                    f"{data.name}, {name}: pooled ROC AUC / log loss, {N_FOLDS} folds, {several(repeats, 'repeat')}",
                    _text(found) + _on_own_test(runs[0]),
                    data.demanded if where != UNTRAINED else "",
                    {
                        f"{what} {key}": value
                        for what, both in found.items()
                        for key, value in zip(KEYS, both, strict=True)
                    },
                )
            )
        rows.append(_mean_over(by_set, name))
    return rows


KEYS = ("AUC", "loss")


@cache
def _cached(source: Path, weights: str, folder: Path, precision: str = "float32") -> Path:
    path = folder / f"{source.stem}-{Path(weights).stem.replace(':', '')}-{precision}.h5"
    extract(source, path, options=ExtractOptions(weights=weights, precision=precision))
    return path


def _run(data: DataSet, weights: str, folder: Path, seed: int, heads: Sequence[str] = (), **options: object) -> Run:
    config = ExperimentConfig(
        positive=data.positive,
        near_duplicates=data.near_duplicates,
        cross_fit=True,
        n_folds=N_FOLDS,
        allow_leakage=True,
        overwrite=True,
        training=TrainingConfig(seed=seed, **options),  # type: ignore[arg-type]
    )
    return run_experiment(_cached(data.source, weights, folder), folder / "run", parse_heads(heads), config)


def _areas(runs: Sequence[Run]) -> dict[str, tuple[float, float]]:
    """Return the mean over repeats of each model's pooled ROC AUC and log loss."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        assert run.cross_validation is not None
        for one in run.cross_validation.results:
            found.setdefault(one.name, []).append((one.pooled.value("roc_auc"), one.pooled.value("loss")))
    return {name: tuple(np.mean(values, axis=0).tolist()) for name, values in found.items()}


def _text(found: Mapping[str, tuple[float, float]]) -> str:
    shown = {name: both for name, both in found.items() if name != "mean"}  # the same as what is selected
    return "; ".join(f"{name} {auc:.4f} / {loss:.3f}" for name, (auc, loss) in shown.items())


def _on_own_test(run: Run) -> str:
    test = run.head(run.selected).test
    if run.config.dataset.split_by.startswith("given") and test is not None:
        others = ", ".join(f"{one.name} {one.test.value('roc_auc'):.4f}" for one in run.references if one.test)
        return f"; on its own test split {test.value('roc_auc'):.4f} / {test.value('loss'):.3f} ({others})"
    return ""


def _mean_over(by_set: Mapping[str, Mapping[str, tuple[float, float]]], weights: str) -> Measurement:
    """Compare what is selected with the references: the mean over data sets, and the largest shortfall on one."""
    names = [name for name in next(iter(by_set.values())) if all(name in found for found in by_set.values())]
    means = {name: float(np.mean([found[name][0] for found in by_set.values()])) for name in names}
    kinds = (NESTED, "mean", "logistic", "mlp:256", "quadratic")
    shortfalls = {
        data: max(auc for name, (auc, _) in found.items() if name not in kinds) - found[NESTED][0]
        for data, found in by_set.items()
    }
    worst = max(shortfalls, key=shortfalls.__getitem__)
    return Measurement(
        f"mean ROC AUC over these data sets, {weights}",
        "; ".join(f"{name} {auc:.4f}" for name, auc in means.items() if name != "mean")
        + f"; largest shortfall against a reference {shortfalls[worst]:+.4f} ({worst})",
        "above every reference; nowhere 0.005 below the best",
        means | {"shortfall": shortfalls[worst]},
    )


VARIED_ON = ("BUSI, malignant, near-duplicates together",) if BUSI.is_dir() else ("demo, malignant",)
VARIED = ("transform=none", "transform=unit", "members=5", "dropout=0", "weight_decay=1")


def defaults(folder: Path) -> list[Measurement]:
    """Each default of `mlp:256` changed alone, by nested cross-validation: pooled ROC AUC / log loss."""
    heads = ["mlp:256", *(f"mlp:256,{change}" for change in VARIED), "mlp:256x6"]
    settings: dict[str, dict[str, object]] = {
        "as they are": {}, "--label-smoothing 0": {"label_smoothing": 0.0}, "--schedule constant": {"schedule": "constant"},
    }  # fmt: skip
    where = str(TRAINED) if TRAINED.is_file() else UNTRAINED
    rows = []
    for data in (one for one in _data_sets(folder) if one.name in VARIED_ON):
        for name, options in settings.items():
            asked = heads if not options else ["mlp:256"]
            found = _areas([_run(data, where, folder, 0, asked, **options)])
            shown = {head: both for head, both in found.items() if head.startswith("mlp")}
            rows.append(Measurement(f"{data.name}, heads {name}", _text(shown), ""))
    return rows


def precisions(folder: Path) -> list[Measurement]:
    """Return the selected head and its test ROC AUC, from embeddings of three precisions."""
    if not (BUSI.is_dir() and TRAINED.is_file()):
        return []
    found = {}
    for precision in ("float32", "bfloat16", "int8"):
        path = _cached(BUSI, str(TRAINED), folder, precision)
        config = ExperimentConfig(positive=("malignant",), overwrite=True)
        run = run_experiment(path, folder / "run", parse_heads([]), config)
        test = run.head(run.selected).test
        assert test is not None
        found[precision] = (run.selected, test.value("roc_auc"))
    areas = [auc for _, auc in found.values()]
    return [
        Measurement(
            "BUSI, malignant: what is selected, and its test ROC AUC, by the precision of the embeddings",
            "; ".join(f"{precision} {name} {auc:.4f}" for precision, (name, auc) in found.items()),
            "the same head, within 0.003",
            {precision: auc for precision, (_, auc) in found.items()} | {"range": max(areas) - min(areas)},
        )
    ]


def times(folder: Path) -> list[Measurement]:
    """Return the seconds of whole `train` processes with the default heads, and the peak memory of a large one."""
    rows = []
    if BUSI.is_dir() and TRAINED.is_file():
        path = _cached(BUSI, str(TRAINED), folder)
        for options, demanded in (((), 10), (("--folds", str(N_FOLDS)), 60)):
            command = [
                "train",
                "--cache",
                str(path),
                "--run",
                str(folder / "timed"),
                "--positive",
                "malignant",
                *options,
            ]
            seconds = [_seconds(command) for _ in range(N_REPEATS)]
            rows.append(
                Measurement(
                    f"`train {' '.join(options)}` on BUSI, default heads, whole process".replace("  ", " ").replace(
                        " `", "`"
                    ),
                    f"{np.median(seconds):.1f} s ({min(seconds):.1f} to {max(seconds):.1f})",
                    f"{demanded} s",
                    {"seconds": float(np.median(seconds))},
                )
            )
    large = write_large_cache(folder / "large.h5", N_LARGE)
    command = ["train", "--cache", str(large), "--run", str(folder / "timed"), "--overwrite"]
    started = time.perf_counter()
    peak = peak_mb("hoarfrost", *command) * 1.048576
    seconds_large = time.perf_counter() - started
    rows.append(
        Measurement(
            f"`train` on {N_LARGE:,} generated embeddings, default heads, whole process",
            f"{seconds_large:.0f} s, peak memory {peak:,.0f} MB",
            "",
            {"seconds": seconds_large, "peak_mb": peak},
        )
    )
    return rows


def _seconds(command: Sequence[str]) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "hoarfrost", *command, "--overwrite"], check=True, capture_output=True)
    return time.perf_counter() - started
