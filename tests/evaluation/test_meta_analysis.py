"""Random-effects summaries: known values, an obvious computation beside them, and how often the intervals cover."""

import math

import numpy as np
import pytest
from scipy import stats

from hoarfrost.evaluation.estimates import Estimate
from hoarfrost.evaluation.meta_analysis import RandomEffects, random_effects, random_effects_of_areas

# The thirteen trials of the BCG vaccine (Colditz et al. 1994): tpos, tneg, cpos, cneg.
BCG = (
    *((4, 119, 11, 128), (6, 300, 29, 274), (3, 228, 11, 209), (62, 13536, 248, 12619), (33, 5036, 47, 5761)),
    *((180, 1361, 372, 1079), (8, 2537, 10, 619), (505, 87886, 499, 87892), (29, 7470, 45, 7232)),
    *((17, 1699, 65, 1600), (186, 50448, 141, 27197), (5, 2493, 3, 2338), (27, 16886, 29, 17825)),
)


def log_risk_ratios() -> tuple[list[float], list[float]]:
    """Return the logarithms of the relative risks, and their standard errors."""
    estimates, errors = [], []
    for a, b, c, d in BCG:
        estimates.append(math.log(a / (a + b)) - math.log(c / (c + d)))
        errors.append(math.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d)))
    return estimates, errors


def slowly(estimates: list[float], errors: list[float], level: float) -> RandomEffects:
    """Return the summary by the formulae of the papers, term by term."""
    k = len(estimates)
    w = [1 / e**2 for e in errors]
    fixed = sum(a * b for a, b in zip(w, estimates, strict=True)) / sum(w)
    q = sum(a * (b - fixed) ** 2 for a, b in zip(w, estimates, strict=True))
    tau2 = max(0, (q - (k - 1)) / (sum(w) - sum(a**2 for a in w) / sum(w)))
    w = [1 / (e**2 + tau2) for e in errors]
    mean = sum(a * b for a, b in zip(w, estimates, strict=True)) / sum(w)
    hartung_knapp = sum(a * (b - mean) ** 2 for a, b in zip(w, estimates, strict=True)) / ((k - 1) * sum(w))
    variance = max(hartung_knapp, 1 / sum(w))
    half = stats.t(k - 1).ppf((1 + level) / 2) * math.sqrt(variance)
    around = stats.t(k - 2).ppf((1 + level) / 2) * math.sqrt(tau2 + variance) if k > 2 else None
    ends = (None, None) if around is None else (mean - around, mean + around)
    return RandomEffects(mean, mean - half, mean + half, tau2, max(0, (q - (k - 1)) / q), *ends, k)


def test_bcg_trials_have_the_published_values() -> None:
    found = random_effects(*log_risk_ratios())
    # metafor's documentation, rma(measure="RR", method="DL"): tau^2 0.3088, I^2 92.12%, estimate -0.7141
    assert found.tau2 == pytest.approx(0.3088, abs=5e-5)
    assert found.i2 == pytest.approx(0.9212, abs=5e-5)
    assert found.mean == pytest.approx(-0.7141, abs=5e-5)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_summary_is_that_of_the_papers_formulae(seed: int, level: float) -> None:
    rng = np.random.default_rng(seed)
    k = int(rng.integers(2, 12))
    errors = rng.uniform(0.05, 0.6, k).tolist()
    estimates = (1 + rng.normal(0, [0.0, 0.5][seed % 2], k) + rng.normal(0, errors)).tolist()
    found, slow = random_effects(estimates, errors, level), slowly(estimates, errors, level)
    for name, value in vars(slow).items():
        assert getattr(found, name) == (None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12)), name


def test_sites_that_agree_exactly_do_not_narrow_the_interval_to_nothing() -> None:
    found = random_effects([0.5, 0.5, 0.5], [0.2, 0.2, 0.2])
    assert found.tau2 == 0 and found.i2 == 0
    assert found.high - found.low > 2 * 1.96 * 0.2 / math.sqrt(3)


def test_two_sites_have_no_prediction_interval() -> None:
    found = random_effects([0.1, 0.9], [0.1, 0.1])
    assert (found.prediction_low, found.prediction_high) == (None, None)


def test_intervals_cover_the_mean_and_a_new_site() -> None:
    rng, covered, predicted = np.random.default_rng(0), 0, 0
    for _ in range(1_000):
        errors = rng.uniform(0.1, 0.4, 8)
        found = random_effects((rng.normal(0, 0.3, 8) + rng.normal(0, errors)).tolist(), errors.tolist())
        covered += found.low <= 0 <= found.high
        assert found.prediction_low is not None and found.prediction_high is not None
        predicted += found.prediction_low <= rng.normal(0, 0.3) <= found.prediction_high
    assert 930 <= covered <= 985
    assert 890 <= predicted <= 985  # with eight sites the variance between them is uncertain (Partlett and Riley 2017)


@pytest.mark.parametrize(
    ("estimates", "errors", "message"),
    [
        ([0.5], [0.1], "needs two sites; there are 1"),
        ([0.5, 0.6], [0.1], "2 estimates, but 1 standard errors"),
        ([0.5, 0.6], [0.1, 0.0], "above zero"),
        ([0.5, math.nan], [0.1, 0.1], "finite"),
    ],
)
def test_what_cannot_be_summarised_is_refused(estimates: list[float], errors: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        random_effects(estimates, errors)


def test_areas_are_summarised_on_the_scale_of_logits() -> None:
    def area(centre: float, error: float) -> Estimate:
        low, value, high = (
            1 / (1 + math.exp(-x)) for x in (centre - 1.959964 * error, centre, centre + 1.959964 * error)
        )
        return Estimate(value, low, high)

    centres, errors = [2.0, 1.5, 2.6, 1.1], [0.2, 0.3, 0.25, 0.4]
    found, plain = (
        random_effects_of_areas([area(c, e) for c, e in zip(centres, errors, strict=True)]),
        random_effects(centres, errors),
    )
    assert math.log(found.mean / (1 - found.mean)) == pytest.approx(plain.mean, abs=1e-6)
    assert found.prediction_low is not None and plain.prediction_low is not None
    assert math.log(found.prediction_low / (1 - found.prediction_low)) == pytest.approx(plain.prediction_low, abs=1e-6)
    assert found.tau2 == pytest.approx(plain.tau2, abs=1e-6)


def test_area_of_one_has_no_logit() -> None:
    with pytest.raises(ValueError, match="an area of 0 or 1"):
        random_effects_of_areas([Estimate(1.0, 0.9, 1.0), Estimate(0.9, 0.8, 0.95)])
