"""`make bench-gpu`: all that has to be seen on a GPU, in one call of about ten minutes.

It runs the tests that need a GPU, then measures the forward pass (F), decoding (D) and `extract` beside their roof,
decoding by threads and by processes, the forward pass and 1,000 heads on 5,000 embeddings with and without CUDA graphs, and
what a step of training starts. It needs no dataset and no network. Without a GPU it says so and ends with status 1.
"""

import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from hoarfrost.evaluation import macro_roc_aucs
from hoarfrost.features.devices import gpu_failure
from hoarfrost.features.encoder.backbone import repeated
from hoarfrost.features.processors import usable_cpus
from hoarfrost.heads.specs import cross_heads, parse_heads
from hoarfrost.training import Fold, Labelled, TrainingConfig, device_steps, train_heads
from tests.benchmarks import decoding, extraction, image_sets
from tests.benchmarks.measurement import Measurement
from tests.support.commands import ROOT

N_IMAGES = 20_000  # of 256 x 256: some 80 batches
N_HEADS, N_ROWS, N_EPOCHS = 1_000, 5_000, 10
HEADS = ("linear", "mlp:16,dropout=0.3")
WAYS = (("cuda", True), ("cuda", False), ("cpu", False))  # device; as a CUDA graph
NEVER = 10**12  # steps or passes before one is captured
TESTS = ("tests/encoder/test_gpu.py", "tests/training/test_gpu_training.py")
STARTED = (
    "LaunchKernel",
    "GraphLaunch",
    "MemcpyAsync",
    "MemsetAsync",
    "StreamSynchronize",
)  # in names of CUDA's functions


def main() -> int:
    if not torch.cuda.is_available():
        print("No GPU: torch finds no CUDA device on this machine. Nothing was measured.", file=sys.stderr)
        return 1
    if gpu_failure():
        print(f"No usable GPU: {gpu_failure()}. Nothing was measured.", file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name()}, {usable_cpus()} CPUs, torch {torch.__version__}", flush=True)
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", *TESTS], cwd=ROOT, check=False)
    with tempfile.TemporaryDirectory() as folder:
        for measure in (files, decoding.by_number, forward, heads, launches):
            found = measure(Path(folder))
            print(f"{found.what}: {found.measured}", flush=True)
    print("The tests of the GPU passed." if tests.returncode == 0 else "The tests of the GPU FAILED: see above.")
    return tests.returncode


def files(folder: Path) -> Measurement:
    """Measure files/s with F and D beside it."""
    images = image_sets.write_images(folder / "images", N_IMAGES, 256, suffix=".jpg", colour=True)
    return extraction.measure_set(f"{N_IMAGES:,} JPEGs of 256 x 256", images, folder)


def forward(_: Path) -> Measurement:
    """Time the forward pass with and without a CUDA graph, in both precisions."""
    found = {}
    with refusals() as refused:
        for precision in ("float32", "bfloat16"):
            for name, warm_up in (("graph", repeated.WARM_UP), ("kernels", NEVER)):
                with mock.patch.object(repeated, "WARM_UP", warm_up):
                    found[f"{precision} {name}"] = extraction.sustained(extraction.make_backbone(precision))
    text = "; ".join(f"{name} {speed:,.0f} images/s" for name, speed in found.items())
    return Measurement("the forward pass", text + said(refused), "", found)


def heads(_: Path) -> Measurement:
    """Time the training of 1,000 linear heads, and as many that drop activations, with validation at each epoch."""
    found = {}
    with refusals() as refused:
        for head in HEADS:
            for device, is_graph in WAYS:
                with mock.patch.object(device_steps, "WARM_UP", device_steps.WARM_UP if is_graph else NEVER):
                    train = training(head, device)
                    started = time.perf_counter()
                    train(N_EPOCHS)
                found[f"{head} {device}{' graph' * is_graph}"] = (time.perf_counter() - started) / N_EPOCHS
    text = "; ".join(f"{name} {seconds:.2f} s an epoch" for name, seconds in found.items())
    return Measurement(f"{N_HEADS:,} heads on {N_ROWS:,} embeddings", text + said(refused), "", found)


def launches(_: Path) -> Measurement:
    """Count what the host starts on the device in an epoch of the heads that drop activations, by CUDA's own functions."""
    found = {}
    for device, is_graph in WAYS[:2]:
        with mock.patch.object(device_steps, "WARM_UP", device_steps.WARM_UP if is_graph else NEVER):
            train = training(HEADS[-1], device)
            train(1)  # compiles and loads
            kind = getattr(torch.profiler.ProfilerActivity, device.upper())
            with torch.profiler.profile(activities={torch.profiler.ProfilerActivity.CPU, kind}) as profile:
                train(2)
        for event in profile.key_averages():
            if any(name in event.key for name in STARTED):
                found[f"{'graph' if is_graph else 'kernels'} {event.key}"] = event.count / 2
    text = "; ".join(f"{name} {count:,.0f}" for name, count in found.items()) or "nothing"
    return Measurement(f"started in an epoch of {N_HEADS:,} heads, {HEADS[-1]}", text, "", found)


def training(head: str, device: str) -> Callable[[int], None]:
    """Return what trains so many epochs of all variants of a head on a device."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N_ROWS, 512, generator=generator)
    y = (x[:, :5].sum(1) > 0).long()
    data, rows = Labelled(x.to(device), y.to(device)), np.arange(N_ROWS)
    fold = Fold(rows[: N_ROWS // 2], rows[N_ROWS // 2 :])
    rates = ",".join(f"{rate:.6g}" for rate in np.logspace(-4, -2, N_HEADS // 10))
    decays = ",".join(f"{decay:.6g}" for decay in np.logspace(-4, -1, 10))
    specs = cross_heads(parse_heads([head]), [f"lr={rates}", f"weight_decay={decays}"])

    def train(n_epochs: int) -> None:
        train_heads(specs, data, [fold], 2, TrainingConfig(epochs=n_epochs, patience=n_epochs), macro_roc_aucs)

    return train


@contextmanager
def refusals() -> Iterator[list[str]]:
    """Collect why something was not captured as a CUDA graph."""
    found: list[str] = []
    handler, log = logging.Handler(logging.DEBUG), logging.getLogger("hoarfrost")
    handler.emit = lambda record: found.append(record.getMessage()) if "CUDA graph" in record.msg else None  # type: ignore[method-assign]
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield found
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def said(refused: list[str]) -> str:
    return f"; NOT CAPTURED: {refused[0]}" if refused else "; captured as CUDA graphs"


if __name__ == "__main__":
    sys.exit(main())
