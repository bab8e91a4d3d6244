"""Calibration: temperature, slope and intercept of simulated data are found."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from scipy.optimize import brentq, minimize
from scipy.special import expit
from scipy.stats import norm

from hoarfrost.evaluation import (
    apply_temperature,
    assess_calibration,
    calibration_line,
    fit_temperature,
    roc_auc,
    wilson,
)
from hoarfrost.evaluation.calibration import _slope
from tests.support.samples import Floats, Ints, Sample, calibrated, drawn_probabilities, samples, two_columns


def logits(p: Floats) -> Floats:
    return np.asarray(np.log(p / (1 - p)))


def slow_line(y_true: Ints, p: Floats) -> Floats:
    """Intercept and slope by a general minimiser."""

    def loss(b: Floats) -> float:
        z = b[0] + b[1] * logits(p)
        return float(np.logaddexp(0, z).sum() - (y_true * z).sum())

    return np.asarray(minimize(loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-10}).x)


# -- temperature --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_that_probabilities_were_sharpened_by_is_found(temperature: float) -> None:
    y_true, p = calibrated(20_000, seed=0)
    stated = 1 / (1 + np.exp(-temperature * logits(p)))
    fit = fit_temperature(y_true, two_columns(stated))
    assert fit.temperature == pytest.approx(temperature, rel=0.05)
    assert fit.loss_after <= fit.loss_before
    assert not fit.at_limit


def test_temperature_one_changes_nothing_and_others_keep_ranks() -> None:
    y_true, probabilities = drawn_probabilities(50, 3, seed=1)
    assert apply_temperature(probabilities, 1.0) == pytest.approx(probabilities)
    hot = apply_temperature(probabilities, 4.0)
    assert (hot.argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert hot.sum(axis=1) == pytest.approx(np.ones(50))
    assert hot.max() < probabilities.max()
    y_true, p = calibrated(100, seed=2)
    assert roc_auc(y_true, apply_temperature(two_columns(p), 3.0)[:, 1]) == roc_auc(y_true, p)


def test_probabilities_of_zero_have_a_finite_temperature() -> None:
    y_true = np.array([0, 0, 0, 1, 1, 1])
    fit = fit_temperature(y_true, two_columns(np.array([0.0, 0.0, 1.0, 1.0, 1.0, 0.0])))
    assert np.isfinite([fit.temperature, fit.loss_before, fit.loss_after]).all()


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), float("inf")])
def test_temperature_that_is_none_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be a positive number, not"):
        apply_temperature(np.array([[0.5, 0.5]]), temperature)


# -- error and bins -----------------------------------------------------------------------------------------------------


@given(samples())
def test_error_is_the_mean_gap_over_bins_and_every_sample_is_in_one(sample: Sample) -> None:
    y_true, p = sample
    found = assess_calibration(y_true, two_columns(p), n_bins=4)
    assert sum(one.observed.n for one in found.bins) == len(p)
    assert sum(one.observed.n_hits for one in found.bins) == y_true.sum()
    gaps = [one.observed.n * abs(one.confidence - (one.observed.value or 0)) for one in found.bins]
    assert found.error == pytest.approx(sum(gaps) / len(p), abs=1e-12)
    for lower, upper in zip(found.bins[:-1], found.bins[1:], strict=True):
        assert lower.highest < upper.lowest  # equal confidences are never parted


def test_bins_of_distinct_confidences_have_equal_mass() -> None:
    y_true, p = calibrated(100, seed=0)
    found = assess_calibration(y_true, two_columns(p), n_bins=10)
    assert [one.observed.n for one in found.bins] == [10] * 10


def test_order_of_samples_changes_nothing() -> None:
    y_true, p = calibrated(80, seed=1)
    p = p.round(1)
    order = np.random.default_rng(0).permutation(80)
    first, second = (assess_calibration(y_true[rows], two_columns(p[rows])) for rows in (np.arange(80), order))
    assert second.error == pytest.approx(first.error, abs=1e-12)
    assert [one.observed for one in second.bins] == [one.observed for one in first.bins]


def test_calibrated_probabilities_have_the_error_that_chance_gives_and_others_more() -> None:
    found = [assess_calibration(*map_columns(calibrated(2_000, seed=seed))).error for seed in range(20)]
    chance = assess_calibration(*map_columns(calibrated(2_000, seed=0))).error_by_chance
    assert np.mean(found) == pytest.approx(chance, rel=0.15)
    off = assess_calibration(*map_columns(calibrated(2_000, seed=0, slope=0.4)))
    assert off.error > 4 * off.error_by_chance


def map_columns(sample: Sample) -> Sample:
    return sample[0], two_columns(sample[1])


def test_bins_of_three_classes_are_of_the_highest_probability() -> None:
    y_true, probabilities = drawn_probabilities(60, 3, seed=2)
    found = assess_calibration(y_true, probabilities, n_bins=5)
    right = probabilities.argmax(axis=1) == y_true
    assert sum(one.observed.n_hits for one in found.bins) == right.sum()
    assert found.bins[-1].highest == probabilities.max()
    assert len(found.lines) == 3


def test_temperature_corrects_overconfidence() -> None:
    y_true, p = calibrated(4_000, seed=3, slope=0.4)
    half = np.arange(4_000) < 2_000
    fit = fit_temperature(y_true[half], two_columns(p[half]))
    before, after = (
        assess_calibration(y_true[~half], apply_temperature(two_columns(p[~half]), temperature))
        for temperature in (1.0, fit.temperature)
    )
    assert after.error < before.error / 2
    assert after.lines[0].slope == pytest.approx(1, abs=0.15)
    assert (before.lines[0].slope or 0) < 0.5


# -- slope and intercept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.5, 0.0), (1.0, 0.8), (2.0, -0.5)])
def test_slope_that_probabilities_were_drawn_with_is_found(slope: float, intercept: float) -> None:
    y_true, p = calibrated(20_000, seed=4, slope=slope, intercept=intercept)
    line = calibration_line(y_true, p)
    assert line.slope == pytest.approx(slope, rel=0.06)
    if slope == 1:
        assert line.intercept == pytest.approx(intercept, abs=0.06)
    assert line.slope_interval is not None
    assert line.slope_interval[0] < (line.slope or 0) < line.slope_interval[1]


def test_slope_is_that_of_a_general_minimiser() -> None:
    y_true, p = calibrated(60, seed=5, slope=0.7, intercept=0.3)
    assert calibration_line(y_true, p).slope == pytest.approx(slow_line(y_true, p)[1], rel=1e-4)


def test_intercept_makes_the_mean_probability_the_observed_share() -> None:
    y_true, p = calibrated(200, seed=6, intercept=1.0)
    line = calibration_line(y_true, p)
    moved = 1 / (1 + np.exp(-(logits(p) + (line.intercept or 0))))
    assert moved.mean() == pytest.approx(y_true.mean(), abs=1e-8)


@pytest.mark.parametrize(
    ("y_true", "p", "reason"),
    [
        ([0, 0, 1, 1], [0.1, 0.2, 0.7, 0.9], "the probabilities separate the classes perfectly"),
        ([1, 1, 0, 0], [0.1, 0.2, 0.7, 0.9], "the probabilities separate the classes perfectly"),
        ([0, 0, 1, 1], [0.1, 0.5, 0.5, 0.9], "the probabilities separate the classes perfectly"),
        ([0, 1, 0, 1], [0.4, 0.4, 0.4, 0.4], "all probabilities are equal"),
    ],
)
def test_slope_that_does_not_exist_is_none_with_its_reason(y_true: list[int], p: list[float], reason: str) -> None:
    line = calibration_line(np.array(y_true), np.array(p))
    assert (line.slope, line.slope_interval) == (None, None)
    assert reason in line.reason
    assert line.intercept is not None


def wald(y_true: Ints, p: Floats, slope: float, a: float) -> tuple[float, float]:
    """Return the standard errors of the intercept (slope fixed) and the slope, from the likelihood's second derivatives."""
    x = np.log(p / (1 - p))
    step = 1e-3

    def log_likelihood(a: float, b: float) -> float:
        z = a + b * x
        return float((y_true * z - np.logaddexp(0, z)).sum())

    def second(f: Callable[[float, float], float], a: float, b: float) -> Floats:
        aa = (f(a + step, b) - 2 * f(a, b) + f(a - step, b)) / step**2
        bb = (f(a, b + step) - 2 * f(a, b) + f(a, b - step)) / step**2
        ab = (
            (f(a + step, b + step) - f(a + step, b - step) - f(a - step, b + step) + f(a - step, b - step))
            / 4
            / step**2
        )
        return np.array([[aa, ab], [ab, bb]])

    of_intercept = second(log_likelihood, a, 1.0)[0, 0]
    both = slow_line(y_true, p)
    assert both[1] == pytest.approx(slope, abs=1e-4)
    covariance = np.linalg.inv(-second(log_likelihood, *both))
    return (-1 / of_intercept) ** 0.5, float(covariance[1, 1]) ** 0.5


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("power", [0.4, 1.0, 2.5])
def test_intervals_of_slope_and_intercept_are_walds(level: float, power: float) -> None:
    y_true, p = calibrated(150, seed=11)
    p = 0.02 + 0.9 * p**power / (p**power + (1 - p) ** power)
    line = calibration_line(y_true, p, level=level)
    assert line.slope is not None
    assert line.intercept is not None
    of_intercept, of_slope = wald(y_true, p, line.slope, line.intercept)
    reach = norm.ppf((1 + level) / 2)
    around = (line.intercept - reach * of_intercept, line.intercept + reach * of_intercept)
    assert line.intercept_interval == pytest.approx(around, abs=1e-4)
    assert line.slope_interval == pytest.approx(
        (line.slope - reach * of_slope, line.slope + reach * of_slope), abs=1e-4
    )
    assert line.reason == ""


