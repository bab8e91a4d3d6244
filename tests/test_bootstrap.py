"""The bootstrap over patients: its weighted AUC against repeated rows, its interval against a slow one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from pipeline.metrics import (
    bootstrap_auc_ci,
    bootstrap_ci,
    bootstrap_share_ci,
    delong_ci,
    macro_auc_ci,
    per_patient,
)
from pipeline.metrics.bootstrap import weighted_auc
from tests.samples import Floats, Ints, Sample, drawn_probabilities, pair_values, samples, two_columns


def clustered(n_patients: int, per: int, seed: int, distance: float = 1.5) -> tuple[Ints, Floats, Ints]:
    """Draw patients with so many images each, whose scores have most in common."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_patients) % 2
    patients = np.repeat(np.arange(n_patients), per)
    score = distance * y[patients] + rng.normal(size=n_patients)[patients] + 0.5 * rng.normal(size=n_patients * per)
    return y[patients], 1 / (1 + np.exp(-score)), patients


# -- against slow, obvious versions -------------------------------------------------------------------------------------


@given(samples(), st.data())
def test_weighted_auc_is_that_of_repeated_samples(sample: Sample, data: st.DataObject) -> None:
    y_true, y_score = sample
    times = data.draw(st.lists(st.integers(0, 3), min_size=len(y_true), max_size=len(y_true)))
    area = weighted_auc(y_true == 1, y_score)(np.array([times, [1] * len(times)], float))
    repeated = np.repeat(y_true, times), np.repeat(y_score, times)
    if len(set(repeated[0].tolist())) < 2:
        assert np.isnan(area[0])
    else:
        assert area[0] == pytest.approx(pair_values(*repeated).mean(), abs=1e-12)
    assert area[1] == pytest.approx(pair_values(y_true, y_score).mean(), abs=1e-12)


@given(samples(fewest=2), st.data(), st.sampled_from(["mean", "max"]))
def test_each_patient_becomes_the_mean_or_maximum_of_its_images(sample: Sample, data: st.DataObject, how: str) -> None:
    y_true, p = sample
    groups = np.array(data.draw(st.lists(st.integers(3, 9), min_size=len(p), max_size=len(p))))
    found = per_patient(y_true, two_columns(p), groups, how)
    assert found.groups.tolist() == sorted(set(groups.tolist()))
    for i, patient in enumerate(found.groups):
        own = p[groups == patient]
        assert found.probabilities[i, 1] == pytest.approx(own.mean() if how == "mean" else own.max(), abs=1e-12)
        assert found.y_true[i] == y_true[groups == patient].max()
    assert found.probabilities.sum(axis=1) == pytest.approx(np.ones(len(found.groups)))


def test_maximum_over_images_of_three_classes_sums_to_one() -> None:
    _, probabilities = drawn_probabilities(12, 3, seed=0)
    found = per_patient(np.repeat([0, 1, 2], 4), probabilities, np.repeat([0, 1, 2], 4), "max")
    highest = probabilities.reshape(3, 4, 3).max(axis=1)
    assert found.probabilities == pytest.approx(highest / highest.sum(axis=1, keepdims=True))


def slow_bca(y_true: Ints, p: Floats, patients: Ints, n_draws: int) -> list[float]:
    """Efron's interval as in his book: patients drawn one by one, and left out one by one."""
    rng = np.random.default_rng(1)
    names = np.unique(patients)

    def area(chosen: Ints) -> float:
        rows = np.concatenate([np.flatnonzero(patients == patient) for patient in chosen])
        return float(pair_values(y_true[rows], p[rows]).mean())

    draws = np.array([area(rng.choice(names, len(names))) for _ in range(n_draws)])
    left_out = np.array([area(names[names != patient]) for patient in names])
    influence = left_out.mean() - left_out
    acceleration = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    bias = norm.ppf((draws < area(names)).mean())
    z = bias + norm.ppf([0.025, 0.975])
    return [float(x) for x in np.quantile(draws, norm.cdf(bias + z / (1 - acceleration * z)))]


def test_interval_agrees_with_efrons_over_patients_drawn_one_by_one() -> None:
    y_true, p, patients = clustered(80, 3, seed=0)
    low, high = slow_bca(y_true, p, patients, 1000)
    found = bootstrap_auc_ci(y_true, two_columns(p), patients)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


def test_patients_with_one_image_each_have_nearly_delongs_interval() -> None:
    y_true, p, patients = clustered(600, 1, seed=2)
    low, high = delong_ci(y_true, p)
    found = bootstrap_auc_ci(y_true, two_columns(p), patients)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * (high - low))


def test_macro_interval_of_three_classes_has_nearly_the_analytic_width() -> None:
    y_true, probabilities = drawn_probabilities(500, 3, seed=1)
    low, high = macro_auc_ci(y_true, probabilities)
    found = bootstrap_auc_ci(y_true, probabilities, np.arange(500))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.12 * (high - low))


