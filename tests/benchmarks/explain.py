"""Whether maps show what they should: the maximum inside a lesion that was planted; how long maps and exports take."""

import time
from pathlib import Path

import torch

from hoarfrost.demo import write_demo
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.decoding.looks import Seen
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.explain import open_explainer
from hoarfrost.inference.export import export_head
from hoarfrost.inference.predict import run_head
from hoarfrost.runs import read_heads
from tests.benchmarks.measurement import Measurement
from tests.support.planted import Hits, demo_phantoms, hits, phantoms_anywhere, train_backbone

N_IMAGES = 480  # of a demo set; three in ten are malignant
SEED_OF_OTHERS = 1  # of the phantoms that maps are made for: no head saw them
SEED_OF_BACKBONE = 100
HEADS = ("linear", "mlp:256", "mlp:256x6")
DECAYED = "linear,weight_decay=300"
PLAN = ((10, 112), (2, 224))
DEMANDED = "3 times chance"


def lesions(folder: Path) -> list[Measurement]:
    """Train heads on the demo set, with an untrained backbone and a trained one; map malignant phantoms of another seed.

    Training the backbone takes a quarter of an hour on two cores.
    """
    write_demo(folder / "demo", n_images=N_IMAGES)
    checkpoint = train_backbone(folder / "phantoms.pth", n_images=2 * N_IMAGES, seed=SEED_OF_BACKBONE, plan=PLAN)
    kinds = {
        "random:0": ("random:0", (*HEADS, DECAYED)),
        "a ResNet18 trained on other phantoms, by their labels alone": (str(checkpoint), HEADS),
    }
    found = []
    for name, (weights, heads) in kinds.items():
        cache, run = folder / f"{len(found)}.h5", folder / f"run{len(found)}"
        extract(folder / "demo", cache, options=ExtractOptions(weights=weights, precision="float32"))
        run_experiment(cache, run, parse_heads(heads), ExperimentConfig(positive=["malignant"]))
        found += [_lesions(run, head, name) for head in heads]
    return found


def _lesions(run: Path, head: str, weights: str) -> Measurement:
    saved = read_heads(run)
    explainer = open_explainer(run_head(saved, head))
    auc = next(one.test.value("roc_auc") for one in saved.heads if one.name == head and one.test is not None)
    own = hits(explainer, list(demo_phantoms(N_IMAGES, SEED_OF_OTHERS, "malignant")), "malignant")
    anywhere = hits(explainer, list(phantoms_anywhere(own.n, SEED_OF_OTHERS)), "malignant")
    return Measurement(
        f"map of `{head}` (test ROC AUC {auc:.3f}), {weights}: its maximum is inside the lesion, {own.n} phantoms",
        f"{_text(own)}; lesions planted anywhere {_text(anywhere)}",
        DEMANDED, {"share": own.share, "by_chance": own.by_chance, "of_others": own.of_others},
    )  # fmt: skip


def _text(found: Hits) -> str:
    return (
        f"{found.share:.0%}, {found.times_chance:.1f} times chance ({found.by_chance:.1%}); of other images' maps "
        f"{found.of_others:.0%}"
    )


def costs(folder: Path) -> list[Measurement]:
    """Time one image's map, and both exports."""
    write_demo(folder / "demo", n_images=120)
    cache, run = folder / "c.h5", folder / "run"
    extract(folder / "demo", cache, options=ExtractOptions(weights="random:0", precision="float32"))
    run_experiment(cache, run, parse_heads(("mlp:256",)), ExperimentConfig(positive=["malignant"]))
    explainer = open_explainer(run_head(read_heads(run)))
    image = Seen([torch.zeros((1, 224, 224), dtype=torch.uint8)], (224, 224))
    seconds = []
    for _ in range(10):
        started = time.perf_counter()
        explainer.explain([image])
        seconds.append(time.perf_counter() - started)
    exported = [
        export_head(run, folder / f"m{suffix}", file_format=kind)
        for kind, suffix in (("onnx", ".onnx"), ("torch", ".pt2"))
    ]
    exports = "; ".join(
        f"{one.format} {one.seconds:.1f} s, {one.bytes / 1e6:.1f} MB, differs by {one.largest_difference:.0e} from torch and "
        f"{one.difference_from_run or 0:.0e} from predictions.csv"
        for one in exported
    )
    return [
        Measurement("map of one image, `mlp:256`, forward pass included", f"{1e3 * sorted(seconds)[5]:.0f} ms", ""),
        Measurement("`export` of `mlp:256` with its backbone", exports, "1e-4"),
    ]


MEASUREMENTS = {"lesions": lesions, "costs": costs}
