"""Every metric that is printed has an interval: what it is made of, what it covers, and where there is none."""

import numpy as np
import pytest
from hypothesis import given

from hoarfrost.evaluation import assess_calibration, decision_curve, macro_roc_auc, registered, score, wilson
from hoarfrost.evaluation.bootstrap import bootstrap_ci
from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.influence import of_average_precision
from hoarfrost.evaluation.intervals import IntervalKind, area
from hoarfrost.evaluation.metrics import Decision, Metric
from hoarfrost.evaluation.metrics import Sample as Scored
from hoarfrost.evaluation.shares import BOOTSTRAP
from tests.support.samples import Floats, Ints, Sample, drawn_probabilities, samples

LINEAR = tuple(one for one in registered() if (one.is_overall and one.influence_of_class) or one.influence)


def scored(n_classes: int, n: int = 90) -> Scored:
    y_true, probabilities = drawn_probabilities(n, n_classes, seed=4)
    return Scored(y_true, probabilities, Decision((0.4,), "a rule") if n_classes == 2 else Decision())


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("metric", LINEAR, ids=lambda metric: metric.key)
def test_influence_is_what_a_metric_loses_without_a_sample(metric: Metric, n_classes: int) -> None:
    sample = scored(n_classes)
    n = len(sample.y_true)
    without = np.array([metric.score(sample.drawn(np.delete(np.arange(n), i))) for i in range(n)])
    influence = metric.influence_on(sample).values
    assert influence.sum() == pytest.approx(0, abs=1e-9)
    assert np.corrcoef(influence, -without)[0, 1] > 0.99
    assert influence.std() == pytest.approx(without.std(), rel=0.2)


@given(samples())
def test_influence_on_average_precision_is_its_slope_by_weight(sample: Sample) -> None:
    y_true, p = sample

    def weighted(weights: Floats) -> float:
        found = sum(
            w * (weights * y_true)[p >= at].sum() / weights[p >= at].sum()
            for w, y, at in zip(weights, y_true, p, strict=True)
            if y
        )
        return float(found / (weights * y_true).sum())

    step = 1e-6
    slopes = [(weighted(np.ones(len(p)) + step * one) - weighted(np.ones(len(p)))) / step for one in np.eye(len(p))]
    assert of_average_precision(y_true, p).values == pytest.approx(slopes, abs=1e-4)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n_images", [1, 3])
