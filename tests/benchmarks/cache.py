"""The cache: kills, unchanged files, a million embeddings."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hoarfrost.features.cache import CacheFile, EmbeddingCache, verify
from hoarfrost.features.cache.layout import Block
from hoarfrost.features.cache.store import part_paths
from hoarfrost.features.cache.writing import write_cache_file
from hoarfrost.features.decoding.images import encode_png
from tests.benchmarks.measurement import Measurement
from tests.support.caches import HEADER, some_table

SECONDS_A_BATCH = 0.1
N_KILLS = 200


def extract_command(images: Path, cache: Path, seconds_a_batch: float) -> list[str]:
    return [
        sys.executable, "-m", "tests.support.standin", str(seconds_a_batch), "extract", str(images), "--cache", str(cache),
        "--weights", "random:0", "--device", "cpu", "--precision", "float32", "--batch-size", "4", "--json",
    ]  # fmt: skip


def write_images(root: Path, first: int, n: int) -> None:
    for label in "ab":
        (root / label).mkdir(parents=True, exist_ok=True)
    for i in range(first, first + n):
        pixels = np.frombuffer(i.to_bytes(4, "big") * 3, np.uint8).reshape(2, 2, 3)
        (root / "ab"[i % 2] / f"{i:07d}.png").write_bytes(encode_png(pixels))


def embeddings_by_path(cache: Path) -> dict[str, bytes]:
    with EmbeddingCache(cache) as opened:
        table = opened.dataset()
        embeddings, _ = opened.arrays(table)
        return {path: row.tobytes() for path, row in zip(table.paths, embeddings, strict=True)}


def kills(folder: Path) -> list[Measurement]:
    """SIGKILL real extractions at random moments; images are added so that there is always work."""
    images, cache = folder / "images", folder / "c.h5"
    write_images(images, 0, 400)
    n_images, n_lost, n_unsound, n_working = 400, 0, 0, 0
    keys: dict[str, bytes] = {}  # of each part that was ever seen committed
    chance = random.Random(0)
    for kill in range(1, N_KILLS + 1):
        process = subprocess.Popen(
            extract_command(images, cache, SECONDS_A_BATCH), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(chance.uniform(1, 6.5))
        for path in part_paths(cache):
            keys.setdefault(path.name, _keys(path))
        n_working += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        left = {path.name for path in part_paths(cache)}
        n_lost += sum(len(content) // 32 for name, content in keys.items() if name not in left)
        if kill % 20 == 0:
            n_unsound += not verify(cache).sound
            n_lost += sum(_keys(path) != keys.get(path.name, _keys(path)) for path in part_paths(cache))
            print(f"{kill} kills, {len(keys)} parts", file=sys.stderr, flush=True)
        if 4 * len(keys) > n_images - 100:
            write_images(images, n_images, 100)
            n_images += 100
    subprocess.run(extract_command(images, cache, 0), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    whole = folder / "whole.h5"
    subprocess.run(extract_command(images, whole, 0), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    same = embeddings_by_path(cache) == embeddings_by_path(whole)
    return [
        Measurement(
            f"{N_KILLS} SIGKILLs at random moments ({n_working} while working), {n_images} images",
            f"{n_lost} committed rows lost, {n_unsound} times unsound, final map {'identical' if same else 'DIFFERS'}",
            "0 lost, sound, bit-identical",
            {"kills": N_KILLS, "lost": n_lost, "unsound": n_unsound, "identical": float(same)},
        )
    ]


def unchanged(folder: Path) -> list[Measurement]:
    """Nothing to do on 100,000 files; then 1,000 new among them."""
    images, cache = folder / "images", folder / "c.h5"
    write_images(images, 0, 100_000)
    command = extract_command(images, cache, 0)
    command[command.index("--batch-size") + 1] = "1024"
    subprocess.run(command, capture_output=True, check=True)
    bare = min(_seconds([sys.executable, "-c", ""]) for _ in range(3))
    plain = [sys.executable, "-m", "hoarfrost", *command[4:]]
    idle = min(_seconds(plain) for _ in range(3)) - bare
    write_images(images, 100_000, 1_000)
    trace = folder / "opened"
    summary = json.loads(
        subprocess.run(
            command, capture_output=True, check=True, env={**os.environ, "HOARFROST_TEST_OPENED": str(trace)}
        ).stdout
    )
    n_opened = len(set(trace.read_text().splitlines()))
    return [
        Measurement(
            "`extract` with nothing to do, 100,000 files", f"{idle:.2f} s beyond the interpreter's start", "under 3 s",
            {"seconds": idle},
        ),
        Measurement(
            "1,000 new among 100,000", f"{n_opened:,} image files opened, {summary['embedded']:,} embedded", "1,000",
            {"opened": n_opened, "embedded": summary["embedded"], "seconds": summary["seconds"]},
        ),
    ]  # fmt: skip


def _keys(part: Path) -> bytes:
    with CacheFile(part) as file:
        return file.keys.tobytes()


def _seconds(command: list[str]) -> float:
    started = time.monotonic()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - started


def million(folder: Path) -> list[Measurement]:
    """Write a million embeddings and read them back, against np.load of the same array."""
    n, block = 1_000_000, 1 << 14
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((block, 512), np.float32)

    def blocks() -> Iterator[Block]:
        for start in range(0, n, block):
            size = min(block, n - start)
            yield Block(rng.integers(0, 256, (size, 32), np.uint8), embeddings[:size])

    memory_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    write_cache_file(folder / "c.h5", HEADER, n, blocks(), [some_table(1, rows=np.zeros(1, np.int64))])
    write_s = time.monotonic() - started
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_before) / 1024
    n_bytes = n * 2048
    with CacheFile(folder / "c.h5") as file:
        np.save(folder / "plain.npy", file.embeddings())
    reads, loads = [], []
    for _ in range(5):  # alternating, so that both see the same machine
        started = time.monotonic()
        with CacheFile(folder / "c.h5") as file:
            file.embeddings()
        reads.append(n_bytes / (time.monotonic() - started) / 1e9)
        started = time.monotonic()
        np.load(folder / "plain.npy")
        loads.append(n_bytes / (time.monotonic() - started) / 1e9)
    read, load = float(np.median(reads)), float(np.median(loads))
    return [
        Measurement(
            "1,000,000 embeddings written (CRC-32, Fletcher-32, synced)", f"{n_bytes / write_s / 1e9:.2f} GB/s", "",
            {"gb_per_s": n_bytes / write_s / 1e9},
        ),
        Measurement(
            "the same read whole, every checksum checked", f"{read:.2f} GB/s, {read / load:.2f} of np.load",
            "1 GB/s, 0.4", {"gb_per_s": read, "np_load_gb_per_s": load, "ratio": read / load},
        ),
        Measurement("memory that writing them took", f"{grown_mb:.0f} MB", "not growing with rows", {"mb": grown_mb}),
    ]  # fmt: skip


MEASUREMENTS = {"million": million, "unchanged": unchanged, "kills": kills}
