"""What a run says of how far its scores can be believed, each figure against the kernels on predictions.csv."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.metrics import roc_auc_score

import hoarfrost.evaluation as metrics
import hoarfrost.experiment.review
from hoarfrost.demo import write_demo
from hoarfrost.evaluation.calibration import at_prevalence
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.errors import TrainingError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.runs import FixedPoint, Run, read_run, to_json
from hoarfrost.training import TrainingConfig
from hoarfrost.training.references import LOGISTIC_REGRESSION, Reference, ReferenceFit, fit_references
from tests.support.commands import Hoarfrost
from tests.support.delong import delong_test
from tests.support.labelled import embeddings_of, mixed, write_labelled_cache

QUICK = TrainingConfig(epochs=4, patience=2)
TWO = {"benign": 120, "malignant": 80}
THREE = {"benign": 60, "malignant": 60, "normal": 60}


def train(cache: Path, heads: tuple[str, ...] = ("linear",), **options: Any) -> Run:
    return run_experiment(
        cache, cache.parent / "run", parse_heads(list(heads)), ExperimentConfig(training=QUICK, **options)
    )


def images_of(run: Run, split: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return class numbers and the selected head's probabilities of a split, from what was written."""
    read = read_run(run.directory)
    rows = np.array(read.predictions.splits) == split
    return read.y_true()[rows], read.predictions.probabilities[read.selected][rows]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Train two heads on images of one patient each, with two attributes."""
    folder = tmp_path_factory.mktemp("two")
    sexes, sites = (["f", "m"] * 100, ["north"] * 150 + ["south"] * 45 + ["ship"] * 5)
    cache = write_labelled_cache(folder / "c.h5", mixed(TWO), attributes={"sex": sexes, "site": sites})
    return train(cache, ("linear", "mlp:8"), prevalence=0.05)


# -- operating points ---------------------------------------------------------------------------------------------------


def points_of(run: Run) -> tuple[FixedPoint, ...]:
    assert run.assessment is not None
    return run.assessment.classes[0].points


def test_thresholds_are_those_of_validation_and_results_those_of_test(two: Run) -> None:
    y_val, p_val = images_of(two, "val")
    y_test, p_test = images_of(two, "test")
    chosen = metrics.choose_thresholds(y_val, p_val[:, 1], confidence=0.95)
    assert [fixed.point for fixed in points_of(two)] == list(chosen)
    rules = ("sensitivity >= 0.95", "specificity >= 0.95")
    assured = [f"{rule} with 95% confidence" for rule in rules]
    assert [point.name for point in chosen] == ["Youden's index", *rules, *assured]
    for fixed in points_of(two):
        if fixed.point.threshold is None:  # of 12 validation images no threshold has that specificity
            assert fixed.result is None
            assert fixed.point.reason.startswith(("no threshold reaches it;", "at least 59 cases are needed;"))
            continue
        called = p_test[:, 1] >= fixed.point.threshold
        assert fixed.result is not None
        assert fixed.result.sensitivity.value == called[y_test == 1].mean()
        assert fixed.result.specificity.value == (~called)[y_test == 0].mean()
        assert fixed.result == metrics.evaluate_threshold(y_test, p_test[:, 1], fixed.point.threshold, prevalence=0.05)
        assert fixed.result is not None
        assert fixed.result.sensitivity.method == "Wilson"


def test_stated_prevalence_is_in_the_predictive_values_and_the_net_benefit(two: Run) -> None:
    assert two.config.prevalence == 0.05
    assert two.assessment is not None
    result = points_of(two)[0].result
    assert result is not None
    assert result.at_prevalence is not None
    sensitivity, specificity = result.sensitivity.value, result.specificity.value
    assert sensitivity is not None
    assert specificity is not None
    assert result.at_prevalence.ppv is not None
    bayes = 0.05 * sensitivity / (0.05 * sensitivity + 0.95 * (1 - specificity))
    assert result.at_prevalence.ppv.value == pytest.approx(bayes)
    assert two.assessment.classes[0].net_benefit.prevalence == 0.05


def test_changed_test_labels_change_no_threshold_and_no_temperature(tmp_path: Path) -> None:
    labels, n = mixed(TWO), sum(TWO.values())
    splits = ["train"] * 100 + ["val"] * 50 + ["test"] * 50
    x = embeddings_of(labels)
    flipped = [
        ("malignant" if label == "benign" else "benign") if i >= 150 else label for i, label in enumerate(labels)
    ]
    runs = []
    for name, given in (("as it is", labels), ("flipped", flipped)):
        (tmp_path / name).mkdir()
        runs.append(train(write_labelled_cache(tmp_path / name / "c.h5", given, splits=splits, embeddings=x)))
    assert len(x) == n
    first, second = (run.assessment for run in runs)
    assert first is not None
    assert second is not None
    assert [p.point for p in first.classes[0].points] == [p.point for p in second.classes[0].points]
    assert first.calibration is not None
    assert second.calibration is not None
    assert first.calibration.temperature == second.calibration.temperature
    assert first.classes[0].points[0].result != second.classes[0].points[0].result


def test_run_without_test_split_assesses_validation_and_says_so(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", mixed(TWO), splits=["train"] * 100 + ["val"] * 100)
    done = hoarfrost("train", "--cache", cache, "--run", tmp_path / "run", "--head", "linear", "--epochs", 3)
    assert "linear, validation predictions, thresholds chosen on validation predictions" in done.stdout
    assert "on test" not in done.stdout
    document = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert document["assessment"]["split"] == "val"
    assert document["heads"][0]["test"] is None


# -- calibration and net benefit ----------------------------------------------------------------------------------------


def test_calibration_before_and_after_is_of_test_with_the_temperature_of_validation(two: Run) -> None:
    y_test, p_test = images_of(two, "test")
    assert two.assessment is not None
    found = two.assessment.calibration
    assert found is not None
    fitted = metrics.fit_temperature(*images_of(two, "val"))
    assert found.temperature.temperature == pytest.approx(fitted.temperature, rel=1e-6)  # read back, 1 - p is rounded
    assert found.before.error == pytest.approx(metrics.assess_calibration(y_test, p_test).error)
    scaled = metrics.apply_temperature(p_test, found.temperature.temperature)
    assert found.after.error == pytest.approx(metrics.assess_calibration(y_test, scaled).error)
    assert sum(one.observed.n for one in found.after.bins) == len(y_test)
    shifted = at_prevalence(scaled[:, 1], images_of(two, "val")[0].mean(), 0.05)
    curve = metrics.decision_curve(y_test, shifted, prevalence=0.05)
    assert two.assessment.classes[0].net_benefit.net_benefit == pytest.approx(curve.net_benefit)


def test_three_classes_have_one_calibration_and_points_against_the_rest(tmp_path: Path) -> None:
    run = train(write_labelled_cache(tmp_path / "c.h5", mixed(THREE)))
    assert run.assessment is not None
    assert [one.name for one in run.assessment.classes] == list(THREE)
    assert run.assessment.calibration is not None
    assert len(run.assessment.calibration.after.lines) == 3
    y_test, p_test = images_of(run, "test")
    for number, one in enumerate(run.assessment.classes):
        result = one.points[0].result
        assert result is not None
        assert result == metrics.evaluate_threshold((y_test == number).astype(int), p_test[:, number], result.threshold)


def test_labels_of_an_image_are_calibrated_each_for_itself(tmp_path: Path) -> None:
    labels = mixed({"a": 90, "b": 90})
    rng = np.random.default_rng(0)
    columns = {
        "mass": ["1" if label == "a" else "0" for label in labels],
        "fluid": [str(value) for value in rng.integers(0, 2, 180)],
        "site": ["x", "y"] * 90,
    }
    cache = write_labelled_cache(tmp_path / "c.h5", labels, attributes=columns)
    run = train(cache, label_columns=["mass", "fluid"])
    assert run.assessment is not None
    assert run.assessment.calibration is None
    assert [one.name for one in run.assessment.classes] == ["mass", "fluid"]
    assert all(one.calibration is not None for one in run.assessment.classes)
    assert {group.attribute for group in run.assessment.subgroups} == {"site"}
    assert [one.name for one in run.shortcuts] == ["site"]
    assert run.suspects is not None
    assert run.suspects.n_images == 180 - run.config.dataset.n_split["test"]
    assert {one.predicted for one in run.suspects.images} <= {"mass", "no mass", "fluid", "no fluid"}


# -- patients with several images ---------------------------------------------------------------------------------------


def cache_of_patients(folder: Path, n: int) -> Path:
    labels = [("benign", "malignant")[i // 4 % 2] for i in range(n)]
    return write_labelled_cache(folder / "c.h5", labels, patients=[f"p{i // 4}" for i in range(n)])


def test_patients_with_several_images_have_intervals_by_bootstrap_over_patients(tmp_path: Path) -> None:
    run = train(cache_of_patients(tmp_path, 640))
    scores = run.heads[0].test
    assert scores is not None
    assert scores.auc.method == "bootstrap over patients"
    y_test, p_test = images_of(run, "test")
    patients = np.array(run.predictions.patients)[np.array(run.predictions.splits) == "test"]
    groups = np.unique(patients, return_inverse=True)[1]
    drawn = metrics.bootstrap_auc_ci(y_test, p_test, groups)
    assert scores.auc.interval == pytest.approx((drawn.low, drawn.high), abs=0.01)  # patients in another order
    point = points_of(run)[0]
    assert point.result is not None
    assert point.result.sensitivity.method == "bootstrap over patients"
    written = to_json(point)
    assert written["by_patient"]["sensitivity"] == list(point.result.sensitivity.interval or ())
    for name, share in (("sensitivity", point.result.sensitivity), ("npv", point.result.npv)):
        found = written["result"][name]
        assert (found["low"], found["high"], found["method"]) == (*(share.interval or ()), share.method)


def test_single_image_patients_have_delongs_interval(two: Run) -> None:
    y_test, p_test = images_of(two, "test")
    scores = two.head(two.selected).test
    assert scores is not None
    assert min(np.bincount(y_test)) < 30
    assert scores.auc.interval == pytest.approx(metrics.newcombe_ci(y_test, p_test[:, 1]), abs=0.03)
    assert scores.auc.method == "Newcombe"


@pytest.mark.parametrize("how", ["mean", "max"])
def test_per_patient_scores_are_those_of_joined_probabilities(tmp_path: Path, how: str) -> None:
    run = train(cache_of_patients(tmp_path, 320), ("linear", "mlp:8"), per_patient=how, n_folds=2)
    with (tmp_path / "run" / "predictions.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    by_patient: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        by_patient.setdefault(row["patient"], []).append(row)
    assert [head.n_members for head in run.heads[:2]] == [1, 20]
    for head in run.heads:
        p = [getattr(np, how)([float(row[head.name]) for row in images]) for images in by_patient.values()]
        y = [int(images[0]["label"] == "malignant") for images in by_patient.values()]
        assert head.test is not None
        assert head.test.n == len(by_patient)
        assert head.test.value("roc_auc") == pytest.approx(roc_auc_score(y, p), abs=1e-12)
        if head.n_members == 1 and not head.shares:
            assert head.seeds[0].test_roc_auc == head.test.value("roc_auc")
    assert run.cross_validation is not None
    assert run.cross_validation.results[0].pooled.n == 80
    assert run.assessment is not None
    assert run.assessment.unit == f"patient, {how}"
    assert run.assessment.classes[0].n == len(by_patient)
    assert read_run(run.directory).config.per_patient == how


def test_splits_have_patients_of_both_classes_where_patients_are_scored(tmp_path: Path) -> None:
    """Most positive patients have negative images too, which do not make them negative patients."""
    labels = [label for i in range(60) for label in ("benign", "benign", "malignant" if i % 5 else "benign")]
    for number in range(6):  # patients' names decide their split
        patients = [f"{number}-{i // 3}" for i in range(len(labels))]
        cache = write_labelled_cache(tmp_path / f"{number}" / "c.h5", labels, patients=patients)
        run = train(cache, positive=["malignant"], per_patient="mean")
        test = run.heads[0].test
        assert test is not None
        assert test.auc.interval is not None


def test_per_patient_without_patients_is_refused(tmp_path: Path) -> None:
    cache = write_labelled_cache(tmp_path / "c.h5", mixed(TWO))
    with pytest.raises(TrainingError, match="--per-patient mean: the dataset 'phantoms' has no patient column"):
        train(cache, per_patient="mean")


def test_per_patient_of_several_labels_an_image_is_refused(tmp_path: Path) -> None:
    columns = {"mass": ["0", "0", "1", "1"] * 25, "fluid": (["0"] * 4 + ["1"] * 4) * 12 + ["0"] * 4}
    cache = write_labelled_cache(
        tmp_path / "c.h5", ["x"] * 100, attributes=columns, patients=[f"p{i // 2}" for i in range(100)]
    )
    with pytest.raises(TrainingError, match="--per-patient max: images with several labels are scored as images"):
        train(cache, per_patient="max", label_columns=[])


def test_patient_of_two_of_three_classes_is_refused_with_the_way_out(tmp_path: Path) -> None:
    labels = [("a", "b", "c")[i // 2 % 3] for i in range(120)]
    labels[-1] = "a"  # and the same patient's other image is of c
    splits = ["train"] * 60 + ["val"] * 30 + ["test"] * 30
    patients = [f"p{i // 2}" for i in range(120)]
    cache = write_labelled_cache(tmp_path / "c.h5", labels, patients=patients, splits=splits)
    with pytest.raises(TrainingError, match=r"--per-patient mean, the split .*different classes.*--positive"):
        train(cache, per_patient="mean")


def test_training_patient_of_two_of_three_classes_is_refused_where_folds_hold_him_out(tmp_path: Path) -> None:
    labels = [("a", "b", "c")[i // 2 % 3] for i in range(120)]
    labels[0] = "b"  # and the same patient's other image is of a
    splits = ["train"] * 60 + ["val"] * 30 + ["test"] * 30
    patients = [f"p{i // 2}" for i in range(120)]
    cache = write_labelled_cache(tmp_path / "c.h5", labels, patients=patients, splits=splits)
    with pytest.raises(TrainingError, match=r"--per-patient mean with --folds 2: .*different classes.*--positive"):
        train(cache, per_patient="mean", n_folds=2)
    assert train(cache, per_patient="mean").assessment is not None


# -- comparisons, subgroups, shortcuts, labels --------------------------------------------------------------------------


def test_heads_are_not_tested_on_a_test_split_of_one_patient_and_the_run_says_why(tmp_path: Path) -> None:
    splits = ["train"] * 80 + ["val"] * 20 + ["test"] * 20
    patients = [f"p{i}" for i in range(100)] + ["alone"] * 20
    cache = write_labelled_cache(tmp_path / "c.h5", ["x", "y"] * 60, patients=patients, splits=splits)
    train(cache)
    comparisons = read_run(tmp_path / "run").comparisons
    assert comparisons
    for one in comparisons:
        assert (one.z, one.p, one.p_holm) == (None, None, None)
        assert one.reason == "too few patients for an interval: 1"
        assert (one.difference.low, one.difference.high) == (None, None)


def test_every_other_head_and_reference_is_compared_with_the_selected_one(two: Run) -> None:
    names = {head.name for head in two.heads} | {reference.name for reference in two.references}
    assert {one.name for one in two.comparisons} == names - {two.selected}
    y_test, p_test = images_of(two, "test")
    other = next(head.name for head in two.heads if head.name != two.selected)
    rows = np.array(two.predictions.splits) == "test"
    z, p = delong_test(y_test, two.predictions.probabilities[other][rows, 1], p_test[:, 1])
    found = next(one for one in two.comparisons if one.name == other)
    assert (found.z, found.p) == pytest.approx((z, p))
    tested = [one for one in two.comparisons if one.p is not None]
    corrected = metrics.holm([one.p for one in tested if one.p is not None])
    assert [one.p_holm for one in tested] == pytest.approx(list(corrected))


def test_subgroups_are_of_every_attribute_on_test_and_small_ones_are_named(two: Run) -> None:
    assert two.assessment is not None
    groups = {(group.attribute, group.value): group for group in two.assessment.subgroups}
    assert {name for name, _ in groups} == {"sex", "site"}
    women = groups["sex", "f"]
    n_test = two.config.dataset.n_split["test"]
    assert sum(group.n for (name, _), group in groups.items() if name == "sex") == n_test
    assert women.roc_auc.value is None or women.sensitivity is not None
    small = [group for (name, _), group in groups.items() if name == "site" and group.n < 20]
    assert all(group.roc_auc.value is None and "fewer than 20" in group.reason for group in small)


def test_suspects_without_folds_are_those_of_cross_validated_logistic_regression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[str] = []

    def noted(*arguments: Any, kinds: Sequence[Reference]) -> list[ReferenceFit]:
        fitted.extend(one.name for one in kinds)
        return fit_references(*arguments, kinds=kinds)

    monkeypatch.setattr(hoarfrost.experiment.review, "fit_references", noted)
    labels = mixed(TWO)
    x = embeddings_of(labels)
    labels[7] = "malignant" if labels[7] == "benign" else "benign"  # its embedding is still of the other class
    cache = write_labelled_cache(tmp_path / "c.h5", labels, embeddings=x)
    run = train(cache, suspects_in_test=True)
    assert run.suspects is not None
    assert run.suspects.source == "5-fold cross-validation of logistic regression"
    assert run.suspects.n_images == 200
    assert f"{labels[7]}/7.png" in [one.path for one in run.suspects.images[:3]]
    assert fitted == [LOGISTIC_REGRESSION]  # what is not read takes seconds


def test_suspects_with_folds_are_those_of_the_heads_that_each_fold_selected(tmp_path: Path) -> None:
    labels = mixed(TWO)
    splits = ["train"] * 120 + ["val"] * 40 + ["test"] * 40
    cache = write_labelled_cache(tmp_path / "c.h5", labels, splits=splits)
    run = train(cache, n_folds=3, suspects_in_test=True)
    assert run.suspects is not None
    assert run.suspects.source == "cross-validation, selected in each fold"
    assert run.suspects.n_images == 200  # the given test split by the selected head, which never saw it
    assert run.out_of_fold is not None
    place = {path: i for i, path in enumerate(run.predictions.paths)}
    nested = run.out_of_fold.probabilities["selected in each fold"]
    for one in run.suspects.images:
        p = run.predictions.probabilities[run.selected] if one.split == "test" else nested
        assert one.p_label == p[place[one.path], run.config.dataset.classes.index(one.label)]


def test_too_few_patients_for_folds_leave_the_list_out_with_the_reason(tmp_path: Path) -> None:
    labels = mixed({"benign": 40, "malignant": 4})
    splits = ["train"] * 44
    for number, place in enumerate([i for i, label in enumerate(labels) if label == "malignant"][:2]):
        splits[place] = "val"
        splits[[i for i, label in enumerate(labels) if label == "benign"][number]] = "val"
    run = train(write_labelled_cache(tmp_path / "c.h5", labels, splits=splits))
    assert run.suspects is not None
    assert run.suspects.images == ()
    assert "fewer than 5 folds" in run.suspects.reason


@pytest.mark.slow
def test_shortcut_planted_in_the_demo_set_is_warned_of_by_the_command_and_the_set_as_shipped_is_not(
    tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    images = tmp_path / "images"
    write_demo(images, n_images=360)
    table = images / "labels.csv"
    header, *rows = table.read_text().splitlines()
    for name in ("shipped", "tied"):
        if name == "tied":  # the malignant of scanner B and all others of scanner A are left out
            kept = [row for row in rows if (",malignant," in row) == row.endswith(",A")]
            table.write_text("\n".join([header, *kept]) + "\n")
        extract(images, tmp_path / f"{name}.h5", options=ExtractOptions(weights="random:0"))
    arguments = ("--head", "linear", "--epochs", 2, "--positive", "malignant", "--json", "--run", tmp_path / "run")
    shipped = hoarfrost("train", "--cache", tmp_path / "shipped.h5", *arguments)
    assert "possible shortcut" not in shipped.stderr
    assert not any(one["is_shortcut"] for one in json.loads(shipped.stdout)["shortcuts"])
    tied = hoarfrost("train", "--cache", tmp_path / "tied.h5", *arguments)
    assert "warning: possible shortcut: the embeddings predict 'scanner' with a ROC AUC of" in tied.stderr
    assert (
        read_run(tmp_path / "run").config.warnings[0].startswith("Possible shortcut: the embeddings predict 'scanner'")
    )


def test_run_with_all_of_it_is_read_back_as_it_was(two: Run) -> None:
    read = read_run(two.directory)
    for name in ("leakage", "comparisons", "assessment", "shortcuts", "suspects", "heads", "references", "config"):
        assert getattr(read, name) == getattr(two, name), name
