"""Operating points: chosen among all thresholds, Wilson's intervals against scipy's, likelihood ratios."""

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest, norm

from hoarfrost.evaluation import OperatingPoint, choose_thresholds, evaluate_threshold, wilson
from hoarfrost.evaluation.operating import Rule
from tests.support.samples import Floats, Ints, Sample, samples


def slow_measures(y_true: Ints, y_score: Floats, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity, counted."""
    positives = [s >= threshold for y, s in zip(y_true, y_score, strict=True) if y == 1]
    negatives = [s < threshold for y, s in zip(y_true, y_score, strict=True) if y == 0]
    return sum(positives) / len(positives), sum(negatives) / len(negatives)


def slow_best(y_true: Ints, y_score: Floats, rule: int) -> float | None:
    """Return the best value of the rule's measure over all thresholds that are scores."""
    found = [slow_measures(y_true, y_score, float(threshold)) for threshold in np.unique(y_score)]
    if rule == 0:
        return max(sensitivity + specificity for sensitivity, specificity in found)
    if rule == 1:
        return max((b for sensitivity, b in found if sensitivity >= 0.95 and b > 0), default=None)
    return max((a for a, specificity in found if specificity >= 0.95 and a > 0), default=None)


# -- the choice ---------------------------------------------------------------------------------------------------------


@given(samples())
def test_each_rule_chooses_the_best_of_all_thresholds(sample: Sample) -> None:
    for rule, point in enumerate(choose_thresholds(*sample)):
        best = slow_best(*sample, rule)
        if point.threshold is None:
            assert best is None
            assert f"the highest {('sensitivity', 'specificity')[rule - 1]} with a " in point.reason
            continue
        sensitivity, specificity = slow_measures(*sample, point.threshold)
        assert (point.sensitivity, point.specificity) == pytest.approx((sensitivity, specificity))
        assert best == pytest.approx((sensitivity + specificity, specificity, sensitivity)[rule])


def test_sample_at_the_threshold_is_positive() -> None:
    result = evaluate_threshold(np.array([0, 1, 1]), np.array([0.2, 0.5, 0.4]), 0.5)
    assert (result.true_positives, result.false_negatives) == (1, 1)


def test_threshold_lies_midway_between_two_scores() -> None:
    point = choose_thresholds(np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.9]))[0]
    assert point == OperatingPoint("Youden's index", pytest.approx(0.4), 1.0, 1.0)


def test_midpoint_of_neighbouring_floats_parts_them() -> None:
    low = 0.3
    high = float(np.nextafter(low, 1))
    point = choose_thresholds(np.array([0, 1]), np.array([low, high]))[0]
    assert (point.threshold, point.sensitivity, point.specificity) == (high, 1.0, 1.0)


def test_of_equally_good_thresholds_the_more_sensitive_is_chosen() -> None:
    y_true, y_score = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    point = choose_thresholds(y_true, y_score)[0]
    assert (point.sensitivity, point.specificity) == (1.0, 0.5)


def test_specificity_that_no_threshold_reaches_is_said_to_be_out_of_reach() -> None:
    y_true = np.array([0] * 5 + [1] * 5)
    y_score = np.array([0.1, 0.2, 0.3, 0.9, 0.9, 0.4, 0.5, 0.6, 0.7, 0.8])
    point = choose_thresholds(y_true, y_score)[2]
    assert point == OperatingPoint(
        "specificity >= 0.95", None, None, None,
        "no threshold reaches it; the highest specificity with a sensitivity above 0 is 0.600",
    )  # fmt: skip


def test_threshold_that_finds_no_case_is_no_operating_point() -> None:
    y_true = np.array([0] * 40 + [1] * 4)
    y_score = np.concatenate([np.linspace(0.1, 0.9, 40), [0.2, 0.3, 0.3, 0.4]])  # 0.9 alone: specificity 0.975
    specific = choose_thresholds(y_true, y_score)[2]
    assert (specific.threshold, specific.sensitivity) == (None, None)
    assert "the highest specificity with a sensitivity above 0 is" in specific.reason
    sensitive = choose_thresholds(1 - y_true, -y_score)[1]
    assert "the highest sensitivity with a specificity above 0 is" in sensitive.reason


