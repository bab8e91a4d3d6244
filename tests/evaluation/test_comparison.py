"""Comparing heads: against pROC's paired test, an obvious Holm, and what is undefined."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hoarfrost.evaluation import compare_heads, holm, macro_roc_auc
from tests.support.delong import delong_covariance, delong_test, delong_variance
from tests.support.procs import EXPECTED, reference_case
from tests.support.samples import Floats, Ints, Sample, drawn_probabilities, pair_values, samples, two_columns


def slow_covariance(y_true: Ints, first: Floats, second: Floats) -> float:
    """DeLong's covariance as in the paper, over all pairs."""
    a, b = pair_values(y_true, first), pair_values(y_true, second)
    n_pos, n_neg = a.shape
    of_positives = sum((a[i].mean() - a.mean()) * (b[i].mean() - b.mean()) for i in range(n_pos)) / (n_pos - 1)
    of_negatives = sum((a[:, j].mean() - a.mean()) * (b[:, j].mean() - b.mean()) for j in range(n_neg)) / (n_neg - 1)
    return float(of_positives / n_pos + of_negatives / n_neg)


def slow_holm(p_values: list[float]) -> list[float]:
    """Each value times the number of those not smaller, itself included; never below a smaller one's, at most 1."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    found = [0.0] * len(p_values)
    highest = 0.0
    for step, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - step)))
        found[i] = highest
    return found


# -- against pROC and slow, obvious versions ----------------------------------------------------------------------------


@pytest.mark.parametrize("case", EXPECTED)
def test_covariance_is_procs(case: str) -> None:
    y_true, a = reference_case(case, "a")
    _, covariance = delong_covariance(y_true, np.stack([a, reference_case(case, "b")[1]]))
    expected = EXPECTED[case]
    assert covariance[0, 1] == pytest.approx(expected["cov_ab"], rel=1e-9)
    assert np.diag(covariance) == pytest.approx([expected["var_a"], expected["var_b"]], rel=1e-9)


@pytest.mark.parametrize("case", EXPECTED)
def test_paired_test_is_procs(case: str) -> None:
    y_true, a = reference_case(case, "a")
    z, p = delong_test(y_true, a, reference_case(case, "b")[1])
    assert z == pytest.approx(EXPECTED[case]["delong_z"], rel=1e-9)
    assert p == pytest.approx(EXPECTED[case]["delong_p"], rel=1e-9)


@given(samples(fewest=2), st.randoms(use_true_random=False))
def test_covariance_equals_the_papers_sum_over_pairs(sample: Sample, random: "np.random.Generator") -> None:
    y_true, a = sample
    b = np.array([random.randint(0, 4) / 4 for _ in a])  # type: ignore[attr-defined]
    aucs, covariance = delong_covariance(y_true, np.stack([a, b]))
    assert aucs == pytest.approx([pair_values(y_true, a).mean(), pair_values(y_true, b).mean()], abs=1e-12)
    assert covariance[0, 1] == pytest.approx(slow_covariance(y_true, a, b), rel=1e-9, abs=1e-15)
    assert covariance[0, 0] == pytest.approx(delong_variance(y_true, a)[1], rel=1e-9, abs=1e-15)


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_equals_the_obvious_step_down(p_values: list[float]) -> None:
    assert holm(p_values).tolist() == pytest.approx(slow_holm(p_values))


# -- the paired test ----------------------------------------------------------------------------------------------------


@given(samples(fewest=2))
def test_scores_that_rank_alike_are_no_different(sample: Sample) -> None:
    y_true, y_score = sample
    assert delong_test(y_true, y_score, y_score) == (0, 1)
    assert delong_test(y_true, y_score, 3 * y_score - 7) == (0, 1)


def test_other_order_of_two_scores_turns_the_sign_only() -> None:
    y_true, a = reference_case("balanced_300", "a")
    b = reference_case("balanced_300", "b")[1]
    z, p = delong_test(y_true, a, b)
    assert delong_test(y_true, b, a) == pytest.approx((-z, p))
    assert z > 0  # the first has the larger area


def test_difference_without_variance_is_refused() -> None:
    y_true = np.array([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match="variance of their difference is zero: DeLong's test is undefined"):
        delong_test(y_true, y_true.astype(float), np.zeros(6))


@pytest.mark.parametrize(
    ("y_true", "a", "b", "message"),
    [
        ([1, 1, 1], [1, 2, 3], [1, 2, 3], "needs both classes; there are 3 positive and 0 negative"),
        ([0, 1, 0, 0], [1, 2, 3, 4], [1, 2, 3, 4], "two samples of each class; there are 1 positive and 3 negative"),
        ([0, 1, 0, 1], [1, 2, 3, 4], [1, np.nan, 3, 4], "some probabilities are NaN or infinite"),
        ([0, 1, 0, 1], [1, 2, 3, 4], [1, 2, 3], r"4 labels of 2 classes, but probabilities of shape \(3, 2\)"),
    ],
)
def test_paired_test_refuses_what_is_undefined(y_true: list[int], a: list[float], b: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        delong_test(np.array(y_true), np.array(a, float), np.array(b, float))


@pytest.mark.parametrize("p_values", [[0.1, 1.2], [-0.1], [float("nan")], [[0.1]]])
def test_holm_refuses_what_is_no_probability(p_values: list[float]) -> None:
    with pytest.raises(ValueError, match="p values must be a sequence of numbers from 0 to 1"):
        holm(p_values)


# -- heads against the selected one -------------------------------------------------------------------------------------


def some_heads(n_classes: int, n: int = 150) -> tuple[Ints, dict[str, Floats]]:
    y_true, first = drawn_probabilities(n, n_classes, seed=0)
    rng = np.random.default_rng(1)
    noisy = {name: first + rng.random(first.shape) * spread for name, spread in (("b", 0.3), ("c", 1.0), ("d", 3.0))}
    return y_true, {"a": first} | {name: p / p.sum(axis=1, keepdims=True) for name, p in noisy.items()}


def test_heads_are_compared_to_the_selected_one_by_delongs_test_and_holm_corrected() -> None:
    y_true, heads = some_heads(2)
    found = compare_heads(y_true, heads, "a")
    assert [one.name for one in found] == ["b", "c", "d"]
    for one in found:
        z, p = delong_test(y_true, heads[one.name][:, 1], heads["a"][:, 1])
        assert (one.z, one.p) == pytest.approx((z, p), rel=1e-9)
        assert one.difference.low < one.difference.value < one.difference.high  # type: ignore[operator]
    assert [one.p_holm for one in found] == pytest.approx(slow_holm([one.p or 0.0 for one in found]))


def test_macro_difference_of_three_classes_agrees_with_a_bootstrap() -> None:
    y_true, heads = some_heads(3, n=240)
    one = compare_heads(y_true, {"a": heads["a"], "c": heads["c"]}, "a")[0]
    rng = np.random.default_rng(2)
    draws = []
    for _ in range(400):
        rows = rng.integers(0, len(y_true), len(y_true))
        drawn = [macro_roc_auc(y_true[rows], heads[name][rows]) for name in ("c", "a")]
        draws.append(drawn[0] - drawn[1])
    assert one.difference.value == pytest.approx(
        macro_roc_auc(y_true, heads["c"]) - macro_roc_auc(y_true, heads["a"]), abs=1e-12
    )
    assert one.difference.interval is not None
    low, high = one.difference.interval
    assert (high - low) / (2 * 1.959964) == pytest.approx(np.std(draws), rel=0.12)


def test_images_of_one_patient_count_as_one_piece_of_evidence() -> None:
    y_true, heads = some_heads(2)
    times = 4
    copied = {name: np.repeat(p, times, axis=0) for name, p in heads.items()}
    patients = np.repeat(np.arange(len(y_true)), times)
    alone = compare_heads(y_true, heads, "a")
    naive = compare_heads(np.repeat(y_true, times), copied, "a")
    clustered = compare_heads(np.repeat(y_true, times), copied, "a", groups=patients)
    for i in range(3):
        assert clustered[i].z == pytest.approx(alone[i].z, rel=0.02)  # Bessel's corrections differ
        assert abs(naive[i].z or 0) > 1.9 * abs(alone[i].z or 0)


def test_comparison_that_is_undefined_says_so_and_leaves_the_others() -> None:
    y_true = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    perfect = two_columns(y_true * 0.8 + 0.1)
    other = two_columns(np.array([0.1, 0.2, 0.3, 0.6, 0.5, 0.7, 0.8, 0.9]))
    found = compare_heads(y_true, {"best": perfect, "flat": np.full((8, 2), 0.5), "other": other}, "best")
    assert (found[0].z, found[0].p, found[0].p_holm) == (None, None, None)
    assert "undefined" in found[0].reason
    assert found[1].p_holm == found[1].p  # a family of one
    assert found[1].reason == ""


def test_comparison_over_few_patients_has_neither_interval_nor_p() -> None:
    y_true, heads = some_heads(2)
    for n in (1, 4, 9):
        for found in compare_heads(y_true, heads, "a", groups=np.arange(len(y_true)) % n):
            assert (found.difference.interval, found.z, found.p, found.p_holm) == (None, None, None, None)
            assert found.reason == f"too few patients for an interval: {n}"
