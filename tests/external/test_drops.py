"""The drop from internal to external: what an obvious computation gives, and an interval that covers."""

import math

import numpy as np
import pytest

from hoarfrost.evaluation import Estimate, score
from hoarfrost.evaluation.drops import drop_between
from tests.support.samples import Floats, Ints, two_columns


def slow_area_and_variance(y_true: Ints, y_score: Floats) -> tuple[float, float]:
    """Count all pairs, and add up DeLong's structural components one by one."""
    positives, negatives = y_score[y_true == 1], y_score[y_true == 0]
    wins = [[(a > b) + (a == b) / 2 for b in negatives] for a in positives]
    area = sum(map(sum, wins)) / (len(positives) * len(negatives))
    of_positives = [sum(row) / len(negatives) for row in wins]
    of_negatives = [sum(row[j] for row in wins) / len(positives) for j in range(len(negatives))]
    variance = sum((one - area) ** 2 for one in of_positives) / (len(positives) - 1) / len(positives)
    return area, variance + sum((one - area) ** 2 for one in of_negatives) / (len(negatives) - 1) / len(negatives)


def drawn(rng: np.random.Generator, n: int, shift: float) -> tuple[Ints, Floats]:
    y = (np.arange(n) % 2).astype(np.int64)
    return y, 1 / (1 + np.exp(-rng.normal(shift * y)))


def test_drop_of_areas_is_that_of_pairs_counted_one_by_one() -> None:
    rng = np.random.default_rng(0)
    (y_in, p_in), (y_out, p_out) = drawn(rng, 120, 1.2), drawn(rng, 90, 0.6)
    found = drop_between(
        score(y_in, two_columns(p_in), ("a", "b")).auc, score(y_out, two_columns(p_out), ("a", "b")).auc
    )
    (area_in, var_in), (area_out, var_out) = slow_area_and_variance(y_in, p_in), slow_area_and_variance(y_out, p_out)
    drop, half = area_in - area_out, 1.959963984540054 * math.sqrt(var_in + var_out)
    assert (found.value, found.low, found.high) == pytest.approx((drop, drop - half, drop + half), abs=1e-12)


def test_interval_is_square_and_add_of_both_intervals() -> None:
    found = drop_between(Estimate(0.95, 0.90, 0.98), Estimate(0.80, 0.70, 0.87, n=50, n_patients=30))
    assert found.value == pytest.approx(0.15)
    assert found.low == pytest.approx(0.15 - math.hypot(0.05, 0.07))
    assert found.high == pytest.approx(0.15 + math.hypot(0.03, 0.10))
    assert (found.n, found.n_patients) == (50, 30)


def test_without_an_interval_of_one_side_there_is_a_drop_and_no_interval() -> None:
    found = drop_between(Estimate(0.9, None, None), Estimate(0.8, 0.7, 0.9))
    assert (found.value, found.interval) == (pytest.approx(0.1), None)
    assert drop_between(Estimate(0.9, 0.8, 1.0), Estimate(None, None, None)).value is None


@pytest.mark.parametrize(("shift", "other"), [(1.2, 0.6), (2.5, 2.5)])
def test_interval_covers_the_true_drop_of_independent_samples(shift: float, other: float) -> None:
    rng = np.random.default_rng(1)
    true = [0.5 * math.erfc(-one / 2) for one in (shift, other)]  # the area of two normal distributions
    hits = []
    for _ in range(300):
        estimates = [
            score(y, two_columns(p), ("a", "b")).auc for y, p in (drawn(rng, 80, shift), drawn(rng, 60, other))
        ]
        found = drop_between(*estimates)
        assert found.interval is not None
        hits.append(found.interval[0] <= true[0] - true[1] <= found.interval[1])
    assert 0.92 <= np.mean(hits) <= 0.995
