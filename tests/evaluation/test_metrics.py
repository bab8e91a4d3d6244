"""Metrics: against pROC's values, and each fast kernel against an obvious slow one."""

import json
import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from hoarfrost.evaluation import (
    bootstrap_auc_ci,
    confusion_matrix,
    delong_ci,
    macro_auc_ci,
    macro_roc_auc,
    newcombe_ci,
    precision_recall_curve,
    roc_auc,
    roc_curve,
)
from hoarfrost.evaluation.discrimination import average_precision
from tests.support.delong import delong_variance
from tests.support.procs import CASES_AND_SCORES, EXPECTED, reference_case
from tests.support.samples import Floats, Ints, Sample, drawn_probabilities, pair_values, samples, scored


def slow_delong_variance(y_true: Ints, y_score: Floats) -> float:
    """DeLong's variance as in the paper, over all pairs."""
    psi = pair_values(y_true, y_score)
    n_pos, n_neg = psi.shape
    of_positives = sum((row.mean() - psi.mean()) ** 2 for row in psi) / (n_pos - 1)
    of_negatives = sum((column.mean() - psi.mean()) ** 2 for column in psi.T) / (n_neg - 1)
    return float(of_positives / n_pos + of_negatives / n_neg)


# -- against pROC -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "which"), CASES_AND_SCORES)
def test_auc_is_procs(case: str, which: str) -> None:
    assert roc_auc(*reference_case(case, which)) == pytest.approx(EXPECTED[case][f"auc_{which}"], rel=1e-9)


@pytest.mark.parametrize(("case", "which"), CASES_AND_SCORES)
def test_delong_variance_is_procs(case: str, which: str) -> None:
    variance = delong_variance(*reference_case(case, which))[1]
    assert variance == pytest.approx(EXPECTED[case][f"var_{which}"], rel=1e-9)


@pytest.mark.parametrize(("case", "which"), CASES_AND_SCORES)
def test_delong_interval_is_procs(case: str, which: str) -> None:
    assert delong_ci(*reference_case(case, which)) == pytest.approx(EXPECTED[case][f"ci95_{which}"], rel=1e-9)


# -- against slow, obvious versions -------------------------------------------------------------------------------------


@given(samples())
def test_auc_is_the_share_of_pairs_in_order_ties_counted_one_half(sample: Sample) -> None:
    assert roc_auc(*sample) == pytest.approx(pair_values(*sample).mean(), abs=1e-12)


@given(samples(fewest=2))
def test_delong_variance_equals_the_papers_sum_over_pairs(sample: Sample) -> None:
    auc, variance = delong_variance(*sample)
    assert auc == pytest.approx(pair_values(*sample).mean(), abs=1e-12)
    assert variance == pytest.approx(slow_delong_variance(*sample), rel=1e-9, abs=1e-15)


@given(samples(fewest=2))
def test_order_and_scale_of_scores_change_nothing(sample: Sample) -> None:
    y_true, y_score = sample
    order = np.random.default_rng(0).permutation(len(y_true))
    moved = delong_variance(y_true[order], 1e-3 * y_score[order] - 5)
    assert moved == pytest.approx(delong_variance(y_true, y_score), rel=1e-9, abs=1e-15)


@given(samples(fewest=2))
def test_naming_the_other_class_positive_mirrors_the_auc_and_keeps_its_variance(sample: Sample) -> None:
    y_true, y_score = sample
    auc, variance = delong_variance(y_true, y_score)
    assert delong_variance(1 - y_true, y_score) == pytest.approx((1 - auc, variance), rel=1e-9, abs=1e-12)


@given(samples(fewest=2))
def test_interval_holds_the_estimate_and_lies_within_zero_and_one(sample: Sample) -> None:
    low, high = delong_ci(*sample)
    assert 0 <= low <= roc_auc(*sample) + 1e-12
    assert roc_auc(*sample) - 1e-12 <= high <= 1


@given(samples())
def test_area_under_the_curve_is_the_auc(sample: Sample) -> None:
    fpr, tpr, thresholds = roc_curve(*sample)
    trapezoids = np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2
    assert float(trapezoids.sum()) == pytest.approx(roc_auc(*sample), abs=1e-12)
    assert len(fpr) == len(tpr) == len(thresholds)


