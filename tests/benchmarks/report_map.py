"""How long the report takes with the map and the pictures, and what memory."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from hoarfrost.features.cache import CacheWriter, DatasetTable, EmbeddedFile
from hoarfrost.features.fingerprint import bytes_key
from hoarfrost.runs import write_run
from tests.benchmarks.measurement import Measurement
from tests.support.builders import encode, picture
from tests.support.caches import HEADER
from tests.support.labelled import embeddings_of
from tests.support.made_runs import make_run

N_OF_SPLIT = {"train": 2_000, "val": 1_000, "test": 10_000}
N_HEADS = 10
MOST_SECONDS, MOST_BYTES, MOST_MB = 15, 3_000_000, 1_000


def report_with_map(folder: Path) -> list[Measurement]:
    """Ten heads and 10,000 test images, each a file of its own; the command as it is typed, in a process of its own."""
    cache, images = folder / "c.h5", folder / "images"
    run = make_run(folder / "run", heads=[f"mlp:{2**i}" for i in range(1, N_HEADS + 1)], n_of_split=N_OF_SPLIT)
    embeddings = replace(
        run.config.embeddings, cache=str(cache), fingerprint=HEADER.fingerprint.digest, weights=HEADER.weights
    )
    run = replace(run, config=replace(run.config, embeddings=embeddings))
    paths, labels = list(run.predictions.paths), list(run.predictions.labels)
    _write(cache, images, paths, labels)
    write_run(run, {})
    started = time.perf_counter()
    command = [sys.executable, "-m", "tests.benchmarks.peak", "hoarfrost", "report", "--run", str(run.directory)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "2"}
    )
    seconds = time.perf_counter() - started
    found = re.search(r"peak ([\d.]+) MB", done.stderr)
    assert found
    report = run.directory / "report.html"
    html = report.read_text(encoding="utf-8")
    assert html.count("<img ") >= 2 * 12
    assert "t-SNE of 5,000 embeddings" in html
    measured = f"{seconds:.1f} s, peak {found[1]} MB, {report.stat().st_size / 1e6:.2f} MB"
    demanded = f"{MOST_SECONDS} s, {MOST_MB:,} MB, {MOST_BYTES / 1e6:.0f} MB"
    what = f"report of {N_HEADS} heads and {N_OF_SPLIT['test']:,} test images, with pictures and t-SNE of 5,000"
    figures = {"seconds": seconds, "peak_mb": float(found[1]), "bytes": float(report.stat().st_size)}
    return [Measurement(what, measured, demanded, figures)]


def _write(cache: Path, images: Path, paths: list[str], labels: list[str]) -> None:
    """Write the pictures, some hundred different ones, and a cache that knows each."""
    contents = [encode(picture(256, 256, seed=seed)) for seed in range(200)]
    keys = []
    for i, path in enumerate(paths):
        content = contents[i % len(contents)] + f"{i}".encode()  # after the picture's end: bytes of its own
        (images / path).parent.mkdir(parents=True, exist_ok=True)
        (images / path).write_bytes(content)
        keys.append(bytes_key(content))
    ones = np.ones(len(paths), np.int64)
    with CacheWriter(cache, HEADER, "phantoms", root=str(images)) as writer:
        files = [EmbeddedFile(path, 1, 1, key) for path, key in zip(paths, keys, strict=True)]
        writer.append(files, embeddings_of(labels))
        table = DatasetTable(
            "phantoms", "demo", paths, ones * 0, labels, [""] * len(paths), ones, ones, root=str(images)
        )
        writer.finish(table, np.frombuffer(b"".join(keys), np.uint8).reshape(len(paths), -1))


MEASUREMENTS = {"with_map": report_with_map}
