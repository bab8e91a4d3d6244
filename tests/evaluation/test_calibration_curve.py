"""The smooth calibration curve: the fit of a slow computation, a band and distances that hold what they state."""

import json
import time
from dataclasses import asdict

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from hoarfrost.evaluation import assess_calibration
from hoarfrost.evaluation.calibration_curve import (
    FEWEST_CASES,
    N_POINTS,
    N_SPIKES,
    calibration_curve,
    restricted_cubic_spline,
)
from hoarfrost.runs import from_json, to_json
from tests.support.samples import Floats, Ints, calibrated, drawn_probabilities, two_columns

QUANTILES = [0.05, 0.35, 0.65, 0.95]


def test_terms_of_the_spline_are_cubic_between_the_knots_and_linear_beyond() -> None:
    knots = np.array([-1.0, 0.0, 1.5, 2.0])
    x = np.linspace(-6, 8, 2_801)
    terms = restricted_cubic_spline(x, knots)
    assert terms.shape == (len(x), 3)
    assert (terms[:, 0] == x).all()
    curvature = np.diff(terms, 2, axis=0)
    outside = (x[1:-1] < knots[0]) | (x[1:-1] > knots[-1])
    assert np.abs(curvature[outside]).max() < 1e-9
    # Cubic: fourth differences are zero, but at the knots.
    inside = (x[2:-2] > knots[0]) & (np.abs(x[2:-2, None] - knots).min(axis=1) > 0.02)
    assert np.abs(np.diff(terms, 4, axis=0)[inside]).max() < 1e-9


def slow_curve(y_true: Ints, p: Floats, at: Floats) -> Floats:
    """Fit Harrell's spline of the logit by a general minimiser."""
    x = logit(p)
    t = np.quantile(x, QUANTILES)

    def term(v: Floats, j: int) -> Floats:
        def cube(u: Floats) -> Floats:
            return np.where(u > 0, u, 0) ** 3

        k = len(t) - 1
        found = cube(v - t[j]) - cube(v - t[k - 1]) * (t[k] - t[j]) / (t[k] - t[k - 1])
        return np.asarray((found + cube(v - t[k]) * (t[k - 1] - t[j]) / (t[k] - t[k - 1])) / (t[k] - t[0]) ** 2)

    def design(v: Floats) -> Floats:
        return np.column_stack([np.ones(len(v)), v, term(v, 0), term(v, 1)])

    def loss(b: Floats) -> float:
        z = design(x) @ b
        return float(np.logaddexp(0, z).sum() - z[y_true == 1].sum())

    found = minimize(loss, np.array([0.0, 1.0, 0.0, 0.0]), method="BFGS", options={"gtol": 1e-8}).x
    return np.asarray(expit(design(logit(at)) @ found))


def test_curve_is_that_of_a_slow_fit() -> None:
    y_true, p = calibrated(180, seed=0, slope=0.5)
    found = calibration_curve(y_true, p)
    assert found.observed == pytest.approx(slow_curve(y_true, p, np.array(found.p)), abs=2e-3)
    assert (found.p[0], found.p[-1]) == pytest.approx((p.min(), p.max()))


def test_cells_of_many_samples_change_the_curve_little() -> None:
    y_true, p = calibrated(5_000, seed=1, slope=0.5)
    found = calibration_curve(y_true, p)
    assert found.observed == pytest.approx(slow_curve(y_true, p, np.array(found.p)), abs=5e-3)


def test_distances_are_those_of_the_curve_at_each_sample() -> None:
    """Austin and Steyerberg's definition: mean, median and 90th percentile of |curve(p) - p|."""
    y_true, p = calibrated(190, seed=2, slope=0.5, intercept=0.4)
    found = calibration_curve(y_true, p)
    gaps = np.abs(slow_curve(y_true, p, p) - p)
    assert found.ici is not None
    assert found.e50 is not None
    assert found.e90 is not None
    values = found.ici.value, found.e50.value, found.e90.value
    assert values == pytest.approx((gaps.mean(), np.median(gaps), np.quantile(gaps, 0.9)), abs=3e-3)


def test_distribution_counts_each_sample_by_its_outcome() -> None:
    y_true, p = np.array([0, 0, 1, 1, 0]), np.array([0.0, 0.021, 1.0, 0.99, 0.5])
    found = calibration_curve(y_true, p)
    assert (sum(found.without), sum(found.with_outcome)) == (3, 2)
    assert (found.without[0], found.without[1], found.without[25], found.with_outcome[-1]) == (1, 1, 1, 2)
    assert len(found.without) == len(found.with_outcome) == N_SPIKES
    assert found.reason.startswith(f"no curve: fewer than {FEWEST_CASES}")


