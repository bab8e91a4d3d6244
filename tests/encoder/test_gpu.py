"""What holds on a CUDA device; skipped, saying so, where there is none."""

import logging
from pathlib import Path

import pytest
import torch

from hoarfrost.features.devices import captured
from hoarfrost.features.encoder.backbone import Backbone, Weights, load_weights
from hoarfrost.features.encoder.backbone.compiling import try_to_compile
from hoarfrost.features.encoder.backbone.repeated import WARM_UP
from hoarfrost.features.encoder.precision import choose_precision
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from tests.extraction.test_extract import write_images
from tests.support.commands import RunPython

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device here")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return load_weights("random:0")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (21, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("precision", "least"), [("float32", 0.99999), ("bfloat16", 0.999)])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
def test_embeddings_are_the_cpus(
    weights: Weights, images: torch.Tensor, precision: str, least: float, compiled: bool
) -> None:
    backbone = Backbone(weights, device="cuda", precision=precision, batch_size=8)
    assert not compiled or try_to_compile(backbone)
    found, expected = backbone.embed(images), Backbone(weights).embed(images)
    assert torch.nn.functional.cosine_similarity(found, expected).min() >= least


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_forward_pass_captured_as_a_graph_has_the_bits_of_its_kernels(
    weights: Weights, images: torch.Tensor, caplog: pytest.LogCaptureFixture, precision: str
) -> None:
    caplog.set_level(logging.DEBUG, "hoarfrost")
    backbone = Backbone(weights, device="cuda", precision=precision, batch_size=8)
    one_by_one, *_, last = [backbone.embed(images[:8]) for _ in range(WARM_UP + 3)]
    assert "CUDA graph" not in caplog.text  # only a refusal is logged
    assert torch.equal(one_by_one, last)
    fresh = Backbone(weights, device="cuda", precision=precision, batch_size=8)
    assert torch.equal(backbone.embed(images[8:13]), fresh.embed(images[8:13]))


def test_a_capture_that_is_broken_off_leaves_the_gpu_as_it_was() -> None:
    numbers = torch.ones(1 << 20, device="cuda")
    before = torch.cuda.current_stream()
    with pytest.raises(RuntimeError, match="capturing"):
        captured(lambda: float((numbers * 2).sum()))  # waits for the device
    assert torch.cuda.current_stream() == before
    assert not torch.cuda.is_current_stream_capturing()

    def add() -> None:
        numbers.add_(1)

    captured(add)()
    assert float(numbers.mean()) == 2


def test_batches_in_flight_do_not_mix(weights: Weights, images: torch.Tensor) -> None:
    backbone = Backbone(weights, device="cuda", batch_size=8)
    pinned = [images[first : first + 7].pin_memory() for first in (0, 7, 14)]
    started = [backbone.start(batch) for batch in pinned]
    together = torch.cat([finish() for finish in started])
    assert torch.nn.functional.cosine_similarity(together, backbone.embed(images)).min() >= 0.9999


def test_an_extraction_is_resumed_and_reused(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 20)
    options = ExtractOptions(weights="random:0", device="cuda", batch_size=8)
    first = extract(tmp_path / "images", tmp_path / "c.h5", options=options)
    assert (first.embedded, first.device, first.precision) == (20, "cuda", choose_precision("auto", "cuda"))
    assert extract(tmp_path / "images", tmp_path / "c.h5", options=options).forward_images == 0


def test_a_program_that_chose_tf32_gets_full_float32_and_keeps_its_settings(run_python: RunPython) -> None:
    # In a process of its own: once torch's newer interface was used, the older one may raise errors.
    code = """
import torch
from hoarfrost.features.encoder.backbone import Backbone, load_weights
torch.backends.fp32_precision, torch.backends.cudnn.benchmark = "tf32", True
images = torch.randint(0, 256, (8, 3, 224, 224), dtype=torch.uint8)
found, expected = (Backbone(load_weights("random:0"), device=device).embed(images) for device in ("cuda", "cpu"))
print(bool((torch.nn.functional.cosine_similarity(found, expected) > 0.99999).all()))
print(torch.backends.cudnn.conv.fp32_precision, torch.backends.cudnn.benchmark)
"""
    output = run_python("-c", code)
    assert output.stdout.split() == ["True", "tf32", "True"], output.stderr
