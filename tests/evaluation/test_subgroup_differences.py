"""Subgroups: calibration in each, differences with intervals, and tests of heterogeneity that raise few false alarms."""

from typing import Any

import numpy as np
import pytest
from scipy.stats import f_oneway

from hoarfrost.evaluation import Estimate, calibration_line, score_subgroups, wilson
from hoarfrost.evaluation.comparison import holm
from hoarfrost.evaluation.subgroup_differences import (
    FEWEST_CASES,
    TOO_FEW,
    SubgroupSample,
    calibrate_subgroups,
    heterogeneity,
    square_and_add,
    subgroup_differences,
)
from hoarfrost.runs import from_json, to_json
from tests.support.samples import Floats, Ints, calibrated, drawn_probabilities, two_columns


def sample_of(
    y_true: Ints, probabilities: Floats, attributes: dict[str, list[str]], *, threshold: float | None = 0.5,
    groups: Ints | None = None,
) -> SubgroupSample:  # fmt: skip
    found = score_subgroups(y_true, probabilities, attributes, threshold=threshold, groups=groups)
    return SubgroupSample(y_true, probabilities, attributes, threshold, groups, found)


def sites(n: int, *, names: str = "AB") -> list[str]:
    return [names[i % len(names)] for i in range(n)]


# -- calibration ----------------------------------------------------------------------------------------------------------


def test_calibration_of_a_subgroup_is_that_of_its_samples_alone() -> None:
    y_true, p = calibrated(200, seed=0, slope=0.7)
    first, second = calibrate_subgroups(sample_of(y_true, two_columns(p), {"site": sites(200)}))
    for one, rows in ((first, np.arange(0, 200, 2)), (second, np.arange(1, 200, 2))):
        y, own = y_true[rows], p[rows]
        assert one.line == calibration_line(y, own)
        ratio = y.sum() / own.sum()
        assert one.observed_expected.value == pytest.approx(ratio)
        # The sandwich of a Poisson regression with an offset: the variance of the logarithm of a ratio.
        deviation = np.sqrt(((y - ratio * own) ** 2).sum()) / y.sum()
        assert one.observed_expected.interval == pytest.approx(
            tuple(ratio * np.exp([-1.96 * deviation, 1.96 * deviation])), rel=1e-3
        )
    assert (first.attribute, first.value, first.observed_expected.n) == ("site", "A", 100)


def test_images_of_a_patient_make_no_interval_of_a_ratio_narrower() -> None:
    y_true, p = calibrated(100, seed=1)
    (once,) = calibrate_subgroups(sample_of(y_true, two_columns(p), {"site": ["x"] * 100}))
    y_true, p, patients = np.repeat(y_true, 3), np.repeat(p, 3), np.repeat(np.arange(100), 3)
    (again,) = calibrate_subgroups(sample_of(y_true, two_columns(p), {"site": ["x"] * 300}, groups=patients))
    assert again.observed_expected.interval == pytest.approx(once.observed_expected.interval, rel=0.02)
    assert again.observed_expected.n_patients == 100


def test_several_classes_have_no_calibration_by_subgroup() -> None:
    y_true, probabilities = drawn_probabilities(100, 3, seed=0)
    assert calibrate_subgroups(sample_of(y_true, probabilities, {"site": sites(100)})) == ()


# -- differences ----------------------------------------------------------------------------------------------------------


def test_difference_of_proportions_is_newcombes() -> None:
    """Newcombe (1998), table II: 56/70 against 48/80, method 10."""
    found = square_and_add(wilson(56, 70), wilson(48, 80))
    assert (found.value, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)


def test_differences_are_from_the_most_frequent_value() -> None:
    y_true, p = calibrated(150, seed=2)
    column = ["B" if i % 3 else "A" for i in range(150)]
    sample = sample_of(y_true, two_columns(p), {"site": column})
    found = subgroup_differences(sample)
    assert [(one.value, one.reference, one.figure) for one in found] == [
        ("A", "B", "roc_auc"), ("A", "B", "sensitivity"), ("A", "B", "specificity"),
    ]  # fmt: skip
    a, b = sample.subgroups
    assert found[0].difference == square_and_add(a.roc_auc, b.roc_auc)
    assert a.sensitivity is not None
    assert b.sensitivity is not None
    assert found[1].difference == square_and_add(a.sensitivity, b.sensitivity)


def test_without_an_interval_of_both_a_difference_has_none() -> None:
    found = square_and_add(Estimate(0.8, None, None, n=30), Estimate(0.7, 0.6, 0.8, n=30))
    assert (found.value, found.interval, found.n) == (pytest.approx(0.1), None, 60)


def drawn(rng: Any, n_patients: int, n_images: int, *, shift: float = 0.0, n_sites: int = 2) -> SubgroupSample:
    """Draw patients whose scores separate the classes less by `shift` at the last site; AUC 0.85 elsewhere."""
    patients = np.repeat(np.arange(n_patients), n_images)
    y_true = (rng.random(n_patients) < 0.4).astype(np.int64)[patients]
    site = rng.integers(0, n_sites, n_patients)[patients]
    noise = np.sqrt(0.7) * rng.normal(size=n_patients)[patients] + np.sqrt(0.3) * rng.normal(size=len(patients))
    score = noise + np.where(site == n_sites - 1, 1.466 - shift, 1.466) * (y_true - 0.5)
    p = 1 / (1 + np.exp(-1.466 * score))
    column = [f"site {one}" for one in site]
    return sample_of(y_true, two_columns(p), {"site": column}, groups=patients if n_images > 1 else None)