@given(samples())
def test_curves_and_average_precision_are_scikit_learns_to_the_last_digit(sample: Sample) -> None:
    y_true, y_score = sample
    precision, recall, thresholds = precision_recall_curve(y_true, y_score)
    of_sklearn = sk.precision_recall_curve(y_true, y_score)
    for own, other in zip(roc_curve(y_true, y_score), sk.roc_curve(y_true, y_score), strict=True):
        assert own.tolist() == other.tolist()
    assert precision.tolist() == of_sklearn[0][-2::-1].tolist()
    assert recall.tolist() == of_sklearn[1][-2::-1].tolist()
    assert thresholds.tolist() == of_sklearn[2][::-1].tolist()
    assert average_precision(y_true, y_score) == sk.average_precision_score(y_true, y_score)


@given(samples())
def test_precision_and_recall_are_counted_at_each_distinct_score(sample: Sample) -> None:
    y_true, y_score = sample
    precision, recall, thresholds = precision_recall_curve(y_true, y_score)
    assert thresholds.tolist() == sorted(set(y_score.tolist()), reverse=True)[: len(thresholds)]
    for p, r, threshold in zip(precision, recall, thresholds, strict=True):
        called = y_score >= threshold
        assert p == pytest.approx(y_true[called].mean())
        assert r == pytest.approx(y_true[called].sum() / y_true.sum())
    assert recall[-1] == 1


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_confusion_matrix_counts_true_classes_in_rows(pairs: list[tuple[int, int]]) -> None:
    matrix = confusion_matrix(np.array([true for true, _ in pairs]), np.array([found for _, found in pairs]), 3)
    assert matrix.tolist() == [[pairs.count((true, found)) for found in range(3)] for true in range(3)]


def test_wider_level_gives_a_wider_interval() -> None:
    sample = reference_case("balanced_300", "a")
    auc, variance = delong_variance(*sample)
    low, high = delong_ci(*sample, level=0.99)
    assert (low, high) == pytest.approx((auc - 2.5758293 * variance**0.5, auc + 2.5758293 * variance**0.5), rel=1e-7)


def test_newcombes_interval_covers_an_area_near_one_of_ten_positives_where_delongs_does_not() -> None:
    rng = np.random.default_rng(0)
    y_true = np.array([1] * 10 + [0] * 90)
    covered = np.zeros(2)
    for _ in range(400):
        y_score = rng.normal(size=100) + 1.812388 * y_true  # an area of 0.9
        covered += [low <= 0.9 <= high for low, high in (newcombe_ci(y_true, y_score), delong_ci(y_true, y_score))]
    assert covered[0] / 400 > 0.93
    assert covered[1] / 400 < 0.9


def test_newcombes_interval_of_perfect_scores_is_no_point() -> None:
    y_true = np.array([0] * 20 + [1] * 20)
    assert delong_ci(y_true, y_true.astype(float)) == (1, 1)
    low, high = newcombe_ci(y_true, y_true.astype(float))
    assert (0.8 < low < 0.95, high) == (True, 1)
    assert newcombe_ci(y_true, 1.0 - y_true) == pytest.approx((0, 1 - low))


@given(samples())
def test_newcombes_limits_are_as_many_of_their_own_deviations_away(sample: Sample) -> None:
    y_true, y_score = sample
    auc, m, n = roc_auc(y_true, y_score), int(y_true.sum()), int((1 - y_true).sum())
    for limit in newcombe_ci(y_true, y_score):
        if 0 < limit < 1:
            spread = 1 + ((m + n) / 2 - 1) * ((1 - limit) / (2 - limit) + limit / (1 + limit))
            deviation = (limit * (1 - limit) * spread / (m * n)) ** 0.5
            assert abs(auc - limit) == pytest.approx(1.959964 * deviation, rel=1e-4)


# -- more than two classes ----------------------------------------------------------------------------------------------


