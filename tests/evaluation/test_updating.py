"""Updates of a head's probabilities: they recover a known shift, gain nothing where nothing is wrong, and never peek."""

import numpy as np
import pytest
from scipy.special import expit, log_softmax, logit

from hoarfrost.evaluation.updating import (
    FROZEN,
    INTERCEPT,
    PRIOR,
    SLOPE,
    UpdatedScores,
    compare_updates,
    estimated_shares,
    fitted_update,
    too_few,
)
from tests.support.samples import Floats, Ints, two_columns


def drawn(n: int, seed: int, a: float = 0.0, b: float = 1.0) -> tuple[Ints, Floats]:
    """Return labels, and probabilities whose log-odds are those of the truth, minus a and over b."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-0.5, 1.5, n)
    y = (rng.random(n) < expit(truth)).astype(np.int64)
    return y, two_columns(expit((truth - a) / b))


def compared(y: Ints, p: Floats, **options: object) -> dict[str, UpdatedScores]:
    folds = np.arange(len(y)) % 5
    found = compare_updates(y, p, folds, None, learnt=None, **options)  # type: ignore[arg-type]
    return {one.method: one for one in found}


def test_known_shift_and_slope_are_recovered() -> None:
    y, p = drawn(20_000, 0, a=1.2, b=0.5)
    found = compared(y, p)
    assert found[SLOPE].slope == pytest.approx(0.5, abs=0.03)
    assert found[SLOPE].shifts[1] == pytest.approx(1.2, abs=0.08)
    (line,) = found[SLOPE].lines
    assert line.slope == pytest.approx(1, abs=0.05)
    assert line.intercept == pytest.approx(0, abs=0.05)
    difference = found[SLOPE].difference
    assert difference is not None
    assert difference.high is not None
    assert difference.high < 0
    assert (found[SLOPE].calibration_error or 1) < 0.02 < (found[FROZEN].calibration_error or 0)


def test_shift_alone_is_recovered_by_the_intercept_alone() -> None:
    y, p = drawn(20_000, 1, a=-0.8)
    found = compared(y, p)
    assert found[INTERCEPT].slope == 1
    assert found[INTERCEPT].shifts[1] == pytest.approx(-0.8, abs=0.05)
    assert found[INTERCEPT].loss == pytest.approx(found[SLOPE].loss, abs=1e-3)


def test_update_is_that_of_an_obvious_search() -> None:
    y, p = drawn(300, 2, a=0.5, b=0.7)
    slope, shifts = fitted_update(y, np.log(p), with_slope=True)
    x = logit(p[:, 1])

    def loss(a: float, b: float) -> float:
        return float(np.logaddexp(0, -(2 * y - 1) * (a + b * x)).mean())

    around = [loss(shifts[1] + da, slope + db) for da in (-0.01, 0, 0.01) for db in (-0.01, 0, 0.01)]
    assert min(around) == around[4]


def test_three_classes_have_a_slope_and_an_intercept_each() -> None:
    rng = np.random.default_rng(3)
    logs = log_softmax(rng.normal(0, 1.5, (8_000, 3)), axis=1)
    y = np.array([rng.choice(3, p=one) for one in np.exp(logs)])
    worse = np.exp(log_softmax((logs - [0, 0.7, -0.4]) / 0.6, axis=1))
    found = compared(y, worse)
    assert found[SLOPE].slope == pytest.approx(0.6, abs=0.05)
    assert found[SLOPE].shifts[1:] == pytest.approx((0.7, -0.4), abs=0.1)
    assert len(found[SLOPE].lines) == len(found[SLOPE].net_benefit) == 3


def test_nothing_is_gained_beyond_chance_where_nothing_is_wrong() -> None:
    gains = []
    for seed in range(60):
        found = compared(*drawn(400, seed))[SLOPE].difference
        assert found is not None
        assert found.high is not None
        gains.append((found.value, found.high < 0))
    values, clear = zip(*gains, strict=True)
    assert np.mean(values) > 0  # an update that need not be costs a little
    assert sum(clear) <= 4


def test_each_sample_is_judged_by_an_update_that_it_did_not_fit() -> None:
    y, p = drawn(200, 4, a=1)
    folds = np.arange(len(y)) % 5
    found = compare_updates(y, p, folds, None, learnt=None)[1]
    loss = 0.0
    for fold in range(5):
        slope, shifts = fitted_update(y[folds != fold], np.log(p[folds != fold]), with_slope=False)
        updated = log_softmax(slope * np.log(p[folds == fold]) + shifts, axis=1)
        loss -= float(updated[np.arange(len(updated)), y[folds == fold]].sum())
    assert found.loss == pytest.approx(loss / len(y), rel=1e-9)


def test_prior_shift_is_the_fixed_point_of_saerens_iteration_and_uses_no_labels() -> None:
    rng = np.random.default_rng(5)
    y = (rng.random(4_000) < 0.1).astype(np.int64)  # 10% here, learned with 40%
    x = rng.normal(1.5 * y)
    p = two_columns(expit(logit(0.4) + 1.5 * x - 1.5**2 / 2))
    shares, slow = estimated_shares(p, (0.6, 0.4)), np.array([0.6, 0.4])
    for _ in range(3_000):
        weighted = p * slow / np.array([0.6, 0.4])
        slow = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
    assert shares == pytest.approx(slow, abs=1e-6)
    assert shares[1] == pytest.approx(0.1, abs=0.03)
    found = compare_updates(y, p, np.arange(len(y)) % 5, None, learnt=(0.6, 0.4))[3]
    stated = compare_updates(y, p, np.arange(len(y)) % 5, None, learnt=(0.6, 0.4), stated=(0.9, 0.1))[3]
    assert (found.method, stated.method) == (PRIOR, PRIOR)
    assert found.difference is not None
    assert found.difference.high is not None
    assert found.difference.high < 0
    assert stated.shifts[1] == pytest.approx(logit(0.1) - logit(0.4))


def test_shares_of_three_classes_are_estimated() -> None:
    rng = np.random.default_rng(6)
    y = rng.choice(3, 6_000, p=[0.7, 0.2, 0.1])
    x = rng.normal(size=(6_000, 3))
    x[np.arange(len(y)), y] += 2
    p = np.exp(log_softmax(2 * x, axis=1))  # for equal shares
    assert estimated_shares(p, (1 / 3, 1 / 3, 1 / 3)) == pytest.approx([0.7, 0.2, 0.1], abs=0.03)


def test_classes_that_are_separated_have_no_slope_but_a_reason() -> None:
    y = np.repeat([0, 1], 50)
    found = compared(y, two_columns(np.where(y == 1, 0.8, 0.2) + np.linspace(0, 0.01, 100)))
    assert found[SLOPE].loss is None
    assert "separate the classes" in found[SLOPE].reason
    assert found[PRIOR].reason == "the prevalence where the head learned is not known"


def test_few_patients_of_a_class_are_a_reason() -> None:
    y = np.array([0] * 50 + [1] * 30)
    patients = np.array([*range(50), *range(10), *range(10), *range(10)]) + np.where(y == 1, 100, 0)
    assert too_few(y, patients, ("benign", "malignant")) == "malignant has 10 patients, and 20 of each class are needed"
    assert too_few(y, None, ("benign", "malignant")) == ""
