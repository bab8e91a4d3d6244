"""What is computed on: asked for, or chosen."""

import pytest
import torch

from features.devices import choose_device, choose_precision, usable_cpus
from features.errors import HoarfrostError


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(HoarfrostError, match=rf"--device {device}: torch finds no .* Pass --device cpu or auto"):
        choose_device(device)
    assert choose_device("auto") == "cpu"


def test_auto_takes_the_gpu_that_is_there_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"
    assert choose_precision("auto", "cuda") == "bfloat16"
    assert choose_precision("auto", "cpu") == "float32"
    assert choose_precision("float32", "cuda") == "float32"


def test_threads_are_counted_by_the_cpus_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 3, 5}, raising=False)
    assert usable_cpus() == 3
