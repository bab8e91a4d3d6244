"""An exported model gives what the run predicts, says of itself what its user needs, and is whole or not there."""

import json
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from hoarfrost.demo import write_demo
from hoarfrost.evaluation import apply_temperature
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.encoder.backbone import Backbone, load_weights
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.features.extraction.recipes import recipe_like
from hoarfrost.heads.files import SavedHead
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.export import export_head
from hoarfrost.inference.export import exporting as exporting_module
from hoarfrost.inference.export.card import model_card
from hoarfrost.inference.export.formats import OPSET, run_onnx, run_torch
from hoarfrost.inference.export.metadata import calibrated_threshold, metadata_of, operating_points
from hoarfrost.inference.export.model import Classifier
from hoarfrost.inference.predict import Predictor, run_head
from hoarfrost.runs import Run, read_heads, read_run, to_json
from hoarfrost.training import TrainingConfig
from tests.support.builders import write_csv
from tests.support.commands import ROOT, Hoarfrost
from tests.support.saved_heads import member, members, saved_head

Pixels = npt.NDArray[np.uint8]
Reported = Callable[[str], Run]

RUN_ALONE = """
import json, sys
import numpy, onnxruntime
assert not {"torch", "hoarfrost", "pipeline", "features"} & set(sys.modules)
session = onnxruntime.InferenceSession(sys.argv[1])
images = numpy.load(sys.argv[2])
found = [[output.tolist() for output in session.run(None, {"images": images[:n]})] for n in (1, 7)]
print(json.dumps({"found": found, "metadata": session.get_modelmeta().custom_metadata_map}))
"""


@pytest.fixture(scope="module")
def run(reported: Reported) -> Run:
    return reported("demo")


@pytest.fixture(scope="module")
def onnx_file(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the selected head of the demo run."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_head(run.directory, path, file_format="onnx")
    return path


@pytest.fixture(scope="module")
def torch_file(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Export the linear head of the demo run."""
    path = tmp_path_factory.mktemp("torch") / "model.pt2"
    summary = export_head(run.directory, path, file_format="torch", head="linear")
    assert summary.opset is None
    assert summary.difference_from_run is not None
    assert summary.difference_from_run < 1e-4
    return path


def saved(run: Run, name: str | None = None) -> SavedHead:
    return run_head(read_heads(run.directory), name)


def split_images(run: Run, n: int = 7) -> tuple[Pixels, list[int]]:
    """Return images of the test split, (n, 3, 224, 224), and their rows in predictions.csv."""
    rows = [i for i, split in enumerate(run.predictions.splits) if split == "test"][:n]
    folder = run.directory.parent / "demo"
    images = [load_image((folder / run.predictions.paths[i]).read_bytes()).expand(3, -1, -1) for i in rows]
    return torch.stack(images).numpy(), rows


# -- the same probabilities ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 7])
def test_onnx_gives_the_runs_own_probabilities(run: Run, onnx_file: Path, n: int) -> None:
    images, rows = split_images(run)
    calibrated, uncalibrated = run_onnx(onnx_file.read_bytes(), images[:n])
    own = run.predictions.probabilities[run.selected][rows[:n]]
    np.testing.assert_allclose(uncalibrated, own, rtol=0, atol=1e-4)
    temperature = saved(run).validated[0].temperatures[0]
    np.testing.assert_allclose(calibrated, apply_temperature(own, temperature), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_torch_gives_the_runs_own_probabilities(run: Run, torch_file: Path) -> None:
    images, rows = split_images(run)
    for n in (1, 7):
        uncalibrated = run_torch(torch_file.read_bytes(), images[:n])[1]
        np.testing.assert_allclose(uncalibrated, run.predictions.probabilities["linear"][rows[:n]], rtol=0, atol=1e-4)
    extra = {"metadata.json": ""}
    torch.export.load(str(torch_file), extra_files=extra)
    assert json.loads(extra["metadata.json"]) == metadata_of(run, saved(run, "linear"))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Train on three classes, and on labels of which an image may have several, two seeds each."""
    folder = tmp_path_factory.mktemp("kinds")
    write_demo(folder / "demo", n_images=48)
    header, *rows = [line.split(",") for line in (folder / "demo" / "labels.csv").read_text().split()]
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (len(rows), 2)).astype(str).tolist()
    write_csv(
        folder / "demo" / "labels.csv", [[*header, "mass", "a|b"], *(r + m for r, m in zip(rows, labels, strict=True))]
    )
    extract(folder / "demo", folder / "c.h5", options=ExtractOptions(weights="random:0", precision="float32"))
    config, heads = TrainingConfig(epochs=3, seeds=2), parse_heads(["linear", "mlp:8x2"])
    return {
        "classes": run_experiment(folder / "c.h5", folder / "classes", heads, ExperimentConfig(training=config)),
        "labels": run_experiment(
            folder / "c.h5", folder / "labels", heads, ExperimentConfig(training=config, label_columns=("mass", "a|b"))
        ),
    }


@pytest.mark.parametrize("head", ["linear", "mlp:8x2"])
@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_the_module_predicts_what_predict_does(kinds: dict[str, Run], kind: str, head: str) -> None:
    run = read_run(kinds[kind].directory)
    one, (images, rows) = saved(run, head), split_images(run)
    weights = recipe_like(one.header)[0].checked_weights()
    calibrated, uncalibrated = (found.numpy() for found in Classifier(weights, one)(torch.from_numpy(images)))
    embeddings = Backbone(weights).embed(torch.from_numpy(images)).numpy()
    wanted = Predictor(one).predict(embeddings)
    np.testing.assert_allclose(uncalibrated, wanted.probabilities, rtol=0, atol=1e-5)
    np.testing.assert_allclose(calibrated, wanted.calibrated, rtol=0, atol=1e-5)
    np.testing.assert_allclose(uncalibrated, run.predictions.probabilities[head][rows], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "labels"])
