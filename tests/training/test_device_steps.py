"""Steps on a simulated GPU: no copies, one graph, one draw for all heads, and the results of the host."""

import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from hoarfrost.evaluation import macro_roc_aucs
from hoarfrost.heads.layers import Standardise
from hoarfrost.heads.specs import cross_heads, parse_heads
from hoarfrost.training import (
    Fold,
    HeldRows,
    Labelled,
    TrainedHead,
    TrainingConfig,
    device_steps,
    stack_run,
    train_heads,
)
from hoarfrost.training.batches import Group
from hoarfrost.training.dropout import CountedDropout, DrawnDropout
from hoarfrost.training.looks import Looks
from hoarfrost.training.objective import SingleLabel
from hoarfrost.training.records import Material
from hoarfrost.training.stack_run import StackRun
from tests.support.launches import Launches, recorded

HEADS = ["mlp:8,dropout=0.3", "mlp:8,dropout=0.3,lr=0.1", "mlp:8,dropout=0,lr=0.1"]
CONFIG = TrainingConfig(epochs=12, batch_size=16, seeds=2)
ROWS = np.arange(91)
PARTS = ROWS % 5
FOLDS = [Fold(ROWS[fold != PARTS], ROWS[fold == PARTS]) for fold in range(2)]  # of different sizes


def data(device: str = "cpu") -> Labelled:
    y = torch.arange(91) % 3
    x = torch.randn(91, 8, generator=torch.Generator().manual_seed(0)) + nn.functional.one_hot(y, 8)
    return Labelled(x.to(device), y.to(device))


def trained(
    heads: list[str] = HEADS, config: TrainingConfig = CONFIG, labelled: Labelled | None = None
) -> list[TrainedHead]:
    return train_heads(parse_heads(heads), labelled or data(), FOLDS, 3, config, macro_roc_aucs)


def histories(heads: list[TrainedHead]) -> list[tuple[object, ...]]:
    return [(one.spec, one.seed, one.fold, one.best_epoch, one.history) for one in heads]


def weights(head: TrainedHead) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in head.module.state_dict().values()])


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the CPU take its steps as a GPU does, without a graph."""
    monkeypatch.setattr(stack_run, "is_gpu", lambda _: True)


# -- results -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patience", [2, None])
def test_heads_without_dropout_learn_what_they_learn_on_the_host(
    monkeypatch: pytest.MonkeyPatch, patience: int | None
) -> None:
    config = replace(CONFIG, patience=patience)
    on_host = trained(["mlp:8x2,dropout=0", "linear,lr=0.01"], config)
    monkeypatch.setattr(stack_run, "is_gpu", lambda _: True)
    for found, expected in zip(trained(["mlp:8x2,dropout=0", "linear,lr=0.01"], config), on_host, strict=True):
        assert (found.spec, found.seed, found.fold, found.best_epoch) == (
            expected.spec, expected.seed, expected.fold, expected.best_epoch,
        )  # fmt: skip
        torch.testing.assert_close(weights(found), weights(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("patience", [2, None])
@pytest.mark.parametrize("at_once", [10, 10**9])
def test_a_graphs_repetition_has_the_same_results_as_one_kernel_after_another(
    monkeypatch: pytest.MonkeyPatch, patience: int | None, at_once: int
) -> None:
    """What is repeated are operations on memory alone: nothing of a step may be left in Python's numbers."""
    config, n_captured = replace(CONFIG, patience=patience), []

    def capture(step: Callable[[], None]) -> Callable[[], None]:
        n_captured.append(step)
        return recorded(step)

    eager = histories(trained(config=config))
    monkeypatch.setattr(device_steps, "NUMBERS_AT_ONCE", at_once)
    monkeypatch.setattr(device_steps, "captured", capture)
    assert histories(trained(config=config)) == eager
    assert len(n_captured) >= (2 if patience else 1)  # again where heads have left the stack


@pytest.mark.usefixtures("gpu")
def test_several_looks_are_repeated_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, y = torch.randn(182, 8, generator=torch.Generator().manual_seed(1)), torch.arange(91) % 3
    labelled = Labelled(Looks(HeldRows(rows), ("a", "b")), y)
    monkeypatch.setattr("hoarfrost.training.looks.TRANSFORMED_NUMBERS", 1)  # chosen each time they are taken
    heads = ["linear", "linear,views=a", "linear,views=b+a"]
    eager = histories(trained(heads, labelled=labelled))
    monkeypatch.setattr(device_steps, "captured", recorded)
    assert histories(trained(heads, labelled=labelled)) == eager


@pytest.mark.usefixtures("gpu")
def test_where_capturing_fails_it_is_logged_and_kernels_are_started_one_by_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "hoarfrost")
    found = histories(trained())  # this torch, or this machine, has no CUDA
    assert "The steps of training are not a CUDA graph (" in caplog.text
    monkeypatch.setattr(device_steps, "WARM_UP", 10**9)
    assert histories(trained()) == found


