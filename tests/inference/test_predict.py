"""`predict`: the same digits as the run's, on whatever images there are; what cannot be read is told, nothing is lost."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hoarfrost import open_predictor
from hoarfrost.evaluation import apply_temperature
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.cache import EmbeddingCache, describe
from hoarfrost.features.errors import FingerprintMismatchError, HoarfrostError, RunError, WeightsError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import Predictor, predict_dataset
from hoarfrost.runs import read_run
from hoarfrost.runs.digests import write_digests
from hoarfrost.training import TrainingConfig
from tests.support.bad_images import BAD
from tests.support.builders import write_csv, write_images
from tests.support.commands import Hoarfrost
from tests.support.dicoms import dicom, encoded, grey_values
from tests.support.labelled import NOT_UTF8
from tests.support.predicted import Trained, flat, read_csv, train_on_pictures, write_set
from tests.support.standin import StandIn


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_pictures(tmp_path_factory.mktemp("trained"))


pytestmark = pytest.mark.usefixtures("free_backbone")


# -- the same digits as the run's ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["linear", "mlp:8"])
@pytest.mark.parametrize("size", [1, 7, 120])
def test_each_digit_is_that_of_predictions_csv_whatever_is_predicted_together(
    trained: Trained, tmp_path: Path, head: str, size: int
) -> None:
    expected = {row["path"]: row[head] for row in read_csv(trained.run / "predictions.csv")}
    data = flat(trained, tmp_path / "some", range(size))
    summary = predict_dataset(data, tmp_path / "found.csv", run=trained.run, head=head, cache=tmp_path / "new.h5")
    found = {row["path"]: row[head] for row in read_csv(tmp_path / "found.csv")}
    assert len(found) == summary.predicted == size
    assert found == {path: expected[path] for path in found}


@pytest.fixture(scope="module")
def opened(trained: Trained) -> tuple[Predictor, np.ndarray]:
    """Open a head, and read all embeddings."""
    with EmbeddingCache(trained.cache) as cache:
        return open_predictor(trained.run, "mlp:8"), cache.embeddings()


@given(st.integers(1, 40), st.integers(0, 50))
@settings(max_examples=20)
def test_prediction_of_an_image_does_not_depend_on_the_others(
    opened: tuple[Predictor, np.ndarray], size: int, first: int
) -> None:
    predictor, x = opened
    whole, part = predictor.predict(x), predictor.predict(x[first : first + size])
    for name in ("probabilities", "calibrated", "called", "sets", "distances", "is_novel"):
        assert np.array_equal(getattr(whole, name)[first : first + size], getattr(part, name)), name


def test_probabilities_are_calibrated_by_the_runs_temperature_and_called_at_its_operating_point(
    trained: Trained, tmp_path: Path
) -> None:
    run = read_run(trained.run)
    assert run.assessment is not None
    assert run.assessment.calibration is not None
    temperature = run.assessment.calibration.temperature.temperature
    threshold = run.assessment.classes[0].points[0].point.threshold
    predict_dataset(trained.images, tmp_path / "found.csv", run=trained.run)
    rows = read_csv(tmp_path / "found.csv")
    raw = np.array([float(row[run.selected]) for row in rows])
    assert raw.tolist() == run.predictions.probabilities[run.selected][:, 1].tolist()
    calibrated = np.array([[float(row[f"probability:{name}"]) for name in ("benign", "malignant")] for row in rows])
    assert calibrated == pytest.approx(apply_temperature(np.column_stack([1 - raw, raw]), temperature))
    assert [row["class"] for row in rows] == ["malignant" if p >= threshold else "benign" for p in raw]


def test_head_file_alone_predicts_as_its_run_does(trained: Trained, tmp_path: Path) -> None:
    copied = shutil.copy(trained.run / "heads" / "linear.safetensors", tmp_path / "mine.safetensors")
    predict_dataset(trained.images, tmp_path / "a.csv", run=trained.run, head="linear")
    predict_dataset(trained.images, tmp_path / "b.csv", head=str(copied))
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    assert (tmp_path / "a_patients.csv").read_text() == (tmp_path / "b_patients.csv").read_text()


# -- the cache ----------------------------------------------------------------------------------------------------------


def forward_images(data: Path, output: Path, **options: Any) -> int:
    """Count what goes through the backbone, by its own count."""
    before = StandIn.forwarded
    summary = predict_dataset(data, output, **options)
    assert StandIn.forwarded - before == summary.forward_images
    return summary.forward_images


def new_images(folder: Path, n: int = 6) -> Path:
    write_images(folder, [f"{i}.png" for i in range(n)], size=(33, 21))
    return folder


def test_second_head_costs_no_forward_pass(trained: Trained, tmp_path: Path) -> None:
    data, cache = new_images(tmp_path / "new"), tmp_path / "new.h5"
    assert forward_images(data, tmp_path / "a.csv", run=trained.run, head="linear", cache=cache) == 6
    assert forward_images(data, tmp_path / "b.csv", run=trained.run, head="mlp:8", cache=cache) == 0
    assert [row["path"] for row in read_csv(tmp_path / "b.csv")] == [f"{i}.png" for i in range(6)]


def test_runs_own_cache_is_read_and_never_written_unless_it_is_named(trained: Trained, tmp_path: Path) -> None:
    before = trained.cache.read_bytes()
    assert forward_images(trained.images, tmp_path / "own.csv", run=trained.run) == 0
    assert forward_images(new_images(tmp_path / "new"), tmp_path / "new.csv", run=trained.run) == 6
    assert trained.cache.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"new", "new.csv", "own.csv", "own_patients.csv"}


def test_named_cache_keeps_its_datasets_and_gets_no_other(trained: Trained, tmp_path: Path) -> None:
    cache = shutil.copy(trained.cache, tmp_path / "c.h5")
    tables = describe(cache).datasets
    predict_dataset(new_images(tmp_path / "images"), tmp_path / "found.csv", run=trained.run, cache=cache)
    assert describe(cache).datasets == tables
    assert describe(cache).unused == 6
    run_experiment(
        cache, tmp_path / "again", parse_heads(["linear"]), ExperimentConfig(training=TrainingConfig(epochs=1))
    )


def test_run_whose_cache_is_gone_predicts_new_images(trained: Trained, tmp_path: Path) -> None:
    moved = tmp_path / "run"
    shutil.copytree(trained.run, moved)
    config = json.loads((moved / "config.json").read_text())
    config["embeddings"]["cache"] = str(tmp_path / "nowhere.h5")
    (moved / "config.json").write_text(json.dumps(config))
    write_digests(moved)
    assert forward_images(new_images(tmp_path / "new"), tmp_path / "new.csv", run=moved) == 6


def test_cache_of_another_fingerprint_is_refused_by_the_part_that_differs(trained: Trained, tmp_path: Path) -> None:
    extract(trained.images, tmp_path / "b.h5", options=ExtractOptions(weights="random:0", precision="bfloat16"))
    with pytest.raises(FingerprintMismatchError, match=r"Differences: precision: float32 here, bfloat16 there"):
        predict_dataset(trained.images, tmp_path / "x.csv", run=trained.run, cache=tmp_path / "b.h5")
    assert not (tmp_path / "x.csv").exists()


def test_weights_that_are_others_are_refused(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(FingerprintMismatchError, match=r"random:1 are not those.*weights \(SHA-256\): \w+ here"):
        predict_dataset(new_images(tmp_path / "n"), tmp_path / "x.csv", run=trained.run, weights="random:1")


def test_preprocessing_that_this_version_does_not_have_is_refused(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hoarfrost.features.fingerprint

    monkeypatch.setattr(
        hoarfrost.features.fingerprint,
        "STEPS",
        {**hoarfrost.features.fingerprint.STEPS, "interpolation": "bicubic"},
    )
    with pytest.raises(FingerprintMismatchError, match=r"What differs: preprocessing.interpolation: .bicubic. here"):
        predict_dataset(new_images(tmp_path / "n"), tmp_path / "x.csv", run=trained.run)


def test_checkpoint_is_found_where_it_was_and_asked_for_where_it_is_gone(tmp_path: Path) -> None:
    import torch

    from tests.support.standin import cached_weights

    checkpoint = tmp_path / "own.pth"
    torch.save(dict(cached_weights("random:3").tensors), checkpoint)  # type: ignore[attr-defined]
    cached_weights.cache_clear()
    write_set(tmp_path / "images", n=60)
    extract(tmp_path / "images", tmp_path / "c.h5", options=ExtractOptions(str(checkpoint), precision="float32"))
    run_experiment(
        tmp_path / "c.h5",
        tmp_path / "run",
        parse_heads(["linear"]),
        ExperimentConfig(training=TrainingConfig(epochs=2)),
    )
    assert forward_images(new_images(tmp_path / "new"), tmp_path / "a.csv", run=tmp_path / "run") == 6
    checkpoint.rename(tmp_path / "moved.pth")
    cached_weights.cache_clear()
    with pytest.raises(
        WeightsError, match=r"own\.pth \(file with SHA-256 .*no longer available.*no such file.*--weights"
    ):
        predict_dataset(tmp_path / "new", tmp_path / "b.csv", run=tmp_path / "run")
    predict_dataset(tmp_path / "new", tmp_path / "b.csv", run=tmp_path / "run", weights=str(tmp_path / "moved.pth"))
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    predict_dataset(tmp_path / "images", tmp_path / "c.csv", run=tmp_path / "run")  # all is cached: no weights needed


def test_window_of_the_run_is_that_of_new_dicom_files(tmp_path: Path) -> None:
    from hoarfrost.features.decoding.windows import Window

    for i in range(60):
        path = tmp_path / "archive" / "ab"[i % 2] / f"{i}"
        path.parent.mkdir(parents=True, exist_ok=True)
        values = (grey_values(seed=i) // (1 + i % 2)).astype(np.uint16)
        path.write_bytes(encoded(dicom(values, PatientID=f"patient {i}")))
    options = ExtractOptions("random:0", precision="float32", window=Window(300, 500))
    extract(tmp_path / "archive", tmp_path / "c.h5", options=options)
    run = run_experiment(
        tmp_path / "c.h5",
        tmp_path / "run",
        parse_heads(["linear"]),
        ExperimentConfig(training=TrainingConfig(epochs=2)),
    )
    (tmp_path / "c.h5").rename(tmp_path / "elsewhere.h5")  # so that all is embedded anew
    predict_dataset(tmp_path / "archive", tmp_path / "found.csv", run=tmp_path / "run")
    rows = [i for i, split in enumerate(run.predictions.splits) if split == "test"]  # the others are out of fold
    expected = {run.predictions.paths[i]: float(run.predictions.probabilities["linear"][i, 1]) for i in rows}
    found = {row["path"]: float(row["linear"]) for row in read_csv(tmp_path / "found.csv")}
    assert {path: found[path] for path in expected} == expected
    one = tmp_path / "archive" / next(path for path in expected if path.startswith("a/"))
    predict_dataset(one, tmp_path / "one.csv", run=tmp_path / "run")
    (row,) = read_csv(tmp_path / "one.csv")
    assert float(row["linear"]) == expected[f"a/{one.name}"]
    assert len(row["patient"]) == 16  # a salted hash


# -- whatever images there are ------------------------------------------------------------------------------------------


def test_folder_without_labels_csv_without_labels_and_single_file_give_the_same(
    trained: Trained, tmp_path: Path
) -> None:
    data = flat(trained, tmp_path / "deep" / "any" / "b", range(4))
    flat(trained, tmp_path / "deep" / "a", range(4, 6))
    (tmp_path / "deep" / "notes.txt").write_text("not an image")
    predict_dataset(tmp_path / "deep", tmp_path / "folder.csv", run=trained.run)
    rows = {row["path"]: row for row in read_csv(tmp_path / "folder.csv")}
    assert list(rows) == ["a/4.png", "a/5.png", *[f"any/b/{i}.png" for i in range(4)]]
    write_csv(tmp_path / "deep" / "list.csv", [["path"], ["any/b/3.png"], ["a/4.png"]])
    predict_dataset(tmp_path / "deep" / "list.csv", tmp_path / "listed.csv", run=trained.run)
    assert read_csv(tmp_path / "listed.csv") == [rows["any/b/3.png"], rows["a/4.png"]]
    predict_dataset(data / "2.png", tmp_path / "one.csv", run=trained.run)
    assert read_csv(tmp_path / "one.csv") == [{**rows["any/b/2.png"], "path": "2.png"}]


def test_npz_without_labels_and_with_one_split_is_predicted(trained: Trained, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", test_images=np.random.default_rng(0).integers(0, 256, (5, 28, 28), np.uint8))
    summary = predict_dataset(tmp_path / "x.npz", tmp_path / "x.csv", run=trained.run)
    assert (summary.images, summary.predicted) == (5, 5)


def test_csv_with_labels_of_one_class_empty_ones_and_odd_splits_is_predicted(trained: Trained, tmp_path: Path) -> None:
    data = flat(trained, tmp_path / "some", range(3))
    rows = [
        ["path", "label", "split", "patient"],
        ["0.png", "x", "?", "p"],
        ["1.png", "x", "", ""],
        ["2.png", "", "", "q"],
    ]
    write_csv(data / "labels.csv", rows)
    summary = predict_dataset(data, tmp_path / "found.csv", run=trained.run)
    assert summary.patients == 2
    assert any("Skipped 1 images of unknown patients" in note for note in summary.notes)
    assert [row["patient"] for row in read_csv(tmp_path / "found.csv")] == ["p", "", "q"]


def test_frames_of_a_file_are_rows_that_say_which(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "scan.dcm").write_bytes(
        encoded(dicom(np.stack([grey_values(seed=i) for i in range(3)]), PatientID="x"))
    )
    predict_dataset(tmp_path / "scan.dcm", tmp_path / "found.csv", run=trained.run)
    rows = read_csv(tmp_path / "found.csv")
    assert [(row["path"], row["frame"]) for row in rows] == [(f"scan.dcm#frame={i}", str(i)) for i in (1, 2, 3)]
    (patient,) = read_csv(tmp_path / "found_patients.csv")
    assert patient["images"] == "3"


def test_bad_files_are_rows_with_their_reason_and_nothing_is_lost(trained: Trained, tmp_path: Path) -> None:
    data = flat(trained, tmp_path / "mixed", range(3))
    for name, (write, _) in BAD.items():
        write(data / name)
    summary = predict_dataset(data, tmp_path / "found.csv", run=trained.run, options=ExtractOptions(workers=1))
    rows = {row["path"]: row for row in read_csv(tmp_path / "found.csv")}
    listed = {name for name in BAD if not (data / name).is_dir()}  # a folder, whatever its name, is looked into
    assert listed | {f"{i}.png" for i in range(3)} <= rows.keys()
    assert summary.predicted == 3
    assert summary.failed == len(rows) - 3
    for path, row in rows.items():
        bad = path in BAD
        assert bool(row["error"]) == bad == (row["class"] == "") == (row["novelty"] == "")


def test_all_bad_is_written_and_ends_in_an_error(trained: Trained, hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "bad" / f"{i}.png").parent.mkdir(exist_ok=True)
        (tmp_path / "bad" / f"{i}.png").write_bytes(b"no image")
    output = hoarfrost("predict", tmp_path / "bad", "--run", trained.run, "--output", tmp_path / "x.csv", "--json")
    assert output.status == 1
    assert "none of the 3 images could be read. The first: 0.png: no image format recognised" in output.stderr
    assert [row["error"][:26] for row in read_csv(tmp_path / "x.csv")] == ["no image format recognised"] * 3


@pytest.mark.parametrize("kind", ["empty", "missing", "text"])
def test_nothing_to_predict_is_said(trained: Trained, hoarfrost: Hoarfrost, tmp_path: Path, kind: str) -> None:
    data = tmp_path / kind
    if kind == "empty":
        data.mkdir()
    elif kind == "text":
        data.write_text("hello")
    output = hoarfrost("predict", data, "--run", trained.run, "--output", tmp_path / "x.csv")
    assert output.status == 1
    expected = {
        "empty": "no images found",
        "missing": "no such file or folder",
        "text": "text: no image format recognised",
    }
    assert expected[kind] in output.stderr
    assert "Traceback" not in output.stderr


def test_hostile_names_are_kept_apart_and_run_nowhere(trained: Trained, tmp_path: Path) -> None:
    names = [
        "=HYPERLINK(1).png",
        "+1.png",
        "@SUM.png",
        "-2.png",
        'a,b "quoted".png',
        "two\nlines.png",
        NOT_UTF8 + ".png",
    ]
    data = flat(trained, tmp_path / "odd", range(len(names)))
    for i, name in enumerate(names):
        (data / f"{i}.png").rename(data / name)
    predict_dataset(data, tmp_path / "found.csv", run=trained.run)
    paths = [row["path"] for row in read_csv(tmp_path / "found.csv")]
    assert {(data / path).resolve() for path in paths} == {data / name for name in names}
    assert not any(path.startswith(("=", "+", "-", "@")) for path in paths)
    write_csv(data / "p.csv", [["path", "patient"], ["two\nlines.png", "=cmd|' /C calc'!A0"], ["+1.png", "-12"]])
    predict_dataset(data / "p.csv", tmp_path / "p_found.csv", run=trained.run)
    assert [row["patient"] for row in read_csv(tmp_path / "p_found.csv")] == ["'=cmd|' /C calc'!A0", "-12"]


# -- the output ---------------------------------------------------------------------------------------------------------


def test_missing_folder_is_made_and_an_earlier_file_replaced_whole(trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "not" / "yet" / "found.csv"
    predict_dataset(trained.images, output, run=trained.run)
    output.write_text("path,frame,patient,earlier\n")
    predict_dataset(trained.images, output, run=trained.run)
    assert len(read_csv(output)) == 120
    assert sorted(path.name for path in output.parent.iterdir()) == ["found.csv", "found_patients.csv"]


def test_prediction_that_fails_leaves_the_earlier_file(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "found.csv").write_text("path,frame,patient,earlier\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hoarfrost.inference.predict.dataset.ImageCsv.add", full)
    with pytest.raises(RunError, match=r"found\.csv cannot be written: .*No space left.*--output"):
        predict_dataset(trained.images, tmp_path / "found.csv", run=trained.run)
    assert (tmp_path / "found.csv").read_text() == "path,frame,patient,earlier\n"
    assert [path.name for path in tmp_path.iterdir()] == ["found.csv"]


def test_outputs_that_would_overwrite_something_are_refused(trained: Trained, tmp_path: Path) -> None:
    data = shutil.copytree(trained.images, tmp_path / "images")
    cache = shutil.copy(trained.cache, tmp_path / "c.h5")
    (tmp_path / "folder").mkdir()
    of_run = (trained.run / "predictions.csv", trained.run / "heads" / "x.csv")
    (tmp_path / "own.csv").write_text("path,label\nsomebodys,work\n")
    (tmp_path / "own_patients.csv").write_text("patient,age\n1,50\n")
    own = (tmp_path / "own.csv", tmp_path / "own_patients.csv")
    for output in (data / "labels.csv", data / "0.png", *of_run, cache, *own):
        content = output.read_bytes() if output.exists() else b""
        with pytest.raises(HoarfrostError, match="would overwrite"):
            predict_dataset(data, output, run=trained.run, cache=cache)
        assert (output.read_bytes() if output.exists() else b"") == content
    with pytest.raises(HoarfrostError, match="is a folder"):
        predict_dataset(data, tmp_path / "folder", run=trained.run)
    with pytest.raises(HoarfrostError, match="cannot be written"):
        predict_dataset(data, cache / "below" / "x.csv", run=trained.run)


def test_patients_file_of_an_earlier_prediction_is_pointed_out(trained: Trained, tmp_path: Path) -> None:
    predict_dataset(trained.images, tmp_path / "found.csv", run=trained.run)
    summary = predict_dataset(flat(trained, tmp_path / "some", [1]), tmp_path / "found.csv", run=trained.run)
    assert any("found_patients.csv is from an earlier prediction" in note for note in summary.notes)
