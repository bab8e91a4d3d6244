"""What the report says of trust agrees with its figures: net benefit, shortcuts, and the patients behind the images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hoarfrost.evaluation import DecisionCurve, apply_temperature, assess_calibration, score_subgroups
from hoarfrost.evaluation.shortcuts import Association, AttributeAudit
from hoarfrost.evaluation.subgroup_differences import (
    SubgroupSample,
    calibrate_subgroups,
    heterogeneity,
    subgroup_differences,
)
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.first import tiles, warnings_of
from hoarfrost.report.methods import methods_of
from hoarfrost.report.page import render
from hoarfrost.report.paper import tables_of
from hoarfrost.report.svg import draw
from hoarfrost.report.trust import (
    calibrations,
    decision_figures,
    group_calibration_rows,
    heterogeneity_rows,
    shortcut_rows,
)
from hoarfrost.runs import Assessment, Recalibration, Run, from_json, to_json
from tests.support.made_runs import make_run
from tests.support.samples import calibrated, two_columns


@pytest.fixture
def reported_demo(reported: Callable[[str], Run]) -> Run:
    return reported("demo")


def benefit_message(run: Run, net_benefit: Sequence[float]) -> str:
    assert run.assessment is not None
    thresholds = tuple((i + 1) / 10 for i in range(len(net_benefit)))
    curve = DecisionCurve(thresholds, tuple(net_benefit), (0.2,) + (-0.1,) * (len(net_benefit) - 1), 0.3)
    (first,) = run.assessment.classes
    run = replace(run, assessment=replace(run.assessment, classes=(replace(first, net_benefit=curve),)))
    return decision_figures(run)[0].message


@pytest.mark.parametrize(
    ("net_benefit", "where"),
    [
        ((0.3, 0.2, 0.1, 0.1, 0.1), "0.10 to 0.50"),
        ((0.3, 0.2, 0.0, 0.1, -0.1), "0.10 to 0.20 and 0.40"),
        ((0.3, 0.0, 0.1, 0.0, 0.1), "0.10, 0.30 and 0.50"),
        ((0.2, 0.1, 0.1, 0.0, 0.0), "0.20 to 0.30"),
    ],
)
def test_net_benefit_is_said_of_the_ranges_in_which_it_is_true(
    reported_demo: Run, net_benefit: Sequence[float], where: str
) -> None:
    message = benefit_message(reported_demo, net_benefit)
    assert f"higher net benefit than treating all or none at threshold probabilities {where}." in message
    assert message.endswith("Range examined: 0.10 to 0.50.")


def test_no_net_benefit_is_said_where_there_is_none(reported_demo: Run) -> None:
    assert "at no threshold probability does" in benefit_message(reported_demo, (0.2, 0.0, -0.1, -0.1, 0.0))


@pytest.mark.parametrize(
    ("auc", "association", "verdict"),
    [
        (0.99, Association(0.5, 1e-6), "possible shortcut"),
        (0.99, Association(0.01, 0.7), "revealed by the embeddings, but not associated"),
        (0.99, None, "revealed by the embeddings, but not associated"),
        (0.60, Association(0.5, 1e-6), "associated with the class, but not clearly revealed"),
        (0.60, Association(0.01, 0.7), "no sign of a shortcut"),
    ],
)
def test_verdict_on_an_attribute_agrees_with_its_figures(
    tmp_path: Path, auc: float, association: Association | None, verdict: str
) -> None:
    is_shortcut = auc > 0.9 and association is not None and association.is_uneven
    audit = AttributeAudit("scanner", ("A", "B"), {}, auc, association, is_shortcut)
    (row,) = shortcut_rows(replace(make_run(tmp_path), shortcuts=(audit,)))
    assert row.verdict.startswith(verdict)


def test_patients_are_counted_beside_images_where_they_are_known(reported_demo: Run) -> None:
    run, evaluation = reported_demo, evaluation_of(reported_demo)
    test = next(size for size in run.split_sizes() if size.split == "test")
    assert test.patients is not None
    (positive,) = run.config.dataset.positive or ()
    notes = tiles(run, evaluation)[0].notes
    assert f"on {test.n_images} test images of {test.n_patients} patients" in notes
    assert f"{test.counts[positive]} {positive} images of {test.patients[positive]} patients" in notes
    rows = zip(run.predictions.patients, run.predictions.labels, run.predictions.splits, strict=True)
    assert test.patients[positive] == len({name for name, label, split in rows if (label, split) == (positive, "test")})


# -- the smooth curve, and subgroups ------------------------------------------------------------------------------------


@pytest.fixture
def reported_labels(reported) -> Run:  # type: ignore[no-untyped-def]
    run: Run = reported("labels")
    return run


def with_calibrated(run: Run, n: int = 300) -> Run:
    """Return a run whose calibration is of many images, as assessed."""
    assert run.assessment is not None
    assert run.assessment.calibration is not None
    y_true, p = calibrated(n, seed=0, slope=0.6)
    fit = replace(run.assessment.calibration.temperature, temperature=1.5)
    before, after = (assess_calibration(y_true, apply_temperature(two_columns(p), t)) for t in (1.0, 1.5))
    return replace(run, assessment=replace(run.assessment, calibration=Recalibration(fit, before, after)))


def test_calibration_figure_has_smooth_curves_bands_bins_and_the_distribution_below(reported_demo: Run) -> None:
    run = with_calibrated(reported_demo)
    (found,) = calibrations(run, evaluation_of(run))
    upper, lower = found.figure.panels
    assert [curve.label for curve in upper.curves] == ["as predicted, smoothed", "with temperature, smoothed"]
    assert [band.label for band in upper.bands] == ["as predicted, 95% band", "with temperature, 95% band"]
    assert [marks.label for marks in upper.marks] == ["as predicted", "with temperature"]
    assert run.assessment is not None
    assert run.assessment.calibration is not None
    curve = run.assessment.calibration.before.curve
    assert curve is not None
    assert (tuple(upper.curves[0].y), tuple(upper.bands[0].low)) == (curve.observed, curve.low)
    above, below = lower.bands
    assert above.high.sum() / 2 == pytest.approx(1)  # each outcome's shares sum to one
    assert below.low.sum() / 2 == pytest.approx(-1)
    assert {"ICI (ideal 0)", "E50 (ideal 0)", "E90 (ideal 0)"} <= {row[0] for row in found.summary}
    drawing = draw(found.figure, 220)
    assert [len(frame.bands) for frame in drawing.frames] == [2, 2]
    assert "Harrell 2015" in methods_of(run, evaluation_of(run))
    tables = tables_of(run)
    assert len(tables["calibration curve"].rows) == 2 * len(curve.p)
    assert [row[2] for row in tables["calibration distances"].rows] == ["ICI", "E50", "E90"] * 2
    assert sum(int(row[3] or 0) + int(row[4] or 0) for row in tables["probabilities"].rows) == 2 * 300


def test_a_run_of_an_earlier_version_has_the_bins_alone(reported_demo: Run) -> None:
    assessment = reported_demo.assessment
    assert assessment is not None
    written = to_json(assessment)
    for key in ("subgroup_calibration", "subgroup_differences", "heterogeneity"):
        del written[key]
    for one in ("before", "after"):
        del written["calibration"][one]["curve"]
    run = replace(reported_demo, assessment=from_json(written, Assessment))
    evaluation = evaluation_of(run)
    (found,) = calibrations(run, evaluation)
    assert len(found.figure.panels) == 1
    assert (found.figure.panels[0].curves, found.reason) == ((), "")
    assert heterogeneity_rows(run.assessment) == group_calibration_rows(run.assessment) == ()
    assert "Harrell" not in methods_of(run, evaluation)
    assert "ICI" not in render(run, with_images=False, with_map=False)
    assert {"heterogeneity", "calibration curve"} & tables_of(run).keys() == set()


def test_subgroups_that_differ_have_their_p_their_differences_and_a_caution(reported_demo: Run) -> None:
    rng = np.random.default_rng(0)
    y_true, column = np.arange(400) % 2, ["A", "A", "B", "B"] * 100
    score = rng.normal(size=400) + np.where(np.array(column) == "A", 2.0, 0.2) * (y_true - 0.5)
    two = two_columns(1 / (1 + np.exp(-score)))
    scored = score_subgroups(y_true, two, {"scanner": column}, threshold=0.5)
    parts = SubgroupSample(y_true, two, {"scanner": column}, 0.5, None, scored)
    assert reported_demo.assessment is not None
    assessment = replace(
        reported_demo.assessment,
        subgroups=scored,
        subgroup_calibration=calibrate_subgroups(parts),
        subgroup_differences=subgroup_differences(parts),
        heterogeneity=heterogeneity(parts),
    )
    run = replace(reported_demo, assessment=assessment)
    area = heterogeneity_rows(assessment)[0]
    assert (area.figure, area.p_holm) == ("ROC AUC", "<0.001")
    assert area.differences[0].startswith("B minus A: \N{MINUS SIGN}0.")
    cautions = [one.text for one in warnings_of(run, evaluation_of(run)) if one.title == "Uneven subgroups"]
    assert cautions[0].startswith(
        "ROC AUC differs between the values of scanner (corrected p <0.001). It is lowest for B"
    )
    html = " ".join(render(run, with_images=False, with_map=False).split())
    assert "Do subgroups differ?" in html
    assert "observed/expected (ideal 1)" in html
    assert "Cochran 1954, Biometrics" in methods_of(run, evaluation_of(run))
    tables = tables_of(run)
    assert [row[:2] for row in tables["heterogeneity"].rows] == [
        ("scanner", "roc_auc"), ("scanner", "sensitivity"), ("scanner", "specificity"),
    ]  # fmt: skip
    assert len(tables["subgroup calibration"].rows) == 2
    assert tables["subgroup differences"].rows[0][:4] == ("scanner", "roc_auc", "B", "A")


def test_each_label_has_its_curve(reported_labels: Run) -> None:
    found = calibrations(reported_labels, evaluation_of(reported_labels))
    assert len(found) == 3
    assert all(one.figure.panels[0].curves or one.reason for one in found)
    assert all(one.figure.panels[1].bands[0].label.startswith(f"with {one.name}") for one in found)
