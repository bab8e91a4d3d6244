"""A new encoder is one entry of at most 15 lines, from `extract` to the report, maps, an exported model, predictions."""

import inspect
from pathlib import Path

import pytest
from torch import nn

from hoarfrost.demo import write_demo
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.encoder import registry
from hoarfrost.features.encoder.registry import EncoderSpec, Stage
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.explain.dataset import explain_dataset
from hoarfrost.inference.export import export_head
from hoarfrost.inference.predict.dataset import predict_dataset
from hoarfrost.report.outputs import write_report
from hoarfrost.training import TrainingConfig
from tests.support.builders import encode, picture

LONGEST_ENTRY = 15


def small_network() -> nn.Module:
    first, second = nn.Conv2d(3, 16, 7, 4, padding=3), nn.Conv2d(16, 40, 3, 4, padding=1)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def entry() -> EncoderSpec:
    return EncoderSpec(
        name="small",
        title="SmallNet",
        dim=40,
        size=64,
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        build=small_network,
        libraries=("torch",),
        stages=(Stage(1, "1", 16, 4), Stage(2, "3", 40, 16)),
        size_step=16,
    )


def test_one_entry_is_all_that_a_new_encoder_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(inspect.getsource(entry).splitlines()) - 1 <= LONGEST_ENTRY
    monkeypatch.setitem(registry.ENCODERS, "small", entry())
    images, cache, run = tmp_path / "images", tmp_path / "c.h5", tmp_path / "run"
    write_demo(images, n_images=90)
    options = ExtractOptions(
        encoder="small", weights="random:0", precision="float32", layers=(1, 2), views="64,128:flip"
    )
    summary = extract(images, cache, options=options)
    assert (summary.embedded, summary.layers) == (90, (1, 2))
    config = ExperimentConfig(training=TrainingConfig(epochs=3), positive=("malignant",))
    run_experiment(cache, run, parse_heads(["linear"]), config)
    page = write_report(run, with_explanations=True).read_text(encoding="utf-8")
    assert "by a frozen SmallNet up to its global average pooling (56 values)" in page
    assert "ResNet" not in page
    new = tmp_path / "new"
    new.mkdir()
    for i in range(3):
        (new / f"{i}.png").write_bytes(encode(picture(seed=i)))
    predicted = predict_dataset(new, tmp_path / "p.csv", run=run, cache=tmp_path / "new.h5")
    assert (predicted.predicted, predicted.forward_images) == (3, 6)
    explained = explain_dataset(new, tmp_path / "maps", run=run)
    assert explained.explained == 3
    exported = export_head(run, tmp_path / "m.pt2", file_format="torch")
    assert exported.difference_from_run is not None
    assert exported.difference_from_run < 0.02  # a view of another size is resized once more
