"""Evaluations show what an update to the cohort would bring, and every other figure stays that of the frozen head."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

from hoarfrost.cli.console.external import evaluate_text
from hoarfrost.evaluation.updating import FROZEN, INTERCEPT, PRIOR, SLOPE
from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
from hoarfrost.report.outputs import write_report
from hoarfrost.runs import Run, read_run
from tests.support.builders import write_csv


def evaluated(folder: Path, n: int = 400, *, shift: float = 0.0, kind: str = "probability", **options: object) -> Run:
    rng = np.random.default_rng(0)
    truth = rng.normal(-0.3, 1.5, n)
    y = (rng.random(n) < expit(truth)).astype(int)
    rows = [[f"i{i}", str(y[i]), repr(float(expit(truth[i] - shift))), f"p{i // 2}"] for i in range(n)]
    table = write_csv(folder / "p.csv", [["id", "label", kind, "patient"], *rows])
    return evaluate_predictions([table], folder / "e", config=PredictionsConfig(**options))  # type: ignore[arg-type]


def test_shifted_probabilities_show_what_an_update_would_bring(tmp_path: Path) -> None:
    run = evaluated(tmp_path, shift=1.5)
    assert run.external is not None
    (found,) = run.external.updates
    by_name = {one.method: one for one in found.methods}
    assert list(by_name) == [FROZEN, INTERCEPT, SLOPE, PRIOR]
    scores = run.heads[0].test
    assert scores is not None
    assert by_name[FROZEN].loss == pytest.approx(scores.value("loss"), rel=1e-9)
    assert by_name[FROZEN].brier == pytest.approx(scores.value("brier"), rel=1e-9)
    assert by_name[INTERCEPT].difference is not None
    assert by_name[INTERCEPT].difference.high is not None
    assert by_name[INTERCEPT].difference.high < 0
    assert "is not known" in by_name[PRIOR].reason
    text = evaluate_text(run)
    assert "if updated" in text
    assert "All other figures are those of the frozen probabilities." in text
    read = read_run(run.directory)
    assert read.external == run.external
    page = write_report(run.directory).read_text(encoding="utf-8")
    assert "If the probabilities were updated to this cohort" in page
    assert "All other figures of this report are of the frozen probabilities." in page


def test_few_patients_of_a_class_are_a_reason_instead(tmp_path: Path) -> None:
    run = evaluated(tmp_path, n=40)
    assert run.external is not None
    (found,) = run.external.updates
    assert found.methods == ()
    assert "are needed" in found.reason
    assert "no update to this cohort: " in evaluate_text(run)


def test_scores_that_are_no_probabilities_are_not_updated(tmp_path: Path) -> None:
    run = evaluated(tmp_path, kind="score")
    assert run.external is not None
    assert run.external.updates == ()