def test_macro_interval_of_three_classes_agrees_with_a_bootstrap() -> None:
    y_true, probabilities = drawn_probabilities(300, 3, seed=0)
    rng = np.random.default_rng(1)
    draws = []
    for _ in range(1000):
        rows = rng.integers(0, len(y_true), len(y_true))
        aucs = [pair_auc(y_true[rows] == c, probabilities[rows, c]) for c in range(3)]
        draws.append(float(np.mean(aucs)))
    low, high = macro_auc_ci(y_true, probabilities)
    half = 1.96 * float(np.std(draws))
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)  # 1,000 draws: the deviation's own error is 2.2%
    assert (low + high) / 2 == pytest.approx(float(np.mean(draws)), abs=0.1 * half)


def pair_auc(positive: npt.NDArray[np.bool_], y_score: Floats) -> float:
    """ROC AUC by counting for each positive the negatives below it: fast enough for a bootstrap."""
    negatives = np.sort(y_score[~positive])
    found = y_score[positive]
    below = np.searchsorted(negatives, found, "left") + np.searchsorted(negatives, found, "right")
    return float(below.mean() / 2 / len(negatives))


@given(samples(fewest=2))
def test_macro_interval_of_two_classes_is_delongs(sample: Sample) -> None:
    y_true, y_score = sample
    both = np.column_stack([1 - y_score, y_score])
    assert macro_auc_ci(y_true, both) == pytest.approx(delong_ci(y_true, y_score), abs=1e-9)


def test_macro_auc_is_the_mean_of_one_against_the_rest() -> None:
    y_true, probabilities = drawn_probabilities(240, 3, seed=2)
    result = scored(y_true, probabilities, ("a", "b", "c"))
    one_by_one = [float(pair_values((y_true == c).astype(int), probabilities[:, c]).mean()) for c in range(3)]
    assert result["roc_auc_per_class"] == pytest.approx(dict(zip("abc", one_by_one, strict=True)), abs=1e-12)
    assert result["roc_auc"] == pytest.approx(np.mean(one_by_one), abs=1e-12)
    assert result["roc_auc_ci95"] == pytest.approx(macro_auc_ci(y_true, probabilities))


# -- scores of a head ---------------------------------------------------------------------------------------------------


def test_scores_of_two_classes_are_what_they_say() -> None:
    y_true = np.array([0, 0, 0, 1, 1])
    p = np.array([0.1, 0.4, 0.6, 0.55, 0.9])
    result = scored(y_true, np.column_stack([1 - p, p]), ("benign", "malignant"))
    plain = {key: value for key, value in result.items() if "ci95" not in key or key.startswith("roc_auc")}
    assert plain == {
        "n": 5,
        "accuracy": 0.8,
        "majority_accuracy": 0.6,
        "loss": pytest.approx(-np.log([0.9, 0.6, 0.4, 0.55, 0.9]).mean()),
        "brier": pytest.approx(np.square([0.1, 0.4, 0.6, 0.45, 0.1]).mean()),
        "balanced_accuracy": pytest.approx((2 / 3 + 1) / 2),
        "f1": pytest.approx(0.8),  # three are found, two of them rightly: precision 2/3, sensitivity 1
        "matthews": pytest.approx(2 / 3),
        "average_precision": pytest.approx((1 + 2 / 3) / 2),
        "roc_auc": pytest.approx(5 / 6),
        "roc_auc_ci95": pytest.approx(list(newcombe_ci(y_true, p)), abs=0.1),
        "roc_auc_ci95_method": "Newcombe",  # of two positives DeLong's covers too seldom
    }


@pytest.mark.parametrize("n_classes", [2, 3])
def test_interval_is_over_patients_where_they_have_several_images(n_classes: int) -> None:
    y_true, probabilities = drawn_probabilities(60, n_classes, seed=2)
    names = [f"class {c}" for c in range(n_classes)]
    patients = np.arange(60) // 2
    found = scored(y_true, probabilities, names, patients)
    drawn = bootstrap_auc_ci(y_true, probabilities, patients)
    assert (found["roc_auc_ci95"], found["roc_auc_ci95_method"]) == ([drawn.low, drawn.high], "bootstrap over patients")
    assert scored(y_true, probabilities, names)["roc_auc_ci95_method"] == "Newcombe"  # of few images of a class


