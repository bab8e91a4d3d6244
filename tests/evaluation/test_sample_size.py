"""How many images a width needs: published examples, intervals that have the width, and the sentence on a test set."""

import math

import numpy as np
import pytest
from scipy.stats import beta

from hoarfrost.evaluation import Estimate, newcombe_ci, roc_auc, wilson
from hoarfrost.evaluation.intervals import area
from hoarfrost.evaluation.sample_size import (
    Assumed,
    LinearPredictor,
    images_for_area,
    images_for_ratio,
    images_for_share,
    images_for_slope,
    images_for_width,
    plan_study,
    precision_of,
)


@pytest.mark.parametrize(
    ("auc", "prevalence", "published"),
    [(0.7, 0.1, 1154), (0.8, 0.5, 302), (0.8, 0.018, 4252), (0.75, 0.018, 5125), (0.743, 0.048, 2027)],
)
def test_area_needs_the_published_numbers(auc: float, prevalence: float, published: int) -> None:
    # Riley et al. 2021, the example of pmvalsampsize, and a published protocol; all with a standard error of 0.1 / 3.92.
    assert images_for_area(auc, prevalence, 0.1) == pytest.approx(published, rel=1e-3)


@pytest.mark.parametrize(
    ("prevalence", "error", "published"), [(0.5, 0.051, 385), (0.1, 0.051, 3461), (0.1, 0.175, 294)]
)
def test_observed_over_expected_needs_the_published_numbers(prevalence: float, error: float, published: int) -> None:
    width = 2 * math.sinh(1.959964 * error)  # the width that a standard error of the logarithm stands for
    assert math.ceil(images_for_ratio(prevalence, width)) in {published, published - 1}


def test_example_of_pmvalsampsize() -> None:
    # pmvalsampsize, type(b) prevalence(0.018) cstatistic(0.8) lpnormal(-5,2.5) oeciwidth(1): 905, 4501, 4252. Its slope is
    # by simulation of 1,000 log-odds, so it agrees to a few percent only.
    assert images_for_ratio(0.018, 1) == pytest.approx(905, rel=1e-3)
    assert images_for_slope(LinearPredictor.normal(-5, 2.5), 0.2) == pytest.approx(4501, rel=0.03)
    # With lpbeta(0.5,0.5) in place of lpnormal: 1641.
    shares = (np.arange(200_000) + 0.5) / 200_000
    p = beta.ppf(shares, 0.5, 0.5)
    uniform = LinearPredictor(np.log(p / (1 - p)), np.full(len(p), 1 / len(p)))
    assert images_for_slope(uniform, 0.2) == pytest.approx(1641, rel=0.03)


def test_slope_has_the_width_in_simulated_studies() -> None:
    rng, auc, prevalence, width = np.random.default_rng(0), 0.85, 0.3, 0.4
    n = math.ceil(images_for_slope(LinearPredictor.binormal(auc, prevalence), width))
    distance = math.sqrt(2) * 1.0364334  # normal quantile of 0.85
    widths = []
    for _ in range(40):
        y = (rng.random(n) < prevalence).astype(np.int64)
        x = distance * rng.normal(size=n) + distance**2 * (y - 0.5) + math.log(prevalence / (1 - prevalence))
        p = 1 / (1 + np.exp(-x))
        information = np.linalg.inv(np.array([[(p * (1 - p) * x ** (i + j)).sum() for j in (0, 1)] for i in (0, 1)]))
        widths.append(2 * 1.959964 * math.sqrt(information[1, 1]))
    assert np.mean(widths) == pytest.approx(width, rel=0.03)


def test_binormal_log_odds_are_calibrated() -> None:
    predictor = LinearPredictor.binormal(0.9, 0.2)
    assert (predictor.weights / (1 + np.exp(-predictor.values))).sum() == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95, 1.0])
def test_share_has_the_width_in_the_interval_that_is_printed(share: float) -> None:
    n = math.ceil(images_for_share(share, 0.25, 0.1) * 0.25)
    found = wilson(round(share * n), n)
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low <= 0.1 + 2 / n
    assert n >= 4 * 1.959964**2 * share * (1 - share) / 0.1**2  # Buderer's number


def test_area_near_one_has_the_width_of_newcombes_interval() -> None:
    n = round(images_for_area(0.95, 0.3, 0.1))
    y = (np.arange(n) < 0.3 * n).astype(np.int64)
    rng = np.random.default_rng(0)
    widths = []
    for _ in range(200):
        low, high = newcombe_ci(y, rng.normal(size=n) + 2.3262 * y)
        widths.append(high - low)
    assert np.mean(widths) == pytest.approx(0.1, rel=0.08)