@pytest.mark.parametrize(
    ("y_true", "p", "reason"),
    [
        (np.arange(40) % 2, np.full(40, 0.3), "all probabilities are equal"),
        (np.arange(40) // 20, np.arange(40) / 40, "separate the outcomes perfectly"),
        (np.zeros(40, np.int64), np.arange(40) / 40, "fewer than 10 samples"),
    ],
)
def test_without_a_curve_the_reason_is_given(y_true: Ints, p: Floats, reason: str) -> None:
    found = calibration_curve(y_true, p)
    assert reason in found.reason
    assert (found.p, found.ici) == ((), None)


def test_extreme_and_tied_probabilities_have_a_finite_curve() -> None:
    rng = np.random.default_rng(0)
    p = np.where(rng.random(300) < 0.9, 0.0, rng.choice([0.5, 1.0], 300))  # all knots at one place
    found = calibration_curve((rng.random(300) < 0.3).astype(np.int64), p)
    assert not found.reason
    assert np.isfinite([found.observed, found.low, found.high]).all()
    assert from_json(json.loads(json.dumps(to_json(found), allow_nan=False)), type(found)) == found


def test_patients_are_the_units_of_the_band() -> None:
    y_true, p = calibrated(200, seed=3)
    once, patients = calibration_curve(y_true, p), np.repeat(np.arange(200), 4)
    again = calibration_curve(np.repeat(y_true, 4), np.repeat(p, 4), patients)
    wrong = calibration_curve(np.repeat(y_true, 4), np.repeat(p, 4))
    widths = [np.mean(np.subtract(one.high, one.low)) for one in (once, again, wrong)]
    assert widths[1] == pytest.approx(widths[0], rel=0.05)
    assert widths[2] < 0.6 * widths[0]
    assert again.ici is not None
    assert (again.ici.method, again.ici.n, again.ici.n_patients) == ("bootstrap over patients", 800, 200)
    assert once.ici is not None
    assert once.ici.method == "bootstrap"


def true_ici(slope: float) -> float:
    stated = np.random.default_rng(9).normal(0, 1.5, 400_000)
    return float(np.abs(expit(slope * stated) - expit(stated)).mean())


@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_band_and_interval_of_the_ici_cover(slope: float) -> None:
    truth, at = true_ici(slope), np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    covers, inside = [], []
    for seed in range(120):
        y_true, p = calibrated(200, seed=seed, slope=slope)
        found = calibration_curve(y_true, p)
        assert found.ici is not None
        assert found.ici.interval is not None
        covers.append(found.ici.interval[0] <= truth <= found.ici.interval[1])
        low, high = (np.interp(at, found.p, ends) for ends in (found.low, found.high))
        share = expit(slope * logit(at))
        inside.append((low <= share) & (share <= high))
    assert np.mean(covers) >= 0.92
    assert np.mean(inside) >= 0.92
    assert np.mean(inside, axis=0).min() >= 0.88


def test_curve_of_patients_covers_and_that_of_their_images_does_not() -> None:
    truth = true_ici(1.0)
    both: dict[bool, list[bool]] = {True: [], False: []}
    for seed in range(80):
        y_true, p = calibrated(80, seed=seed)
        y_true, p = np.repeat(y_true, 3), np.repeat(p, 3)
        for with_patients, found in both.items():
            groups = np.repeat(np.arange(80), 3) if with_patients else None
            ici = calibration_curve(y_true, p, groups).ici
            assert ici is not None
            assert ici.low is not None
            found.append(ici.low <= truth)
    assert np.mean(both[True]) >= 0.94
    assert np.mean(both[False]) < 0.9


def test_a_hundred_thousand_predictions_take_seconds_and_a_bounded_record() -> None:
    y_true, p = calibrated(100_000, seed=4, slope=0.8)
    started = time.process_time()
    found = calibration_curve(y_true, p, np.arange(100_000) // 2)
    assert time.process_time() - started < 10
    assert len(found.p) == N_POINTS
    assert len(json.dumps(asdict(found))) < 10_000


def test_the_curve_of_several_classes_is_of_the_highest_probability() -> None:
    y_true, probabilities = drawn_probabilities(300, 4, seed=5)
    found = assess_calibration(y_true, probabilities).curve
    confidence, hits = probabilities.max(axis=1), (probabilities.argmax(axis=1) == y_true).astype(np.int64)
    assert found == calibration_curve(hits, confidence)
    y_true, p = calibrated(300, seed=5)
    assert assess_calibration(y_true, two_columns(p)).curve == calibration_curve(y_true, p)


def test_bad_arrays_and_levels_are_refused() -> None:
    y_true, p = calibrated(30, seed=6)
    with pytest.raises(ValueError, match="both must be"):
        calibration_curve(y_true[:3], p)
    with pytest.raises(ValueError, match="level"):
        calibration_curve(y_true, p, level=1.0)