# -- dropout -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("gpu")
def test_what_a_head_drops_depends_on_no_other_head() -> None:
    config = replace(CONFIG, patience=2)
    together = trained(config=config)
    assert len({len(head.history) for head in together}) > 1  # some leave the stack
    for head in together:
        alone = train_heads(
            [head.spec], data(), FOLDS, 3, replace(config, seed=head.seed, seeds=1), macro_roc_aucs
        )[head.fold]  # fmt: skip
        assert (alone.best_epoch, len(alone.history)) == (head.best_epoch, len(head.history))
        torch.testing.assert_close(weights(head), weights(alone), rtol=1e-4, atol=1e-5)


def counted(
    rates: list[list[float]], n_heads: int, shape: tuple[int, int], *, layer: int = 0, step: int = 0
) -> torch.Tensor:
    dropout = CountedDropout(rates, [2**62 // 7 * (i + 1) for i in range(n_heads)], torch.ones(1))
    return dropout(torch.ones(n_heads, *shape), layer, torch.tensor(float(step)), ())


def test_a_rates_share_is_dropped_and_the_mean_stays() -> None:
    found = counted([[0.1, 0.5, 0.0]], 3, (500, 400))
    shares = (found == 0).float().mean((1, 2))
    assert shares.tolist() == pytest.approx([0.1, 0.5, 0.0], abs=0.005)  # ten standard errors
    assert found.mean((1, 2)).tolist() == pytest.approx([1, 1, 1], abs=0.01)


def test_masks_of_heads_steps_layers_rows_and_units_are_unrelated() -> None:
    rates = [[0.5, 0.5], [0.5, 0.5]]
    first = counted(rates, 2, (300, 300))
    masks = [
        first[0], first[1], first[0].T, first[0].roll(1, 0), first[0].roll(1, 1),
        counted(rates, 2, (300, 300), step=1)[0], counted(rates, 2, (300, 300), layer=1)[0],
    ]  # fmt: skip
    related = torch.corrcoef(torch.stack([mask.flatten() for mask in masks]))
    assert (related - torch.eye(len(masks))).abs().max() < 0.02  # six standard errors


def test_rows_that_pad_change_no_mask() -> None:
    assert torch.equal(counted([[0.5]], 1, (7, 5)), counted([[0.5]], 1, (9, 5))[:, :7])


# -- what a GPU has to do ----------------------------------------------------------------------------------------------


def run_of(n_heads: int, device: str, *, n_groups: int = 1) -> StackRun:
    """Return heads with dropout in one stack, on a device without data."""
    rates = ",".join(f"{rate:.6g}" for rate in np.logspace(-4, -2, n_heads))
    specs = cross_heads(parse_heads(["mlp:16,dropout=0.3"]), [f"lr={rates}"])
    x, zero, one = torch.zeros(91, 8), torch.zeros(8), torch.ones(8)
    standardise = [Standardise(zero.to(device), one.to(device), "none") for _ in FOLDS]
    material = Material(HeldRows(x.to(device)), torch.arange(91) % 3, FOLDS, standardise, SingleLabel(3))
    groups = [Group(0, fold) for fold in range(n_groups)]
    return StackRun(specs, groups, material, CONFIG, macro_roc_aucs)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("n_groups", [1, 2])
def test_an_epoch_copies_its_order_and_a_step_nothing(monkeypatch: pytest.MonkeyPatch, n_groups: int) -> None:
    monkeypatch.setattr("hoarfrost.training.stack.FUSED", {"meta"})
    run = run_of(3, "meta", n_groups=n_groups)
    assert run._steps is not None
    for _ in range(2):  # the first makes room
        with Launches() as found:
            run._steps.epoch([1.0] * run.batches.n_steps, run.x.device)
    assert found.copies == ["aten.copy_.default"] * 3  # rows, their numbers, rates
    with Launches() as found:
        run._steps._step()
    assert found.copies == []


def launches_a_step(n_heads: int, monkeypatch: pytest.MonkeyPatch, dropout: type) -> int:
    monkeypatch.setattr("hoarfrost.training.stack.CountedDropout", dropout)
    run = run_of(n_heads, "cpu")
    batch = next(run.batches.epoch())
    with Launches() as found:
        run._step(batch, torch.tensor(1.0))
    return found.kernels.total()


@pytest.mark.usefixtures("gpu")
def test_launches_a_step_do_not_grow_with_the_number_of_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    many = launches_a_step(200, monkeypatch, CountedDropout)
    assert many == launches_a_step(20, monkeypatch, CountedDropout) < 120
    assert launches_a_step(200, monkeypatch, DrawnDropout) > 200 > many