def test_plan_names_what_needs_most_patients_and_counts_cases() -> None:
    found = plan_study(Assumed(0.018, 0.8, linear_predictor=LinearPredictor.normal(-5, 2.5)), calibration_width=0.2)
    assert [one.quantity for one in found.needed] == ["ROC AUC", "calibration slope", "observed/expected"]
    assert found.largest.quantity == "observed/expected"
    assert all(one.cases == math.ceil(one.patients * 0.018) and one.images == one.patients for one in found.needed)


def test_images_of_a_patient_need_more_images_of_fewer_patients() -> None:
    alone = plan_study(Assumed(0.3, 0.85, sensitivity=0.9))
    four = plan_study(Assumed(0.3, 0.85, sensitivity=0.9, images_per_patient=4, icc=0.5))
    for one, several in zip(alone.needed, four.needed, strict=True):
        assert several.images == pytest.approx(2.5 * one.images, rel=0.05)
        assert several.patients == pytest.approx(2.5 / 4 * one.images, rel=0.05)
    same = plan_study(Assumed(0.3, 0.85, images_per_patient=4))
    assert [one.patients for one in same.needed] == [one.patients for one in alone.needed[:3]]


@pytest.mark.parametrize(
    ("assumed", "width"),
    [(Assumed(0, 0.8), 0.1), (Assumed(0.3, 0.5), 0.1), (Assumed(0.3, 1), 0.1), (Assumed(0.3, 0.8), 0)],
)
def test_impossible_values_are_refused(assumed: Assumed, width: float) -> None:
    with pytest.raises(ValueError, match="is not between"):
        plan_study(assumed, width=width)


# -- a test set ---------------------------------------------------------------------------------------------------------


def test_sentence_of_a_test_set() -> None:
    found = precision_of(Estimate(0.85, 0.77, 0.90, "DeLong", 150), 45)
    assert found is not None
    assert found.sentence("test", "image").startswith(
        "This test set gives an interval of width 0.13; 0.10 needs about 2"
    )
    assert precision_of(Estimate(0.85, None, None), 45) is None
    perfect = precision_of(Estimate(1.0, 0.9, 1.0, "Newcombe", 60), 20)
    assert perfect is not None
    assert perfect.sentence("test", "image") == "This test set gives an interval of width 0.10."


@pytest.mark.parametrize(("auc", "n"), [(0.75, 100), (0.9, 80), (0.97, 80)])
def test_a_test_set_of_the_stated_size_has_the_stated_width(auc: float, n: int) -> None:
    rng, distance = np.random.default_rng(0), math.sqrt(2) * {0.75: 0.6745, 0.9: 1.2816, 0.97: 1.8808}[auc]

    def drawn(n: int) -> Estimate:
        y = (np.arange(n) < 0.4 * n).astype(np.int64)
        p = 1 / (1 + np.exp(-rng.normal(size=n) - distance * y))
        return area(Estimate(roc_auc(y, p), None, None, n=n), y, np.column_stack([1 - p, p]), None)

    small = [drawn(n) for _ in range(40)]
    needed = round(np.median([images_for_width(one, round(0.4 * n), 0.1) for one in small if one.value != 1]))
    widths = [one.high - one.low for one in (drawn(needed) for _ in range(40)) if one.low is not None and one.high]
    assert np.median(widths) == pytest.approx(0.1, rel=0.12)


def test_clustered_interval_shows_its_design_effect_and_patients_are_stated() -> None:
    rng, n_patients = np.random.default_rng(0), 80
    groups = np.repeat(np.arange(n_patients), 4)
    y = (groups < 32).astype(np.int64)
    effects = []
    for _ in range(8):
        score = (
            1.2 * y + rng.normal(size=n_patients)[groups] * math.sqrt(0.7) + rng.normal(size=len(y)) * math.sqrt(0.3)
        )
        p = 1 / (1 + np.exp(-score))
        plain = Estimate(roc_auc(y, p), None, None, n=len(y), n_patients=n_patients)
        clustered = area(plain, y, np.column_stack([1 - p, p]), groups)
        found = precision_of(clustered, int(y.sum()))
        assert found is not None
        assert found.images is not None
        assert found.patients == math.ceil(found.images / 4 - 0.25) or found.patients == math.ceil(found.images / 4)
        assert "images of about" in found.sentence("test", "image")
        effects.append(found.design_effect)
    assert np.mean(effects) == pytest.approx(1 + 3 * 0.7, rel=0.25)