# -- what it is for -----------------------------------------------------------------------------------------------------


def test_copies_of_an_image_do_not_narrow_the_interval_as_they_do_delongs() -> None:
    y_true, p, patients = clustered(60, 1, seed=3)
    once = bootstrap_auc_ci(y_true, two_columns(p), patients)
    y5, p5, patients5 = np.repeat(y_true, 5), np.repeat(p, 5), np.repeat(patients, 5)
    copied = bootstrap_auc_ci(y5, two_columns(p5), patients5)
    assert (copied.low, copied.high) == pytest.approx((once.low, once.high), abs=1e-12)
    low, high = delong_ci(y5, p5)
    assert high - low < 0.6 * (copied.high - copied.low)


def test_same_seed_gives_the_same_interval_and_another_nearly_so() -> None:
    y_true, p, patients = clustered(60, 2, seed=4)
    first, again, other = (bootstrap_auc_ci(y_true, two_columns(p), patients, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert (other.low, other.high) == pytest.approx((first.low, first.high), abs=0.02)


def test_order_and_names_of_patients_change_no_estimate_of_the_interval() -> None:
    y_true, p, patients = clustered(60, 2, seed=5)
    first = bootstrap_auc_ci(y_true, two_columns(p), patients)
    order = np.random.default_rng(0).permutation(len(p))
    moved = bootstrap_auc_ci(y_true[order], two_columns(p[order]), patients[order] * 7 - 100)
    assert (moved.low, moved.high) == pytest.approx((first.low, first.high), abs=1e-9)


def test_draws_that_lack_a_class_are_counted_and_left_out() -> None:
    y_true = np.array([1] * 2 + [0] * 20)
    found = bootstrap_auc_ci(y_true, two_columns(np.linspace(0.9, 0.1, 22)), np.arange(22), n_draws=500)
    expected = 500 * (20 / 22) ** 22  # no draw is of a positive patient
    assert found.n_left_out == pytest.approx(expected, abs=4 * expected**0.5)
    assert (found.n_patients, found.n_draws) == (22, 500)


def test_share_by_patients_is_wider_where_a_patients_images_agree() -> None:
    hits = np.repeat(np.random.default_rng(0).random(50) < 0.8, 4).astype(int)
    counted = np.ones(200, int)
    by_patient = bootstrap_share_ci(hits, counted, np.repeat(np.arange(50), 4))
    by_image = bootstrap_share_ci(hits, counted, np.arange(200))
    assert by_patient.low < by_image.low < hits.mean() < by_image.high < by_patient.high


# -- what is undefined is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y_true", "p", "groups", "message"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3], [0, 1, 2], "two patients of each class; class 1 has 0"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], [0, 1, 2, 2], "two patients of each class; class 1 has 1"),
        ([0, 0, 1, 1], [0.1, np.nan, 0.3, 0.4], [0, 1, 2, 3], "some probabilities are NaN or infinite"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], [0, 1, 2], r"groups has the shape \(3,\); there are 4 samples"),
        ([0, 0, 1], [0.1, 0.2, 0.3, 0.4], [0, 1, 2, 3], "3 labels of 2 classes"),
    ],
)
def test_bootstrap_refuses_what_is_undefined(
    y_true: list[int], p: list[float], groups: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        bootstrap_auc_ci(np.array(y_true), two_columns(np.array(p)), np.array(groups))


def test_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no sample is counted"):
        bootstrap_share_ci(np.zeros(4, int), np.zeros(4, int), np.arange(4))


def test_statistic_that_most_draws_lack_is_refused() -> None:
    with pytest.raises(ValueError, match="draws of patients lack what the statistic needs: too few patients"):
        bootstrap_ci(lambda weights: np.where((weights == 1).all(axis=1), 0.5, np.nan), np.arange(5))


def test_single_patient_is_refused() -> None:
    with pytest.raises(ValueError, match="needs two patients; there are 1"):
        bootstrap_ci(lambda weights: weights.mean(axis=1), np.zeros(5, int))


def test_patient_of_two_classes_has_none_where_there_are_three() -> None:
    _, probabilities = drawn_probabilities(4, 3, seed=0)
    with pytest.raises(
        ValueError, match=r"1 patients have images of different classes \(first: group 7, classes 0 and 2"
    ):
        per_patient(np.array([0, 2, 1, 1]), probabilities, np.array([7, 7, 3, 3]))


def test_unknown_way_of_joining_images_is_refused() -> None:
    with pytest.raises(ValueError, match="how must be 'mean' or 'max', not 'median'"):
        per_patient(np.array([0, 1]), two_columns(np.array([0.1, 0.9])), np.array([0, 1]), "median")