def test_certain_and_wrong_probability_gives_a_finite_loss() -> None:
    y_true = np.array([0, 0, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = scored(y_true, np.array([[1.0, 0.0]] * 3 + [[0.0, 1.0]]), ("a", "b"))
    assert np.isfinite(result["loss"])


def test_scores_are_numbers_that_json_knows() -> None:
    for n_classes in (2, 3):
        y_true, probabilities = drawn_probabilities(60, n_classes, seed=3)
        result = scored(y_true, probabilities, "abc"[:n_classes])
        assert json.loads(json.dumps(result, allow_nan=False)) == result


# -- what is undefined is refused ---------------------------------------------------------------------------------------

BINARY: list[Callable[[Ints, Floats], object]] = [roc_auc, roc_curve, delong_ci, newcombe_ci]


@pytest.mark.parametrize("metric", BINARY)
@pytest.mark.parametrize(
    ("y_true", "y_score", "message"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "needs both classes; there are 3 positive and 0 negative"),
        ([0, 0], [0.1, 0.2], "needs both classes; there are 0 positive and 2 negative"),
        ([], [], "needs both classes; there are 0 positive and 0 negative"),
        ([0, 1, 0, 1], [0.1, np.nan, 0.2, 0.3], "y_score holds NaN or infinite values"),
        ([0, 1, 0, 1], [0.1, np.inf, 0.2, 0.3], "y_score holds NaN or infinite values"),
        ([0, 1, 0], [0.1, 0.2], r"y_true has the shape \(3,\), y_score \(2,\)"),
        ([[0, 1]], [[0.1, 0.2]], r"y_true has the shape \(1, 2\), y_score \(1, 2\); both must be \(n,\)"),
        ([0, 1, 2], [0.1, 0.2, 0.3], "y_true holds values other than 0 and 1"),
        ([0.0, 1.0, np.nan], [0.1, 0.2, 0.3], "y_true holds values other than 0 and 1"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_binary_metric_refuses_what_is_undefined(
    metric: Callable[[Ints, Floats], object], y_true: list[int], y_score: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        metric(np.array(y_true), np.array(y_score))


@pytest.mark.parametrize("metric", [delong_variance, delong_ci])
def test_delong_refuses_a_class_with_one_sample(metric: Callable[[Ints, Floats], object]) -> None:
    with pytest.raises(ValueError, match="needs two samples of each class; there are 1 positive and 3 negative"):
        metric(np.array([0, 0, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4]))


@pytest.mark.parametrize("level", [0, 1, 95, -0.5, float("nan")])
def test_interval_refuses_a_level_that_is_none(level: float) -> None:
    with pytest.raises(ValueError, match="level must be between 0 and 1, not"):
        delong_ci(np.array([0, 0, 1, 1]), np.array([0.1, 0.3, 0.2, 0.4]), level=level)


UNIFORM = np.full((6, 3), 1 / 3)


@pytest.mark.parametrize(
    ("y_true", "probabilities", "message"),
    [
        ([0, 0, 1, 1, 2], UNIFORM, r"5 labels of 3 classes, but probabilities of shape \(6, 3\)"),
        ([0, 0, 1, 1, 2, 2], UNIFORM[:, :2], r"6 labels of 3 classes, but probabilities of shape \(6, 2\)"),
        ([0, 0, 1, 1, 2, 2], UNIFORM * np.nan, "some probabilities are NaN or infinite"),
        ([0, 0, 1, 1, 2, 3], UNIFORM, "y_true holds values other than 0 to 2"),
        ([0, 0, 1, 1, 2, -1], UNIFORM, "y_true holds values other than 0 to 2"),
        ([0, 0, 0, 1, 1, 2], UNIFORM, "two samples of each class; 'c' has 1"),
        ([0, 0, 0, 2, 2, 2], UNIFORM, "two samples of each class; 'b' has 0"),
        ([0, 0, 0, 1, 1, 1], UNIFORM, "two samples of each class; 'c' has 0"),
        ([], UNIFORM[:0], "there are no samples"),
    ],
)
def test_scoring_refuses_what_is_undefined(y_true: list[int], probabilities: Floats, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scored(np.array(y_true), probabilities, ("a", "b", "c"))


def test_macro_interval_refuses_a_class_with_one_sample() -> None:
    with pytest.raises(ValueError, match="two samples of each class; there are 1 positive and 5 negative"):
        macro_auc_ci(np.array([0, 0, 0, 1, 1, 2]), UNIFORM)


@pytest.mark.parametrize(("n_labels", "n_rows"), [(6, 7), (7, 6)])
def test_macro_auc_refuses_lengths_that_differ(n_labels: int, n_rows: int) -> None:
    with pytest.raises(ValueError, match=rf"{n_labels} labels, but probabilities of shape \({n_rows}, 2\)"):
        macro_roc_auc(np.arange(n_labels) % 2, np.full((n_rows, 2), 0.5))


# -- one class against the rest -----------------------------------------------------------------------------------------


def test_each_of_several_classes_has_the_scores_of_that_class_against_the_rest() -> None:
    y_true, probabilities = drawn_probabilities(90, 3, seed=4)
    result = scored(y_true, probabilities, ("a", "b", "c"))
    for c, label in enumerate("abc"):
        one, found = result["per_class"][label], probabilities.argmax(axis=1) == c
        bears = y_true == c
        assert one["n"] == bears.sum()
        assert one["sensitivity"] == pytest.approx(found[bears].mean())
        assert one["specificity"] == pytest.approx((~found[~bears]).mean())
        assert one["precision"] == pytest.approx(bears[found].mean())
        assert one["brier"] == pytest.approx(((probabilities[:, c] - bears) ** 2).mean())
        assert one["roc_auc"] == result["roc_auc_per_class"][label]
        assert one["balanced_accuracy"] == pytest.approx((one["sensitivity"] + one["specificity"]) / 2)
        assert one["matthews"] == pytest.approx(np.corrcoef(bears, found)[0, 1])
        likelihood = np.where(bears, probabilities[:, c], 1 - probabilities[:, c])
        assert one["loss"] == pytest.approx(-np.log(likelihood).mean())
    sensitivities = [one["sensitivity"] for one in result["per_class"].values()]
    assert result["balanced_accuracy"] == pytest.approx(np.mean(sensitivities))
    assert result["brier"] == pytest.approx(((probabilities - np.eye(3)[y_true]) ** 2).sum(axis=1).mean())


@pytest.mark.parametrize("n_classes", [2, 3])
def test_constant_prediction_has_scores_and_no_warning(n_classes: int) -> None:
    y_true = np.repeat(np.arange(n_classes), 4)
    certain = np.zeros((len(y_true), n_classes))
    certain[:, 0] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = scored(y_true, certain, "abc"[:n_classes])
    assert (result["matthews"], result["balanced_accuracy"]) == (0, pytest.approx(1 / n_classes))


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_scores_of_decisions_are_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    y_true = np.array([0, 0, 1, 1, 2, 2, *(true for true, _ in pairs)])
    predicted = np.array([0, 1, 1, 1, 0, 0, *(found for _, found in pairs)])
    result = scored(y_true, np.eye(3)[predicted] * 0.7 + 0.1, ("a", "b", "c"))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y_true, predicted), abs=1e-12)
    assert result["matthews"] == pytest.approx(sk.matthews_corrcoef(y_true, predicted), abs=1e-12)
    assert result["f1"] == pytest.approx(sk.f1_score(y_true, predicted, average="macro", zero_division=0), abs=1e-12)
    for c, one in enumerate(result["per_class"].values()):
        of_class, as_class = y_true == c, predicted == c
        precision, recall, f1, _ = sk.precision_recall_fscore_support(of_class, as_class, zero_division=0)
        assert (one["precision"], one["sensitivity"], one["f1"]) == pytest.approx(
            (precision[1], recall[1], f1[1]), abs=1e-12
        )
        assert one["specificity"] == pytest.approx(recall[0], abs=1e-12)
        assert one["matthews"] == pytest.approx(sk.matthews_corrcoef(of_class, as_class), abs=1e-12)