@pytest.mark.parametrize(
    ("text", "rule", "name"),
    [
        ("youden", Rule(), "Youden's index"),
        ("sensitivity=0.9", Rule("sensitivity", 0.9), "sensitivity >= 0.9"),
        ("Specificity=0.8", Rule("specificity", 0.8), "specificity >= 0.8"),
        ("threshold=0.3", Rule("threshold", 0.3), "the stated threshold 0.3"),
        (
            "sensitivity=0.95,confidence=0.9",
            Rule("sensitivity", 0.95, 0.9),
            "sensitivity >= 0.95 with 90% confidence",
        ),
    ],
)
def test_rule_is_read_from_text(text: str, rule: Rule, name: str) -> None:
    assert Rule.parse(text) == rule
    assert rule.name == name


@pytest.mark.parametrize(
    "text",
    ["", "accuracy=0.9", "sensitivity", "sensitivity=1", "threshold=1.5", "threshold=0.3,confidence=0.9", "youden=1"],
)
def test_text_that_is_no_rule_is_refused_with_those_that_are(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not an operating point\. Write youden, sensitivity=0\.95"):
        Rule.parse(text)


@pytest.mark.parametrize("kind", ["sensitivity", "specificity"])
def test_primary_rule_comes_first_and_a_stated_threshold_is_taken_as_it_is(kind: str) -> None:
    rng = np.random.default_rng(0)
    y_true = np.repeat([0, 1], 100)
    y_score = 1 / (1 + np.exp(-rng.normal(size=200) - 2 * y_true))
    names = [point.name for point in choose_thresholds(y_true, y_score, primary=Rule(kind, 0.9))]
    assert names == [f"{kind} >= 0.9", "Youden's index", "sensitivity >= 0.95", "specificity >= 0.95"]
    stated = choose_thresholds(y_true, y_score, primary=Rule("threshold", 0.3))[0]
    assert (stated.threshold, stated.sensitivity, stated.specificity) == (0.3, *slow_measures(y_true, y_score, 0.3))


def test_primary_rule_that_nothing_reaches_leaves_youdens_index_first() -> None:
    y_true = np.array([0] * 5 + [1] * 5)
    y_score = np.array([0.1, 0.2, 0.3, 0.9, 0.9, 0.4, 0.5, 0.6, 0.7, 0.8])
    names = [point.name for point in choose_thresholds(y_true, y_score, primary=Rule("specificity", 0.95))]
    assert names[:2] == ["Youden's index", "specificity >= 0.95"]


# -- what a required sensitivity is worth -------------------------------------------------------------------------------


def truly_kept(n: int, groups: int, rule: int, correlation: float = 0.0) -> tuple[float, float]:
    """Return the share of draws in which new cases reach what was required, and the mean of the share that is stated."""
    rng, kept, stated = np.random.default_rng(0), [], []
    distance = 3.0
    y_true = np.tile(np.repeat([0, 1], n // 2 // groups), groups)
    of_patients = np.repeat(np.arange(groups * 2), n // 2 // groups)
    for _ in range(300):
        shared = rng.normal(size=groups * 2)[of_patients]
        y_score = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * rng.normal(size=n) + distance * y_true
        point = choose_thresholds(y_true, y_score, confidence=0.95, groups=of_patients)[rule]
        assert point.threshold is not None
        assert point.kept_by is not None
        true = norm.sf(point.threshold - distance) if rule in {1, 3} else norm.cdf(point.threshold)
        kept.append(true >= 0.95)
        stated.append(point.kept_by)
    return float(np.mean(kept)), float(np.mean(stated))


@pytest.mark.parametrize("rule", [1, 2])
def test_a_required_share_is_reached_as_often_as_is_stated_beside_it(rule: int) -> None:
    kept, stated = truly_kept(160, 80, rule)
    assert kept == pytest.approx(stated, abs=0.06)
    assert kept < 0.6


@pytest.mark.parametrize("rule", [1, 2])
@pytest.mark.parametrize("correlation", [0.3, 0.7])
def test_it_is_reached_as_often_where_patients_have_several_images(rule: int, correlation: float) -> None:
    kept, stated = truly_kept(480, 80, rule, correlation)
    assert kept == pytest.approx(stated, abs=0.1)


@pytest.mark.parametrize("rule", [3, 4])
def test_a_threshold_with_confidence_keeps_what_it_promises(rule: int) -> None:
    kept, stated = truly_kept(160, 80, rule)
    assert kept >= 0.93
    assert stated >= 0.95


@pytest.mark.parametrize("correlation", [0.3, 0.7])
def test_a_threshold_with_confidence_keeps_it_where_patients_have_several_images(correlation: float) -> None:
    assert truly_kept(480, 80, 3, correlation)[0] >= 0.93


@pytest.mark.parametrize("n_missed", [0, 1, 5])
def test_the_tail_of_a_threshold_is_the_binomial_distributions_to_the_last_digit(n_missed: int) -> None:
    y_true = np.repeat([1, 0], [60, 60])
    y_score = np.append(np.arange(60.0), np.full(60, n_missed - 0.5))  # a specificity above 0 costs so many positives
    kept = binom.sf(n_missed, 60, 1 - 0.8)
    points = choose_thresholds(y_true, y_score, primary=Rule("sensitivity", 0.8, 0.9))
    assert kept in [point.kept_by for point in points]


def test_too_few_cases_for_a_confidence_are_said() -> None:
    y_true = np.repeat([0, 1], [200, 58])
    point = choose_thresholds(y_true, np.arange(258) / 258, confidence=0.95)[3]
    assert point.threshold is None
    assert point.reason == "at least 59 cases are needed; there are 58"
    point = choose_thresholds(np.append(y_true, 1), np.arange(259) / 259, confidence=0.95)[3]
    assert point.threshold is not None
    assert point.promise == "95% of thresholds chosen like this, on 59 cases, reach sensitivity >= 0.95 in new cases."


# -- the result ---------------------------------------------------------------------------------------------------------


@given(st.integers(0, 60), st.integers(0, 60), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_interval_is_scipys(hits: int, misses: int, level: float) -> None:
    found = wilson(hits, hits + misses, level=level)
    if hits + misses == 0:
        assert (found.value, found.low, found.high) == (None, None, None)
        return
    expected = binomtest(hits, hits + misses).proportion_ci(level, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9, abs=1e-12)
    assert found.value == hits / (hits + misses)


def test_result_of_a_known_table() -> None:
    # The table of Simel et al. (1991): 431 diseased, 30 found not; 119 not diseased, of whom 16 found.
    y_true = np.array([1] * 431 + [0] * 119)
    y_score = np.array([1.0] * 401 + [0.0] * 30 + [1.0] * 16 + [0.0] * 103)
    result = evaluate_threshold(y_true, y_score, 0.5)
    assert (result.true_positives, result.false_negatives) == (401, 30)
    assert (result.false_positives, result.true_negatives) == (16, 103)
    assert result.sensitivity == wilson(401, 431)
    assert result.specificity == wilson(103, 119)
    assert result.ppv == wilson(401, 417)
    assert result.npv == wilson(103, 133)
    positive = (401 / 431) / (16 / 119)
    deviation = (1 / 401 - 1 / 431 + 1 / 16 - 1 / 119) ** 0.5
    assert result.lr_positive.value == pytest.approx(positive)
    reach = np.exp(1.959964 * deviation)
    assert result.lr_positive.interval == pytest.approx((positive / reach, positive * reach))
    assert result.lr_negative.value == pytest.approx((30 / 431) / (103 / 119))


def test_predictive_values_at_the_splits_own_prevalence_are_the_splits() -> None:
    rng = np.random.default_rng(0)
    y_true = np.arange(200) % 4 // 3
    y_score = y_true + rng.normal(size=200)
    result = evaluate_threshold(y_true, y_score, 0.5, prevalence=0.25)
    there = result.at_prevalence
    assert there is not None
    assert there.ppv is not None
    assert there.npv is not None
    assert there.ppv.value == pytest.approx(result.ppv.value)
    assert there.npv.value == pytest.approx(result.npv.value)
    for one in (there.ppv, there.npv):
        assert one.low < one.value < one.high  # type: ignore[operator]


def test_limits_of_predictive_values_are_those_of_the_likelihood_ratios() -> None:
    """By Bayes: odds after a result are the odds before it, times its likelihood ratio."""
    y_true, y_score = np.array([1] * 20 + [0] * 30), np.array([1.0] * 14 + [0.0] * 6 + [1.0] * 9 + [0.0] * 21)
    found = evaluate_threshold(y_true, y_score, 0.5, prevalence=0.2)
    at = found.at_prevalence
    assert at is not None

    def after(likelihood: float | None) -> float:
        assert likelihood is not None
        return 0.25 * likelihood / (1 + 0.25 * likelihood)

    positive, negative = found.lr_positive, found.lr_negative
    assert positive is not None
    assert negative is not None
    assert at.ppv is not None
    assert at.npv is not None
    after_positive = [after(one) for one in (positive.value, positive.low, positive.high)]
    after_negative = [1 - after(one) for one in (negative.value, negative.high, negative.low)]
    assert [at.ppv.value, at.ppv.low, at.ppv.high] == pytest.approx(after_positive)
    assert [at.npv.value, at.npv.low, at.npv.high] == pytest.approx(after_negative)
    assert at.npv.low < at.npv.value < at.npv.high < 1  # type: ignore[operator]


def test_rarer_disease_lowers_the_positive_predictive_value() -> None:
    y_true, y_score = np.array([0, 0, 0, 1, 1, 1]), np.array([0.1, 0.2, 0.7, 0.3, 0.8, 0.9])
    rare, common = (evaluate_threshold(y_true, y_score, 0.5, prevalence=share).at_prevalence for share in (0.01, 0.5))
    assert rare is not None
    assert common is not None
    assert rare.ppv is not None
    assert common.ppv is not None
    assert rare.ppv.value == pytest.approx(0.01 * 2 / 3 / (0.01 * 2 / 3 + 0.99 / 3))
    assert common.ppv.value == pytest.approx(2 / 3)


def test_infinite_ratio_is_none_with_a_lower_limit_and_a_ratio_of_zero_begins_at_zero() -> None:
    y_true = np.array([0] * 10 + [1] * 10)
    perfect = evaluate_threshold(y_true, y_true.astype(float), 0.5, prevalence=0.1)
    assert (perfect.lr_positive.value, perfect.lr_positive.high) == (None, None)
    assert perfect.lr_positive.low is not None
    assert perfect.lr_positive.low > 1
    assert (perfect.lr_negative.value, perfect.lr_negative.low) == (0.0, 0.0)
    assert perfect.at_prevalence is not None
    assert perfect.at_prevalence.ppv is not None
    assert (perfect.at_prevalence.ppv.value, perfect.at_prevalence.ppv.high) == (1.0, 1.0)


def test_threshold_that_finds_none_or_all_leaves_undefined_what_is() -> None:
    y_true, y_score = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    none = evaluate_threshold(y_true, y_score, 0.9, prevalence=0.2)
    assert (none.ppv.value, none.lr_positive.value, none.lr_positive.low) == (None, None, None)
    assert none.at_prevalence is not None
    assert none.at_prevalence.ppv is None
    all_found = evaluate_threshold(y_true, y_score, 0.0)
    assert all_found.npv.value is None
    assert all_found.lr_positive.value == 1
    assert all_found.lr_positive.low is not None
    assert all_found.lr_positive.low < 0.7


@given(samples(), st.integers(-1, 9))
def test_every_result_is_json(sample: Sample, threshold: int) -> None:
    result = asdict(evaluate_threshold(*sample, threshold / 8, prevalence=0.1))
    assert json.loads(json.dumps(result, allow_nan=False))["threshold"] == threshold / 8


# -- what is undefined is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y_true", "y_score", "message"),
    [
        ([1, 1], [0.1, 0.2], "needs both classes; there are 2 positive and 0 negative"),
        ([0, 1], [0.1, np.nan], "y_score holds NaN or infinite values"),
        ([0, 1], [0.1], r"y_true has the shape \(2,\), y_score \(1,\)"),
    ],
)
def test_operating_points_refuse_what_is_undefined(y_true: list[int], y_score: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_thresholds(np.array(y_true), np.array(y_score))
    with pytest.raises(ValueError, match=message):
        evaluate_threshold(np.array(y_true), np.array(y_score), 0.5)


@pytest.mark.parametrize("prevalence", [0, 1, -0.1, 20, float("nan")])
def test_prevalence_that_is_none_is_refused(prevalence: float) -> None:
    with pytest.raises(ValueError, match="prevalence must be between 0 and 1, not"):
        evaluate_threshold(np.array([0, 1]), np.array([0.1, 0.9]), 0.5, prevalence=prevalence)


def test_threshold_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold must be a finite number, not nan"):
        evaluate_threshold(np.array([0, 1]), np.array([0.1, 0.9]), float("nan"))


def test_more_hits_than_trials_are_refused() -> None:
    with pytest.raises(ValueError, match="5 hits of 4"):
        wilson(5, 4)
