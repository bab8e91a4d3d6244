"""Training on a CUDA device; skipped, saying so, where there is none."""

import logging

import pytest
import torch

from hoarfrost.training import device_steps
from tests.training.test_device_steps import HEADS, data, histories, run_of, trained, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")


def test_steps_are_captured_as_a_graph_with_the_results_of_one_kernel_after_another(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "hoarfrost")
    repeated = histories(trained(labelled=data("cuda")))
    assert "CUDA graph" not in caplog.text  # only a refusal is logged
    monkeypatch.setattr(device_steps, "WARM_UP", 10**9)
    assert histories(trained(labelled=data("cuda"))) == repeated


def test_heads_without_dropout_learn_what_they_learn_on_the_host() -> None:
    plain = ["mlp:8x2,dropout=0", "linear,lr=0.01"]
    for found, expected in zip(trained(plain, labelled=data("cuda")), trained(plain), strict=True):
        torch.testing.assert_close(weights(found).cpu(), weights(expected), rtol=1e-3, atol=1e-4)


def test_heads_with_dropout_learn_about_as_well() -> None:
    found, expected = (trained(HEADS, labelled=data(device)) for device in ("cuda", "cpu"))
    losses = [torch.tensor([head.history[-1].val_loss for head in heads]).mean() for heads in (found, expected)]
    torch.testing.assert_close(*losses, rtol=0.1, atol=0.05)


def test_nothing_of_a_step_waits_for_the_device() -> None:
    run = run_of(3, "cuda")
    assert run._steps is not None
    run._steps.epoch([1.0] * run.batches.n_steps, run.x.device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run._steps._step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
