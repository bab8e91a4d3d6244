"""Cross-fitted thresholds: what they decide is stated with the thresholds of all folds, and shown as it was counted."""

import json
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
from hoarfrost.report import gallery
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.gallery import groups_of
from hoarfrost.report.outputs import write_report
from hoarfrost.report.paper import tables_of
from hoarfrost.runs import FixedPoint, Run, read_run
from tests.support.browser import Browser, open_tab
from tests.support.builders import write_csv
from tests.support.commands import Hoarfrost


def write_predictions(path: Path, n: int, *, n_patients: int = 0, constant: float | None = None) -> Path:
    """Write predictions without validated rows; of patients with several rows each, if `n_patients` are given."""
    rng = np.random.default_rng(3)
    y = np.arange(n) % 3 // 2
    p = 1 / (1 + np.exp(-rng.normal(1.2 * y - 0.7))) if constant is None else np.full(n, constant)
    header, cells = ["id", "label", "probability", "sex"], [range(n), y, p.tolist(), rng.choice(["f", "m"], n)]
    if n_patients:
        header, cells = [*header, "patient"], [*cells, [f"q{i * n_patients // n}" for i in range(n)]]
    return write_csv(path, [header, *([str(one) for one in row] for row in zip(*cells, strict=True))])


def evaluated(folder: Path, file: Path, **options: object) -> Run:
    evaluate_predictions([file], folder / "e", config=PredictionsConfig(**options))  # type: ignore[arg-type]
    return read_run(folder / "e")


def first_point(run: Run) -> FixedPoint:
    assert run.assessment is not None
    return run.assessment.classes[0].points[0]


