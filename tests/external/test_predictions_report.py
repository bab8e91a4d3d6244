"""Reports, methods and terminal of evaluated predictions: nothing is said of images, heads or embeddings that do not exist."""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
from hoarfrost.external.table import ColumnOptions
from hoarfrost.report import write_report
from hoarfrost.runs import Run
from tests.support.builders import write_csv
from tests.support.commands import Hoarfrost
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
