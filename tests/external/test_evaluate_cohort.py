"""`evaluate DATA`: a frozen head on another cohort. Nothing is fitted there, and what training saw is refused."""

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.external.cohort import CohortConfig, evaluate_cohort
from hoarfrost.features.errors import HoarfrostError, RunError
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.files import read_head
from hoarfrost.heads.specs import parse_heads
from hoarfrost.inference.predict import predict_dataset
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Drop, External, Run, read_run
from tests.support.builders import write_csv
from tests.support.commands import Hoarfrost
from tests.support.predicted import Trained, read_csv, write_set

pytestmark = pytest.mark.usefixtures("free_backbone")
QUICK = CohortConfig(options=ExtractOptions(device="cpu"))


def external_of(run: Run) -> External:
    assert run.external is not None
    return run.external


def relabelled(cohort: Path, folder: Path, label_of: Callable[[int, str], str]) -> Path:
    shutil.copytree(cohort, folder)
    rows = [list(row.values()) for row in read_csv(cohort / "labels.csv")]
    header = ["path", "label", "patient", "site", "age"]
    write_csv(folder / "labels.csv", [header, *([row[0], label_of(i, row[1]), *row[2:]] for i, row in enumerate(rows))])
    return folder


# -- what is frozen -----------------------------------------------------------------------------------------------------


