"""Conformal sets contain the true class as often as stated, for any head; with few samples they are complete."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hoarfrost.evaluation import macro_roc_aucs
from hoarfrost.evaluation.conformal import calibrate, calibrate_classes, prediction_sets
from hoarfrost.experiment.task import read_task
from hoarfrost.features.cache import EmbeddingCache
from hoarfrost.heads.specs import parse_heads
from hoarfrost.training import Fold, TrainingConfig, train_heads
from tests.support.builders import SHARED_DATA
from tests.support.samples import Floats, Ints, drawn_probabilities

BUSI = SHARED_DATA / "busi"

shares = st.integers(1, 99).map(lambda percent: percent / 100)


def slow_quantile(scores: Sequence[float], groups: Sequence[int], coverage: Fraction) -> float:
    """Add up exact weights, one score after another: 1 / (K + 1) a patient, the new one's at infinity."""
    n_groups = len(set(groups))
    reached = Fraction(0)
    for score, group in sorted(zip(scores, groups, strict=True)):
        reached += Fraction(1, (n_groups + 1) * list(groups).count(group))
        if reached >= coverage:
            return score
    return float("inf")


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 99), st.data())
def test_quantile_equals_one_by_exact_fractions(values: list[int], percent: int, data: st.DataObject) -> None:
    groups = data.draw(st.lists(st.integers(0, 5), min_size=len(values), max_size=len(values)))
    found = calibrate(np.array(values, float), np.array(groups)).quantile(percent / 100)
    assert found == slow_quantile(values, groups, Fraction(percent, 100))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60), shares)
