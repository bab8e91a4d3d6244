"""The weights of the mean of all kinds, and how a head is selected."""

import numpy as np
import pytest
from scipy.optimize import minimize

from hoarfrost.experiment.variants import LEAST_WEIGHT, stacking_weights


def loss(weights: np.ndarray, p: np.ndarray) -> float:
    return float(-np.log(weights @ p).mean())


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("n_models", [2, 3, 5])
def test_weights_are_those_that_a_general_optimiser_finds(seed: int, n_models: int) -> None:
    rng = np.random.default_rng(seed)
    p = rng.beta(rng.uniform(1, 4, (n_models, 1)), rng.uniform(0.5, 3, (n_models, 1)), (n_models, 400)).clip(1e-7)
    found = stacking_weights(list(p))
    best = minimize(
        loss, np.full(n_models, 1 / n_models), (p,), method="SLSQP", bounds=[(0, 1)] * n_models,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1}, options={"ftol": 1e-12, "maxiter": 500},
    )  # fmt: skip
    assert found.sum() == pytest.approx(1, abs=1e-12)
    assert ((found == 0) | (found >= LEAST_WEIGHT)).all()
    # What is left out weighs little: no more than so many weights of the least size may be missing.
    assert np.abs(found - best.x).max() <= LEAST_WEIGHT * n_models
    assert loss(found, p) == pytest.approx(best.fun, abs=2e-3)


def test_a_model_that_adds_nothing_gets_no_weight() -> None:
    p = np.random.default_rng(0).uniform(0.5, 1, 300)
    assert stacking_weights([p, p * 0.5]).tolist() == [1, 0]


def test_equal_models_weigh_the_same() -> None:
    p = np.random.default_rng(0).uniform(0.1, 1, 300)
    assert stacking_weights([p, p, p]) == pytest.approx(np.full(3, 1 / 3))