def shown_errors(run: Run, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Return label and predicted class of all errors that the gallery could show."""
    monkeypatch.setattr(gallery, "N_CASES", len(run.predictions.paths))
    cases = groups_of(run, evaluation_of(run))["errors"].cases
    return [
        (one.lines[0].removeprefix("label "), one.lines[1].partition("predicted ")[2].partition(",")[0])
        for (one,) in cases
    ]


@pytest.mark.parametrize(
    ("n", "n_patients", "constant", "per_patient"),
    [(120, 0, None, None), (120, 40, None, None), (12, 3, None, None), (60, 0, 0.3, None), (120, 50, None, "mean")],
)
def test_shown_errors_are_those_that_the_confusion_matrix_counts(
    n: int, n_patients: int, constant: float | None, per_patient: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rows = write_predictions(tmp_path / "p.csv", n, n_patients=n_patients, constant=constant)
    if per_patient:  # one label per patient
        header, *cells = [line.split(",") for line in rows.read_text().splitlines()]
        rows = write_csv(rows, [header, *([i, str(int(q[1:]) % 3 // 2), *r, q] for i, _, *r, q in cells)])
    run = evaluated(tmp_path, rows, per_patient=per_patient)
    assert run.assessment is not None
    assert run.assessment.confusion is not None
    counts = run.assessment.confusion.counts
    errors = shown_errors(run, monkeypatch)
    assert [errors.count(("0", "1")), errors.count(("1", "0"))] == [counts[0][1], counts[1][0]]
    result = first_point(run).result
    assert (result is None) == (constant is not None)  # one probability for all: no threshold divides them
    if result is not None:
        assert counts == (
            (result.true_negatives, result.false_positives),
            (result.false_negatives, result.true_positives),
        )


def test_shown_errors_of_labels_are_those_at_the_thresholds_of_their_folds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, n = np.random.default_rng(4), 120
    truth = rng.integers(0, 2, (n, 2))
    p = 1 / (1 + np.exp(-rng.normal(1.5 * truth - np.array([0.2, 2.5]))))
    unknown = rng.random((n, 2)) < 0.1
    header = ["path", "patient", "split", "label", "label:a", "label:b", "net:a", "net:b"]
    cells = [["" if u else str(t) for t, u in zip(*row, strict=True)] for row in zip(truth, unknown, strict=True)]
    rows = write_csv(
        tmp_path / "p.csv",
        [header, *([f"{i}.png", "", "test", "", *cells[i], *map(str, p[i].tolist())] for i in range(n))],
    )
    run = evaluated(tmp_path, rows)
    assert run.assessment is not None
    monkeypatch.setattr(gallery, "N_CASES", 2 * n)
    errors = [one.lines[0] for (one,) in groups_of(run, evaluation_of(run))["errors"].cases]
    for one in run.assessment.classes:
        result = one.points[0].result
        assert result is not None
        assert errors.count(f"{one.name}: no") == result.false_positives
        assert errors.count(f"{one.name}: yes") == result.false_negatives


def test_figures_of_cross_fitted_thresholds_are_stated_with_the_range_of_the_folds_everywhere(
    tmp_path: Path, hoarfrost: Hoarfrost
) -> None:
    file = write_predictions(tmp_path / "p.csv", 120, n_patients=40)
    status, terminal, error = hoarfrost("evaluate", "--predictions", file, "--output", tmp_path / "e")
    assert (status, error) == (0, "")
    run = read_run(tmp_path / "e")
    fixed = first_point(run)
    assert len(fixed.by_fold) == 5
    assert min(fixed.by_fold) < max(fixed.by_fold)
    text = f"cross-fitted thresholds, {min(fixed.by_fold):.3f} to {max(fixed.by_fold):.3f} in 5 folds"
    assert fixed.result is not None
    assert fixed.point.threshold is not None
    one = f"{fixed.point.threshold:.3f}"

    assert f"{text} (Youden's index): sensitivity" in terminal
    page = write_report(run.directory).read_text(encoding="utf-8")
    for place in (
        f"{text} (Youden&#39;s index)", f">{text}</output>", f"Confusion matrix at <span data-threshold>{text}</span>",
        f"Measures at <span data-threshold>{text}</span>", f"<td>{text}</td>", f"Thresholds ({text}) were chosen",
        f"by Youden&#39;s index, {text}",
    ):  # fmt: skip
        assert place in page
    without_numbers = page.partition('id="numbers"')[0]
    for words in (f"threshold ≥ {one}", f"threshold of {one}", "each label"):
        assert words not in without_numbers
    document = json.loads((run.directory / "metrics.json").read_text(encoding="utf-8"))
    point = document["assessment"]["classes"][0]["points"][0]
    assert point["result"]["threshold"] is None
    assert point["by_fold"] == list(fixed.by_fold)
    assert document["heads"][0]["test"]["decided_by"] == f"Youden's index, {text}"
    tables = tables_of(run)
    row = dict(zip(tables["operating points"].columns, tables["operating points"].rows[0], strict=True))
    assert (row["rule"], row["threshold"]) == (f"Youden's index, {text}", None)
    buttons = json.loads(page.partition('id="numbers">')[2].partition("</script>")[0])["problems"][0]["points"]
    assert (buttons[0]["folds"], buttons[0]["true_positives"], buttons[0]["false_positives"]) == (
        text,
        fixed.result.true_positives,
        fixed.result.false_positives,
    )


def test_buttons_and_slider_show_what_decides(tmp_path: Path, browser: Browser) -> None:
    run = evaluated(tmp_path, write_predictions(tmp_path / "p.csv", 120))
    fixed = first_point(run)
    assert fixed.result is not None
    tab = open_tab(browser, write_report(run.directory))

    def shown() -> tuple[str, str, list[str]]:
        cells = "Array.from(document.querySelectorAll('td[data-cell] b'), cell => cell.textContent)"
        caption = tab.run("document.querySelector('[data-threshold]').textContent")
        return caption, tab.run("document.getElementById('threshold-value').textContent"), tab.run(cells)

    counts = [
        str(getattr(fixed.result, name))
        for name in ("true_negatives", "false_positives", "false_negatives", "true_positives")
    ]
    assert shown() == (fixed.at(), fixed.at(), counts)
    tab.run(
        "const slider = document.getElementById('threshold-slider'); slider.value = 0.5; "
        "slider.dispatchEvent(new Event('input'))"
    )
    assert shown()[:2] == ("a threshold of 0.500", "0.500")
    tab.run("document.querySelector('#points-buttons button').click()")
    assert shown() == (fixed.at(), fixed.at(), counts)
    assert tab.run("document.getElementById('spoken').textContent").startswith(f"{fixed.at()}: sensitivity")
    assert tab.complaints == []
    tab.close()


def test_subgroups_add_up_to_the_counts_of_all(tmp_path: Path) -> None:
    run = evaluated(tmp_path, write_predictions(tmp_path / "p.csv", 240))
    result = first_point(run).result
    assert result is not None
    assert run.assessment is not None
    assert sum(one.sensitivity.n_hits for one in run.assessment.subgroups if one.sensitivity) == result.true_positives
    assert sum(one.specificity.n_hits for one in run.assessment.subgroups if one.specificity) == result.true_negatives


def test_stated_number_of_folds_is_that_of_three_patients(tmp_path: Path) -> None:
    run = evaluated(tmp_path, write_predictions(tmp_path / "p.csv", 12, n_patients=3))
    assert run.external is not None
    assert len(first_point(run).by_fold) == 3
    assert "cross-fitted in 3 folds by patient" in run.external.frozen
    assert "in 3 folds" in run.config.validated_on
    page = write_report(run.directory).read_text(encoding="utf-8")
    assert "in 5 folds" not in page
