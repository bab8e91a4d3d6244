"""Many thresholds at once have the intervals that each of them has alone."""

import time

import numpy as np
import pytest

from hoarfrost.evaluation import evaluate_threshold
from hoarfrost.evaluation.bootstrap import bootstrap_share_ci, bootstrap_shares_ci
from hoarfrost.evaluation.shares import share, shares
from hoarfrost.evaluation.thresholds import evaluate_thresholds
from tests.support.samples import calibrated

NAMES = ("sensitivity", "specificity", "ppv", "npv", "lr_positive", "lr_negative")


def test_thresholds_have_what_one_threshold_has() -> None:
    y_true, p = calibrated(60, seed=0)
    y_true, p, patients = np.repeat(y_true, 2), np.repeat(p, 2), np.repeat(np.arange(60), 2)
    p = p + np.random.default_rng(0).normal(0, 0.02, len(p))
    at = np.array([-1.0, 0.2, 0.5, 0.8, 2.0])  # all positive, and none
    found = evaluate_thresholds(y_true, p, at, patients)
    for i, threshold in enumerate(at):
        one = evaluate_threshold(y_true, p, threshold, groups=patients)
        for name in NAMES:
            expected, own = getattr(one, name), found[name][i]
            assert (own.method, own.n) == (expected.method, expected.n)
            assert (own.value, own.low, own.high) == pytest.approx((expected.value, expected.low, expected.high))


@pytest.mark.parametrize("groups", [None, np.arange(80), np.arange(80) // 4, np.zeros(80, np.int64)])
def test_several_shares_are_those_of_one(groups: "np.ndarray[tuple[int], np.dtype[np.int64]] | None") -> None:
    rng = np.random.default_rng(1)
    hits, counted = rng.random((80, 6)) < 0.7, rng.random((80, 6)) < 0.5
    counted[:, 5] = False
    hits[:, 4] = True
    for i, found in enumerate(shares(hits, counted, groups)):
        expected = share(hits[:, i], counted[:, i], groups)
        assert (found.n, found.n_hits, found.n_patients, found.method) == (
            expected.n, expected.n_hits, expected.n_patients, expected.method,
        )  # fmt: skip
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_draws_are_those_of_a_single_proportion() -> None:
    rng = np.random.default_rng(2)
    hits, counted, patients = rng.random((90, 3)) < 0.6, rng.random((90, 3)) < 0.6, np.arange(90) // 3
    for i, found in enumerate(bootstrap_shares_ci(hits, counted, patients)):
        assert found is not None
        expected = bootstrap_share_ci(hits[:, i].astype(np.int64), counted[:, i].astype(np.int64), patients)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert (found.n_patients, found.n_undefined) == (expected.n_patients, expected.n_undefined)


def test_many_patients_take_seconds_by_the_delta_method() -> None:
    y_true, p = calibrated(100_000, seed=3)
    patients, at = np.arange(100_000) // 2, np.linspace(0, 1, 101)
    started = time.process_time()
    found = evaluate_thresholds(y_true, p, at, patients, by_draws=False)
    assert time.process_time() - started < 20
    assert found["sensitivity"][50].method == "delta method, clustered by patient"
    alone = share(p[:4_000] >= 0.5, y_true[:4_000] == 1, patients[:4_000])
    few = evaluate_thresholds(y_true[:4_000], p[:4_000], at[50:51], patients[:4_000], by_draws=False)["sensitivity"][0]
    assert (few.low, few.high) == pytest.approx((alone.low, alone.high), abs=3e-3)


def test_the_delta_method_is_near_the_draws_at_all_thresholds() -> None:
    y_true, p = calibrated(2_000, seed=4)
    patients, at = np.arange(2_000) // 2, np.array([-1.0, 0.1, 0.4, 0.7, 2.0])
    slow, fast = (evaluate_thresholds(y_true, p, at, patients, by_draws=by_draws) for by_draws in (True, False))
    for name in NAMES:
        for one, other in zip(slow[name], fast[name], strict=True):
            ends = [tuple(np.nan if x is None else x for x in (e.value, e.low, e.high)) for e in (one, other)]
            assert ends[0] == pytest.approx(ends[1], abs=0.01, rel=0.02, nan_ok=True)


def test_delta_method_takes_thresholds_in_any_order_and_counts_scores_that_equal_one() -> None:
    rng = np.random.default_rng(5)
    y_true, p, patients = rng.integers(0, 2, 90), rng.integers(0, 5, 90) / 4, rng.integers(0, 30, 90)
    at = np.array([0.75, 0.25, 0.25, 1.5, 0.5, -1.0])
    found = evaluate_thresholds(y_true, p, at, patients, by_draws=False)
    for i, threshold in enumerate(at):
        one = evaluate_threshold(y_true, p, threshold, groups=patients)
        for name in NAMES:
            assert found[name][i].value == pytest.approx(getattr(one, name).value), (name, threshold)
