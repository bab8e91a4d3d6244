"""Reports, methods and terminal of evaluated predictions: nothing is said of images or heads that do not exist."""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.evaluation.calibration import log_probabilities
from hoarfrost.evaluation.updating import fitted_update
from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Run, read_run
from tests.support.builders import write_csv
from tests.support.commands import Hoarfrost
from tests.support.predicted import read_csv
from tests.support.samples import Floats, Ints

N = 240


def drawn(seed: int = 0, n: int = N) -> tuple[Ints, Floats]:
    y = (np.arange(n) // 2 % 3 == 0).astype(np.int64)
    return y, 1 / (1 + np.exp(-np.random.default_rng(seed).normal(1.5 * y - 0.7)))


def predictions(path: Path, *, seed: int = 0, **columns: object) -> Path:
    """Write predictions with a probability, unless other columns are wanted."""
    y, p = drawn(seed)
    cells = {"id": range(N), "label": y, **(columns or {"probability": p})}
    return write_csv(path, [list(cells), *map(list, zip(*[map(str, one) for one in cells.values()], strict=True))])  # type: ignore[call-overload]


def evaluated(*files: Path, **options: object) -> Run:
    config = PredictionsConfig(**options)  # type: ignore[arg-type]
    return evaluate_predictions(files, files[0].with_name(f"{files[0].stem}-evaluated"), config=config)


def page_of(run: Run) -> str:
    """Return the text of a run's report."""
    html = write_report(run.directory).read_text(encoding="utf-8")
    html = re.sub(r"(?s)<(style|script)\b.*?</\1>", "", html)
    return unescape(re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", html)))


PATIENTS = [f"p{i // 2}" for i in range(N)]
SPLITS = ["val" if i // 2 % 2 else "test" for i in range(N)]


def test_evaluations_of_predictions_are_compared_side_by_side(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    runs = [evaluated(predictions(tmp_path / f"{name}.csv", seed=i)) for i, name in enumerate("ab")]
    first, second = (run.directory for run in runs)
    code, stdout, stderr = hoarfrost("compare", first, second)
    assert code == 0, stderr
    assert "predictions from a file" in stdout
    assert "Paired tests on 240 rows" in stdout
    page = tmp_path / "both.html"
    code, _, stderr = hoarfrost("report", "--run", first, "--run", second, "--output", page)
    assert code == 0, stderr
    assert "predictions from a file" in page.read_text(encoding="utf-8")


def test_evaluations_of_other_rows_are_refused_with_a_way_out_for_evaluations(
    tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    _, p = drawn()
    runs = [
        evaluated(predictions(tmp_path / "a.csv")),
        evaluated(predictions(tmp_path / "b.csv", probability=p, split=SPLITS)),
    ]
    code, _, stderr = hoarfrost("compare", *(run.directory for run in runs))
    assert code == 1
    assert "Their test rows differ" in stderr
    assert "Evaluate the same cohort" in stderr
    assert "hoarfrost train" not in stderr


def methods_text(run: Run) -> str:
    text = page_of(run)
    return text[text.index("To paste into a paper") :]


def test_methods_name_no_temperature_update_or_threshold_that_was_not_fitted(tmp_path: Path) -> None:
    y, p = drawn()
    plain = methods_text(evaluated(predictions(tmp_path / "plain.csv", probability=p, patient=PATIENTS)))
    assert "The predictions of plain were evaluated on plain: 240 rows of 120 patients." in plain
    assert "temperature fitted on" not in plain
    assert "no temperature was applied (there are no validated rows to fit it on)" in plain
    assert "net benefit by decision curves (Vickers and Elkin 2006)." in plain
    assert "Updated probabilities (another intercept; slope and intercept) were cross-validated by patient" in plain
    assert not any(f" {library} " in plain for library in ("torch", "torchvision", "pydicom", "device"))
    fixed = methods_text(evaluated(predictions(tmp_path / "fixed.csv", probability=p, patient=PATIENTS, split=SPLITS)))
    assert "before and after scaling by a temperature fitted on the 120 rows of the split val" in fixed
    assert "another prevalence" in fixed
    calls = methods_text(evaluated(predictions(tmp_path / "calls.csv", call=(p > 0.4).astype(int))))
    assert "The calls are as they are given." in calls
    assert "chosen on" not in calls
    stated = methods_text(evaluated(predictions(tmp_path / "stated.csv"), operating_point="threshold=0.3"))
    assert "The threshold 0.3 was stated." in stated
    assert "chosen on" not in stated


def test_other_columns_of_predictions_are_ignored_and_are_no_subgroups(tmp_path: Path) -> None:
    _, p = drawn()
    others = {"score": (5 * p).round(), "call": (p > 0.5).astype(int), "probability:0": 1 - p}
    run = evaluated(predictions(tmp_path / "p.csv", probability=p, **others, sex=list("mf" * (N // 2))))
    assert run.assessment is not None
    assert run.external is not None
    assert {one.attribute for one in run.assessment.subgroups} == {"sex"}
    assert any("the columns score, call, probability:0 also hold predictions" in note for note in run.external.notes)
    assert "is ignored" not in " ".join(evaluated(predictions(tmp_path / "plain.csv")).external.notes)  # type: ignore[union-attr]


def test_report_and_terminal_say_nothing_of_images_that_do_not_exist(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    _, p = drawn()
    file = predictions(tmp_path / "p.csv", probability=p, patient=PATIENTS, split=SPLITS)
    code, stdout, stderr = hoarfrost("evaluate", "--predictions", file, "--output", tmp_path / "e")
    assert code == 0, stderr
    assert "p: 240 rows of 120 patients, of which 120 rows of 60 patients are scored" in stdout
    page = page_of(read_run(tmp_path / "e"))
    assert "The predictions of p on 120 test rows of 60 patients." in page
    assert "240 rows of predictions" in page
    absent = ("image", "embedding", "bytes of", "readable", "to convergence", "reference classifiers", "was evaluated")
    said = page.replace("The report has no images. Predictions were evaluated without their images.", "")
    assert [word for word in absent if word in said] == []


def test_one_patient_is_no_plural(tmp_path: Path) -> None:
    file = predictions(tmp_path / "p.csv", probability=drawn()[1], patient=["p"] * N)
    page = page_of(evaluated(file, operating_point="threshold=0.3"))
    assert "240 rows of 1 patient:" in page
    assert "1 patients" not in page


def test_terminal_says_which_figures_of_paired_tests_are_corrected(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    _, p = drawn()
    files = [predictions(tmp_path / "a.csv", probability=p), predictions(tmp_path / "b.csv", probability=(1 - p) / 2)]
    files.append(predictions(tmp_path / "c.csv", seed=1))
    arguments = [argument for file in files for argument in ("--predictions", file)]
    code, stdout, stderr = hoarfrost("evaluate", *arguments, "--output", tmp_path / "e")
    assert code == 0, stderr
    assert re.search(r"^b: ROC AUC .*; difference .*, p < 0\.001$", stdout, re.MULTILINE)
    assert "p 0.000" not in stdout
    assert "p is corrected by Holm's method for all comparisons; the intervals of differences are not." in stdout


def test_equal_probabilities_are_named_and_no_point_of_a_single_answer_is_offered(tmp_path: Path) -> None:
    y, p = drawn()
    for name, values, splits in (("equal", np.full(N, 0.3), ["test"] * N), ("inverted", 1 - y * 0.9, SPLITS)):
        run = evaluated(predictions(tmp_path / f"{name}.csv", probability=values, split=splits))
        assert run.assessment is not None
        assert run.external is not None
        (found,) = run.assessment.classes
        assert found.points[0].point.name == "Youden's index"
        assert (found.points[0].point.threshold, found.points[0].result) == (None, None)
        assert "no threshold finds samples of both classes" in page_of(run)
        reasons = {one.method: one.reason for one in run.external.updates[0].methods if one.reason}
        assert ("separate" in reasons["slope and intercept"]) is (name == "inverted")
    assert "all probabilities are equal" in fitted_reason(np.full(N, 0.3), y)
    assert (
        evaluated(predictions(tmp_path / "plain.csv", probability=p)).assessment.classes[0].points[0].result is not None
    )  # type: ignore[union-attr]


def fitted_reason(p: Floats, y: Ints) -> str:
    with pytest.raises(ValueError, match="no slope") as error:
        fitted_update(y, log_probabilities(np.column_stack([1 - p, p])), with_slope=True)
    return str(error.value)


def test_thresholds_of_scores_are_on_the_readers_own_scale(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    y, p = drawn()
    read = np.clip(np.round(1 + 4 * p + 0.3 * y), 1, 5).astype(int)
    file = predictions(tmp_path / "reader.csv", score=read, split=SPLITS)
    code, stdout, stderr = hoarfrost("evaluate", "--predictions", file, "--output", tmp_path / "e")
    assert code == 0, stderr
    run = read_run(tmp_path / "e")
    assert run.assessment is not None
    share = run.assessment.classes[0].points[0].point.threshold
    assert share is not None
    own = f"{1 + 4 * share:g}"
    assert own in ("1.5", "2.5", "3.5", "4.5")
    assert f"threshold >= {own} (Youden's index)" in stdout
    page = page_of(run)
    assert f"threshold ≥ {own} (Youden's index)" in page
    assert f"Confusion matrix at a threshold of {own}" in page
    assert "score ≥ threshold" in page
    assert "probability ≥ threshold" not in page
    assert re.search(r"predicted [01], score [1-5] ", page)
    assert "score is closest to the threshold" in page
    assert f"{share:.3f}" not in page
    done = hoarfrost("report", "--run", run.directory, "--figures", tmp_path / "figures")
    assert done.status == 0, done.stderr
    rows = read_csv(tmp_path / "figures" / "operating_points.csv")
    assert f"{float(rows[0]['threshold']):g}" == own
    heads = read_csv(tmp_path / "figures" / "heads.csv")
    assert f"{float(heads[0]['test_threshold']):g}" == own


@pytest.mark.parametrize("split", [SPLITS, ["test"] * N], ids=["validated", "not validated"])
def test_thresholds_of_scores_are_stated_on_their_own_scale(
    tmp_path: Path, hoarfrost: Hoarfrost, split: list[str]
) -> None:
    y, p = drawn()
    read = np.clip(np.round(1 + 4 * p), 1, 5).astype(int)
    file = predictions(tmp_path / "reader.csv", score=read, split=split)
    arguments = ("evaluate", "--predictions", file, "--overwrite", "--output", tmp_path / "e", "--operating-point")
    code, stdout, stderr = hoarfrost(*arguments, "threshold=4")
    assert code == 0, stderr
    scored = np.array(split) == "test"
    sensitivity = np.mean(read[scored & (y == 1)] >= 4)
    assert f"threshold >= 4 (the stated threshold 4): sensitivity {sensitivity:.3f}" in stdout
    assert hoarfrost(*arguments, "threshold=6").stderr.count("the threshold must be between 1 and 5") == 1
    plain = predictions(tmp_path / "plain.csv")
    refused = hoarfrost("evaluate", "--predictions", plain, "--operating-point", "threshold=4")
    assert "the threshold must be between 0 and 1" in refused.stderr


def test_missing_class_is_named_with_its_split_and_the_ways_out(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    y, p = drawn()
    split = ["test" if positive or i % 2 else "val" for i, positive in enumerate(y)]
    file = predictions(tmp_path / "p.csv", probability=p, split=split)
    n = split.count("val")
    refused = hoarfrost("evaluate", "--predictions", file).stderr
    assert f"none of the {n} rows of the split val, which fix thresholds, is 1. State a threshold" in refused
    assert "--operating-point threshold=0.3, name another split with --validation-split, or add rows" in refused
    code, stdout, stderr = hoarfrost("evaluate", "--predictions", file, "--operating-point", "threshold=0.3")
    assert code == 0, stderr
    assert f"{n} rows of the split val are left out" in stdout
    alone = predictions(tmp_path / "alone.csv", probability=p, patient=["p"] * N)
    refused = hoarfrost("evaluate", "--predictions", alone).stderr
    assert "thresholds cannot be cross-fitted: 0 has 1 patient, and two are needed. State a threshold" in refused
