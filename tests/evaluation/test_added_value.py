"""What images add to covariates: paired differences, and intervals that cover the gain of known effects."""

import numpy as np
import pytest

from hoarfrost.evaluation import compare_heads, decision_curve, roc_auc
from hoarfrost.evaluation.added_value import (
    BOTH,
    CLINICAL,
    IMAGES,
    MODELS,
    Scored,
    decision_curves,
    gains,
    joined,
    model_scores,
)
from hoarfrost.evaluation.comparison import holm
from hoarfrost.evaluation.decision import net_benefit
from tests.support.clinical import cohort, estimated, gain_of_effects, gains_of

N_COHORTS = 150


def scored(n: int = 120, *, seed: int = 0, patients: bool = False) -> Scored:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(np.int64)
    p = {name: 1 / (1 + np.exp(-rng.normal(size=n) - y * (1 + i))) for i, name in enumerate(MODELS)}
    two = {name: np.column_stack([1 - one, one]) for name, one in p.items()}
    return Scored(y, np.arange(n) // 2 if patients else None, two, p, np.full(n, 0.3))


def test_gains_are_the_paired_differences_of_areas_corrected_for_both_comparisons() -> None:
    data = scored()
    found = gains(data)
    assert [one.over for one in found] == [CLINICAL, IMAGES]
    for one in found:
        (alone,) = compare_heads(
            data.y, {BOTH: data.probabilities[BOTH], one.over: data.probabilities[one.over]}, one.over
        )
        areas = [roc_auc(data.y, data.likely[name]) for name in (BOTH, one.over)]
        assert one.roc_auc == alone.difference
        assert one.roc_auc.value == pytest.approx(areas[0] - areas[1])
        assert one.p == alone.p
    p_values = [one.p for one in found]
    assert None not in p_values
    assert [one.p_holm for one in found] == holm([p for p in p_values if p is not None]).tolist()


def test_net_benefit_is_that_of_the_decision_curve_and_its_gain_has_the_bootstraps_deviation() -> None:
    data = scored(300, seed=1)
    models = {one.name: one.net_benefit for one in model_scores(data)}
    for name in MODELS:
        curve = decision_curve(data.y, data.likely[name], np.array([0.3]))
        own = models[name]
        assert own is not None
        assert own.value == pytest.approx(curve.net_benefit[0])
        assert own.low == pytest.approx(curve.low[0])
    rng, odds = np.random.default_rng(2), 0.3 / 0.7

    def difference(rows: np.ndarray) -> float:
        ours, theirs = (net_benefit(data.y[rows], data.likely[name][rows] >= 0.3, odds)[0] for name in (BOTH, CLINICAL))
        return ours - theirs

    drawn = [difference(rng.integers(0, 300, 300)) for _ in range(2000)]
    found = gains(data)[0].net_benefit
    assert found is not None
    assert found.value == pytest.approx(difference(np.arange(300)))
    assert found.high is not None
    assert (found.high - found.value) / 1.96 == pytest.approx(np.std(drawn), rel=0.08)


@pytest.mark.parametrize("prevalence", [None, 0.1])
def test_influence_on_net_benefit_is_what_a_sample_changes(prevalence: float | None) -> None:
    rng = np.random.default_rng(3)
    y, treated, odds = rng.integers(0, 2, 400), rng.random(400) < 0.5, np.where(np.arange(400) < 200, 0.2, 0.4)
    value, influence = net_benefit(y, treated, odds, prevalence)
    assert influence.sum() == pytest.approx(0, abs=1e-9)
    for i in (0, 17, 399):
        twice = np.append(np.arange(400), i)
        again = net_benefit(y[twice], treated[twice], odds[twice], prevalence)[0]
        assert again - value == pytest.approx(influence[i], abs=3e-5)


def test_images_of_a_patient_are_clusters_and_folds_widen_intervals() -> None:
    once, clustered = gains(scored())[0], gains(scored(patients=True))[0]
    assert once.roc_auc.value == clustered.roc_auc.value
    assert clustered.roc_auc.method == "clustered by patient"
    assert clustered.net_benefit is not None
    assert "clustered by patient" in clustered.net_benefit.method
    folded = gains(scored(), n_folds=5)[0]
    for wide, own in ((folded.roc_auc, once.roc_auc), (folded.net_benefit, once.net_benefit)):
        assert wide is not None
        assert own is not None
        assert (wide.high - wide.low) / (own.high - own.low) == pytest.approx(1.5)  # the root of 2.25


def test_folds_are_joined_and_without_a_threshold_there_is_no_net_benefit() -> None:
    parts = [scored(seed=seed) for seed in range(3)]
    whole = joined(parts)
    assert len(whole.y) == 360
    assert decision_curves(whole).keys() == {*MODELS}
    bare = Scored(parts[0].y, None, parts[0].probabilities, {}, np.full(120, np.nan))
    assert [one.net_benefit for one in gains(joined([bare, bare]))] == [None, None]
    assert decision_curves(bare) == {}


def test_gain_of_known_effects_is_covered() -> None:
    rng, covers, useless = np.random.default_rng(0), [], []
    for distance, found in ((1.2, covers), (0.0, useless)):
        population = cohort(rng, 20_000, distance=distance)
        for _ in range(N_COHORTS):
            parts, truth = estimated(
                rng, cohort(rng, 300, distance=distance), cohort(rng, 120, distance=distance), population
            )
            for place, one in enumerate(gains_of(parts)):
                assert one.net_benefit is not None
                for figure, target in zip((one.roc_auc, one.net_benefit), truth[place], strict=True):
                    found.append(figure.low is None or figure.low <= target <= figure.high)
    assert 0.92 <= np.mean(covers) <= 0.98
    assert np.mean(useless) >= 0.92


def test_effects_that_are_not_there_allow_no_gain() -> None:
    population = cohort(np.random.default_rng(4), 20_000, distance=0.0)
    over_clinical, over_images = gain_of_effects(population)
    assert over_clinical == pytest.approx(0, abs=1e-9)
    assert over_images > 0.15