def test_without_patients_it_is_the_usual_order_statistic(values: list[float], coverage: float) -> None:
    k = -(-round(coverage * 100) * (len(values) + 1) // 100)  # exact, in whole numbers
    expected = sorted(values)[k - 1] if k <= len(values) else float("inf")
    assert calibrate(np.array(values)).quantile(coverage) == expected


def test_nine_samples_bear_ninety_percent_and_eight_do_not() -> None:
    assert calibrate(np.arange(9.0)).quantile(0.9) == 8.0
    assert calibrate(np.arange(8.0)).quantile(0.9) == float("inf")
    assert calibrate(np.arange(90.0), np.arange(90) % 8).quantile(0.9) == float(
        "inf"
    )  # ninety images of eight patients


def test_patient_with_many_images_weighs_as_one_with_a_single_one() -> None:
    scores, groups = np.array([*range(9), *[100.0] * 50]), np.array([*range(9), *[9] * 50])
    assert calibrate(scores, groups).quantile(0.8) == 8.0
    assert calibrate(scores).quantile(0.8) == 100.0


def test_sets_cover_as_stated_over_many_draws() -> None:
    rng = np.random.default_rng(0)
    y, p = drawn_probabilities(4_000, 3, seed=0)
    covered = []
    for _ in range(400):
        order = rng.permutation(len(y))
        val, test = order[:57], order[57:1057]
        sets = prediction_sets(p[test], calibrate_classes(y[val], p[val]), 0.9)
        covered.append(sets[np.arange(len(test)), y[test]].mean())
    # Expected: ceil(0.9 x 58) / 58 = 0.914; of 400 draws the mean's own deviation is 0.002.
    assert np.mean(covered) == pytest.approx(53 / 58, abs=0.008)


def by_patient(n_patients: int, seed: int) -> tuple[Ints, Floats, Ints]:
    """Draw patients of 1 to 30 images, those with many being the harder ones."""
    rng = np.random.default_rng(seed)
    sizes = rng.choice([1, 30], n_patients, p=[0.7, 0.3])
    groups = np.repeat(np.arange(n_patients), sizes)
    easy = np.repeat(np.where(sizes == 1, 2.0, 0.3) + rng.normal(0, 0.7, n_patients), sizes)
    y = rng.integers(0, 2, len(groups))
    margin = rng.normal(easy, 1.0) * np.where(y == 1, 1, -1)
    p = 1 / (1 + np.exp(-2 * margin))
    return y, np.column_stack([1 - p, p]), groups


def test_sets_cover_an_image_of_a_new_patient_where_patients_have_several() -> None:
    y, p, groups = by_patient(3_000, seed=1)
    rng = np.random.default_rng(2)
    patients = np.arange(groups.max() + 1)
    covered = {"by patient": [], "by image": []}
    for _ in range(300):
        chosen = rng.permutation(patients)
        val, test = np.isin(groups, chosen[:40]), np.flatnonzero(np.isin(groups, chosen[40:1040]))
        one_each = test[np.unique(groups[test], return_index=True)[1]]  # images of a patient are alike in distribution
        for name, known in (("by patient", groups[val]), ("by image", None)):
            sets = prediction_sets(p[one_each], calibrate_classes(y[val], p[val], known), 0.8)
            covered[name].append(sets[np.arange(len(one_each)), y[one_each]].mean())
    assert 0.79 <= np.mean(covered["by patient"]) <= 0.84
    assert np.mean(covered["by image"]) > 0.86  # far too wide: the harder patients have most images


def test_each_label_of_several_has_its_own_sets_by_the_images_that_it_is_known_of() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((4_000, 2))
    y = (rng.random((4_000, 2)) < p).astype(np.int64)
    known = y.copy()
    known[::3, 1] = -1
    calibrations = calibrate_classes(known[:2_000], p[:2_000])
    assert [len(one.scores) for one in calibrations] == [2_000, int((known[:2_000, 1] >= 0).sum())]
    sets = prediction_sets(p[2_000:], calibrations, 0.9)
    assert sets.shape == (2_000, 2, 2)
    for label in range(2):
        assert sets[np.arange(2_000), label, y[2_000:, label]].mean() == pytest.approx(0.9, abs=0.03)


def test_too_few_samples_give_all_classes() -> None:
    y, p = drawn_probabilities(8, 3, seed=0)
    assert prediction_sets(p, calibrate_classes(y, p), 0.9).all()
    assert not prediction_sets(p, calibrate_classes(y, p), 0.5).all()


@given(shares, shares)
def test_larger_coverage_never_takes_a_class_away(a: float, b: float) -> None:
    y, p = drawn_probabilities(30, 3, seed=0)
    low, high = (prediction_sets(p, calibrate_classes(y, p), share) for share in sorted((a, b)))
    assert (low <= high).all()


@pytest.mark.parametrize("coverage", [0.0, 1.0, -0.1, float("nan")])
def test_coverage_that_is_none_is_refused(coverage: float) -> None:
    with pytest.raises(ValueError, match="coverage must be between 0 and 1"):
        calibrate(np.arange(5.0)).quantile(coverage)


def test_scores_that_are_none_are_refused() -> None:
    with pytest.raises(ValueError, match="scores must be"):
        calibrate(np.array([0.1, np.nan]))
    with pytest.raises(ValueError, match="groups has the shape"):
        calibrate(np.array([0.1, 0.2]), np.array([1]))


@pytest.mark.slow
@pytest.mark.skipif(not BUSI.is_dir(), reason="needs BUSI")
def test_coverage_on_busi_is_near_ninety_percent_though_validation_also_selected(busi_cache: Path) -> None:
    covered = []
    for seed in range(20):
        with EmbeddingCache(busi_cache) as opened:
            task = read_task(opened, None, ["malignant"], seed, cross_fit=False)
        rows = {name: np.flatnonzero(task.splits == name) for name in ("train", "val", "test")}
        fold = Fold(rows["train"], rows["val"])
        heads = train_heads(
            parse_heads(["linear"]), task.labelled(), [fold], 2, TrainingConfig(seed=seed), macro_roc_aucs
        )
        found = {name: task.predicted_by([heads[0]], which)[0] for name, which in rows.items()}
        sets = prediction_sets(found["test"], calibrate_classes(task.y[rows["val"]], found["val"]), 0.9)
        covered.append(sets[np.arange(len(sets)), task.y[rows["test"]]].mean())
    assert 0.87 <= np.mean(covered) <= 0.94  # 20 splits; all 200 are `make bench`, predict.coverage
