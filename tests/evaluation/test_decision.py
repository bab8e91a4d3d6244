"""Decision curves: against net benefit counted patient by patient."""

import numpy as np
import pytest
from hypothesis import given

from hoarfrost.evaluation import decision_curve
from tests.support.samples import Floats, Ints, Sample, samples

AT = np.array([0.05, 0.125, 0.3, 0.5, 0.875])


def slow_net_benefit(y_true: Ints, p: Floats, threshold: float) -> float:
    benefit = 0.0
    for y, probability in zip(y_true, p, strict=True):
        if probability >= threshold:
            benefit += 1 if y == 1 else -threshold / (1 - threshold)
    return benefit / len(y_true)


@given(samples())
def test_net_benefit_is_that_counted_patient_by_patient(sample: Sample) -> None:
    y_true, p = sample
    curve = decision_curve(y_true, p, AT)
    assert curve.net_benefit == pytest.approx([slow_net_benefit(y_true, p, t) for t in AT], abs=1e-12)
    assert curve.treat_all == pytest.approx([slow_net_benefit(y_true, np.ones(len(p)), t) for t in AT], abs=1e-12)


def test_at_a_low_threshold_all_are_treated() -> None:
    curve = decision_curve(np.array([0, 0, 1]), np.array([0.2, 0.6, 0.7]), np.array([0.1]))
    assert curve.net_benefit == pytest.approx(curve.treat_all)


def test_stated_prevalence_is_as_if_the_classes_were_so_frequent() -> None:
    y_true, p = np.array([0, 0, 1, 1, 1]), np.array([0.1, 0.6, 0.3, 0.7, 0.9])
    many = np.repeat([0, 1], [18, 3])
    probabilities = np.concatenate([np.tile(p[:2], 9), p[2:]])
    assert decision_curve(y_true, p, AT, prevalence=1 / 7).net_benefit == pytest.approx(
        decision_curve(many, probabilities, AT).net_benefit
    )


@pytest.mark.parametrize(
    ("y_true", "p", "thresholds", "prevalence", "message"),
    [
        ([1, 1], [0.1, 0.2], [0.5], None, "needs both classes; there are 2 positive"),
        ([0, 1], [0.1, np.nan], [0.5], None, "y_score holds NaN"),
        ([0, 1], [0.1, 1.5], [0.5], None, "p holds values outside 0 to 1"),
        ([0, 1], [0.1], [0.5], None, r"y_true has the shape \(2,\), y_score \(1,\)"),
        ([0, 1], [0.1, 0.5], [0.0, 0.5], None, "thresholds must be between 0 and 1, both excluded"),
        ([0, 1], [0.1, 0.5], [1.0], None, "thresholds must be between 0 and 1, both excluded"),
        ([0, 1], [0.1, 0.5], [0.5], 1.0, "prevalence must be between 0 and 1, not 1.0"),
    ],
)
def test_curve_refuses_what_is_undefined(
    y_true: list[int], p: list[float], thresholds: list[float], prevalence: float | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decision_curve(np.array(y_true), np.array(p), np.array(thresholds), prevalence=prevalence)