def test_equal_probabilities_have_an_intercept_with_its_interval_and_no_slope() -> None:
    line = calibration_line(np.array([0, 1] * 20), np.full(40, 0.3))
    assert (line.slope, line.slope_interval) == (None, None)
    assert line.reason == "no slope: all probabilities are equal"
    assert line.intercept == pytest.approx(-np.log(0.3 / 0.7))
    reach = norm.ppf(0.975) / (40 / 4) ** 0.5
    assert line.intercept_interval == pytest.approx((line.intercept - reach, line.intercept + reach))


@pytest.mark.parametrize("p", [[0.1, 0.4, 0.4, 0.9], [0.9, 0.4, 0.4, 0.1]], ids=["rightly", "wrongly"])
def test_classes_that_probabilities_part_have_an_intercept_with_its_interval_and_no_slope(p: list[float]) -> None:
    line = calibration_line(np.array([0, 0, 1, 1]), np.array(p))
    assert (line.slope, line.reason) == (None, "no slope: the probabilities separate the classes perfectly")
    assert line.intercept_interval is not None
    assert line.intercept_interval[0] < line.intercept < line.intercept_interval[1]


FAR_OUT = [
    (
        [1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [-3.7, 4.38, -2.67, -38081.82, 0.44, -0.21, 4.92, -2.21, 2.64, 0.14, -1.46, 0.75, 1.37, 0.37, -0.48, -1.48, -0.11,
         0.6, 0.28, 0.05, -0.1],
    ),
    (
        [0, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 1, 1, 0, 0, 1, 0, 1],
        [-0.87, 0.18, 0.51, -1.17, -5.76, 3.76, 0.69, -0.48, 7135.75, 0.34, -0.21, 0.78, 3.19, 39.93, -1.2, 0.13, 2.36,
         0.21, 4.91],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("y", "x"), FAR_OUT)
def test_slope_is_found_where_newtons_whole_steps_go_astray(y: list[int], x: list[float]) -> None:
    """One value far out. The loss is convex: where both its derivatives are zero, it is least."""
    y_true, at = np.array(y), np.array(x)
    found = _slope(y_true, at, None)
    assert found is not None
    slope, deviation = found

    def residuals(a: float) -> Floats:
        return np.asarray(y_true - expit(a + slope * at))

    a = brentq(lambda a: float(residuals(a).sum()), -50, 50, xtol=1e-12)
    assert float(residuals(a) @ at) == pytest.approx(0, abs=1e-5)
    q = expit(a + slope * at)
    design = np.column_stack([np.ones(len(at)), at])
    information = design.T @ (design * (q * (1 - q))[:, None])
    assert deviation == pytest.approx(np.linalg.inv(information)[1, 1] ** 0.5, rel=1e-6)


def test_slope_that_is_not_found_leaves_the_intercept_with_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    y_true, p = calibrated(60, seed=12)
    whole = calibration_line(y_true, p)
    monkeypatch.setattr("hoarfrost.evaluation.calibration._slope", lambda *_: None)
    line = calibration_line(y_true, p)
    assert line == replace(whole, slope=None, slope_interval=None, reason="no slope: Newton's method did not converge")


def test_level_reaches_the_bins_and_one_bin_is_enough() -> None:
    y_true, p = calibrated(60, seed=13)
    (only,) = assess_calibration(y_true, two_columns(p), n_bins=1, level=0.8).bins
    assert only.observed == wilson(int(y_true.sum()), 60, level=0.8)
    with pytest.raises(ValueError, match="n_bins must be at least 1, not 0"):
        assess_calibration(y_true, two_columns(p), n_bins=0)


def test_the_same_samples_have_the_same_error_by_chance() -> None:
    y_true, p = calibrated(60, seed=14)
    first, again = (assess_calibration(y_true, two_columns(p)).error_by_chance for _ in range(2))
    assert first == again
    starts = np.array([i * 6 for i in range(10)])
    rng, confidence = np.random.default_rng(1), np.sort(p)
    drawn = (rng.random((4000, 60)) < confidence) - confidence
    expected = np.abs(np.add.reduceat(drawn, starts, axis=1)).sum(axis=1).mean() / 60
    assert first == pytest.approx(expected, rel=0.1)


@given(samples(fewest=2))
def test_every_assessment_is_json(sample: Sample) -> None:
    y_true, p = sample
    found = asdict(assess_calibration(y_true, two_columns(p)))
    assert json.loads(json.dumps(found, allow_nan=False))["error"] == found["error"]


@pytest.mark.parametrize(
    ("y_true", "p", "message"),
    [
        ([1, 1], [0.1, 0.2], "needs both classes"),
        ([0, 1], [0.1, 1.2], "p holds values outside 0 to 1"),
        ([0, 1], [0.1, np.nan], "y_score holds NaN"),
        ([0, 1, 1], [0.1, 0.2], r"y_true has the shape \(3,\)"),
    ],
)
def test_line_refuses_what_is_undefined(y_true: list[int], p: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibration_line(np.array(y_true), np.array(p))


def test_temperature_of_probabilities_that_are_no_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="some probabilities are NaN or infinite"):
        apply_temperature(np.array([[0.5, 0.5], [np.nan, np.nan]]), 2.0)


def test_assessment_refuses_nan_and_no_bins() -> None:
    with pytest.raises(ValueError, match="some probabilities are NaN or infinite"):
        assess_calibration(np.array([0, 1]), np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="n_bins must be at least 1, not 0"):
        assess_calibration(np.array([0, 1]), np.full((2, 2), 0.5), n_bins=0)


def test_class_that_a_split_lacks_has_no_line_but_the_others_have() -> None:
    y_true, probabilities = drawn_probabilities(60, 3, seed=7)
    present = y_true < 2
    lines = assess_calibration(y_true[present], probabilities[present]).lines
    assert (lines[2].slope, lines[2].reason) == (None, "only one class is present")
    assert lines[0].slope is not None