def test_every_metric_has_an_interval_that_holds_its_value(n_classes: int, n_images: int) -> None:
    sample = scored(n_classes)
    found = score(sample.y_true, sample.probabilities, "abc"[:n_classes], np.arange(90) // n_images, sample.decision)
    for one in (found, *found.per_class.values()):
        for key, estimate in one.estimates.items():
            if key == "majority_accuracy":
                continue
            assert estimate.interval is not None, key
            assert estimate.low < estimate.value < estimate.high, key  # type: ignore[operator]
            assert estimate.n_patients == 90 // n_images
            assert ("patient" in estimate.method) == (n_images > 1)


def test_accuracy_has_the_interval_of_a_proportion() -> None:
    sample = scored(2)
    alone, clustered = (
        score(sample.y_true, sample.probabilities, "ab", of)["accuracy"] for of in (None, np.arange(90) // 3)
    )
    right = int((sample.probabilities.argmax(axis=1) == sample.y_true).sum())
    assert alone.interval == wilson(right, 90).interval
    assert clustered.method == BOOTSTRAP


def test_perfect_decisions_are_no_certainty() -> None:
    y_true = np.repeat([0, 1], [20, 10])
    p = np.where(y_true == 1, 0.9, 0.1) + np.linspace(0, 0.05, 30)
    found = score(y_true, np.column_stack([1 - p, p]), "ab")
    for key in ("f1", "matthews", "balanced_accuracy", "average_precision"):
        assert (found[key].value, found[key].interval) == (pytest.approx(1), wilson(10, 10).interval), key


def test_one_class_predicted_for_all_leaves_the_correlation_without_an_interval() -> None:
    y_true = np.repeat([0, 1], [20, 10])
    p = np.linspace(0.1, 0.3, 30)
    found = score(y_true, np.column_stack([1 - p, p]), "ab")
    assert (found["matthews"].value, found["matthews"].interval) == (0, None)
    assert found["f1"].interval == wilson(0, 10).interval


def test_folds_widen_every_interval() -> None:
    sample = scored(2)
    one, folds = (score(sample.y_true, sample.probabilities, "ab", None, sample.decision, n_folds=n) for n in (1, 5))
    for metric in LINEAR:
        (low, high), (lower, higher) = one[metric.key].interval, folds[metric.key].interval  # type: ignore[misc]
        assert higher - lower > 1.2 * (high - low)


# -- net benefit and the calibration error ------------------------------------------------------------------------------


def clustered_sample(seed: int, n_patients: int = 100) -> tuple[Ints, Floats, Ints]:
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(n_patients), 3)
    y_true = np.repeat((rng.random(n_patients) < 0.4).astype(np.int64), 3)
    x = 1.3 * y_true + np.repeat(rng.standard_normal(n_patients), 3) * 0.8 + rng.standard_normal(len(groups)) * 0.6
    return y_true, 1 / (1 + np.exp(0.9 - x)), groups


@pytest.mark.parametrize("prevalence", [None, 0.1])
def test_interval_of_net_benefit_is_near_that_of_the_bootstrap_over_patients(prevalence: float | None) -> None:
    y_true, p, groups = clustered_sample(1)
    at = np.array([0.2, 0.4])
    found = decision_curve(y_true, p, at, groups, prevalence=prevalence)
    assert found.method == "delta method, clustered by patient"
    for place, threshold in enumerate(at):

        def benefit(weights: Floats, threshold: float = float(threshold)) -> Floats:
            treated, odds = p >= threshold, threshold / (1 - threshold)
            ill = weights @ (y_true == 1)
            share = ill / weights.sum(axis=1) if prevalence is None else prevalence
            hits = weights @ (treated & (y_true == 1)) / ill
            alarms = weights @ (treated & (y_true == 0)) / (weights.sum(axis=1) - ill)
            return share * hits - (1 - share) * alarms * odds  # type: ignore[no-any-return]

        drawn = bootstrap_ci(benefit, groups)
        width = drawn.high - drawn.low
        assert found.low[place] == pytest.approx(drawn.low, abs=0.15 * width)
        assert found.high[place] == pytest.approx(drawn.high, abs=0.15 * width)


def test_threshold_above_all_probabilities_has_no_interval_of_net_benefit() -> None:
    y_true, p, groups = clustered_sample(2)
    found = decision_curve(y_true, p * 0.5, np.array([0.3, 0.9]), groups)
    assert (found.net_benefit[1], found.low[1], found.high[1]) == (0, None, None)


def test_interval_of_the_calibration_error_reaches_zero_where_chance_explains_it() -> None:
    rng = np.random.default_rng(3)
    q = rng.random(200)
    y_true = (rng.random(200) < q).astype(np.int64)
    good = assess_calibration(y_true, np.column_stack([1 - q, q]))
    extreme = q**4 / (q**4 + (1 - q) ** 4)
    bad = assess_calibration(y_true, np.column_stack([1 - extreme, extreme]), np.arange(200) // 2)
    assert good.error_interval is not None
    assert bad.error_interval is not None
    assert good.error_interval[0] == 0 < good.error
    assert 0 < bad.error_interval[0] < bad.error < bad.error_interval[1]
    assert (good.error_method, bad.error_method) == ("bootstrap", BOOTSTRAP)


def test_calibration_of_one_patient_has_no_interval_of_its_error() -> None:
    y_true, p, _ = clustered_sample(4, 8)
    found = assess_calibration(y_true, np.column_stack([1 - p, p]), np.zeros(24, np.int64))
    assert (found.error_interval, found.error_method) == (None, "too few patients for an interval: 1")


def test_kinds_of_intervals_are_declared_once_per_metric() -> None:
    without = {one.key for one in registered() if one.interval is IntervalKind.NONE}
    assert without == {"majority_accuracy"}


# -- areas --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "distance"), [((13, 9, 6), 2.0), ((50, 30, 10), 3.0)])
def test_interval_of_a_macro_area_near_one_covers_as_stated(sizes: tuple[int, ...], distance: float) -> None:
    """DeLong's covers in 79% and in 65%."""
    rng = np.random.default_rng(0)

    def drawn(times: int) -> tuple[Ints, Floats]:
        y_true = np.repeat(np.arange(len(sizes)), np.array(sizes) * times)
        score = rng.normal(size=(len(y_true), len(sizes))) + distance * np.eye(len(sizes))[y_true]
        return y_true, np.exp(score) / np.exp(score).sum(axis=1, keepdims=True)

    truth, found = macro_roc_auc(*drawn(500)), []
    for _ in range(200):
        y_true, p = drawn(1)
        one = area(Estimate(macro_roc_auc(y_true, p), None, None), y_true, p, None)
        low, high = one.interval or (np.nan, np.nan)
        assert 0 <= low <= (one.value or 0.0) <= high <= 1
        found.append(low <= truth <= high)
    assert 0.93 <= np.mean(found) <= 1


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("n_images", [1, 3])
def test_equal_scores_have_an_interval_that_is_not_a_point(n_classes: int, n_images: int) -> None:
    y_true = np.arange(180) % n_classes
    equal = np.full((180, n_classes), 1 / n_classes)
    found = area(Estimate(0.5, None, None), y_true, equal, np.arange(180) // n_images)
    assert found.method == "Newcombe"
    assert found.low is not None
    assert 0.2 < found.low < 0.47
