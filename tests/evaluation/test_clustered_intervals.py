"""Where patients have several images, every interval counts patients; and none is a single point."""

from dataclasses import replace

import numpy as np
import pytest

from hoarfrost.evaluation import Estimate, evaluate_threshold, newcombe_ci, score, score_subgroups, wilson
from hoarfrost.evaluation.bootstrap import bootstrap_share_ci
from hoarfrost.evaluation.calibration import assess_calibration, calibration_line
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.intervals import NEWCOMBE, area
from hoarfrost.evaluation.shares import BOOTSTRAP, share
from tests.evaluation.test_calibration import calibrated, two_columns

COPIES = 4


def copied(n: int, seed: int) -> tuple[Ints, Floats, Ints]:
    """Return patients with the same image four times: they say no more than with one image each."""
    y_true, p = calibrated(n, seed=seed)
    return np.repeat(y_true, COPIES), np.repeat(p, COPIES), np.repeat(np.arange(n), COPIES)


def width(found: Estimate) -> float:
    assert found.low is not None
    assert found.high is not None
    return found.high - found.low


# -- patients ------------------------------------------------------------------------------------------------------------


def test_copies_of_images_do_not_narrow_calibration() -> None:
    y_true, p, patients = copied(300, seed=0)
    one, four, wrong = calibration_line(y_true[::COPIES], p[::COPIES]), calibration_line(y_true, p, patients), (
        calibration_line(y_true, p)
    )  # fmt: skip
    for name in ("slope_interval", "intercept_interval"):
        single, clustered, naive = (np.ptp(getattr(line, name)) for line in (one, four, wrong))
        assert clustered == pytest.approx(single, rel=0.25)  # a sandwich against the model's own variance
        assert naive < 0.6 * single
    assert four.slope == pytest.approx(one.slope)


def test_copies_of_images_do_not_narrow_likelihood_ratios_and_predictive_values() -> None:
    y_true, p, patients = copied(200, seed=1)
    one = evaluate_threshold(y_true[::COPIES], p[::COPIES], 0.5, prevalence=0.05)
    four = evaluate_threshold(y_true, p, 0.5, groups=patients, prevalence=0.05)
    assert one.at_prevalence is not None
    assert four.at_prevalence is not None
    pairs = [(one.lr_positive, four.lr_positive), (one.lr_negative, four.lr_negative)]
    pairs += [(getattr(one.at_prevalence, name), getattr(four.at_prevalence, name)) for name in ("ppv", "npv")]
    for single, clustered in pairs:
        assert clustered.value == pytest.approx(single.value)
        assert width(clustered) == pytest.approx(width(single), rel=0.02)
    assert four.lr_positive.method == "log method, clustered by patient"


def test_likelihood_ratio_with_a_zero_counts_patients() -> None:
    y_true, patients = np.repeat([0, 1], 40), np.repeat(np.arange(20), 4)
    p = np.where(y_true == 1, 0.9, 0.1)
    p[-8:] = 0.2  # two of ten patients are missed
    singles = evaluate_threshold(y_true[::4], p[::4], 0.5)
    found = evaluate_threshold(y_true, p, 0.5, groups=patients)
    assert (found.lr_positive.value, found.lr_positive.low) == (None, pytest.approx(singles.lr_positive.low))


def test_proportions_are_over_patients_wherever_they_are_printed() -> None:
    y_true, p, patients = copied(60, seed=2)
    (subgroup,) = score_subgroups(y_true, two_columns(p), {"site": ["a"] * len(p)}, threshold=0.5, groups=patients)
    point = evaluate_threshold(y_true, p, 0.5, groups=patients)
    assert (subgroup.sensitivity, subgroup.specificity) == (point.sensitivity, point.specificity)
    assert point.sensitivity.method == BOOTSTRAP
    rates = [one.observed for one in assess_calibration(y_true, two_columns(p), patients).bins]
    assert all(rate.n == COPIES * (rate.n_patients or 0) for rate in rates)
    assert any(rate.method == BOOTSTRAP for rate in rates)


def test_shares_of_patients_are_drawn_as_shares_of_their_images() -> None:
    rng = np.random.default_rng(0)
    hits, counted, patients = rng.integers(0, 2, 90), rng.integers(0, 2, 90), rng.integers(0, 30, 90)
    found = bootstrap_share_ci(hits, counted, patients)
    times = np.random.default_rng(0).integers(0, 30, (2_000, 30))
    rows = [np.concatenate([np.flatnonzero(patients == one) for one in draw]) for draw in times[:300]]
    values = [(hits * counted)[row].sum() / counted[row].sum() for row in rows]
    assert np.quantile(values, 0.5) == pytest.approx((found.low + found.high) / 2, abs=0.03)
    assert found.n_patients == 30


# -- single points -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hit", [False, True])
def test_a_share_of_none_or_all_has_wilsons_interval_of_the_patients(hit: bool) -> None:
    found = share(np.full(90, hit), np.ones(90, bool), np.arange(90) // 9)
    expected = wilson(10 * hit, 10)
    assert found == replace(wilson(90 * hit, 90), low=expected.low, high=expected.high, n_patients=10)
    assert width(found) > 0.25


def test_perfect_separation_is_no_certainty() -> None:
    y_true = np.repeat([0, 1], 20)
    p = np.where(y_true == 1, 0.9, 0.1)
    found = score(y_true, two_columns(p), "ab").printed("roc_auc")
    assert found is not None
    assert (found.value, found.interval, found.method) == (1.0, newcombe_ci(y_true, p), NEWCOMBE)


def test_perfect_separation_of_patients_counts_patients() -> None:
    y_true, patients = np.repeat([0, 1], 20), np.repeat(np.arange(10), 4)
    p = np.where(y_true == 1, 0.9, 0.1) + np.linspace(0, 0.01, 40)
    plain = Estimate(1.0, None, None, n=40)
    found = area(plain, y_true, two_columns(p), patients)
    assert (found.interval, found.method) == (newcombe_ci(y_true[::4], p[::4]), NEWCOMBE)


def test_perfect_separation_of_three_classes_has_a_width() -> None:
    y_true = np.repeat([0, 1, 2], 10)
    found = score(y_true, np.eye(3)[y_true] * 0.7 + 0.1, "abc").auc
    assert found.value == 1
    assert found.low is not None
    assert found.low < 0.9
    assert found.high == 1
