"""One ROC AUC, whichever way it is computed: scores that rank samples alike never differ, not even in the last digit."""

import numpy as np
import pytest

from hoarfrost.evaluation import compare_heads, macro_auc_ci, per_patient, roc_auc, roc_aucs, score
from hoarfrost.evaluation.bootstrap import weighted_auc
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.evaluation.discrimination import auc_influence
from tests.evaluation.test_calibration import two_columns


def drawn(seed: int, *, has_ties: bool) -> tuple[Ints, Floats]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 300))
    y_true = rng.permutation((np.arange(n) < rng.integers(2, n - 2)).astype(np.int64))
    p = 1 / (1 + np.exp(-rng.normal(size=n) - y_true))
    return y_true, np.round(p, 1) if has_ties else p


@pytest.mark.parametrize("has_ties", [False, True])
def test_every_way_gives_the_same_digits(has_ties: bool) -> None:
    for seed in range(100):
        y_true, p = drawn(seed, has_ties=has_ties)
        p = np.clip(p, 0.01, 0.99)
        alike = p / 3  # ranks alike, but other floats
        areas = {
            roc_auc(y_true, p),
            roc_auc(y_true, alike),
            float(roc_aucs(y_true, np.stack([alike, p]))[1]),
            auc_influence(y_true, two_columns(p))[0],
            score(y_true, two_columns(p), "ab").value("roc_auc"),
            float(weighted_auc(y_true == 1, alike)(np.ones((1, len(p))))[0]),
        }
        assert len(areas) == 1


def test_order_of_samples_changes_no_digit() -> None:
    y_true, p = drawn(1, has_ties=False)
    order = np.random.default_rng(0).permutation(len(p))
    assert roc_auc(y_true, p) == roc_auc(y_true[order], p[order])


def test_heads_that_rank_alike_differ_by_exactly_nothing() -> None:
    for seed in range(50):
        y_true, p = drawn(seed, has_ties=False)
        (found,) = compare_heads(y_true, {"a": two_columns(p), "b": two_columns(p / 3)}, "a")
        assert (found.difference.value, found.difference.low, found.p) == (0.0, 0.0, 1.0)


def test_interval_is_around_the_printed_area() -> None:
    y_true, p = drawn(3, has_ties=True)
    low, high = macro_auc_ci(y_true, two_columns(p))
    assert (low + high) / 2 == pytest.approx(roc_auc(y_true, p), abs=1e-15)


def test_equal_scores_of_patients_with_several_images_stay_equal() -> None:
    """A mean of three times 0.3 in another digit than 0.3 would rank patients by their number of images."""
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), rng.integers(1, 12, 40))
    equal = two_columns(np.full(len(patients), 0.394))
    joined = per_patient(patients % 2, equal, patients)
    assert roc_auc(joined.y_true, joined.probabilities[:, 1]) == 0.5


def test_heads_that_no_sample_distinguishes_have_no_interval_of_their_difference() -> None:
    y_true = np.arange(40) % 2
    perfect, also = two_columns(np.where(y_true == 1, 0.9, 0.2)), two_columns(y_true * 0.5 + np.arange(40) / 100)
    (found,) = compare_heads(y_true, {"a": perfect, "b": also}, "a")
    assert (found.difference.value, found.difference.interval, found.p) == (0, None, 1)
