"""A temperature is shrunken towards 1, never at a limit, and used only where it helps samples that it was not fitted on."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from hoarfrost.evaluation import apply_temperature, assess_calibration, fit_temperature
from hoarfrost.evaluation.calibration import PRIOR_DEVIATION
from hoarfrost.evaluation.checks import Floats, Ints
from hoarfrost.runs.trust import Recalibration
from tests.evaluation.test_calibration import calibrated, logits, two_columns


def log_loss(y_true: Ints, probabilities: Floats, temperature: float) -> float:
    found = apply_temperature(probabilities, temperature)
    return -float(np.log(found[np.arange(len(y_true)), y_true]).mean())


def overconfident(n: int, temperature: float, seed: int) -> tuple[Ints, Floats]:
    y_true, p = calibrated(n, seed=seed)
    return y_true, two_columns(1 / (1 + np.exp(-temperature * logits(p))))


def test_temperature_minimises_loss_and_prior_together() -> None:
    y_true, probabilities = overconfident(150, 2.0, seed=3)

    def penalised(log_temperature: float) -> float:
        prior = (log_temperature / PRIOR_DEVIATION) ** 2 / 2
        return 150 * log_loss(y_true, probabilities, math.exp(log_temperature)) + prior

    slow = minimize_scalar(penalised, bounds=(-3, 3), method="bounded", options={"xatol": 1e-9}).x
    assert fit_temperature(y_true, probabilities).temperature == pytest.approx(math.exp(slow), rel=1e-5)


def test_fewer_samples_are_shrunken_more() -> None:
    y_true, probabilities = overconfident(40, 3.0, seed=1)
    few = fit_temperature(y_true, probabilities)
    many = fit_temperature(np.tile(y_true, 50), np.tile(probabilities, (50, 1)))
    assert 1 < few.temperature < many.temperature


def test_a_patient_counts_once_however_many_images() -> None:
    y_true, probabilities = overconfident(40, 3.0, seed=1)
    copies = fit_temperature(np.tile(y_true, 5), np.tile(probabilities, (5, 1)), np.tile(np.arange(40), 5))
    assert copies.temperature == pytest.approx(fit_temperature(y_true, probabilities).temperature, rel=1e-6)


@pytest.mark.parametrize("n", [2, 10, 500])
def test_perfect_separation_leaves_the_temperature_at_one(n: int) -> None:
    y_true = np.arange(2 * n) % 2
    p = np.where(y_true == 1, 0.7, 0.3) + np.linspace(-0.1, 0.1, 2 * n)
    fit = fit_temperature(y_true, two_columns(p))
    assert (fit.temperature, fit.at_limit, fit.loss_after) == (1.0, True, fit.loss_before)
    assert "separated perfectly" in fit.reason


def test_scores_that_say_nothing_leave_the_temperature_at_one() -> None:
    y_true = np.array([0, 1] * 20)
    fit = fit_temperature(y_true, two_columns(np.where(y_true == 1, 0.2, 0.8)))
    assert (fit.temperature, fit.at_limit) == (1.0, True)


def test_a_temperature_that_does_not_help_left_out_samples_is_not_used_and_this_is_said() -> None:
    fits = [fit_temperature(*overconfident(60, 1.0, seed=seed)) for seed in range(40)]
    unused = [fit for fit in fits if fit.temperature == 1]
    assert len(unused) > 20  # calibrated already: a temperature mostly fits noise
    assert all("log loss no better" in fit.reason and fit.loss_after == fit.loss_before for fit in unused)
    assert all(not fit.reason for fit in fits if fit.temperature != 1)


def test_samples_without_a_second_patient_leave_the_temperature_at_one() -> None:
    y_true, probabilities = overconfident(60, 3.0, seed=0)
    assert fit_temperature(y_true, probabilities, np.zeros(60, np.int64)).temperature == 1


def test_six_cases_hardly_ever_make_new_samples_worse() -> None:
    y_new, p_new = overconfident(4_000, 1.0, seed=999)
    losses = []
    for seed in range(200):
        y_true, probabilities = overconfident(6, 1.0, seed=seed)
        if 0 < y_true.sum() < 6:
            losses.append(log_loss(y_new, p_new, fit_temperature(y_true, probabilities).temperature))
    # The likelihood alone, clipped at its limits, averages about 1.0 above the calibrated loss.
    assert np.mean(losses) < log_loss(y_new, p_new, 1.0) + 0.01


def test_verdict_names_why_there_is_no_temperature() -> None:
    y_true, probabilities = overconfident(200, 1.0, seed=0)
    found = assess_calibration(y_true, probabilities)
    fit = fit_temperature(np.array([0, 0, 1, 1]), two_columns(np.array([0.1, 0.3, 0.7, 0.9])))
    verdict = Recalibration(fit, found, found).verdict
    assert "No temperature scaling (T = 1): the best one is beyond 0.05 or 20" in verdict
