"""How long heads are trained: sensible from 40 images to a million, unless the configuration says it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hoarfrost.heads.config import TrainingConfig
from hoarfrost.training import plan
from hoarfrost.training.plan import Plan, plan_for

SIZES = (40, 253, 780, 4_000, 10_000, 100_000, 1_000_000)


def test_the_table_of_the_module_is_what_is_planned() -> None:
    rows = [line.replace(",", "").split() for line in str(plan.__doc__).splitlines() if line[:1].isdigit()]
    found = [(n, plan_for(TrainingConfig(), n)) for n in SIZES]
    assert [[int(number) for number in row] for row in rows] == [
        [n, one.batch_size, one.steps_per_epoch, one.epochs, one.epochs * one.steps_per_epoch] for n, one in found
    ]


@given(st.integers(1, 10**8))
def test_every_number_of_images_gets_a_sensible_plan(n: int) -> None:
    found = plan_for(TrainingConfig(), n)
    n_steps = found.epochs * found.steps_per_epoch
    assert 32 <= found.batch_size <= 512
    assert found.epochs >= 1
    assert (found.steps_per_epoch - 1) * found.batch_size < n <= found.steps_per_epoch * found.batch_size
    assert 300 <= n_steps < max(4_000, found.steps_per_epoch) + found.steps_per_epoch


def test_what_the_configuration_says_is_kept() -> None:
    assert plan_for(TrainingConfig(epochs=7), 780) == Plan(32, 25, 7, "one-cycle")
    assert plan_for(TrainingConfig(batch_size=100, schedule="cosine"), 780) == Plan(100, 8, 38, "cosine")
    assert plan_for(TrainingConfig(epochs=2, batch_size=4096), 780) == Plan(4096, 1, 2, "one-cycle")


@pytest.mark.parametrize("n_steps", [10, 99, 1_000])
def test_one_cycle_is_torchs(n_steps: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    wanted = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=n_steps)
    for step in range(n_steps):
        assert Plan(32, 1, n_steps, "one-cycle").rate(step) == pytest.approx(wanted.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step + 1 < n_steps:
            wanted.step()


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "constant"])
@pytest.mark.parametrize("n_steps", [1, 2, 3, 4])
def test_a_few_steps_are_taken_too(schedule: str, n_steps: int) -> None:
    rates = [Plan(32, n_steps, 1, schedule).rate(step) for step in range(n_steps)]
    assert 0.5 < max(rates) <= 1
    assert min(rates) >= 0
