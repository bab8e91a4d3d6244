"""Sites that cannot share predictions share one file: nothing in it is of a single patient, and several are pooled."""

import json
import re
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from hoarfrost.evaluation.disclosure import (
    FEWEST,
    Histogram,
    area_bounds,
    shareable_cells,
    shareable_count,
    shareable_histogram,
)
from hoarfrost.evaluation.meta_analysis import random_effects_of_areas
from hoarfrost.external.aggregate import GRID
from hoarfrost.external.cohort import CohortConfig, evaluate_cohort
from hoarfrost.external.predictions import PredictionsConfig, evaluate_predictions
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.report.outputs import report_pooled
from hoarfrost.report.pooled import pool
from hoarfrost.runs import Run
from hoarfrost.runs.aggregate import read_aggregate
from tests.support.builders import write_csv
from tests.support.cohorts import write_cohort
from tests.support.commands import Hoarfrost
from tests.support.predicted import read_csv, train_on_pictures
from tests.support.samples import Floats, Ints


def written(
    folder: Path, site: str, *, n: int = 300, seed: int = 0, shift: float = 1.5, prevalence: float = 0.3,
    patients: Sequence[int] | None = None, **options: Any,
) -> tuple[Path, Run]:  # fmt: skip
    """Evaluate predictions of a site, and write its aggregate."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < prevalence).astype(int)
    p = expit(rng.normal(shift * (y - 0.5), 1))
    header = ["path", "label", "probability", "patient", "scanner"]
    numbers = patients or [i // 2 for i in range(n)]
    rows = [[f"secret/img_{i}.png", str(y[i]), repr(float(p[i])), f"patient-{numbers[i]}", "zeiss"] for i in range(n)]
    table = write_csv(folder / f"private_{site}.csv", [header, *rows])
    out = folder / f"{site}.json"
    config = PredictionsConfig(name=site, aggregate=out, **options)
    return out, evaluate_predictions([table], None, config=config)


def counts_in(document: object) -> list[int]:
    """Return all whole numbers of a JSON document."""
    if isinstance(document, dict):
        return [n for key, value in document.items() if key != "format_version" for n in counts_in(value)]
    if isinstance(document, list):
        return [n for value in document for n in counts_in(value)]
    return [document] if isinstance(document, int) and not isinstance(document, bool) else []


@pytest.mark.parametrize(("n", "prevalence", "seed"), [(300, 0.3, 0), (60, 0.3, 1), (2_000, 0.02, 2), (40, 0.5, 3)])
def test_no_path_id_or_patient_and_no_count_of_one_to_four_is_in_the_file(
    tmp_path: Path, n: int, prevalence: float, seed: int
) -> None:
    out, _ = written(tmp_path, "north", n=n, prevalence=prevalence, seed=seed)
    text = out.read_text(encoding="utf-8")
    assert not re.search(r"secret|img_|patient-\d|private_|zeiss|scanner|csv|/", text)
    assert [one for one in counts_in(json.loads(text)) if 1 <= one <= 4] == []
    assert {path.name for path in tmp_path.iterdir()} == {"private_north.csv", "north.json"}  # no folder either


def test_no_small_count_is_found_by_subtraction() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(30, 300))
        y = np.arange(n) % 3 // 2
        p, patients = expit(rng.normal(2 * y - 1, 1)), rng.integers(0, n // 2, n)
        kept = float(np.quantile(p, 0.3))
        found = shareable_cells(y, p, patients, GRID, kept=kept)
        for value, counts in ((1, found.positives), (0, found.negatives)):
            own, whose = p[y == value], patients[y == value]
            finer = shareable_histogram(own, whose, found, GRID)
            assert set(found.edges) <= set(finer.edges)
            for first, last in combinations(range(len(finer.edges)), 2):
                low, high = finer.edges[first], finer.edges[last]
                inside = (own >= low) & ((own < high) | (high == 1))
                assert sum(finer.counts[first:last]) == int(inside.sum())
                assert len(np.unique(whose[inside])) not in range(1, FEWEST)
            assert sum(finer.counts) == sum(counts)
        for i in range(len(found.edges)):
            for j in range(i + 1, len(found.edges)):
                low, high = found.edges[i], found.edges[j]
                inside = (p >= low) & ((p < high) | (high == 1))
                for value, counts in ((1, found.positives), (0, found.negatives)):
                    assert sum(counts[i:j]) == int((inside & (y == value)).sum())
                    n_patients = len(np.unique(patients[inside & (y == value)]))
                    assert n_patients == 0 or n_patients >= FEWEST


def test_counts_of_one_to_four_are_unknown() -> None:
    assert [shareable_count(n) for n in (None, 0, 1, 4, 5)] == [None, 0, None, None, 5]


def test_figures_are_those_of_the_evaluation(tmp_path: Path) -> None:
    out, run = written(tmp_path, "north", operating_point="threshold=0.5")
    found = read_aggregate(out)
    scores = run.heads[0].test
    assert scores is not None
    (one,) = found.classes
    assert one.roc_auc.value == pytest.approx(scores.auc.value, abs=1e-6)
    assert one.roc_auc.low == pytest.approx(scores.auc.low, abs=1e-6)
    assert (one.n, one.n_positive) == (300, sum(one.cells.positives))
    assert one.threshold == 0.5
    assert one.sensitivity is not None
    place = one.cells.edges.index(0.5)
    assert one.sensitivity.value == pytest.approx(sum(one.cells.positives[place:]) / one.n_positive, abs=1e-6)
    assert np.trapezoid(one.roc, np.linspace(0, 1, 101)) == pytest.approx(scores.auc.value, abs=0.02)


def test_cross_fitted_thresholds_are_not_shared(tmp_path: Path) -> None:
    out, _ = written(tmp_path, "north", seed=5)
    rng, names = np.random.default_rng(5), ["a", "b", "c"]
    y, p = rng.choice(names, 200, p=[0.6, 0.37, 0.03]), rng.dirichlet([2, 2, 1], 200)
    header = ["id", "label", *(f"probability:{name}" for name in names)]
    table = write_csv(tmp_path / "mc.csv", [header, *([str(i), y[i], *map(str, p[i].tolist())] for i in range(200))])
    several = tmp_path / "several.json"
    evaluate_predictions([table], None, config=PredictionsConfig(name="several", aggregate=several))
    for one in (*read_aggregate(out).classes, *read_aggregate(several).classes):
        assert (one.threshold, one.sensitivity, one.specificity) == (None, None, None)
        assert set(one.cells.edges) <= {0.0, *GRID, 1.0}
        assert all(set(finer.edges) <= {0.0, *GRID, 1.0} for finer in one.by_outcome)


def test_pooled_areas_are_the_random_effects_summary(tmp_path: Path) -> None:
    made = [written(tmp_path, site, seed=i, shift=1 + i / 2) for i, site in enumerate(("north", "south", "east"))]
    found = pool([out for out, _ in made])
    (one,) = found.classes
    areas = [run.heads[0].test.auc for _, run in made if run.heads[0].test is not None]
    expected = random_effects_of_areas(areas)
    by_title = {figure.title: figure for figure in one.figures}
    summary = by_title["ROC AUC"].found
    assert summary is not None
    assert summary.mean == pytest.approx(expected.mean, abs=1e-5)
    assert summary.prediction_low == pytest.approx(expected.prediction_low, abs=1e-4)
    assert sum(bin.n for bin in one.bins) == 900


def rows_of(folder: Path, sites: Sequence[str]) -> tuple[Ints, Floats]:
    """Return the labels and probabilities of all sites."""
    rows = [row for site in sites for row in read_csv(folder / f"private_{site}.csv")]
    return np.array([int(row["label"]) for row in rows]), np.array([float(row["probability"]) for row in rows])


def area_of_pairs(y: Ints, p: Floats) -> float:
    positives, negatives = p[y == 1][:, None], p[y == 0]
    return float(((positives > negatives) + (positives == negatives) / 2).mean())


@pytest.mark.parametrize("seed", range(5))
def test_area_of_all_together_is_within_its_bounds(tmp_path: Path, seed: int) -> None:
    sites = ("north", "south", "east")
    files = [
        written(tmp_path, site, n=n, seed=10 * seed + n, shift=shift, operating_point="threshold=0.4")[0]
        for site, n, shift in zip(sites, (150, 300, 80), (2.5, 3.0, 1.5), strict=True)
    ]
    expected = area_of_pairs(*rows_of(tmp_path, sites))
    (one,) = pool(files).classes
    low, high = one.area
    assert low <= expected <= high
    assert high - low < 0.15
    page = tmp_path / "o.html"
    report_pooled(files, page)
    text = page.read_text(encoding="utf-8")
    assert f"the area is between {low:.3f} and {high:.3f}" in text
    assert one.has_curve == ("There is no curve of all together" not in text)


def test_pairs_of_two_sites_are_known_where_their_bins_do_not_overlap() -> None:
    low, high = Histogram((0.0, 0.5, 1.0), (5, 10)), Histogram((0.0, 0.5, 1.0), (20, 0))
    alone = Histogram((0.0, 1.0), (10,))
    assert area_bounds([(low, high, 0.9)]) == pytest.approx((0.9, 0.9))
    # 15 x 20 pairs of the first site, 10 x 10 of the second, 15 x 10 and 10 x 20 between them.
    known, n_pairs = 0.9 * 300 + 0.7 * 100, 15 * 20 + 10 * 10 + 15 * 10 + 10 * 20
    found = area_bounds([(low, high, 0.9), (alone, alone, 0.7)])
    assert found == pytest.approx((known / n_pairs, (known + 350) / n_pairs))
    upper = Histogram((0.0, 0.5, 1.0), (0, 10))
    found = area_bounds([(low, high, 0.9), (upper, upper, 0.7)])
    # Its positives are above all 20 negatives; 5 positives of the first are below its 10 negatives.
    assert found == pytest.approx(((known + 200) / n_pairs, (known + 200 + 100) / n_pairs))


def test_bins_of_earlier_versions_give_bounds_too_and_no_false_curve(tmp_path: Path) -> None:
    """Earlier versions joined bins from the left, so that sites had hardly an edge in common."""
    edges = {"north": [0.0, 0.5, 0.94, 1.0], "south": [0.0, 0.48, 0.94, 1.0]}
    files = []
    for site, own in edges.items():
        out, _ = written(tmp_path, site, seed=len(files) + 1, operating_point="threshold=0.5")
        document = json.loads(out.read_text())
        (one,) = document["classes"]
        y, p = rows_of(tmp_path, [site])
        p = np.minimum(p, 0.93)  # no small count in the last bin
        counts = [np.histogram(p[y == value], own)[0].tolist() for value in (1, 0)]
        one["cells"] = {
            "edges": own,
            "positives": counts[0],
            "negatives": counts[1],
            "mean_probability": [0.2, 0.6, None],
        }
        for key in ("positives", "negatives", "threshold", "sensitivity", "specificity"):
            del one[key]
        out.write_text(json.dumps(document), encoding="utf-8")
        files.append(out)
    (found,) = pool(files).classes
    assert found.area[0] <= area_of_pairs(*rows_of(tmp_path, list(edges))) <= found.area[1]
    assert (found.has_curve, found.is_calibrated, found.is_wide) == (False, False, True)
    report_pooled(files, tmp_path / "o.html")
    page = (tmp_path / "o.html").read_text(encoding="utf-8")
    for text in ("There is no curve of all together", "There is no table", "The range is wide"):
        assert text in page
    assert "all together</" not in page


def test_commands_write_and_pool_aggregates(tmp_path: Path, hoarfrost: Hoarfrost) -> None:
    for site in ("north", "south"):
        written(tmp_path, site, seed=len(site))
    out = tmp_path / "pooled.html"
    status, text, error = hoarfrost(
        *("report", "--aggregate", tmp_path / "north.json", "--aggregate", tmp_path / "south.json", "--output", out)
    )
    assert (status, error) == (0, "")
    assert str(out) in text
    page = out.read_text(encoding="utf-8")
    assert "2 sites pooled" in page
    assert "prediction interval" in page
    assert "<script" not in page
    table = tmp_path / "private_north.csv"
    status, _, error = hoarfrost("evaluate", "--predictions", table, "--aggregate-only", tmp_path / "x.json")
    assert status == 2
    assert "needs --name" in error
    status, _, error = hoarfrost(
        *("evaluate", "--predictions", table, "--name", "x", "--aggregate-only", tmp_path / "north.json")
    )
    assert status == 1
    assert "already exists" in error
    status, text, _ = hoarfrost(
        *("evaluate", "--predictions", table, "--name", "x", "--aggregate-only", tmp_path / "x.json")
    )
    assert status == 0
    assert "aggregate, without a row of a patient:" in text
    status, _, error = hoarfrost("report", "--aggregate", tmp_path / "north.json")
    assert status == 2
    assert "--output" in error


def _other_version(document: dict[str, Any]) -> str:
    return json.dumps({**document, "format_version": 2})


def _other_classes(document: dict[str, Any]) -> str:
    return json.dumps({**document, "site": "south", "names": ["a", "b"]})


def _not_aggregate(_: dict[str, Any]) -> str:
    return json.dumps({"format": "hoarfrost-run"})


def _truncated(document: dict[str, Any]) -> str:
    return json.dumps(document)[:200]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_version, "has the format version 2.*Use the same hoarfrost at all sites"),
        (_other_classes, "has the classes a, b.*--label-map"),
        (_not_aggregate, "is not an aggregate"),
        (_truncated, "is damaged or incomplete.*Ask the site"),
        (json.dumps, "are both of the site 'north'. Name each site once"),
    ],
)
def test_files_that_do_not_fit_are_refused_with_the_way_out(
    tmp_path: Path, change: Callable[[dict[str, Any]], str], message: str
) -> None:
    out, _ = written(tmp_path, "north")
    other = tmp_path / "other.json"
    other.write_text(change(json.loads(out.read_text())), encoding="utf-8")
    with pytest.raises(HoarfrostError, match=message):
        pool([out, other])


ODD: tuple[Any, ...] = (None, -1, 3, float("nan"), float("inf"), 10**400, "x", [], {}, [1])


@pytest.mark.parametrize(
    "place",
    [
        ("n_images",), ("n_patients",), ("loss",), ("classes",), ("classes", 0, "n"), ("classes", 0, "n_positive"),
        ("classes", 0, "roc_auc", "value"), ("classes", 0, "roc_auc", "low"), ("classes", 0, "roc"), ("classes", 0, "roc", 0),
        ("classes", 0, "slope"), ("classes", 0, "slope", "value"), ("classes", 0, "threshold"),
        ("classes", 0, "cells", "edges"),
        ("classes", 0, "cells", "edges", 1), ("classes", 0, "cells", "positives", 0), ("classes", 0, "cells", "negatives"),
        ("classes", 0, "cells", "mean_probability", 0), ("classes", 0, "positives", "counts", 0),
        ("classes", 0, "positives", "edges"), ("classes", 0, "negatives", "counts"),
    ],
)  # fmt: skip
def test_files_with_odd_values_are_refused_or_pooled(tmp_path: Path, place: tuple[Any, ...]) -> None:
    out, _ = written(tmp_path, "north")
    other, _ = written(tmp_path, "south", seed=1)
    refused = 0
    for value in ODD:
        document = json.loads(out.read_text())
        part = document
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        changed = tmp_path / "changed.json"
        changed.write_text(json.dumps(document), encoding="utf-8")
        try:
            report_pooled([changed, other], tmp_path / "o.html")
        except HoarfrostError:
            refused += 1
    assert refused >= 5


def test_one_site_and_absent_files_are_refused(tmp_path: Path) -> None:
    out, _ = written(tmp_path, "north")
    with pytest.raises(HoarfrostError, match="needs two sites"):
        pool([out])
    with pytest.raises(HoarfrostError, match="does not exist"):
        pool([out, tmp_path / "absent.json"])


def test_counts_of_images_and_patients_whose_difference_would_tell_are_not_both_shared(tmp_path: Path) -> None:
    found = read_aggregate(written(tmp_path, "north", per_patient="mean")[0])
    assert (found.counted, found.n_images, found.n_patients, found.classes[0].n) == ("patient", 300, 150, 150)
    patients = [max(i, 3) for i in range(300)]
    found = read_aggregate(written(tmp_path, "south", patients=patients, per_patient="mean")[0])
    assert (found.n_images, found.n_patients, found.classes[0].n) == (None, 297, 297)
    found = read_aggregate(written(tmp_path, "east", patients=patients)[0])
    assert (found.n_images, found.n_patients, found.classes[0].n) == (300, None, 300)


def test_cohort_with_too_few_positives_is_not_shared(tmp_path: Path) -> None:
    with pytest.raises(HoarfrostError, match="fewer than 5 cannot be shared"):
        written(tmp_path, "north", n=60, prevalence=0.05)
    assert not (tmp_path / "north.json").exists()


@pytest.mark.usefixtures("free_backbone")
def test_cohort_of_images_shares_the_heads_digest_and_no_name_of_a_file(tmp_path: Path) -> None:
    trained = train_on_pictures(tmp_path / "t")
    cohort, out = write_cohort(tmp_path / "hospital_b"), tmp_path / "b.json"
    config = CohortConfig(name="north", aggregate=out, options=ExtractOptions(device="cpu"))
    evaluate_cohort(cohort, None, run=trained.run, config=config)
    text, found = out.read_text(encoding="utf-8"), read_aggregate(out)
    assert not re.search(r"\.png|hospital_b|q\d|/|safetensors", text)
    assert len(found.model_digest) == 64
    assert found.site == "north"
