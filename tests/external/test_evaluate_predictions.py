"""`evaluate --predictions`: any model's predictions get the assessment of a head, and what is no prediction is named."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.evaluation import confusion_matrix
from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
from hoarfrost.external.table import ColumnOptions
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Assessment, External, Run, read_run
from tests.support.builders import write_csv
from tests.support.commands import Hoarfrost, RunPython
from tests.support.predicted import Trained, read_csv
from tests.support.procs import EXPECTED, reference_case
from tests.support.samples import Floats, Ints

Rows = list[list[str]]


def scores_of(n: int = 120, seed: int = 0, shift: float = 1.5) -> tuple[Ints, Floats]:
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 3 == 0).astype(np.int64)
    return y, 1 / (1 + np.exp(-rng.normal(shift * y - 0.7)))


def table(columns: Sequence[str], *cells: Sequence[object]) -> Rows:
    return [list(columns), *([str(cell) for cell in row] for row in zip(*cells, strict=True))]


def vendor(path: Path, n: int = 120, seed: int = 0) -> Path:
    y, p = scores_of(n, seed)
    return write_csv(path, table(("id", "label", "probability"), range(n), y, map(float, p)))


def evaluated(path: Path, *others: Path, **options: object) -> Run:
    config = PredictionsConfig(**options)  # type: ignore[arg-type]
    return evaluate_predictions([path, *others], path.parent / "e", config=config)


def parts(run: Run) -> tuple[Assessment, External]:
    assert run.assessment is not None
    assert run.external is not None
    return run.assessment, run.external


# -- a run's own predictions ------------------------------------------------------------------------------------------


def test_runs_own_predictions_give_the_runs_own_numbers(trained: Trained, tmp_path: Path) -> None:
    run = read_run(trained.run)
    columns = ColumnOptions(positive=("malignant",), probability_columns=(run.selected,))
    found = evaluate_predictions(
        [trained.run / "predictions.csv"], tmp_path / "e", config=PredictionsConfig(columns=columns)
    )
    own, again = run.head(run.selected).test, found.head(run.selected).test
    assert own is not None
    assert again is not None
    assert (own.thresholds, own.rule, own.n, own.n_patients) == (
        again.thresholds,
        again.rule,
        again.n,
        again.n_patients,
    )
    for key, estimate in own.estimates.items():
        if key != "loss":
            assert again[key] == estimate, key
    # The file has the probability of one class; the other one's is rounded once more.
    assert again["loss"].value == pytest.approx(own["loss"].value, rel=1e-12)
    first, second = run.assessment, found.assessment
    assert first is not None
    assert second is not None
    assert second.classes[0].points == first.classes[0].points
    assert (second.confusion, second.held_by_sets) == (first.confusion, first.held_by_sets)
    assert first.calibration is not None
    assert second.calibration is not None
    assert second.calibration.before == first.calibration.before
    assert second.calibration.temperature.temperature == pytest.approx(
        first.calibration.temperature.temperature, rel=1e-5
    )


def test_all_heads_of_a_run_are_compared_with_the_mean(trained: Trained, tmp_path: Path) -> None:
    run = read_run(trained.run)
    found = evaluate_predictions([trained.run / "predictions.csv"], tmp_path / "e")
    assert {head.name for head in found.heads} == {head.name for head in run.heads}
    assert found.selected == "mean"
    own = {one.name: one.difference for one in run.comparisons}
    if run.selected == "mean":
        assert {one.name: one.difference for one in found.comparisons}.items() <= own.items()


# -- reference values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", EXPECTED)
def test_areas_and_paired_test_of_two_files_are_procs(case: str, tmp_path: Path) -> None:
    files = []
    for which in ("a", "b"):
        y, score = reference_case(case, which)
        files.append(write_csv(tmp_path / f"{which}.csv", table(("id", "label", "score"), range(len(y)), y, score)))
    found, expected = evaluated(*files), EXPECTED[case]
    for which in ("a", "b"):
        scores = found.head(which).test
        assert scores is not None
        assert scores.auc.value == pytest.approx(expected[f"auc_{which}"], abs=1e-11)
        if scores.auc.method == "DeLong":
            assert scores.auc.interval == pytest.approx(expected[f"ci95_{which}"], abs=1e-9)
    (comparison,) = found.comparisons
    assert comparison.z == pytest.approx(-expected["delong_z"], rel=1e-8)
    assert comparison.p == pytest.approx(expected["delong_p"], rel=1e-8)


# -- prevalence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["youden", "threshold=0.4"])
def test_net_benefit_without_validated_rows_is_of_probabilities_shifted_from_the_scored_rows_prevalence(
    rule: str, tmp_path: Path
) -> None:
    y, p = scores_of()
    file = write_csv(tmp_path / "a.csv", table(("id", "label", "probability"), range(len(y)), y, map(float, p)))
    run = evaluated(file, prevalence=0.05, operating_point=rule)
    (one,) = parts(run)[0].classes
    moved = np.log(p / (1 - p)) + np.log(0.05 / 0.95) - np.log(y.mean() / (1 - y.mean()))
    likely = 1 / (1 + np.exp(-moved))
    assert one.net_benefit is not None
    for at, found in zip(one.net_benefit.thresholds, one.net_benefit.net_benefit, strict=True):
        hits, alarms = (likely[y == 1] >= at).mean(), (likely[y == 0] >= at).mean()
        assert found == pytest.approx(0.05 * hits - 0.95 * alarms * at / (1 - at), abs=1e-12)
    page = write_report(run.directory).read_text(encoding="utf-8")
    text = "probabilities {}shifted from a prevalence of 0.333, that of the scored samples"
    assert text.format("") in page  # at the decision curve
    assert text.format("were ") in page  # in the methods
    plain = evaluated(file, operating_point=rule, overwrite=True)
    assert parts(plain)[0].classes[0].shift == ""


# -- thresholds -------------------------------------------------------------------------------------------------------


def test_thresholds_are_fixed_on_the_rows_of_the_split_val(tmp_path: Path) -> None:
    y, p = scores_of()
    splits = [("val", "test", "test", "train")[i // 3 % 4] for i in range(len(y))]
    file = write_csv(tmp_path / "p.csv", table(("id", "label", "probability", "split"), range(len(y)), y, p, splits))
    assessment, external = parts(evaluated(file))
    of_val, of_test = (np.array(splits) == name for name in ("val", "test"))
    best = max(
        np.mean(p[of_val & (y == 1)] >= t) + np.mean(p[of_val & (y == 0)] < t) for t in [*np.sort(p[of_val]), 2.0]
    )
    point = assessment.classes[0].points[0]
    assert point.point.threshold is not None
    threshold = point.point.threshold
    assert np.mean(p[of_val & (y == 1)] >= threshold) + np.mean(p[of_val & (y == 0)] < threshold) == pytest.approx(best)
    assert point.result is not None
    assert point.result.sensitivity.value == pytest.approx(np.mean(p[of_test & (y == 1)] >= threshold))
    assert assessment.classes[0].n == of_test.sum()
    assert "30 rows of the split val" in external.frozen
    assert any("30 rows of the split train are left out" in note for note in external.notes)


def test_without_them_thresholds_are_cross_fitted(tmp_path: Path) -> None:
    """The threshold is that of all rows; its sensitivity is of rows that did not choose it."""
    file, (y, p) = vendor(tmp_path / "p.csv"), scores_of()
    found = evaluated(file)
    assessment, external = parts(found)
    point, scores = assessment.classes[0].points[0], found.head("p").test
    assert point.result is not None
    assert point.point.threshold is not None
    assert scores is not None
    whole = np.mean(p[y == 1] >= point.point.threshold) + np.mean(p[y == 0] < point.point.threshold)
    assert point.point.sensitivity is not None
    assert point.point.specificity is not None
    assert whole == pytest.approx(point.point.sensitivity + point.point.specificity)
    honest = (point.result.sensitivity.value or 0) + (point.result.specificity.value or 0)
    assert honest <= whole + 1e-12
    hits = point.result.true_positives + point.result.true_negatives
    assert scores["accuracy"].value == pytest.approx(hits / len(y))
    assert "cross-fitted" in scores.rule
    assert "cross-fitted in 5 folds" in external.frozen
    assert assessment.calibration is not None
    assert assessment.calibration.temperature.temperature == 1


def test_a_stated_threshold_is_used_as_it_is(tmp_path: Path) -> None:
    file, (y, p) = vendor(tmp_path / "p.csv"), scores_of()
    found = evaluated(file, operating_point="threshold=0.3")
    assessment, external = parts(found)
    (point,) = assessment.classes[0].points
    assert point.point.threshold == 0.3
    assert point.result is not None
    counts = confusion_matrix(y, (p >= 0.3).astype(np.int64), 2).tolist()
    assert [[point.result.true_negatives, point.result.false_positives],
            [point.result.false_negatives, point.result.true_positives]] == counts  # fmt: skip
    assert "The threshold 0.3 was stated" in external.frozen


# -- scores, calls and classes ----------------------------------------------------------------------------------------


def test_ordinal_scores_have_no_calibration(tmp_path: Path) -> None:
    y, p = scores_of()
    grades = np.clip(np.ceil(p * 5), 1, 5).astype(int)
    file = write_csv(tmp_path / "reader.csv", table(("id", "label", "score"), range(len(y)), y, grades))
    found = evaluated(file)
    assessment, external = parts(found)
    scores = found.head("reader").test
    assert scores is not None
    wins = [(a > b) + (a == b) / 2 for a in grades[y == 1] for b in grades[y == 0]]
    assert scores.auc.value == pytest.approx(np.mean(wins))
    assert {"loss", "brier"}.isdisjoint(scores.estimates)
    assert assessment.calibration is None
    assert assessment.classes[0].net_benefit is None
    assert any("scores from 1 to 5" in note for note in external.notes)
    page = write_report(tmp_path / "e").read_text(encoding="utf-8")
    assert 'id="calibration"' not in page
    assert "ten bins" not in page


def test_binary_calls_have_one_sensitivity_and_specificity(tmp_path: Path) -> None:
    y, p = scores_of()
    words = np.where(p >= 0.5, "cancer", "none")
    labels = np.where(y == 1, "cancer", "none")
    file = write_csv(tmp_path / "calls.csv", table(("path", "label", "call"), range(len(y)), labels, words))
    found = evaluated(file, columns=ColumnOptions(positive=("cancer",)))
    assessment, _ = parts(found)
    (point,) = assessment.classes[0].points
    assert point.result is not None
    assert point.result.sensitivity.value == pytest.approx(np.mean(p[y == 1] >= 0.5))
    assert point.result.specificity.value == pytest.approx(np.mean(p[y == 0] < 0.5))
    scores = found.head("calls").test
    assert scores is not None
    mean = ((point.result.sensitivity.value or 0) + (point.result.specificity.value or 0)) / 2
    assert scores.auc.value == pytest.approx(mean)
    write_report(tmp_path / "e")


def test_one_column_for_each_class(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(0), 90
    y = np.arange(n) % 3
    p = np.exp(rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[y])
    p /= p.sum(axis=1, keepdims=True)
    names = np.array(["Cyst", "mass", "none"])
    header = ("id", "label", *(f"probability:{name}" for name in names), "sex")
    file = write_csv(tmp_path / "p.csv", table(header, range(n), names[y], *p.T, np.array(list("mf"))[y % 2]))
    found = evaluated(file)
    scores = found.head("p").test
    assert scores is not None
    assert list(scores.per_class) == ["Cyst", "mass", "none"]
    assert scores["accuracy"].value == pytest.approx(np.mean(p.argmax(axis=1) == y))
    assert {one.attribute for one in parts(found)[0].subgroups} == {"sex"}
    binary = evaluated(file, columns=ColumnOptions(positive=("Cyst", "mass")))
    assert binary.predictions.probabilities["p"][:, 1] == pytest.approx(p[:, 0] + p[:, 1])
    write_report(tmp_path / "e")


def test_patients_are_drawn_together_or_scored(tmp_path: Path) -> None:
    y, p = scores_of()
    patients = [f"p{i // 6}{'ab'[int(y[i])]}" for i in range(len(y))]
    file = write_csv(
        tmp_path / "p.csv", table(("id", "label", "probability", "patient"), range(len(y)), y, p, patients)
    )
    scores = evaluated(file).head("p").test
    assert scores is not None
    assert scores.auc.method == "bootstrap over patients"
    joined = evaluated(file, per_patient="mean").head("p").test
    assert joined is not None
    assert joined.n == len(set(patients))


# -- several files ----------------------------------------------------------------------------------------------------


def test_files_are_aligned_by_their_ids(tmp_path: Path) -> None:
    one = vendor(tmp_path / "one.csv")
    header, *rows = [list(row) for row in [["id", "label", "probability"], *([*r.values()] for r in read_csv(one))]]
    two = write_csv(tmp_path / "two.csv", [header, *rows[::-1]])
    (comparison,) = evaluated(one, two).comparisons
    assert (comparison.difference.value, comparison.p) == (0, 1)


def test_files_of_other_rows_or_labels_are_refused(tmp_path: Path) -> None:
    one, rows = vendor(tmp_path / "one.csv"), read_csv(vendor(tmp_path / "two.csv"))
    header = list(rows[0])
    fewer = write_csv(tmp_path / "fewer.csv", [header, *([*row.values()] for row in rows[5:])])
    with pytest.raises(HoarfrostError, match=r"115 are in both, 5 in .*one\.csv alone, 0 in .*fewer\.csv alone"):
        evaluated(one, fewer)
    rows[0]["label"], rows[1]["label"] = rows[1]["label"], rows[0]["label"]
    other = write_csv(tmp_path / "other.csv", [header, *([*row.values()] for row in rows)])
    with pytest.raises(HoarfrostError, match=r"2 rows have another label in .*other\.csv.*first: 0"):
        evaluated(one, other)


# -- what is refused --------------------------------------------------------------------------------------------------


GOOD = [["0", "1", "0.9"], ["1", "0", "0.2"], ["2", "1", "0.7"], ["3", "0", "0.4"]]


def changed(row: int, column: int, cell: str) -> Rows:
    rows = [["id", "label", "probability"], *([*one] for one in GOOD)]
    rows[row][column] = cell
    return rows


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed(2, 2, "1.2"), r"line 3: probability is not a probability: it must be between 0 and 1 \(1 such rows\)"),
        (changed(2, 2, "nan"), r"p\.csv line 3: probability 'nan' is not a number"),
        (changed(4, 2, "high"), r"p\.csv line 5: probability 'high' is not a number"),
        (changed(4, 2, ""), r"p\.csv line 5: probability '' is not a number"),
        (changed(3, 0, "0"), r"p\.csv line 4: the id '0' is also in line 2\. Each row needs an id of its own"),
        (changed(3, 1, ""), r"p\.csv line 4: the label is empty"),
        (changed(0, 0, "name"), r"the column 'id' is missing; there are name, label, probability"),
        (changed(0, 1, "truth"), r"the column 'label' is missing"),
        (changed(0, 2, "prediction"), r"no column holds predictions; there are prediction\. Needed are path or id, label"),
        ([["id", "label", "probability"]], r"there are no rows"),
        ([["id", "label", "probability"], *([a, "x", c] for a, _, c in GOOD)], r"all 4 rows have the label 'x'.*--positive"),
        (
            [["id", "label", "probability"], *([a, "xy"[int(b)], c] for a, b, c in GOOD)],
            r"of which label are these the probabilities, x or y\? Name it with --positive",
        ),
        (
            [["id", "label", "probability"], *([a, f"class {a}", c] for a, _, c in GOOD)],
            r"more than two labels, and one column of predictions.*--positive",
        ),
        (
            [["id", "label", "a", "b"], *([i, "ab"[int(b)], c, "0.3"] for i, b, c in GOOD)],
            r"line 2: the probabilities of p sum to 1\.2, not to 1 \(3 such rows\)",
        ),
        (
            [["id", "label", "probability", "split"], *([*row, "train"] for row in GOOD)],
            r"the column split has train, and no row to score",
        ),
        (
            [["id", "label", "probability"], *([a, "1" if a == "0" else "0", c] for a, _, c in GOOD)],
            r"cannot be cross-fitted: .* and two are needed",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_named(rows: Rows, message: str, tmp_path: Path) -> None:
    with pytest.raises(HoarfrostError, match=message):
        evaluated(write_csv(tmp_path / "p.csv", rows))
    assert not (tmp_path / "e").exists()


def test_of_one_class_its_sensitivity_at_a_stated_threshold_is_said(tmp_path: Path) -> None:
    rows = [["id", "label", "probability"], *([a, "1", c] for a, _, c in GOOD)]
    file = write_csv(tmp_path / "p.csv", rows)
    with pytest.raises(HoarfrostError, match=r"all 4 scored rows are 1\..*the sensitivity is 0\.500 \(95% CI.*2 of 4"):
        evaluated(file, operating_point="threshold=0.5")
    with pytest.raises(HoarfrostError, match=r"With one class there is no ROC AUC"):
        evaluated(file)


def test_rounded_probabilities_are_scaled_and_it_is_said(tmp_path: Path) -> None:
    y, p = scores_of()
    cells = [np.round(1 - p, 2) + 0.01, np.round(p, 2).clip(0, 0.98)]
    file = write_csv(
        tmp_path / "p.csv", table(("id", "label", "probability:0", "probability:1"), range(len(y)), y, *cells)
    )
    _, external = parts(evaluated(file, columns=ColumnOptions(positive=("1",))))
    assert any("were scaled to sum to 1" in note for note in external.notes)


# -- the command ------------------------------------------------------------------------------------------------------


def test_command_compares_files_and_report_shows_them(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    one, two = vendor(tmp_path / "one.csv"), vendor(tmp_path / "two.csv", seed=1)
    done = hoarfrost("evaluate", "--predictions", one, "--predictions", two)
    assert done.status == 0, done.stderr
    assert "two: ROC AUC" in done.stdout
    assert "difference" in done.stdout
    place = tmp_path / "one-evaluated"
    assert hoarfrost("report", "--run", place).status == 0
    page = (place / "report.html").read_text(encoding="utf-8")
    assert "Evaluation of predictions" in page
    assert "Predictions were evaluated without their images" in page
    document = json.loads(hoarfrost("evaluate", "--predictions", one, "--overwrite", "--json").stdout)
    assert document["external"]["model"] == "the predictions of one"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Name the cohort, DATA, or predictions"),
        (("--predictions", "p.csv", "--run", "r"), "--run has no effect with --predictions"),
        (("images", "--predictions", "p.csv"), "DATA has no effect with --predictions"),
        (("images", "--run", "r", "--positive", "a"), "--positive is for --predictions"),
    ],
)
def test_options_of_the_other_way_are_refused(arguments: Sequence[str], message: str, hoarfrost: Hoarfrost) -> None:
    done = hoarfrost("evaluate", *arguments)
    assert done.status == 2
    assert message in done.stderr


MEASURED = """
import re, sys, time
from pathlib import Path
started = time.process_time()
if sys.argv[2] == "evaluate":
    from hoarfrost.external.predictions import evaluate_predictions
    evaluate_predictions([Path(sys.argv[1])], Path(sys.argv[1]).parent / "e")
else:
    from hoarfrost.report.outputs import write_report
    write_report(Path(sys.argv[1]).parent / "e")
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())  # getrusage has the parent's too
print(time.process_time() - started, int(peak[1]) / 1e6)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from Linux's /proc")
def test_report_of_100_000_predictions_takes_under_10_s_and_1_gb(tmp_path: Path, run_python: RunPython) -> None:
    n, (y, p) = 100_000, scores_of(100_000)
    sites = np.array(list("ABCD"))[np.arange(n) % 4]
    file = write_csv(tmp_path / "p.csv", table(("id", "label", "probability", "site"), range(n), y, p, sites))
    for step in ("evaluate", "report"):
        done = run_python("-c", MEASURED, file, step, OMP_NUM_THREADS="1")
        assert done.status == 0, done.stderr
        seconds, gigabytes = map(float, done.stdout.split())
        assert (seconds < 10, gigabytes < 1) == (True, True), (step, seconds, gigabytes)