@pytest.mark.parametrize("n_images", [1, 3])
def test_interval_of_a_difference_covers(n_images: int) -> None:
    rng = np.random.default_rng(0)
    covers = []
    for _ in range(100):
        for one in subgroup_differences(drawn(rng, 120, n_images)):
            assert one.difference.interval is not None
            covers.append(one.difference.interval[0] <= 0 <= one.difference.interval[1])
    assert 0.92 <= np.mean(covers) <= 0.99


# -- heterogeneity --------------------------------------------------------------------------------------------------------


def test_proportions_are_compared_by_analysis_of_variance() -> None:
    y_true, p = calibrated(240, seed=3)
    column = sites(240, names="ABC")
    found = {one.figure: one for one in heterogeneity(sample_of(y_true, two_columns(p), {"site": column}))}
    for figure, y in (("sensitivity", 1), ("specificity", 0)):
        hits = ((p >= 0.5) == y).astype(float)
        parts = [hits[(np.array(column) == name) & (y_true == y)] for name in "ABC"]
        expected = f_oneway(*parts)
        assert (found[figure].f, found[figure].p) == pytest.approx((expected.statistic, expected.pvalue))
    assert found["roc_auc"].values == ("A", "B", "C")


def test_p_values_are_one_family_by_holm() -> None:
    y_true, p = calibrated(240, seed=4)
    attributes = {"site": sites(240), "sex": sites(240, names="FFMMM"), "one": ["x"] * 240}
    found = heterogeneity(sample_of(y_true, two_columns(p), attributes))
    assert [(one.attribute, one.figure) for one in found] == [
        (name, figure) for name in ("site", "sex") for figure in ("roc_auc", "sensitivity", "specificity")
    ]
    assert [one.p_holm for one in found] == pytest.approx(holm([one.p or 0.0 for one in found]).tolist())


@pytest.mark.parametrize("n_images", [1, 3])
def test_equal_sites_raise_an_alarm_in_five_of_a_hundred_and_unequal_ones_mostly(n_images: int) -> None:
    rng = np.random.default_rng(1)
    alarms = {0.0: 0, 1.3: 0}
    for shift in alarms:
        for _ in range(100):
            area = heterogeneity(drawn(rng, 160, n_images, shift=shift, n_sites=3))[0]
            assert area.p is not None
            alarms[shift] += area.p < 0.05
    assert alarms[0.0] <= 9  # two standard errors above 5%
    assert alarms[1.3] >= 60


def test_family_of_all_tests_raises_an_alarm_in_fewer_than_five_of_a_hundred() -> None:
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(400):
        found = heterogeneity(drawn(rng, 120, 1))
        alarms += min(one.p_holm or 1.0 for one in found) < 0.05
    assert alarms < 0.05 * 400


def test_an_area_of_one_is_compared_without_an_error() -> None:
    y_true = np.arange(120) % 2
    p = np.where(y_true == 1, 0.6, 0.4) + np.linspace(0, 0.1, 120)
    column = ["A"] * 60 + ["B"] * 60
    found = heterogeneity(sample_of(y_true, two_columns(p), {"site": column}))
    assert all((one.f, one.p) == (0.0, 1.0) for one in found)
    p[60:] = np.random.default_rng(0).permutation(p[60:])
    found = heterogeneity(sample_of(y_true, two_columns(p), {"site": column}))
    assert found[0].p is not None
    assert found[0].p < 1e-6


def test_values_of_few_cases_are_in_no_test() -> None:
    y_true = np.array([1] * 20 + [0] * 40 + [1] * (FEWEST_CASES - 1) + [0] * 30)
    p = np.random.default_rng(0).random(len(y_true))
    column = ["A"] * 60 + ["B"] * 34
    found = heterogeneity(sample_of(y_true, two_columns(p), {"site": column[: len(y_true)]}))
    assert (found[0].figure, found[0].p, found[0].reason, found[0].values) == ("roc_auc", None, TOO_FEW, ("A",))
    assert found[2].p is not None


@pytest.mark.parametrize("n_columns", [3, 4])
def test_several_classes_and_labels_are_compared_by_their_mean_area(n_columns: int) -> None:
    rng = np.random.default_rng(3)
    y_true, probabilities = drawn_probabilities(300, n_columns, seed=3)
    if n_columns == 4:
        y_true = (rng.random((300, 4)) < probabilities).astype(np.int64)
    found = heterogeneity(sample_of(y_true, probabilities, {"site": sites(300)}))
    assert [one.figure for one in found] == ["roc_auc"]
    assert found[0].p is not None
    assert 0.001 < found[0].p < 1


def test_records_survive_json() -> None:
    y_true, p = calibrated(120, seed=5)
    sample = sample_of(y_true, two_columns(p), {"site": sites(120)})
    for records in (calibrate_subgroups(sample), subgroup_differences(sample), heterogeneity(sample)):
        for one in records:
            assert from_json(to_json(one), type(one)) == one


def test_samples_without_a_known_value_are_shown_and_compared_with_nothing() -> None:
    y_true, p = calibrated(400, seed=3)
    column = ["", "", *"AB"] * 100  # most values are missing
    sample = sample_of(y_true, two_columns(p), {"site": column})
    assert [one.value for one in sample.subgroups] == ["A", "B", "(missing)"]
    differences = subgroup_differences(sample)
    assert {(one.value, one.reference) for one in differences} == {("B", "A")}
    assert all(test.values == ("A", "B") for test in heterogeneity(sample))
    alone = sample_of(y_true, two_columns(p), {"site": ["A", ""] * 200})
    assert not heterogeneity(alone)
    assert not subgroup_differences(alone)
