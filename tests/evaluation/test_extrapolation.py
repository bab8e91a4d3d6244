"""The learning curve extrapolated: the law is found, the band covers it, and where it cannot be found nothing is drawn."""

from collections.abc import Sequence

import numpy as np
import pytest

from hoarfrost.evaluation.extrapolation import FURTHEST, extrapolate
from tests.support.curves import LAWS, SHARES, drawn_curve, law


@pytest.mark.parametrize("parameters", LAWS)
def test_law_without_noise_is_found(parameters: tuple[float, float, float]) -> None:
    sizes = [round(1000 * share) for share in SHARES]
    areas = [[law(parameters, n) + e for e in (-1e-4, 0, 1e-4)] for n in sizes]
    found = extrapolate(sizes, areas, [1000, 2000, 4000])
    assert found.reason == ""
    assert found.values == pytest.approx([law(parameters, n) for n in (1000, 2000, 4000)], abs=2e-3)


def test_band_covers_the_law_at_twice_the_images() -> None:
    """The benchmark `statistics.learning_curve_band` has more laws and more draws."""
    covers = []
    for seed in range(60):
        for parameters in LAWS:
            sizes, areas = drawn_curve(np.random.default_rng(seed), parameters, 600, deviation=0.2)
            found = extrapolate(sizes, areas, [1200])
            if not found.reason:
                covers.append(found.low[0] <= law(parameters, 1200) <= found.high[0])
    assert len(covers) > 120
    assert 0.9 <= np.mean(covers) <= 1


def test_band_widens_with_the_distance_and_the_same_curve_gives_the_same_band() -> None:
    sizes, areas = drawn_curve(np.random.default_rng(0), LAWS[0], 600, deviation=0.2)
    found = extrapolate(sizes, areas, [600, 1200, 2400])
    widths = np.array(found.high) - np.array(found.low)
    assert (np.diff(widths) > 0).all()
    assert all(low <= value <= high for low, value, high in zip(found.low, found.values, found.high, strict=True))
    assert extrapolate(sizes, areas, [600, 1200, 2400]) == found


@pytest.mark.parametrize(
    ("areas", "reason"),
    [
        ([[0.7, 0.8], [0.8, 0.82], [0.85, 0.86]], "needs 4 sizes; there are 3"),
        ([[0.7], [0.8], [0.82], [0.85, 0.86], [0.87]], "too few sizes have several draws"),
        ([[0.80, 0.82, 0.81], [0.82, 0.80, 0.81], [0.81, 0.80, 0.82], [0.80, 0.82, 0.81], [0.81]], "does not rise"),
        ([[1.0, 1.0]] * 5, "does not rise"),
        ([[0.5, 0.9], [0.6, 0.9], [0.7, 0.95], [0.6, 0.99], [0.9]], "rise"),
    ],
)
def test_a_law_that_is_not_identified_is_not_drawn(areas: Sequence[Sequence[float]], reason: str) -> None:
    found = extrapolate([10, 20, 40, 80, 160][: len(areas)], areas, [160])
    assert reason in found.reason
    assert found.values == ()


def test_nothing_is_stated_far_from_the_data() -> None:
    sizes, areas = drawn_curve(np.random.default_rng(0), LAWS[0], 600, deviation=0.1)
    with pytest.raises(ValueError, match="more than 4 times"):
        extrapolate(sizes, areas, [FURTHEST * 600 + 1])
