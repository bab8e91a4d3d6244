"""The service: how many requests it answers a second, against what `extract` could embed at best."""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import httpx

from hoarfrost.demo import write_demo
from hoarfrost.experiment.experiment import ExperimentConfig, run_experiment
from hoarfrost.features.extraction.extract import extract
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.heads.specs import parse_heads
from hoarfrost.training import TrainingConfig
from tests.benchmarks.extraction import PRECISION, WEIGHTS, decoded_per_second, make_backbone, roof_of, sustained
from tests.benchmarks.measurement import Measurement

N_REQUESTS, N_CLIENTS = 200, 8


def throughput(folder: Path) -> list[Measurement]:
    """Send 200 images of the demo set by 8 clients, in answers alone and in answers with explanations."""
    write_demo(folder / "demo")
    extract(folder / "demo", folder / "demo.h5", options=ExtractOptions(weights=WEIGHTS))
    config = TrainingConfig(epochs=5)
    run_experiment(
        folder / "demo.h5",
        folder / "run",
        parse_heads(["linear"]),
        ExperimentConfig(positive=["malignant"], training=config),
    )
    forward, decoding = sustained(make_backbone(PRECISION)), decoded_per_second(folder / "demo")
    roof = roof_of(forward, decoding)
    contents = [path.read_bytes() for path in islice(sorted((folder / "demo").rglob("*.png")), N_REQUESTS)]
    command = [sys.executable, "-m", "hoarfrost", "serve", "--run", str(folder / "run"), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        _requests_a_second(url, contents[:16], {})  # warm
        plain = _requests_a_second(url, contents, {})
        explained = _requests_a_second(url, contents, {"explain": "true"})
        process.terminate()
    return [
        Measurement(
            f"serve, {N_REQUESTS} requests, {N_CLIENTS} clients, demo: F {forward:.0f}, D {decoding:.0f}, roof {roof:.0f}",
            f"{plain:.1f} answers/s, none lost, {plain / roof:.2f} of the roof; with map and nearest images {explained:.1f}",
            "0.5 of the roof, none lost",
            {"answers": plain, "explained": explained, "roof": roof, "share": plain / roof},
        )
    ]


def _requests_a_second(url: str, contents: list[bytes], parameters: dict[str, str]) -> float:
    with ThreadPoolExecutor(N_CLIENTS) as pool, httpx.Client(timeout=120) as client:

        def ask(content: bytes) -> int:
            return client.post(f"{url}predict", files={"file": ("x.png", content)}, params=parameters).status_code

        started = time.perf_counter()
        statuses = list(pool.map(ask, contents))
        seconds = time.perf_counter() - started
    lost = sum(status != 200 for status in statuses)
    if lost:
        raise AssertionError(f"{lost} of {len(statuses)} requests were not answered")
    return len(contents) / seconds


MEASUREMENTS = {"throughput": throughput}