def test_probabilities_are_those_of_predict(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    found = evaluate_cohort(cohort, tmp_path / "e", run=trained.run)
    predict_dataset(cohort, tmp_path / "p.csv", run=trained.run)
    expected = {row["path"]: row[found.selected] for row in read_csv(tmp_path / "p.csv")}
    assert {row["path"]: row[found.selected] for row in read_csv(tmp_path / "e" / "predictions.csv")} == expected


def test_nothing_frozen_depends_on_the_labels_of_the_cohort(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    other = {"benign": "malignant", "malignant": "benign"}
    changed = relabelled(cohort, tmp_path / "changed", lambda i, label: other[label] if i // 2 % 3 else label)
    one, two = (
        evaluate_cohort(data, tmp_path / name, run=trained.run) for name, data in (("1", cohort), ("2", changed))
    )
    assert one.head(one.selected).test != two.head(two.selected).test
    columns = [[row[one.selected] for row in read_csv(tmp_path / name / "predictions.csv")] for name in "12"]
    assert columns[0] == columns[1]
    saved = read_head(trained.run / read_run(trained.run).head(one.selected).weights_file)
    first, second = one.assessment, two.assessment
    assert first is not None
    assert second is not None
    assert [point.point for point in first.classes[0].points] == [point.point for point in second.classes[0].points]
    assert tuple(point.point for point in first.classes[0].points) == saved.validated[0].points[0]
    assert first.calibration is not None
    assert second.calibration is not None
    assert first.calibration.temperature == second.calibration.temperature
    assert first.calibration.temperature.temperature == saved.validated[0].temperatures[0]
    thresholds = [run.head(run.selected).test for run in (one, two)]
    assert all(
        scores is not None and scores.thresholds == (first.classes[0].points[0].point.threshold,)
        for scores in thresholds
    )


def test_head_file_alone_gives_the_same_figures_and_no_drop(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    name = read_run(trained.run).selected
    one = evaluate_cohort(cohort, tmp_path / "run", run=trained.run)
    file = trained.run / read_run(trained.run).head(name).weights_file
    two = evaluate_cohort(cohort, tmp_path / "file", head=str(file))
    assert one.head(name).test == two.head(name).test
    assert one.assessment is not None
    assert two.assessment is not None
    assert replace(one.assessment, calibration=None) == replace(two.assessment, calibration=None)
    assert external_of(two).drops == ()
    assert "--run" in external_of(two).internal
    assert [check.n for check in external_of(two).overlap] == [None, 0, None]  # the file has digests of images alone


def test_evaluation_is_read_back_as_it_was_written(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    found = evaluate_cohort(cohort, tmp_path / "e", run=trained.run)
    again = read_run(tmp_path / "e")
    assert (again.external, again.heads, again.assessment) == (found.external, found.heads, found.assessment)
    assert again.config == found.config


# -- the drop -----------------------------------------------------------------------------------------------------------


def test_drop_is_from_the_runs_own_test_figure(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    run, found = read_run(trained.run), evaluate_cohort(cohort, tmp_path / "e", run=trained.run)
    internal, external = run.head(run.selected).test, found.head(run.selected).test
    assert internal is not None
    assert external is not None
    drop = next(one for one in external_of(found).drops if (one.site, one.metric) == ("all", "roc_auc"))
    (low, high), (lower, upper) = internal.auc.interval or (0, 0), external.auc.interval or (0, 0)
    assert external.auc.method == "bootstrap over patients"  # each patient has two images
    a, b = internal.auc.value or 0, external.auc.value or 0
    assert drop.drop.value == a - b
    assert drop.drop.low == pytest.approx(a - b - math.hypot(a - low, upper - b))
    assert drop.drop.high == pytest.approx(a - b + math.hypot(high - a, b - lower))


def test_drops_of_sensitivity_and_specificity_are_at_the_frozen_threshold(
    trained: Trained, cohort: Path, tmp_path: Path
) -> None:
    found = evaluate_cohort(cohort, tmp_path / "e", run=trained.run)
    assert found.assessment is not None
    threshold = found.assessment.classes[0].points[0].point.threshold
    rows = read_csv(tmp_path / "e" / "predictions.csv")
    counts = {label: [float(row[found.selected]) >= (threshold or 0) for row in rows if row["label"] == label]
              for label in ("benign", "malignant")}  # fmt: skip
    by_metric = {one.metric: one for one in external_of(found).drops if one.site == "all"}
    assert by_metric["sensitivity"].external.value == pytest.approx(np.mean(counts["malignant"]))
    assert by_metric["specificity"].external.value == pytest.approx(1 - np.mean(counts["benign"]))


def test_each_site_has_its_own_drop(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    found = external_of(evaluate_cohort(cohort, tmp_path / "e", run=trained.run))
    assert found.site_column == "site"
    areas: dict[str, Drop] = {one.site: one for one in found.drops if one.metric == "roc_auc"}
    assert list(areas) == ["all", "north", "south"]
    rows = [row for row in read_csv(cohort / "labels.csv") if row["site"] == "north"]
    p = {
        row["path"]: float(row[read_run(trained.run).selected]) for row in read_csv(tmp_path / "e" / "predictions.csv")
    }
    positives, negatives = (
        [p[row["path"]] for row in rows if row["label"] == label] for label in ("malignant", "benign")
    )
    wins = sum((a > b) + (a == b) / 2 for a in positives for b in negatives)
    assert areas["north"].external.value == pytest.approx(wins / len(positives) / len(negatives))


def test_images_without_a_known_site_are_no_site(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    other = shutil.copytree(cohort, tmp_path / "cohort")
    text = (other / "labels.csv").read_text(encoding="utf-8")
    halves = iter(range(1000))
    emptied = re.sub("south", lambda _: "south" if next(halves) % 4 < 2 else "", text)
    (other / "labels.csv").write_text(emptied, encoding="utf-8")
    run = evaluate_cohort(other, tmp_path / "e", run=trained.run)
    assert run.assessment is not None
    assert "(missing)" in {one.value for one in run.assessment.subgroups if one.attribute == "site"}
    assert {one.site for one in external_of(run).drops} == {"all", "north", "south"}


def test_wanted_site_column_must_exist(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(HoarfrostError, match=r"--site ward: .* has no such column. It has: site, age"):
        evaluate_cohort(cohort, tmp_path / "e", run=trained.run, config=replace(QUICK, site="ward"))


# -- overlap ------------------------------------------------------------------------------------------------------------


def with_training_image(trained: Trained, cohort: Path, folder: Path, *, patient: str, change: bool) -> Path:
    """Copy the cohort, with a training image as one of its own."""
    shutil.copytree(cohort, folder)
    seen = next(row for row in read_csv(trained.run / "predictions.csv") if row["split"] == "train")
    content = (trained.images / seen["path"]).read_bytes()
    (folder / "0.png").write_bytes(content + (b"\0" if change else b""))  # other bytes, the same pixels
    rows = [list(row.values()) for row in read_csv(cohort / "labels.csv")]
    rows[0][1:3] = [seen["label"], patient or seen["patient"]]
    write_csv(folder / "labels.csv", [["path", "label", "patient", "site", "age"], *rows])
    return folder


@pytest.mark.parametrize(
    ("patient", "change", "message"),
    [
        ("", True, r"1 patient is in the training images"),
        ("q0", False, r"1 identical image is in the training images"),
        ("q0", True, r"near-identical images (is|are) in the training images"),
    ],
)
def test_overlap_with_training_images_is_refused_unless_allowed(
    trained: Trained, cohort: Path, tmp_path: Path, patient: str, change: bool, message: str
) -> None:
    data = with_training_image(trained, cohort, tmp_path / "data", patient=patient, change=change)
    with pytest.raises(HoarfrostError, match=message):
        evaluate_cohort(data, tmp_path / "e", run=trained.run)
    assert not (tmp_path / "e").exists()
    found = evaluate_cohort(data, tmp_path / "e", run=trained.run, config=replace(QUICK, allow_leakage=True))
    assert external_of(found).allowed
    assert "allowed by --allow-leakage" in write_report(tmp_path / "e").read_text(encoding="utf-8")


def test_what_could_not_be_checked_is_stated(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    hidden = trained.cache.with_suffix(".away")
    trained.cache.rename(hidden)
    try:
        found = external_of(evaluate_cohort(cohort, tmp_path / "e", run=run, config=replace(QUICK, weights="random:0")))
    finally:
        hidden.rename(trained.cache)
    checks = {one.what: one for one in found.overlap}
    assert checks["patients"].n == 0
    assert checks["identical images"].n == 0
    assert "by the digests in the head file" in checks["identical images"].text
    assert checks["near-identical images"].n is None
    assert "no longer exists" in checks["near-identical images"].text


# -- a first look -------------------------------------------------------------------------------------------------------


def test_first_look_names_what_differs(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    rare = relabelled(cohort, tmp_path / "rare", lambda i, _: "malignant" if i < 12 else "benign")
    looks = {one.what: one for one in external_of(evaluate_cohort(rare, tmp_path / "e", run=trained.run)).differences}
    assert looks["prevalence of malignant"].differs
    assert looks["prevalence of malignant"].cohort == "15% of 80 images"
    assert not looks["format"].differs
    assert looks["format"].cohort == "PNG 100%"
    assert looks["images per patient"].training == looks["images per patient"].cohort == "2.0"


def test_other_formats_differ(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    from PIL import Image

    data = tmp_path / "jpegs"
    data.mkdir()
    rows = [list(row.values()) for row in read_csv(cohort / "labels.csv")]
    for row in rows:
        with Image.open(cohort / row[0]) as image:
            row[0] = row[0].replace(".png", ".jpg")
            image.save(data / row[0])
    write_csv(data / "labels.csv", [["path", "label", "patient", "site", "age"], *rows])
    looks = {one.what: one for one in external_of(evaluate_cohort(data, tmp_path / "e", run=trained.run)).differences}
    assert (looks["format"].differs, looks["format"].training, looks["format"].cohort) == (True, "PNG 100%", "JPG 100%")


# -- what is refused ----------------------------------------------------------------------------------------------------


def test_unknown_labels_are_refused_before_anything_is_embedded(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    data = relabelled(cohort, tmp_path / "data", lambda i, label: "cyst" if i == 5 else label)
    with pytest.raises(
        HoarfrostError, match=r"does not know the labels cyst \(1 images\).*benign, malignant.*--label-map"
    ):
        evaluate_cohort(data, tmp_path / "e", run=trained.run)


def test_labels_can_be_renamed_to_the_heads_own(
    trained: Trained, cohort: Path, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    names = {"benign": "0", "malignant": "1"}
    data = relabelled(cohort, tmp_path / "data", lambda _, label: names[label])
    names_file = write_csv(tmp_path / "names.csv", [["label", "name"], ["0", "benign"], ["1", "malignant"]])
    done = hoarfrost("evaluate", data, "--run", trained.run, "--output", tmp_path / "e", "--label-map", names_file)
    assert done.status == 0, done.stderr
    one = evaluate_cohort(cohort, tmp_path / "one", run=trained.run)
    assert read_run(tmp_path / "e").head(one.selected).test == one.head(one.selected).test


def test_missing_labels_are_refused(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    data = tmp_path / "flat"
    shutil.copytree(cohort, data)
    (data / "labels.csv").unlink()
    with pytest.raises(HoarfrostError):
        evaluate_cohort(data, tmp_path / "e", run=trained.run)


def test_of_one_class_the_sensitivity_is_said(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    data = relabelled(cohort, tmp_path / "data", lambda *_: "malignant")
    message = (
        r"all 80 scored images are malignant.*At the frozen threshold \(>= 0\.\d+, .*\) the sensitivity is 0\.\d+ \(95%"
    )
    with pytest.raises(HoarfrostError, match=message):
        evaluate_cohort(data, tmp_path / "e", run=trained.run)


def test_evaluation_and_run_never_replace_one_another(
    trained: Trained, cohort: Path, tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    with pytest.raises(RunError, match=r"contains a run of `train`.*--output"):
        evaluate_cohort(cohort, trained.run, run=trained.run)
    evaluate_cohort(cohort, tmp_path / "e", run=trained.run)
    evaluate_cohort(cohort, tmp_path / "e", run=trained.run)  # an evaluation without a report is replaced
    refused = hoarfrost("train", "--cache", trained.cache, "--run", tmp_path / "e")
    assert refused.status == 1
    assert "contains an evaluation" in refused.stderr
    for command in (("predict", cohort, "--output", tmp_path / "x.csv"), ("evaluate", cohort)):
        refused = hoarfrost(*command[:2], "--run", tmp_path / "e", *command[2:])
        assert refused.status == 1
        assert "has no head to use" in refused.stderr


def test_report_of_an_evaluation_is_kept_unless_it_is_to_be_overwritten(
    trained: Trained, cohort: Path, tmp_path: Path
) -> None:
    evaluate_cohort(cohort, tmp_path / "e", run=trained.run)
    write_report(tmp_path / "e")
    with pytest.raises(RunError, match=r"its report.*--overwrite.*--output"):
        evaluate_cohort(cohort, tmp_path / "e", run=trained.run)
    evaluate_cohort(cohort, tmp_path / "e", run=trained.run, config=replace(QUICK, overwrite=True))
    assert not (tmp_path / "e" / "report.html").exists()


def test_cohort_does_not_take_the_place_of_the_training_images_in_their_cache(
    trained: Trained, cohort: Path, tmp_path: Path
) -> None:
    data = tmp_path / "images"  # the name of the training images
    shutil.copytree(cohort, data)
    cache = tmp_path / "c.h5"
    shutil.copy(trained.cache, cache)
    run = tmp_path / "run"
    shutil.copytree(trained.run, run)
    with pytest.raises(HoarfrostError, match=r"already holds the training images.*--name"):
        evaluate_cohort(data, tmp_path / "e", run=trained.run, config=replace(QUICK, cache=trained.cache))


# -- the page and the command -------------------------------------------------------------------------------------------


def test_report_shows_external_validation_first(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    evaluate_cohort(cohort, tmp_path / "e", run=trained.run, config=replace(QUICK, cache=tmp_path / "b.h5"))
    page = write_report(tmp_path / "e").read_text(encoding="utf-8")
    sections = [part.partition('"')[0] for part in page.split('<section aria-labelledby="')[1:]]
    assert next(name for name in sections if name != "cautions") == "external"
    assert "Drop from the internal test" in page
    assert "data:image" in page  # the cohort's own images, because a cache was kept
    assert "External ROC AUC" in page


def test_report_without_a_cache_says_why_it_has_no_images(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    evaluate_cohort(cohort, tmp_path / "e", run=trained.run)
    page = write_report(tmp_path / "e").read_text(encoding="utf-8")
    assert "No cache of the evaluated images was kept" in page


def test_command_writes_beside_the_run_and_prints_the_drop(
    trained: Trained, cohort: Path, hoarfrost: Hoarfrost
) -> None:
    done = hoarfrost("evaluate", cohort, "--run", trained.run)
    assert done.status == 0, done.stderr
    place = trained.run.with_name("run-on-hospital_b")
    assert f"evaluation {place}" in done.stdout
    assert "ROC AUC" in done.stdout
    assert "in the training images: no patients, no identical images, no near-identical images" in done.stdout
    as_json = hoarfrost("evaluate", cohort, "--run", trained.run, "--json")
    document = json.loads(as_json.stdout)
    assert document["run"] == str(place)
    assert document["external"]["site_column"] == "site"
    shutil.rmtree(place)


def test_run_without_a_test_split_gives_a_drop_without_an_interval(cohort: Path, tmp_path: Path) -> None:
    images = write_set(tmp_path / "images")
    rows = [{**row, "split": "train"} for row in read_csv(images / "labels.csv")]
    with (images / "labels.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    extract(images, tmp_path / "c.h5", options=ExtractOptions(weights="random:0", precision="float32"))
    run_experiment(tmp_path / "c.h5", tmp_path / "run", parse_heads(["logistic"]), ExperimentConfig())
    found = external_of(evaluate_cohort(cohort, tmp_path / "e", run=tmp_path / "run"))
    (drop,) = [one for one in found.drops if one.site == "all"]
    assert drop.drop.value is not None
    assert drop.drop.interval is None
    assert "no test split" in found.internal


# -- other tasks --------------------------------------------------------------------------------------------------------


def trained_on(rows: list[list[str]], images: Path, folder: Path, **options: Any) -> Path:
    """Train on the pictures of a table; the images stay where they are."""
    table = write_csv(images / f"{folder.name}.csv", rows)
    folder.mkdir()
    extract(table, folder / "c.h5", options=ExtractOptions(weights="random:0", precision="float32"))
    run_experiment(folder / "c.h5", folder / "run", parse_heads(["logistic"]), ExperimentConfig(**options))
    return folder / "run"


KINDS = ("low", "middle", "high")


def three_classes(images: Path, first: str) -> list[list[str]]:
    rows = [["path", "label", "patient"]]
    return rows + [[f"{i}.png", KINDS[i // 2 % 3], f"{first}{i // 2}"] for i in range(len(list(images.glob("*.png"))))]


def test_more_than_two_classes_by_the_most_probable_one(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    run = trained_on(three_classes(trained.images, "p"), trained.images, tmp_path / "three")
    data = write_csv(cohort / "three.csv", three_classes(cohort, "q"))
    found = evaluate_cohort(data, tmp_path / "e", run=run)
    assert found.assessment is not None
    own = read_run(run).assessment
    assert own is not None
    for one, of_run in zip(found.assessment.classes, own.classes, strict=True):
        assert [point.point.threshold for point in one.points] == [point.point.threshold for point in of_run.points]
    assert {one.metric for one in external_of(found).drops} == {"roc_auc", "accuracy"}
    file = evaluate_cohort(data, tmp_path / "f", head=str(run / "heads" / "logistic.safetensors"))
    assert file.head("logistic").test == found.head("logistic").test
    assert "three" in write_report(tmp_path / "e").read_text(encoding="utf-8")


def several_labels(images: Path, first: str) -> list[list[str]]:
    rows = [["path", "patient", "dark", "odd"]]
    n = len(list(images.glob("*.png")))
    return rows + [
        [f"{i}.png", f"{first}{i // 2}", str(i // 2 % 2), "" if i % 9 == 4 else str(i % 2)] for i in range(n)
    ]


def test_several_labels_per_image(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    rows = several_labels(trained.images, "p")
    run = trained_on(rows, trained.images, tmp_path / "two_labels", label_columns=("dark", "odd"))
    data = write_csv(cohort / "several.csv", several_labels(cohort, "q"))
    found = evaluate_cohort(data, tmp_path / "e", run=run)
    scores = found.head("logistic").test
    assert scores is not None
    assert list(scores.per_class) == ["dark", "odd"]
    assert "columns" not in {one.what for one in external_of(found).differences}
    write_report(tmp_path / "e")
    data = write_csv(cohort / "one.csv", [row[:3] for row in several_labels(cohort, "q")])
    with pytest.raises(HoarfrostError, match="the column 'odd' is missing"):
        evaluate_cohort(data, tmp_path / "e2", run=run)


def test_head_that_scores_patients_needs_them(trained: Trained, cohort: Path, tmp_path: Path) -> None:
    rows = [list(row.values())[:3] for row in read_csv(trained.images / "labels.csv")]
    run = trained_on([["path", "label", "patient"], *rows], trained.images, tmp_path / "patients", per_patient="mean")
    found = evaluate_cohort(cohort, tmp_path / "e", run=run)
    scores = found.head("logistic").test
    assert scores is not None
    assert scores.n == 40
    assert "test patients of" in external_of(found).internal
    data = write_csv(cohort / "unknown.csv", [["path", "label"], *(row[:2] for row in rows[:40])])
    with pytest.raises(HoarfrostError, match=r"scores patients.*--patient-column"):
        evaluate_cohort(data, tmp_path / "e2", run=run)
