"""Views and layers: what more looks at an image give, and what they cost."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from hoarfrost.demo import write_demo
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.datasets import TableOptions, read_dataset
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import DEFAULT_HEADS, parse_heads
from hoarfrost.runs import Run, ViewsResult
from tests.benchmarks.measurement import Measurement
from tests.benchmarks.nested import BUSI, N_FOLDS, PNEUMONIA, TRAINED, UNTRAINED

LAYERS = ("4", "3+4", "2+3+4")
THREE = "224,224:flip,224:crop"
N_TIMED, N_ROUNDS = 390, 3


@dataclass(frozen=True)
class Compared:
    """A data set, the views that are cached of it, and what is done about near-duplicates."""

    name: str
    source: Path
    views: str
    positive: tuple[str, ...] = ()
    near_duplicates: str = "group"
    demanded: str = ""
    heads: tuple[str, ...] = DEFAULT_HEADS


def busi(folder: Path) -> list[Measurement]:
    """Measure what views give on BUSI, with near-duplicates together and apart."""
    if not BUSI.is_dir():
        return []
    together = Compared("BUSI, near-duplicates together", BUSI, "high", ("malignant",), "group", "0.945 / 0.268")
    apart = Compared("BUSI, near-duplicates apart", BUSI, "high", ("malignant",), "ignore", "0.960 / 0.240")
    return _gains([together, apart], folder, (3, 4))


def layers(folder: Path) -> list[Measurement]:
    """Measure what layers give on BUSI, with one look."""
    if not BUSI.is_dir():
        return []
    name = "BUSI, near-duplicates together, one look, layers"
    compared = [
        Compared(
            f"{name} {chosen.replace('+', ', ')}",
            BUSI,
            "224",
            ("malignant",),
            heads=tuple(f"{head},layers={chosen}" for head in DEFAULT_HEADS),
        )
        for chosen in LAYERS
    ]
    return _gains(compared, folder, (2, 3, 4))


def demo(folder: Path) -> list[Measurement]:
    """Measure what views give on the demo set."""
    write_demo(folder / "demo")
    return _gains([Compared("demo", folder / "demo", "high", ("malignant",))], folder, (3, 4))


def pneumonia(folder: Path) -> list[Measurement]:
    """Measure what views give on pneumoniamnist, whose images have 28 x 28 pixels."""
    if not PNEUMONIA.is_file():
        return []
    return _gains([Compared("pneumoniamnist", PNEUMONIA, f"{THREE},448")], folder, (3, 4))


def _gains(compared: Sequence[Compared], folder: Path, cached: tuple[int, ...]) -> list[Measurement]:
    """Return pooled ROC AUC and log loss of nested cross-validation, by sets of views and layers, all choices inside."""
    weights = str(TRAINED) if TRAINED.is_file() else UNTRAINED
    rows = []
    for data in compared:
        run = _nested(data, weights, folder, cached)
        assert run.cross_validation is not None
        pooled = {one.name: one.pooled for one in run.cross_validation.results}
        chosen, rival = next(iter(pooled.values())), pooled["support vector machine"]
        auc, loss = chosen.value("roc_auc"), chosen.value("loss")
        parts = [f"{auc:.4f} / {loss:.3f} as chosen", *map(_text, run.views.results if run.views is not None else ())]
        beside = (
            f"support vector machine on the mean embedding {rival.value('roc_auc'):.4f} / {rival.value('loss'):.3f}"
        )
        rows.append(
            Measurement(
                f"{data.name}: pooled ROC AUC / log loss, {N_FOLDS} folds",
                "; ".join([*parts, beside]),
                data.demanded,
                {"auc": auc, "loss": loss},
            )
        )
    return rows


def _nested(data: Compared, weights: str, folder: Path, cached: tuple[int, ...]) -> Run:
    config = ExperimentConfig(
        positive=data.positive, near_duplicates=data.near_duplicates, cross_fit=True, n_folds=N_FOLDS,
        allow_leakage=True, overwrite=True,
    )  # fmt: skip
    return run_experiment(
        _cached(data.source, data.views, weights, folder, cached), folder / "run", parse_heads(data.heads), config
    )


@cache
def _cached(source: Path, views: str, weights: str, folder: Path, layers: tuple[int, ...]) -> Path:
    path = folder / f"{source.stem}.h5"
    extract(source, path, options=ExtractOptions(weights=weights, precision="float32", views=views, layers=layers))
    return path


def _text(one: ViewsResult) -> str:
    sizes = sorted({name.partition(":")[0] for name in one.views}, key=int)
    times = f" (chosen {one.n_chosen} times)" if one.n_chosen else ""
    return f"{len(one.views)} at {' and '.join(sizes)} {one.roc_auc:.4f} / {one.loss:.3f}{times}"


def costs(folder: Path) -> list[Measurement]:
    """Time extractions of the same images with several views, by turns."""
    images = BUSI if BUSI.is_dir() else write_demo(folder / "images", n_images=N_TIMED).directory
    source, table = _some(images, folder), TableOptions(image_root=images)
    asked = {"one look": "224", "three at 224": THREE, "one at 448": "448"}
    rows = []
    for precision in ("float32", "bfloat16", "int8"):
        seconds: dict[str, list[float]] = {name: [] for name in asked}
        for number in range(N_ROUNDS):
            for name, views in asked.items():
                path = folder / f"{precision}-{name}-{number}.h5"
                options = ExtractOptions(weights=UNTRAINED, precision=precision, views=views, table=table)
                seconds[name].append(extract(source, path, options=options).seconds)
        one = np.array(seconds["one look"])
        ratios = {name: float(np.median(np.array(found) / one)) for name, found in seconds.items()}
        rows.append(
            Measurement(
                f"`extract --views` of {N_TIMED} images, {precision}, against one look at 224",
                f"three looks at 224 {ratios['three at 224']:.2f} times, one at 448 {ratios['one at 448']:.2f} times "
                f"({N_TIMED / np.median(one):.0f} images/s with one look)",
                "2.7 times, 4.2 times",
                {"three": ratios["three at 224"], "large": ratios["one at 448"]},
            )
        )
    return rows


def _some(source: Path, folder: Path) -> Path:
    """Write a CSV of images from all over a folder."""
    dataset = read_dataset(source)
    places: Sequence[int] = np.linspace(0, len(dataset) - 1, N_TIMED).astype(int).tolist()
    path = folder / "some.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        writer.writerows((dataset.paths[place], dataset.labels[place]) for place in places)
    return path


MEASUREMENTS = {"busi": busi, "layers": layers, "demo": demo, "pneumonia": pneumonia, "costs": costs}
