"""`make bench-gpu`: all that has to be seen on a GPU, in one call of about ten minutes.

It runs the tests that need a GPU, then measures the forward pass (F), decoding (D) and `extract` beside their roof,
decoding by threads and by processes, and 1,000 heads on 5,000 embeddings. It needs no dataset and no network. Without a
GPU it says so and ends with status 1.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from hoarfrost.features.devices import gpu_failure, usable_cpus
from tests.benchmarks import decoding, extraction, image_sets
from tests.benchmarks.measurement import Measurement
from tests.support.commands import ROOT

N_IMAGES = 20_000  # of 256 x 256: some 80 batches
N_HEADS, N_ROWS, N_EPOCHS = 1_000, 5_000, 10
DEVICES = ("cuda", "cpu")


def main() -> int:
    if not torch.cuda.is_available():
        print("No GPU: torch finds no CUDA device on this machine. Nothing was measured.", file=sys.stderr)
        return 1
    if gpu_failure():
        print(f"No usable GPU: {gpu_failure()}. Nothing was measured.", file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name()}, {usable_cpus()} CPUs, torch {torch.__version__}", flush=True)
    tests = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests/encoder/test_gpu.py"], cwd=ROOT, check=False)
    with tempfile.TemporaryDirectory() as folder:
        for measure in (files, decoding.by_number, heads):
            found = measure(Path(folder))
            print(f"{found.what}: {found.measured}", flush=True)
    print("The tests of the GPU passed." if tests.returncode == 0 else "The tests of the GPU FAILED: see above.")
    return tests.returncode


def files(folder: Path) -> Measurement:
    """Measure files/s with F and D beside it."""
    images = image_sets.write_images(folder / "images", N_IMAGES, 256, suffix=".jpg", colour=True)
    return extraction.measure_set(f"{N_IMAGES:,} JPEGs of 256 x 256", images, folder)


def heads(_: Path) -> Measurement:
    """Time the training of 1,000 linear heads, and as many that drop activations, with validation at each epoch."""
    from hoarfrost.evaluation import macro_roc_aucs
    from hoarfrost.heads.specs import cross_heads, parse_heads
    from hoarfrost.training import Fold, Labelled, TrainingConfig, train_heads

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N_ROWS, 512, generator=generator)
    y = (x[:, :5].sum(1) > 0).long()
    rows = np.arange(N_ROWS)
    fold, config = Fold(rows[: N_ROWS // 2], rows[N_ROWS // 2 :]), TrainingConfig(epochs=N_EPOCHS, patience=N_EPOCHS)
    rates = ",".join(f"{rate:.6g}" for rate in np.logspace(-4, -2, N_HEADS // 10))
    found = {}
    for head in ("linear", "mlp:16,dropout=0.3"):
        decays = ",".join(f"{decay:.6g}" for decay in np.logspace(-4, -1, 10))
        specs = cross_heads(parse_heads([head]), [f"lr={rates}", f"weight_decay={decays}"])
        for device in DEVICES:
            started = time.perf_counter()
            train_heads(specs, Labelled(x.to(device), y.to(device)), [fold], 2, config, macro_roc_aucs)
            found[f"{head} {device}"] = (time.perf_counter() - started) / N_EPOCHS
    text = "; ".join(f"{name} {seconds:.2f} s an epoch" for name, seconds in found.items())
    return Measurement(f"{N_HEADS:,} heads on {N_ROWS:,} embeddings", text, "", found)


if __name__ == "__main__":
    sys.exit(main())
