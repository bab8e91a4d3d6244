"""Repeated splits: a mean with an interval that does not shrink at will, and how much single predictions vary."""

import math

import numpy as np
import pytest

from hoarfrost.evaluation.discrimination import auc_influence
from hoarfrost.evaluation.metrics import NO_DECISION, Decision
from hoarfrost.evaluation.stability import instability, mean_over_splits
from tests.support.folds import areas_of_splits, drawn, true_auc


def test_interval_of_one_split_is_delongs_on_the_logit_with_the_variance_of_nadeau_and_bengio() -> None:
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 2, 60), rng.normal(size=60)
    scores += y
    area, influence = auc_influence(y, np.column_stack([-scores, scores]))
    found = mean_over_splits([area], influence[None], y, None, 5)
    half = 1.959964 * math.sqrt(2.25 * (influence**2).sum()) / (area * (1 - area))
    ends = [1 / (1 + math.exp(-(math.log(area / (1 - area)) + sign * half))) for sign in (-1, 1)]
    assert found.value == area
    assert found.interval == pytest.approx(tuple(ends), abs=1e-6)


def test_the_same_split_again_and_again_makes_no_interval_narrower() -> None:
    rng = np.random.default_rng(1)
    y, scores = rng.integers(0, 2, 60), rng.normal(size=60)
    area, influence = auc_influence(y, np.column_stack([-scores, scores]))
    once = mean_over_splits([area], influence[None], y, None, 5)
    often = mean_over_splits([area] * 50, np.stack([influence] * 50), y, None, 5)
    assert often.interval == pytest.approx(once.interval)


def test_patients_count_once() -> None:
    rng = np.random.default_rng(2)
    y, scores = rng.integers(0, 2, 40), rng.normal(size=40)
    twice = np.repeat(np.arange(40), 2)
    single = auc_influence(y, np.column_stack([-scores, scores]))
    double = auc_influence(y[twice], np.column_stack([-scores, scores])[twice])
    images = mean_over_splits([single[0]], single[1][None], y, None, 5).interval
    patients = mean_over_splits([double[0]], double[1][None], y[twice], twice, 5).interval
    assert images is not None
    assert patients == pytest.approx(images, abs=0.01)


def test_perfect_areas_have_an_interval() -> None:
    found = mean_over_splits([1.0, 1.0], np.zeros((2, 30)), np.arange(30) % 2, None, 5)
    assert found.interval is not None
    assert 0.5 < found.interval[0] < 1


def test_interval_covers_the_average_performance() -> None:
    rng, truths, ends = np.random.default_rng(0), [], []
    for _ in range(150):
        data = drawn(rng, 120, n_features=16, distance=1.2)
        areas, influences, weights = areas_of_splits(rng, data, penalty=5.0, n_splits=10)
        truths += [true_auc(one, data) for one in weights]
        ends.append(mean_over_splits(areas, influences, data.y, None, 5).interval)
    low, high = np.array(ends).T
    assert np.mean((low <= np.mean(truths)) & (np.mean(truths) <= high)) >= 0.92


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("decision", [NO_DECISION, Decision((0.3,), "given")])
def test_instability_is_that_of_an_obvious_slow_computation(n_classes: int, decision: Decision) -> None:
    if n_classes == 3 and decision.thresholds:
        pytest.skip("thresholds are those of two classes")
    rng = np.random.default_rng(3)
    n, n_splits = 40, 9
    y = rng.integers(0, n_classes, n)
    own = rng.dirichlet(np.ones(n_classes), n)
    found = rng.dirichlet(np.ones(n_classes), (n_splits, n))
    found[rng.random((n_splits, n)) < 0.6] = np.nan
    spreads, differences, changes, counts = [], [], [], []

    def predicted(p: np.ndarray) -> int:
        return int(p[1] >= decision.thresholds[0]) if decision.thresholds else int(p.argmax())

    for i in range(n):
        several = [one[i] for one in found if np.isfinite(one[i, 0])]
        if len(several) < 2:
            continue
        of_truth = [float(p[y[i]]) for p in several]
        spreads.append(np.std(of_truth, ddof=1))
        differences.append(np.mean([abs(one - own[i, y[i]]) for one in of_truth]))
        changes.append(np.mean([predicted(p) != predicted(own[i]) for p in several]))
        counts.append(len(several))
    result = instability(y, own, found, decision)
    assert result is not None
    assert (result.n, result.n_splits) == (len(spreads), int(np.median(counts)))
    assert result.spread == pytest.approx(np.mean(spreads))
    assert result.most_spread == pytest.approx(np.quantile(spreads, 0.95))
    assert result.difference == pytest.approx(np.mean(differences))
    assert result.changed == pytest.approx(np.mean(changes))


def test_labels_count_each_by_itself_and_identical_predictions_do_not_vary() -> None:
    rng = np.random.default_rng(0)
    y, own = rng.integers(0, 2, (10, 3)), rng.random((10, 3))
    same = instability(y, own, np.stack([own] * 4), NO_DECISION)
    assert same is not None
    assert (same.spread, same.difference, same.changed) == pytest.approx((0, 0, 0))
    other = np.where(own >= 0.5, 0.1, 0.9)
    flipped = instability(y, own, np.stack([other] * 4), NO_DECISION)
    assert flipped is not None
    assert flipped.changed == 1


def test_nothing_is_said_of_images_that_were_held_out_once() -> None:
    own = np.full((4, 2), 0.5)
    once = np.full((3, 4, 2), np.nan)
    once[0, :2], once[1, 2:] = 0.5, 0.5
    assert instability(np.array([0, 1, 0, 1]), own, once, NO_DECISION) is None
