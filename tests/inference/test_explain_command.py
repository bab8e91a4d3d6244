"""`explain` on the command line, and its maps in the report."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hoarfrost.cli.console.summaries import explain_text
from hoarfrost.demo import write_demo
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.explain import dataset as dataset_module
from hoarfrost.inference.explain import explain_dataset, open_explainer
from hoarfrost.inference.explain.drawing import Shown, card
from hoarfrost.inference.predict import run_head
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Run, read_heads
from tests.support.builders import encode, picture, write_csv, write_npz
from tests.support.commands import Hoarfrost
from tests.support.dicoms import dicom, encoded, grey_values
from tests.support.planted import hits, phantoms_anywhere

Reported = Callable[[str], Run]


# -- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(reported: Reported) -> Run:
    return reported("demo")


def some_paths(run: Run, n: int, split: str = "test") -> list[str]:
    return [path for path, of in zip(run.predictions.paths, run.predictions.splits, strict=True) if of == split][:n]


def images_of(run: Run) -> Path:
    return run.directory.parent / "demo"


def folder_of(run: Run, paths: list[str], folder: Path) -> Path:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes((images_of(run) / path).read_bytes())
    return folder


def test_explain_writes_a_picture_an_image_and_numbers_that_are_the_runs(
    run: Run, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    paths = some_paths(run, 5)
    data, out, sheet = folder_of(run, paths, tmp_path / "data"), tmp_path / "out", tmp_path / "sheets" / "s.png"
    done = hoarfrost("explain", data, "--run", run.directory, "--output", out, "--contact-sheet", sheet, "--json")
    assert done.status == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((out / "explanations.json").read_text(encoding="utf-8"))
    assert sorted(one["path"] for one in document["explanations"]) == sorted(paths)
    assert {path.name for path in out.iterdir()} == {
        "explanations.json",
        *(o["file"] for o in document["explanations"]),
    }
    place = {path: i for i, path in enumerate(run.predictions.paths)}
    of_run = run.predictions.probabilities[run.selected]
    for one in document["explanations"]:
        found = list(one["probabilities"].values())
        assert found == pytest.approx(of_run[place[one["path"]]].tolist(), abs=1e-5)
        assert one["subject"] == "malignant"
        assert one["label"] == run.predictions.labels[place[one["path"]]]
        assert np.sum(one["map"]) == pytest.approx(one["evidence"])
        with Image.open(out / one["file"]) as image:
            assert image.format == "PNG"
            assert not image.info
    with Image.open(sheet) as image:
        assert image.width > 500


def test_captions_have_file_name_true_label_and_predicted_class_with_probability(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[Shown] = []
    monkeypatch.setattr(dataset_module, "card", lambda one: shown.append(one) or card(one))
    paths = some_paths(run, 6)
    data = folder_of(run, paths, tmp_path / "data")
    (data / "x-unknown.png").write_bytes(encode(picture(), "PNG"))
    summary = explain_dataset(data, tmp_path / "out", run=run.directory)
    assert {one.called for one in summary.explanations} == {"malignant", "benign + normal"}
    for one, lines in zip(summary.explanations, (each.lines for each in shown), strict=True):
        p = one.calibrated["malignant"]
        of_positive = "" if one.called == "malignant" else " of malignant"
        label = [] if one.path == "x-unknown.png" else [f"true label: {one.label}"]
        assert list(lines) == [one.path, *label, f"predicted: {one.called}, probability{of_positive} {p:.3f}"]
        true = "" if one.path == "x-unknown.png" else f", true label {one.label}"
        assert f"  {one.path}: malignant {p:.3f}, predicted {one.called}{true}; nearest: " in explain_text(summary)


def test_a_linear_heads_evidence_is_the_logarithm_of_the_odds(run: Run, tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    data = images_of(run) / some_paths(run, 1)[0]
    done = hoarfrost("explain", data, "--run", run.directory, "--head", "linear", "--output", tmp_path / "o", "--json")
    (one,) = json.loads(done.stdout)["explanations"]
    p = one["probabilities"]["malignant"]
    assert one["evidence"] == pytest.approx(np.log(p / (1 - p)), abs=1e-4)


def test_examples_are_training_images_of_other_patients_the_nearest_first(
    run: Run, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    splits, patients = (
        dict(zip(run.predictions.paths, column, strict=True))
        for column in (run.predictions.splits, run.predictions.patients)
    )
    path = next(p for p in some_paths(run, 99, "train") if list(patients.values()).count(patients[p]) > 1)
    rows = [["path", "patient"], [path, patients[path]]]
    csv = write_csv(folder_of(run, [path], tmp_path / "data") / "one.csv", rows)
    done = hoarfrost("explain", csv, "--run", run.directory, "--output", tmp_path / "o", "--examples", 10, "--json")
    assert done.status == 0, done.stderr
    nearest = json.loads(done.stdout)["explanations"][0]["nearest"]
    assert len(nearest) == 10
    assert {splits[one["path"]] for one in nearest} == {"train"}
    assert patients[path] not in {patients[one["path"]] for one in nearest}
    assert [one["distance"] for one in nearest] == sorted(one["distance"] for one in nearest)


def test_rows_of_an_npz_and_bad_files_are_taken_as_predict_takes_them(
    run: Run, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    write_npz(tmp_path / "m.npz", {"test": 3})
    done = hoarfrost("explain", tmp_path / "m.npz", "--run", run.directory, "--output", tmp_path / "npz", "--json")
    document = json.loads(done.stdout)
    assert document["explained"] == 3
    assert [one["label"] for one in document["explanations"]] == [None] * 3
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "good.png").write_bytes(encode(picture(), "PNG"))
    (tmp_path / "mixed" / "cut.png").write_bytes(encode(picture(), "PNG")[:200])
    done = hoarfrost("explain", tmp_path / "mixed", "--run", run.directory, "--output", tmp_path / "mixed-out")
    assert done.status == 0
    assert "1 of 2 images explained" in done.stdout
    assert "cut.png: damaged or truncated" in done.stdout
    assert "untrained encoder" in done.stdout
    assert "Research use only" in done.stdout


def test_frames_of_a_dicom_file_are_explained_and_its_patient_is_in_no_product(
    run: Run, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    frames = np.stack([grey_values(seed=seed) for seed in range(2)])
    (tmp_path / "IM0001").write_bytes(encoded(dicom(frames, bits=12, PatientName="Doe^Jane", PatientID="ID-77")))
    done = hoarfrost("explain", tmp_path / "IM0001", "--run", run.directory, "--output", tmp_path / "o", "--json")
    assert done.status == 0, done.stderr
    assert [one["path"] for one in json.loads(done.stdout)["explanations"]] == ["IM0001#frame=1", "IM0001#frame=2"]
    for product in (tmp_path / "o").iterdir():
        assert not [name for name in (b"Doe", b"Jane", b"ID-77") if name in product.read_bytes()]


def test_another_class_is_mapped_where_it_is_asked_for(run: Run) -> None:
    explainer = open_explainer(run_head(read_heads(run.directory)))
    _, seen = explainer.prepared((images_of(run) / some_paths(run, 1)[0]).read_bytes())
    of_positive, of_other = (explainer.explain([seen], number)[0] for number in (1, 0))
    np.testing.assert_allclose(of_positive.cells, -of_other.cells, atol=1e-12)
    assert of_other.subject == explainer.predictor.names[0]
    with pytest.raises(HoarfrostError, match="--class cyst: .* has no such class. Its classes: .*malignant"):
        explainer.class_number("cyst")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--head", "mlp:7"], "has no such head. Its heads: linear, mlp:64"),
        (["--class", "cyst"], "has no such class. Its classes: "),
        (["--weights", "random:1"], "weights (SHA-256)"),
        (["--weights", "gone.pth"], "no such file"),
    ],
)
def test_what_cannot_be_explained_is_said_and_nothing_is_written(
    run: Run, tmp_path: Path, hoarfrost: Hoarfrost, options: list[str], said: str
) -> None:
    data = images_of(run) / some_paths(run, 1)[0]
    done = hoarfrost("explain", data, "--run", run.directory, "--output", tmp_path / "out", *options)
    assert done.status == 1
    assert said in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_left_alone(run: Run, tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = hoarfrost("explain", images_of(run), "--run", run.directory, "--output", tmp_path)
    assert done.status == 1
    assert "exists and is not an empty folder. Nothing was written" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_unreadable_images_alone_leave_no_folder(run: Run, tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "no.png").write_bytes(b"no image")
    done = hoarfrost("explain", tmp_path / "data", "--run", run.directory, "--output", tmp_path / "out")
    assert done.status == 1
    assert "none of the 1 images could be read" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_disk_that_is_full_leaves_no_folder(
    run: Run, tmp_path: Path, hoarfrost: Hoarfrost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hoarfrost.inference.explain.dataset.encode_png", full)
    data = images_of(run) / some_paths(run, 1)[0]
    done = hoarfrost("explain", data, "--run", run.directory, "--output", tmp_path / "out")
    assert done.status == 1
    assert "No space left on device. Free space on the disk, or name another folder" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_the_runs_cache_maps_are_made_and_examples_left_out(
    run: Run, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    cache, data = run.directory.parent / "demo.h5", images_of(run) / some_paths(run, 1)[0]
    cache.rename(tmp_path / "moved.h5")
    try:
        done = hoarfrost("explain", data, "--run", run.directory, "--output", tmp_path / "out", "--json")
    finally:
        (tmp_path / "moved.h5").rename(cache)
    document = json.loads(done.stdout)
    assert done.status == 0
    assert document["explanations"][0]["nearest"] == []
    assert "Skipped the nearest training images and the true labels. The cache" in document["notes"][0]
    assert document["notes"][0] in done.stderr


# -- in the report ------------------------------------------------------------------------------------------------------


def test_report_shows_the_errors_with_maps_where_they_are_asked_for(run: Run, tmp_path: Path) -> None:
    with_maps, without = tmp_path / "with.html", tmp_path / "without.html"
    write_report(run.directory, output=with_maps, with_explanations=True)
    write_report(run.directory, output=without)
    html = with_maps.read_text(encoding="utf-8")
    p, split = run.predictions.probabilities[run.selected], np.array(run.predictions.splits)
    assert run.assessment is not None
    threshold = run.assessment.classes[0].points[0].point.threshold
    assert threshold is not None
    n_errors = min(12, int(((p[:, 1] >= threshold) != run.y_true())[split == "test"].sum()))
    assert n_errors > 0
    assert html.count('alt="Map of malignant in ') == n_errors
    assert "for malignant</span>" in html
    assert "Map of malignant in" not in without.read_text(encoding="utf-8")
    assert with_maps.stat().st_size - without.stat().st_size < 20_000 * n_errors


@pytest.mark.parametrize("options", [["--no-images"], ["--run", "other", "--output", "x.html"]])
def test_report_with_maps_and_without_images_or_of_several_runs_is_no_report(
    tmp_path: Path, hoarfrost: Hoarfrost, options: list[str]
) -> None:
    assert hoarfrost("report", "--run", tmp_path, "--explain", *options).status == 2


def test_report_with_maps_says_where_the_weights_are_missing(run: Run, tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    out = tmp_path / "r.html"
    done = hoarfrost("report", "--run", run.directory, "--explain", "--weights", tmp_path / "gone.pth", "--output", out)
    assert done.status == 1
    assert "gone.pth: no such file" in done.stderr
    assert not out.exists()


@pytest.mark.slow
def test_the_map_of_a_planted_lesion_is_highest_inside_it_more_often_than_chance(tmp_path: Path) -> None:
    """With an untrained backbone a strongly decayed head is needed; `explain.lesions` measures it, and a trained one."""
    write_demo(tmp_path / "demo", n_images=240)
    extract(tmp_path / "demo", tmp_path / "c.h5", options=ExtractOptions(weights="random:0", precision="float32"))
    run_experiment(
        tmp_path / "c.h5",
        tmp_path / "run",
        parse_heads(["linear,weight_decay=300"]),
        ExperimentConfig(positive=["malignant"]),
    )
    explainer = open_explainer(run_head(read_heads(tmp_path / "run")))
    found = hits(explainer, list(phantoms_anywhere(80, 1)), "malignant")
    assert found.times_chance > 2
    assert found.share > 1.5 * found.of_others