def test_onnx_of_several_classes_and_labels_gives_the_runs_own(
    kinds: dict[str, Run], tmp_path: Path, kind: str
) -> None:
    run = read_run(kinds[kind].directory)
    summary = export_head(run.directory, tmp_path / "m.onnx", file_format="onnx", head="mlp:8x2")
    images, rows = split_images(run)
    _, uncalibrated = run_onnx((tmp_path / "m.onnx").read_bytes(), images)
    np.testing.assert_allclose(uncalibrated, run.predictions.probabilities["mlp:8x2"][rows], rtol=0, atol=1e-4)
    assert summary.classes == saved(run).names


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
def test_probabilities_near_zero_are_calibrated_as_predict_does(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    one = saved_head([member("linear")])
    fixed = replace(one.validated[0], temperatures=(temperature,))
    classifier = Classifier(load_weights("random:0"), replace(one, validated=(fixed,)))
    logits = torch.tensor([[0.0, 30.0], [0.0, -95.0], [0.3, 0.1], [2.0, 2.0]])
    monkeypatch.setattr(classifier.backbone, "forward", lambda images: images)
    monkeypatch.setattr(classifier.committee, "members", torch.nn.ModuleList([torch.nn.Identity()]))
    found = classifier(logits)[0].double().numpy()
    p = logits.double().softmax(1).numpy()
    np.testing.assert_allclose(found, apply_temperature(p, temperature), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_half_precision_is_exported_in_float32_and_says_so(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    write_demo(tmp_path / "demo", n_images=60)
    options = ExtractOptions(weights="random:0", precision="bfloat16")
    extract(tmp_path / "demo", tmp_path / "c.h5", options=options)
    run_experiment(
        tmp_path / "c.h5",
        tmp_path / "run",
        parse_heads(["linear"]),
        ExperimentConfig(training=TrainingConfig(epochs=3)),
    )
    done = hoarfrost("export", "--run", tmp_path / "run", "--format", "torch", "--output", tmp_path / "m.pt2", "--json")
    assert done.status == 0, done.stderr
    summary = json.loads(done.stdout)
    assert any("computes in float32. The head was trained on embeddings in bfloat16" in n for n in summary["notes"])
    assert 1e-6 < summary["difference_from_run"] < 0.2
    assert "trained on embeddings of another precision" in (tmp_path / "model_card.md").read_text(encoding="utf-8")
    metadata = metadata_of(read_run(tmp_path / "run"), run_head(read_heads(tmp_path / "run")))
    assert (metadata["embeddings_precision"], metadata["exported_precision"]) == ("bfloat16", "float32")


@pytest.mark.slow
def test_onnx_runs_where_neither_torch_nor_hoarfrost_is_installed(run: Run, onnx_file: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "onnxruntime", "numpy"]
    installed = subprocess.run(pip, capture_output=True, text=True, timeout=250)
    if installed.returncode:
        pytest.skip(f"pip cannot install onnxruntime here: {installed.stderr.strip().splitlines()[-1:]}")
    images, rows = split_images(run)
    np.save(tmp_path / "images.npy", images)
    command = [python, "-I", "-c", RUN_ALONE, onnx_file, tmp_path / "images.npy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    own = run.predictions.probabilities[run.selected][rows]
    for n, (_, uncalibrated) in zip((1, 7), document["found"], strict=True):
        np.testing.assert_allclose(uncalibrated, own[:n], rtol=0, atol=1e-4)
    assert json.loads(document["metadata"]["classes"]) == list(saved(run).names)


# -- what it says of itself ---------------------------------------------------------------------------------------------


def test_onnx_says_how_to_feed_it_and_what_its_numbers_mean(run: Run, onnx_file: Path) -> None:
    import onnx

    model = onnx.load(onnx_file)
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert found == metadata_of(run, saved(run))
    assert json.loads(found["classes"]) == ["benign + normal", "malignant"]
    assert found["fingerprint"] == run.config.embeddings.fingerprint
    assert found["use"] == model.doc_string == "Research use only. Not a medical device."
    assert json.loads(found["preprocessing"])["resize"] == [224, 224]
    assert run.assessment is not None
    youden = json.loads(found["operating_points"])[0]
    assert youden["class"] == "malignant"
    assert model.opset_import[0].version == OPSET
    (images,) = model.graph.input
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert images.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [output.name for output in model.graph.output] == ["probabilities", "uncalibrated"]


def test_a_threshold_calls_the_same_images_before_and_after_calibration(run: Run) -> None:
    one = saved(run)
    temperature = one.validated[0].temperatures[0]
    p = run.predictions.probabilities[one.name]
    for point in operating_points(one):
        before = p[:, 1] >= point["threshold_uncalibrated"]
        after = apply_temperature(p, temperature)[:, 1] >= point["threshold"]
        assert (before == after).mean() > 0.99  # one that is at the threshold may round to its other side
    assert calibrated_threshold(0.5, 3.0) == pytest.approx(0.5)


@pytest.mark.slow
def test_files_name_no_folder_of_this_machine(run: Run, onnx_file: Path, torch_file: Path) -> None:
    for path in (onnx_file, onnx_file.with_name("model_card.md"), torch_file):
        content = path.read_bytes()
        for place in (ROOT, run.directory, Path(sys.prefix)):
            assert str(place).encode() not in content


def test_model_card_tells_the_runs_facts_and_names_no_image_and_no_patient(run: Run, onnx_file: Path) -> None:
    card = onnx_file.with_name("model_card.md").read_text(encoding="utf-8")
    assert card.startswith(
        "# Model card: malignant against benign + normal\n\n**Research use only. Not a medical device.**"
    )
    scores = to_json(run.head(run.selected).test)
    assert f"{scores['roc_auc']:.3f}" in card
    assert "roc_auc_ci95" not in scores
    assert scores["roc_auc_ci95_method"].startswith("too few patients for an interval")
    assert scores["roc_auc_ci95_method"] in card
    for title in (
        "Intended use",
        "How to use it",
        "Data",
        "Thresholds",
        "Subgroups",
        "Cautions",
        "Limits",
        "How it was made",
    ):
        assert f"\n## {title}\n" in card
    assert "Leakage** between splits: 0 patients" in card
    for point in operating_points(saved(run)):
        numbers = f"{point['threshold']:.6g} | {point['threshold_uncalibrated']:.6g}"
        assert f"| {numbers} | {point['validation_sensitivity']:.3f} | {point['validation_specificity']:.3f} |" in card
    assert "untrained" in card.lower()
    assert not [path for path in run.predictions.paths if path in card]
    assert not [patient for patient in set(run.predictions.patients) if f"{patient} " in card]


def test_model_card_names_the_members_and_their_shares(run: Run) -> None:
    of_two_kinds = members(["logistic,C=0.01", "mlp:16", "mlp:16"])
    card = model_card(run, replace(saved(run), members=of_two_kinds), "m.onnx", ["Made."])
    assert "| members | 3, whose probabilities are averaged: 1 x logistic (17%), 2 x mlp:16 (83%) |" in card


def test_model_card_of_another_head_has_that_heads_scores_alone(run: Run) -> None:
    other = next(head for head in run.heads if head.name != run.selected)
    card = model_card(run, saved(run, other.name), "m.onnx", ["Made."])
    assert f"no, the run selected {run.selected}" in card
    assert other.test is not None
    assert f"| {other.test.value('roc_auc'):.3f} |" in card
    assert "Results on the test split" not in card


def test_model_card_quotes_hostile_labels_as_text(run: Run) -> None:
    hostile = ("<script>alert(1)</script>", "a|b\n# no\n[x](y)")
    facts = replace(run.config.dataset, name=hostile[0])
    card = model_card(
        replace(run, config=replace(run.config, dataset=facts)), replace(saved(run), names=hostile), "m", []
    )
    assert "<script" not in card
    assert "a\\|b # no \\[x](y)" in card


def test_the_cards_code_runs(run: Run, onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = onnx_file.with_name("model_card.md").read_text(encoding="utf-8")
    monkeypatch.chdir(onnx_file.parent)
    names = {"images": split_images(run)[0]}
    exec(card.partition("```python\n")[2].partition("```")[0], names)
    assert names["probabilities"].shape == (7, 2)


# -- what cannot be exported --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "options", "said"),
    [
        ("m.onnx", ["--head", "mlp:7"], "has no such head. Its heads: linear, mlp:64"),
        ("m.onnx", ["--weights", "random:1"], "weights (SHA-256)"),
        ("m.onnx", ["--weights", "gone.pth"], "no such file"),
        ("m.pt2", [], "--format onnx writes a .onnx file"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_written(
    run: Run, tmp_path: Path, hoarfrost: Hoarfrost, output: str, options: list[str], said: str
) -> None:
    done = hoarfrost("export", "--run", run.directory, "--format", "onnx", "--output", tmp_path / output, *options)
    assert done.status == 1
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_missing_libraries_are_named_with_the_way_to_get_them(
    run: Run, tmp_path: Path, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "onnxscript" else object())
    done = hoarfrost("export", "--run", run.directory, "--format", "onnx", "--output", tmp_path / "m.onnx")
    assert done.status == 1
    assert "--format onnx needs onnxscript. Install it: pip install 'hoarfrost[onnx]'" in done.stderr


def test_a_damaged_run_is_named(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    (tmp_path / "run").mkdir()
    done = hoarfrost("export", "--run", tmp_path / "run", "--format", "torch", "--output", tmp_path / "m.pt2")
    assert done.status == 1
    assert "is not a run folder (config.json is missing)" in done.stderr


@pytest.mark.usefixtures("quick_torch")
def test_another_models_card_is_replaced_and_other_files_of_that_name_are_not(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting_module, "_difference_from_run", lambda *_: (None, 0, []))
    card = tmp_path / "model_card.md"
    card.write_text("# My own notes\n")
    with pytest.raises(Exception, match="is not a model card of hoarfrost, and would be overwritten"):
        export_head(run.directory, tmp_path / "m.pt2", file_format="torch")
    assert card.read_text() == "# My own notes\n"
    card.write_text("# Model card: of an earlier export\n")
    export_head(run.directory, tmp_path / "m.pt2", file_format="torch")
    assert "malignant" in card.read_text(encoding="utf-8")
    export_head(run.directory, tmp_path / "m.pt2", file_format="torch")  # the same model again


@pytest.mark.usefixtures("quick_torch")
def test_card_of_a_model_that_stays_is_not_replaced_by_anothers(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting_module, "_difference_from_run", lambda *_: (None, 0, []))
    export_head(run.directory, tmp_path / "m.pt2", file_format="torch")
    before = (tmp_path / "model_card.md").read_bytes()
    with pytest.raises(
        HoarfrostError, match=r"is the card of another model there \(m\.pt2\), and would be overwritten"
    ):
        export_head(run.directory, tmp_path / "other.pt2", file_format="torch")
    assert (tmp_path / "model_card.md").read_bytes() == before
    assert not (tmp_path / "other.pt2").exists()


@pytest.fixture
def quick_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports cost little: what is written is not what is tested."""
    monkeypatch.setattr(exporting_module.formats, "exported_program", lambda classifier: classifier)
    monkeypatch.setattr(exporting_module.formats, "torch_bytes", lambda *_: b"model")
    monkeypatch.setattr(exporting_module, "_largest_difference", lambda *_: 0.0)


@pytest.mark.usefixtures("quick_torch")
def test_a_full_disk_leaves_no_half_a_model(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting_module, "_difference_from_run", lambda *_: (None, 0, []))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(
        Exception, match="No space left on device. Free space on the disk, or name another file with --output"
    ):
        export_head(run.directory, tmp_path / "m.pt2", file_format="torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick_torch")
def test_a_model_that_differs_from_the_runs_predictions_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = np.full((8, 2), 0.5, np.float32)
    monkeypatch.setattr(exporting_module.formats, "run_torch", lambda _, images: [wrong[: len(images)]] * 2)
    with pytest.raises(Exception, match="differs by .* from the run's own predictions, more than 0.0001"):
        export_head(run.directory, tmp_path / "m.pt2", file_format="torch")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("quick_torch")
def test_without_the_runs_images_it_says_what_was_not_compared(run: Run, tmp_path: Path) -> None:
    images = run.directory.parent / "demo"
    images.rename(tmp_path / "moved")
    try:
        summary = export_head(run.directory, tmp_path / "out" / "m.pt2", file_format="torch")
    finally:
        (tmp_path / "moved").rename(images)
    assert (summary.difference_from_run, summary.n_compared) == (None, 0)
    assert "Not compared with the run's own predictions" in summary.notes[0]


def test_a_model_that_differs_from_torch_is_refused(run: Run) -> None:
    one = saved(run, "linear")
    classifier = Classifier(load_weights("random:0"), one)
    wrong = [np.full((7, 2), 0.5, np.float32)] * 2
    with pytest.raises(Exception, match="Nothing was written. Use the other --format"):
        exporting_module._largest_difference(classifier, b"", lambda _, images: [each[: len(images)] for each in wrong])
