"""Metrics against obvious versions to the last digit, at their limits, and with every argument passed on.

What mutants of the metrics survived: a figure that no test compares may be any figure.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.metrics import log_loss, roc_auc_score

from hoarfrost.evaluation import (
    Estimate,
    apply_temperature,
    assess_calibration,
    bootstrap_auc_ci,
    calibration_line,
    choose_thresholds,
    compare_heads,
    decision_curve,
    delong_ci,
    evaluate_threshold,
    fit_temperature,
    macro_roc_auc,
    macro_roc_aucs,
    newcombe_ci,
    wilson,
)
from hoarfrost.evaluation.discrimination import auc_influence, roc_aucs
from hoarfrost.evaluation.intervals import area, widened_newcombe
from tests.support.samples import Floats, Ints, calibrated, drawn_probabilities, samples, scored, two_columns

# -- many areas at once -------------------------------------------------------------------------------------------------


@given(samples(), st.integers(0, 2**32 - 1))
def test_areas_of_many_heads_are_scikit_learns_of_each(sample: tuple[Ints, Floats], seed: int) -> None:
    y_true, y_score = sample
    rng = np.random.default_rng(seed)
    scores = np.stack([y_score, rng.permutation(y_score), rng.random(len(y_true)).round(1)])
    assert roc_aucs(y_true, scores) == pytest.approx([roc_auc_score(y_true, row) for row in scores])


@pytest.mark.parametrize("n_classes", [2, 3])
def test_macro_areas_of_many_heads_are_those_of_each(n_classes: int) -> None:
    heads = [drawn_probabilities(50, n_classes, seed=seed) for seed in range(4)]
    y_true = heads[0][0]
    probabilities = np.stack([found for _, found in heads])
    assert macro_roc_aucs(y_true, probabilities) == pytest.approx([macro_roc_auc(y_true, p) for p in probabilities])


# -- which interval -----------------------------------------------------------------------------------------------------


def graded(n_positive: int, n_negative: int, auc: float) -> tuple[Ints, Floats]:
    """Return samples whose ROC AUC is exactly the one asked for: some negatives are above all positives."""
    above = round((1 - auc) * n_negative)
    y_true = np.array([1] * n_positive + [0] * n_negative)
    p = np.array([0.5] * n_positive + [0.9] * above + [0.1] * (n_negative - above))
    return y_true, two_columns(p)


@pytest.mark.parametrize(
    ("n_positive", "n_negative", "auc", "has_newcombes"),
    [(30, 40, 0.75, False), (29, 40, 0.75, True), (40, 30, 0.8, False), (40, 40, 0.9, True), (40, 40, 0.875, False)],
)
def test_newcombes_interval_replaces_delongs_below_thirty_of_a_class_or_from_an_area_of_nine_tenths(
    n_positive: int, n_negative: int, auc: float, has_newcombes: bool
) -> None:
    y_true, probabilities = graded(n_positive, n_negative, auc)
    assert macro_roc_auc(y_true, probabilities) == pytest.approx(auc)
    found = scored(y_true, probabilities, "ab")
    assert found["roc_auc_ci95_method"] == ("Newcombe" if has_newcombes else "DeLong")
    plain = (newcombe_ci if has_newcombes else delong_ci)(y_true, probabilities[:, 1])
    assert found["roc_auc_ci95"] == pytest.approx(list(plain), abs=0.05 if has_newcombes else 1e-12)
    assert "roc_auc_ci95_newcombe" not in found


def test_newcombes_interval_is_widened_where_positives_are_more_varied_than_it_assumes() -> None:
    y_true = np.repeat([0, 1], [90, 10])
    few_bad = np.concatenate([np.linspace(0.2, 0.4, 90), [0.1, 0.1, *np.linspace(0.6, 0.9, 8)]])
    alike = np.concatenate([np.linspace(0.2, 0.4, 90), np.linspace(0.35, 0.41, 10)])
    for p, is_wider in ((few_bad, True), (alike, False)):
        found = area(Estimate(macro_roc_auc(y_true, two_columns(p)), None, None), y_true, two_columns(p), None)
        low, high = newcombe_ci(y_true, p)
        assert found.method == "Newcombe"
        assert ((found.high - found.low) > (high - low) + 1e-6) == is_wider
        assert (found.interval == pytest.approx((low, high))) != is_wider


def test_interval_over_patients_is_the_bootstraps_of_its_seed() -> None:
    y_true, p = calibrated(60, seed=0)
    probabilities, patients = two_columns(p), np.arange(60) // 2
    plain = Estimate(macro_roc_auc(y_true, probabilities), None, None)
    for seed in (0, 5):
        drawn = bootstrap_auc_ci(y_true, probabilities, patients, seed=seed)
        found = area(plain, y_true, probabilities, patients, seed=seed)
        assert (found.interval, found.method) == ((drawn.low, drawn.high), "bootstrap over patients")
    assert area(plain, y_true, probabilities, patients) == area(plain, y_true, probabilities, patients, seed=0)
    assert area(plain, y_true, probabilities, np.arange(60)) == area(plain, y_true, probabilities, None)


def test_positives_of_one_patient_leave_no_interval_and_say_so() -> None:
    y_true, probabilities = graded(4, 40, 0.75)
    found = scored(y_true, probabilities, "ab", np.array([0] * 4 + list(range(1, 41))))
    assert found["roc_auc_ci95_method"] == "too few patients for an interval: 1"
    assert "roc_auc_ci95" not in found


# -- calibration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("power", "at_limit"), [(1.0, False), (8.0, False), (0.2, False), (1e3, True), (1e-3, True)])
def test_temperature_is_said_to_be_at_its_limit_only_there(power: float, at_limit: bool) -> None:
    y_true, p = calibrated(4000, seed=1)
    sharpened = apply_temperature(two_columns(p), 1 / power)
    found = fit_temperature(y_true, sharpened)
    assert found.at_limit == at_limit
    if at_limit:
        assert found.temperature == 1


def test_probabilities_that_are_no_numbers_are_refused_in_so_many_words() -> None:
    with pytest.raises(ValueError, match=r"^some probabilities are NaN or infinite$"):
        apply_temperature(np.array([[np.nan, 1.0]]), 1.0)
    assert apply_temperature(np.array([[1, 0]]), 2.0).dtype == np.float64


def test_level_reaches_the_calibration_line() -> None:
    y_true, p = calibrated(200, seed=3)
    for level in (0.8, 0.95):
        found = assess_calibration(y_true, two_columns(p), level=level)
        assert found.lines == (calibration_line(y_true, p, level=level),)


# -- decision curve -----------------------------------------------------------------------------------------------------


def test_decision_curve_has_a_point_at_each_percent_and_its_prevalence() -> None:
    y_true, p = calibrated(50, seed=4)
    found = decision_curve(y_true, p)
    assert found.thresholds == pytest.approx([i / 100 for i in range(1, 100)])
    assert found.prevalence == y_true.mean()
    assert decision_curve(y_true, p, prevalence=0.25).prevalence == 0.25


def test_sample_at_the_threshold_is_treated() -> None:
    found = decision_curve(np.array([0, 1]), np.array([0.25, 0.75]), np.array([0.25, 0.75]))
    assert found.net_benefit == pytest.approx([0.5 - 0.5 / 3, 0.5])


@pytest.mark.parametrize(
    ("p", "thresholds", "prevalence", "message"),
    [
        ([-0.1, 0.5], [0.5], None, r"^p holds values outside 0 to 1$"),
        ([0.1, 0.5], [0.0], None, r"^thresholds must be between 0 and 1, both excluded$"),
        ([0.1, 0.5], [1.0], None, r"^thresholds must be between 0 and 1, both excluded$"),
        ([0.1, 0.5], [0.5], 0.0, r"^prevalence must be between 0 and 1, not 0.0$"),
        ([0.1, 0.5], [0.5], 1.0, r"^prevalence must be between 0 and 1, not 1.0$"),
    ],
)
def test_decision_curve_refuses_limits(
    p: list[float], thresholds: list[float], prevalence: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decision_curve(np.array([0, 1]), np.array(p), np.array(thresholds), prevalence=prevalence)


# -- operating points ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("required", [0.0, 1.0, 1.5])
def test_share_that_cannot_be_required_is_refused(required: float) -> None:
    with pytest.raises(ValueError, match=rf"^required must be between 0 and 1, not {required}$"):
        choose_thresholds(np.array([0, 1]), np.array([0.1, 0.9]), required=required)


def test_share_that_is_reached_exactly_is_reached() -> None:
    y_true = np.array([1] * 20 + [0] * 20)
    y_score = np.concatenate([np.arange(20) / 20 + 0.5, np.arange(20) / 20])
    youden, sensitive, specific = choose_thresholds(y_true, y_score, required=0.95)
    assert [point.name for point in (sensitive, specific)] == ["sensitivity >= 0.95", "specificity >= 0.95"]
    assert (sensitive.sensitivity, specific.specificity) == (0.95, 0.95)
    assert youden.sensitivity is not None


def test_level_reaches_every_share_and_ratio() -> None:
    y_true, p = calibrated(80, seed=5)
    called = p >= 0.5
    tp, fp = int((called & (y_true == 1)).sum()), int((called & (y_true == 0)).sum())
    fn, tn = int((~called & (y_true == 1)).sum()), int((~called & (y_true == 0)).sum())
    found = evaluate_threshold(y_true, p, 0.5, level=0.8, prevalence=0.3)
    assert found.sensitivity == wilson(tp, tp + fn, level=0.8)
    assert found.specificity == wilson(tn, tn + fp, level=0.8)
    assert found.ppv == wilson(tp, tp + fp, level=0.8)
    assert found.npv == wilson(tn, tn + fn, level=0.8)
    assert found.at_prevalence is not None
    assert found.at_prevalence.prevalence == 0.3
    deviation = math.sqrt(1 / tp - 1 / (tp + fn) + 1 / fp - 1 / (fp + tn))
    assert found.lr_positive.high == pytest.approx(found.lr_positive.value * math.exp(norm.ppf(0.9) * deviation))


def test_ratio_with_a_zero_has_a_half_added_to_each_cell() -> None:
    y_true, y_score = np.array([1] * 6 + [0] * 10), np.array([1.0] * 6 + [0.0] * 10)
    found = evaluate_threshold(y_true, y_score, 0.5)
    centre, deviation = math.log((6.5 / 7) / (0.5 / 11)), math.sqrt(1 / 6.5 - 1 / 7 + 1 / 0.5 - 1 / 11)
    assert found.lr_positive.value is None
    assert found.lr_positive.low == pytest.approx(math.exp(centre - norm.ppf(0.975) * deviation))
    centre, deviation = math.log((0.5 / 7) / (10.5 / 11)), math.sqrt(1 / 0.5 - 1 / 7 + 1 / 10.5 - 1 / 11)
    assert (found.lr_negative.value, found.lr_negative.low) == (0.0, 0.0)
    assert found.lr_negative.high == pytest.approx(math.exp(centre + norm.ppf(0.975) * deviation))


def test_predictive_value_of_a_single_call_is_defined() -> None:
    found = evaluate_threshold(np.array([1, 1, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3]), 0.5, prevalence=0.2)
    assert found.at_prevalence is not None
    assert found.at_prevalence.ppv is not None
    found = evaluate_threshold(np.array([1, 1, 0, 0]), np.array([0.9, 0.8, 0.2, 0.7]), 0.5, prevalence=0.2)
    assert found.at_prevalence is not None
    assert found.at_prevalence.npv is not None


# -- labels -------------------------------------------------------------------------------------------------------------


def some_labels(n: int = 60) -> tuple[Ints, Floats]:
    """Draw labels of which some are unknown, and probabilities of which some are exactly one half."""
    rng = np.random.default_rng(6)
    y = (rng.random((n, 2)) < [0.7, 0.4]).astype(np.int64)
    p = np.clip(0.25 * y + 0.75 * rng.random((n, 2)), 0, 1)
    p[:4] = 0.5
    y[rng.random((n, 2)) < 0.2] = -1
    return y, p


@pytest.mark.parametrize("patients", [None, np.arange(60) // 2], ids=["images", "patients"])
def test_every_figure_of_several_labels_is_that_of_each_label_and_their_means(patients: Ints | None) -> None:
    y_true, p = some_labels()
    found = scored(y_true, p, ("effusion", "mass"), patients)
    known = y_true >= 0
    each = {}
    for number, label in enumerate(("effusion", "mass")):
        rows = known[:, number]
        columns = two_columns(p[rows, number])
        one = found["per_class"][label]
        each[label] = scored(
            y_true[rows, number], columns, ("without", label), None if patients is None else patients[rows]
        )
        assert found["roc_auc_ci95_per_class"][label] == pytest.approx(each[label]["roc_auc_ci95"])
        assert found["n_known_per_class"][label] == rows.sum()
        called = p[rows, number] >= 0.5
        assert one["sensitivity"] == pytest.approx(called[y_true[rows, number] == 1].mean())
        assert one["specificity"] == pytest.approx(1 - called[y_true[rows, number] == 0].mean())
    assert found["n"] == 60
    assert found["accuracy"] == pytest.approx(((p >= 0.5) == (y_true == 1))[known].mean())
    frequent = sum(max((y_true[:, i] == 1).sum(), (y_true[:, i] == 0).sum()) for i in range(2))
    assert found["majority_accuracy"] == pytest.approx(frequent / known.sum())
    assert found["loss"] == pytest.approx(log_loss(y_true[known], p[known]))
    assert found["roc_auc"] == pytest.approx(np.mean([one["roc_auc"] for one in each.values()]))
    assert found["roc_auc_ci95_method"] == ("Newcombe" if patients is None else "bootstrap over patients")
    interval = list(widened_newcombe(y_true, p, *auc_influence(y_true, p)))
    if patients is not None:
        drawn = bootstrap_auc_ci(y_true, p, patients)
        interval = [drawn.low, drawn.high]
    assert found["roc_auc_ci95"] == pytest.approx(interval)


@pytest.mark.parametrize("has", [0, 1])
def test_label_that_all_but_one_image_have_or_lack_is_refused(has: int) -> None:
    y_true, p = some_labels()
    y_true[:, 1] = has
    y_true[5, 1] = 1 - has
    with pytest.raises(ValueError, match=rf"'mass' has {59 if has else 1} and {1 if has else 59}$"):
        scored(y_true, p, ("effusion", "mass"))


def test_single_call_that_is_right_has_a_precision_of_one() -> None:
    y_true, p = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3, 0.1])
    (one,) = scored(y_true[:, None], p[:, None], ("mass",))["per_class"].values()
    assert (one["precision"], one["sensitivity"]) == (1.0, 0.5)


def test_arrays_that_do_not_fit_are_refused_in_so_many_words() -> None:
    y_true, p = some_labels()
    for wrong in (y_true[:, :1], np.where(y_true == 1, 2, y_true)):
        with pytest.raises(
            ValueError, match=r"^y_true of several labels must be \(60, 2\) of 0, 1 and -1 \(unknown\)$"
        ):
            scored(wrong, p, ("effusion", "mass"))
    with pytest.raises(ValueError, match=r"^y_true holds values other than 0 and 1$"):
        delong_ci(np.array([0, 1, 2]), np.array([0.1, 0.2, 0.3]))
    nothing = wilson(0, 0)
    assert (nothing.n_hits, nothing.n, nothing.value) == (0, 0, None)


def test_intervals_end_at_one_and_at_zero() -> None:
    y_true = np.array([0] * 6 + [1] * 6)
    y_score = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
    low, high = delong_ci(y_true, y_score)
    assert low < 1 == high
    assert delong_ci(1 - y_true, y_score) == pytest.approx((0, 1 - low))


def test_bins_of_equal_mass_give_the_odd_sample_to_the_upper_one() -> None:
    first, second = assess_calibration(np.array([0, 1, 1]), two_columns(np.array([0.2, 0.5, 0.9])), n_bins=2).bins
    assert (first.highest, second.lowest) == (0.2, 0.5)


# -- comparisons --------------------------------------------------------------------------------------------------------


def test_difference_between_heads_has_the_variance_of_clustered_influences() -> None:
    """Obuchowski's: the squares of the patients' sums of influences, by n / (n - 1)."""
    y_true, first = drawn_probabilities(30, 2, seed=7)
    _, second = drawn_probabilities(30, 2, seed=8)
    for patients, n in ((np.arange(30) // 2, 15), (np.arange(30) // 3, 10)):
        (found,) = compare_heads(y_true, {"a": first, "b": second}, "a", groups=patients, level=0.8)
        (auc, influence), (other, other_influence) = auc_influence(y_true, first), auc_influence(y_true, second)
        sums = [(other_influence - influence)[patients == patient].sum() for patient in range(n)]
        variance = sum(value * value for value in sums) * n / (n - 1)
        half = norm.ppf(0.9) * math.sqrt(variance)
        assert found.difference.value == pytest.approx(other - auc)
        assert found.difference.interval == pytest.approx((other - auc - half, other - auc + half))
        assert found.p == pytest.approx(2 * norm.sf(abs(other - auc) / math.sqrt(variance)))
        assert found.reason == ""


def test_groups_of_one_image_each_are_as_good_as_none() -> None:
    y_true, first = drawn_probabilities(30, 2, seed=9)
    _, second = drawn_probabilities(30, 2, seed=10)
    heads = {"a": first, "b": second}
    (grouped,), (plain,) = compare_heads(y_true, heads, "a", groups=np.arange(30)), compare_heads(y_true, heads, "a")
    assert grouped.difference.n_patients == 30
    assert replace(grouped, difference=replace(grouped.difference, n_patients=None)) == plain


def test_comparison_without_variance_has_its_difference_and_the_reason() -> None:
    y_true = np.array([0, 0, 0, 1, 1, 1])
    perfect, useless = two_columns(y_true.astype(float)), two_columns(np.full(6, 0.5))
    (found,) = compare_heads(y_true, {"perfect": perfect, "useless": useless}, "perfect")
    assert (found.name, found.difference.value, found.difference.interval) == ("useless", -0.5, None)
    assert (found.z, found.p, found.p_holm) == (None, None, None)
    assert found.reason.startswith("the AUCs differ, but the estimated variance of their difference is zero")
    (found,) = compare_heads(y_true, {"a": perfect, "b": useless}, "a", groups=np.zeros(6, int))
    assert (found.difference.interval, found.p) == (None, None)
    assert found.reason == found.difference.method == "too few patients for an interval: 1"
