"""`predict`: patients, classes and labels; what is asked for in a wrong way."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hoarfrost import open_predictor
from hoarfrost.evaluation import apply_temperature
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.cache import CacheWriter, EmbeddedFile
from hoarfrost.features.errors import CacheError, HoarfrostError, RunError, TrainingError
from hoarfrost.features.fingerprint import bytes_key
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import Predictor, predict_dataset
from hoarfrost.runs import Run
from hoarfrost.training import TrainingConfig
from tests.support.builders import write_csv, write_images
from tests.support.caches import HEADER
from tests.support.commands import Hoarfrost
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache
from tests.support.predicted import Trained, flat, read_csv, train_on_pictures


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_on_pictures(tmp_path_factory.mktemp("trained"))


pytestmark = pytest.mark.usefixtures("free_backbone")


# -- patients, classes, labels ------------------------------------------------------------------------------------------


def test_patients_are_joined_by_the_mean_of_their_images_and_bad_ones_are_counted(
    trained: Trained, tmp_path: Path
) -> None:
    data = flat(trained, tmp_path / "some", range(4))
    (data / "bad.png").write_bytes(b"no image")
    (data / "worse.png").write_bytes(b"")
    paths = ["0.png", "1.png", "2.png", "3.png", "bad.png", "worse.png"]
    write_csv(data / "list.csv", [["path", "patient"], *zip(paths, ["p", "q", "p", "p", "q", "r"], strict=True)])
    summary = predict_dataset(data / "list.csv", tmp_path / "found.csv", run=trained.run, head="linear")
    raw = {row["path"]: float(row["linear"] or "nan") for row in read_csv(tmp_path / "found.csv")}
    p, q, r = read_csv(tmp_path / "found_patients.csv")
    assert [row["patient"] for row in (p, q, r)] == ["p", "q", "r"]
    assert float(p["linear"]) == pytest.approx(np.mean([raw["0.png"], raw["2.png"], raw["3.png"]]))
    assert (q["images"], q["unreadable"], q["error"]) == ("2", "1", "")
    assert (r["images"], r["unreadable"], r["class"], r["error"]) == ("1", "1", "", "none of the images could be read")
    assert (summary.patients, summary.per_patient) == (3, "mean")
    predict_dataset(data / "list.csv", tmp_path / "m.csv", run=trained.run, head="linear", per_patient="max")
    p = read_csv(tmp_path / "m_patients.csv")[0]
    assert float(p["linear"]) == max(raw["0.png"], raw["2.png"], raw["3.png"])


def synthetic(tmp_path: Path, labels: list[str], **options: Any) -> tuple[Run, np.ndarray]:
    """Train on synthetic embeddings; give the run and these."""
    x = embeddings_of(labels) if any(labels) else options.pop("x")
    cache = write_labelled_cache(
        tmp_path / "c.h5",
        labels,
        embeddings=x,
        attributes=options.pop("attributes", None),
        patients=options.pop("patients", None),
    )
    config = TrainingConfig(epochs=4)
    return run_experiment(
        cache, tmp_path / "run", parse_heads(["linear"]), ExperimentConfig(training=config, **options)
    ), x


def test_run_that_scores_patients_predicts_them_as_it_did(tmp_path: Path) -> None:
    labels = [label for label in mixed({"benign": 60, "malignant": 40}) for _ in range(2)]
    run, x = synthetic(tmp_path, labels, patients=[f"p{i // 2}" for i in range(200)], per_patient="max")
    assert run.assessment is not None
    assert run.assessment.calibration is not None
    predictor = open_predictor(run.directory)
    assert (predictor.units, predictor.head.per_patient) == (("image", "mean", "max"), "max")
    found = predictor.predict_patients(predictor.predict(x).probabilities, np.arange(200) // 2, "max")
    threshold = run.assessment.classes[0].points[0].point.threshold
    assert found.called[:, 1].tolist() == (found.probabilities[:, 1] >= threshold).tolist()
    temperature = run.assessment.calibration.temperature.temperature
    assert found.calibrated == pytest.approx(apply_temperature(found.probabilities, temperature))


def test_run_of_three_classes_calls_the_most_probable_one(tmp_path: Path) -> None:
    run, x = synthetic(tmp_path, mixed({"benign": 60, "malignant": 50, "normal": 40}))
    predictor = open_predictor(run.directory)
    found = predictor.predict(x)
    test = run.rows_of("test")  # training images are predicted out of fold
    assert np.array_equal(found.probabilities[test], run.predictions.probabilities["linear"][test])
    answers = [predictor.names[number] for number in found.calibrated.argmax(axis=1)]
    assert predictor.answers(found.called) == answers
    assert [name for name, _ in predictor.head.columns] == ["linear:benign", "linear:malignant", "linear:normal"]


@pytest.fixture(scope="module")
def multilabel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, np.ndarray]:
    """Train a head that finds two labels."""
    rng = np.random.default_rng(0)
    y = (rng.random((200, 2)) < 0.4).astype(int)
    x = rng.standard_normal((200, 512)).astype(np.float32)
    x[:, :100] += np.repeat(y, 50, axis=1)
    attributes = {name: [str(value) for value in y[:, i]] for i, name in enumerate(("effusion", "=mass"))}
    return synthetic(tmp_path_factory.mktemp("labels"), [""] * 200, x=x, attributes=attributes, label_columns=())


def test_run_of_several_labels_calls_each_for_itself(multilabel: tuple[Run, np.ndarray]) -> None:
    run, x = multilabel
    predictor = open_predictor(run.directory)
    found = predictor.predict(x)
    test = run.rows_of("test")  # training images are predicted out of fold
    assert np.array_equal(found.probabilities[test], run.predictions.probabilities["linear"][test])
    assert run.assessment is not None
    for number, label in enumerate(run.assessment.classes):
        assert label.calibration is not None
        assert (
            found.called[:, number].tolist()
            == (found.probabilities[:, number] >= label.points[0].point.threshold).tolist()
        )
        both = np.column_stack([1 - found.probabilities[:, number], found.probabilities[:, number]])
        assert found.calibrated[:, number] == pytest.approx(
            apply_temperature(both, label.calibration.temperature.temperature)[:, 1]
        )


def test_csv_of_several_labels_has_a_set_for_each(
    multilabel: tuple[Run, np.ndarray], tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    run, _ = multilabel
    config = json.loads((run.directory / "config.json").read_text())
    write_images(tmp_path / "new", ["a.png", "b.png"])
    # The synthetic cache's weights are none: the new images' embeddings are put into a cache of its fingerprint.
    keys = {name: bytes_key((tmp_path / "new" / name).read_bytes()) for name in ("a.png", "b.png")}
    with CacheWriter(tmp_path / "n.h5", HEADER, "new") as writer:
        x = np.random.default_rng(1).standard_normal((2, 512)).astype(np.float32)
        writer.append([EmbeddedFile(name, 1, 1, key) for name, key in keys.items()], x)
        writer.fold()
    places = ["--run", run.directory, "--cache", tmp_path / "n.h5", "--output", tmp_path / "f.csv"]
    output = hoarfrost("predict", tmp_path / "new", *places, "--json")
    assert output.status == 0, output.stderr
    document = json.loads(output.stdout)
    assert (document["predicted"], document["forward_images"], document["patients"]) == (2, 0, None)
    assert document["fingerprint"] == config["embeddings"]["fingerprint"]
    for row in read_csv(tmp_path / "f.csv"):
        assert {row["set:effusion"], row["set:=mass"]} <= {"yes", "no", "no|yes", "(none)"}
        assert set(row) >= {"linear:effusion", "linear:=mass", "probability:effusion", "class"}


def test_too_few_validation_images_promise_nothing_and_that_is_said(tmp_path: Path) -> None:
    run, x = synthetic(tmp_path, mixed({"benign": 30, "malignant": 30}), cross_fit=False)  # 6 for validation
    predictor = open_predictor(run.directory)
    found = predictor.predict(x)
    assert found.sets.all()
    assert found.is_novel is None
    assert not predictor.has_sets()
    assert open_predictor(run.directory, coverage=0.5).has_sets()


def test_embeddings_that_are_none_are_refused(trained: Trained) -> None:
    predictor = open_predictor(trained.run)
    with pytest.raises(ValueError, match=r"must be \(n, 512\)"):
        predictor.predict(np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="NaN or infinite"):
        predictor.predict(np.full((1, 512), np.nan, np.float32))
    empty = predictor.predict(np.zeros((0, 512), np.float32))
    assert empty.probabilities.shape == empty.sets.shape == (0, 2)
    assert isinstance(predictor, Predictor)


# -- asked for in a wrong way -------------------------------------------------------------------------------------------


def test_wrong_heads_runs_and_units_are_named(trained: Trained, tmp_path: Path) -> None:
    data, output = trained.images, tmp_path / "x.csv"
    with pytest.raises(RunError, match=r"--head mlp:9: .* has no such head\. Its heads: linear, mlp:8"):
        predict_dataset(data, output, run=trained.run, head="mlp:9")
    with pytest.raises(RunError, match=r"--head tree: .* has no such head\. Its heads: linear, mlp:8"):
        predict_dataset(data, output, run=trained.run, head="tree")
    with pytest.raises(RunError, match="linear: no such file. Name a head file"):
        predict_dataset(data, output, head="linear")
    with pytest.raises(HoarfrostError, match="is a folder. If it is a run, use --run"):
        predict_dataset(data, output, head=str(trained.run))
    with pytest.raises(RunError, match="is not a run folder"):
        predict_dataset(data, output, run=tmp_path)
    run, _ = synthetic(tmp_path, mixed({"benign": 30, "malignant": 30}))
    with pytest.raises(TrainingError, match="--per-patient mean: the head linear was trained without patients"):
        predict_dataset(data, output, run=run.directory, per_patient="mean")
    assert not output.exists()


def test_neither_run_nor_head_is_wrong_usage(hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    output = hoarfrost("predict", tmp_path, "--output", tmp_path / "x.csv")
    assert output.status == 2
    assert "Name a run with --run DIR" in output.stderr


def test_cache_that_is_none_is_refused(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "c.h5").write_text("no cache")
    with pytest.raises(CacheError):
        predict_dataset(trained.images, tmp_path / "x.csv", run=trained.run, cache=tmp_path / "c.h5")


def test_summary_counts_what_the_csv_holds(trained: Trained, hoarfrost: Hoarfrost, tmp_path: Path) -> None:
    arguments = ["predict", trained.images, "--run", trained.run, "--output", tmp_path / "x.csv", "--coverage", "0.8"]
    document = json.loads(hoarfrost(*arguments, "--json").stdout)
    rows = read_csv(tmp_path / "x.csv")
    assert document["images"] == document["predicted"] == len(rows) == 120
    assert document["called"] == {
        name: n for name in ("benign", "malignant") if (n := sum(r["class"] == name for r in rows))
    }
    sizes = [0 if row["set"] == "(none)" else row["set"].count("|") + 1 for row in rows]
    assert document["set_sizes"] == {str(size): sizes.count(size) for size in sorted(set(sizes))}
    text = hoarfrost(*arguments).stdout
    assert "120 images predicted" in text
    assert "60 patients (mean)" in text


@pytest.mark.parametrize(
    ("names", "wanted"),
    [(("a", "b", "c"), "a|c"), (("Effusion", "Mass", "Effusion|Mass"), "Effusion;Effusion|Mass"),
     (("a|b", "c", "d;e"), "a|b,d;e")],
)  # fmt: skip
def test_classes_in_one_cell_can_be_read_back(names: tuple[str, ...], wanted: str) -> None:
    assert Predictor.joined(SimpleNamespace(names=names), [True, False, True]) == wanted  # type: ignore[arg-type]
