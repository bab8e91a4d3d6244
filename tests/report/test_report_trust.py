"""What the report says of trust agrees with its figures: net benefit, shortcuts, and the patients behind the images."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from hoarfrost.evaluation import DecisionCurve
from hoarfrost.evaluation.shortcuts import Association, AttributeAudit
from hoarfrost.report.evaluation import evaluation_of
from hoarfrost.report.first import tiles
from hoarfrost.report.trust import decision_figures, shortcut_rows
from hoarfrost.runs import Run
from tests.support.made_runs import make_run


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
