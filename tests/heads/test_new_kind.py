"""A new kind of head is one class and one entry: all commands take it, and no other file changes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hoarfrost import open_predictor, train
from hoarfrost.demo import write_demo
from hoarfrost.features.errors import TrainingError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.files import read_head
from hoarfrost.heads.kinds import KINDS
from hoarfrost.heads.specs import cross_heads, parse_head, parse_heads
from hoarfrost.inference.explain.dataset import explain_dataset
from hoarfrost.inference.export.exporting import export_head
from hoarfrost.inference.predict.dataset import predict_dataset
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import read_run
from hoarfrost.training import TrainingConfig
from tests.support.new_kinds import NEW_KINDS

HEADS = ["gelu:8x2,dropout=0.2", "narrow", "kernel,gamma=0.002", "linear"]


@pytest.fixture(autouse=True)
def _new_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    for word, kind in NEW_KINDS.items():
        monkeypatch.setitem(KINDS, word, kind)


def test_its_grammar_is_read_written_and_offered() -> None:
    assert parse_head("gelu:8x1,lr=1e-3,dropout=.5").name == "gelu:8,dropout=0.5"
    assert parse_head("kernel,gamma=0.5,weight_decay=0").name == "kernel,gamma=0.5,weight_decay=0"
    with pytest.raises(TrainingError, match=r"Expected logistic, linear, mlp:.*, narrow, kernel, then options as in"):
        parse_head("forest")
    with pytest.raises(TrainingError, match=r"--head kernel,gamma=0: gamma must be above 0, not 0"):
        parse_head("kernel,gamma=0")


def test_its_own_bounds_hold_and_its_own_options_are_no_others() -> None:
    with pytest.raises(TrainingError, match=r"--head narrow,dropout=0\.9: dropout must be from 0 to 0\.5, not 0\.9"):
        parse_head("narrow,dropout=0.9")
    assert parse_head("mlp:8,dropout=0.9").name == "mlp:8,dropout=0.9"
    with pytest.raises(TrainingError, match=r"--head mlp:8,gamma=2: mlp has no gamma\. Omit it"):
        parse_head("mlp:8,gamma=2")


def test_a_grid_crosses_its_options() -> None:
    names = [spec.name for spec in cross_heads(parse_heads(["kernel", "linear"]), ["gamma=0.1,1"])]
    assert names == ["kernel,gamma=0.1", "kernel,gamma=1", "linear"]


def test_it_goes_the_whole_way_from_training_to_an_exported_model(tmp_path: Path) -> None:
    write_demo(tmp_path / "demo", n_images=60)
    extract(tmp_path / "demo", tmp_path / "c.h5", options=ExtractOptions(weights="random:0", precision="float32"))
    folder = tmp_path / "run"
    train(tmp_path / "c.h5", folder, HEADS, positive=["malignant"], config=TrainingConfig(epochs=4, seeds=2))
    assert [head.name for head in read_run(folder).heads] == [*HEADS, "mean"]
    page = write_report(folder).read_text(encoding="utf-8")
    assert all(head.split(",")[0] in page for head in HEADS)
    x = np.random.default_rng(0).random((3, 512), np.float32)
    for name in HEADS:
        saved = read_head(folder / read_run(folder).head(name).weights_file)
        assert saved.name == name
        assert {(one.spec, one.seed) for one in saved.members} == {(parse_head(name), 0), (parse_head(name), 1)}
        assert np.isfinite(open_predictor(folder, name).predict(x).probabilities).all()
    few = tmp_path / "few"
    few.mkdir()
    for path in sorted((tmp_path / "demo").rglob("*.png"))[:2]:
        shutil.copy(path, few)
    predict_dataset(few, tmp_path / "p.csv", run=folder, head=HEADS[0])
    explain_dataset(few, tmp_path / "maps", run=folder, head=HEADS[0])
    exported = export_head(folder, tmp_path / "model.onnx", file_format="onnx", head=HEADS[0])
    assert exported.head == HEADS[0]
    assert json.loads((folder / "metrics.json").read_text())["heads"][0]["dropout"] == 0.2
