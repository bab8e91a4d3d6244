"""What grows with a dataset: ten million rows on the driver, files asked for their stamps, a cache in shards."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import h5py
import numpy as np

from hoarfrost.features.cache import CacheWriter, EmbeddingCache
from hoarfrost.features.cache.folding import write_cache
from hoarfrost.features.cache.layout import Block, SourceFile, rows_per_shard
from hoarfrost.features.cache.shards import shards_directory
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets.table import FileImages
from tests.benchmarks import ten_million
from tests.benchmarks.measurement import Measurement
from tests.support.caches import HEADER, some_files, some_images, some_table

N_ROWS = 10_000_000
N_FILES = 100_000
N_EMBEDDINGS, N_SHARDS, N_RANDOM = 1_000_000, 16, 10_000
N_TIMES = 8


def driver(folder: Path) -> list[Measurement]:
    """List ten million rows, hash as many records, and ask what a cache of 99% of them lacks."""
    csv, cache = folder / "large.csv", folder / "c.h5"
    ten_million.write_csv(csv, N_ROWS)
    ten_million.write_cache(cache, str(folder.resolve()), N_ROWS * 99 // 100)
    command = [sys.executable, "-m", "tests.benchmarks.peak", "tests.benchmarks.ten_million", csv, cache, str(N_ROWS)]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(child.stdout)
    peak = float(child.stderr.split("peak ")[1].split()[0])
    seconds = {name: found[name] for name in ("listing", "hashing", "missing", "lookup")}
    assert found["to_do"] == found["not_in_cache"] == N_ROWS // 100
    return [
        Measurement(
            f"{N_ROWS:,} rows of a CSV, {N_ROWS * 99 // 100:,} of them in the cache, no file read",
            f"listed in {seconds['listing']:.1f} s, hashed (32 bytes each) in {seconds['hashing']:.1f} s, unchanged ones "
            f"told in {seconds['missing']:.1f} s, all keys looked up in {seconds['lookup']:.1f} s: "
            f"{sum(seconds.values()):.1f} s, of that on a processor {found['cpu']:.1f} s; peak memory {peak:,.0f} MB",
            "60 s, 3,000 MB",
            {**seconds, "cpu": found["cpu"], "total": sum(seconds.values()), "peak_mb": peak},
        )
    ]


def stamps(folder: Path) -> list[Measurement]:
    """Ask the file system for size and time of many small files."""
    paths = [f"{i // 1000:03d}/{i:06d}.png" for i in range(N_FILES)]
    for path in paths:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(b"x")
    images = FileImages(str(folder), Texts.of(paths))
    ((seconds,),) = _least_in_turn([[partial(images.stamps, of_urls=False)]])
    return [
        Measurement(
            f"size and time of {N_FILES:,} files on a local disk",
            f"{seconds:.2f} s, {1e6 * seconds / N_FILES:.1f} µs a file", "", {"seconds": seconds},
        )
    ]  # fmt: skip


def shards(folder: Path) -> list[Measurement]:
    """Read embeddings from one file, from shards behind our index, and from the same shards as a virtual dataset."""
    one, many, virtual = folder / "one.h5", folder / "many.h5", folder / "virtual.h5"
    most = next(
        size for size in range(10**8, 10**9, 10**6) if rows_per_shard(size, HEADER.dim) * N_SHARDS >= N_EMBEDDINGS
    )
    for path, shard_bytes in ((one, 64 * 10**9), (many, most)):
        source, table = SourceFile(N_EMBEDDINGS, _blocks), some_table(1)
        write_cache(path, HEADER, [source], np.ones(N_EMBEDDINGS, bool), [table], [], shard_bytes)
    _write_virtual(virtual, many)
    rows = np.sort(np.random.default_rng(1).choice(N_EMBEDDINGS, N_RANDOM, replace=False))

    def ours(path: Path) -> tuple[Callable[[], object], ...]:
        def reading(asked: np.ndarray | None) -> None:
            with EmbeddingCache(path) as cache:
                cache.embeddings(asked)

        return lambda: EmbeddingCache(path).__exit__(None, None, None), lambda: reading(None), lambda: reading(rows)

    def theirs() -> tuple[Callable[[], object], ...]:
        def reading(asked: object) -> None:
            with h5py.File(virtual) as file:
                file["embedding"][asked]

        return lambda: reading(0), lambda: reading(...), lambda: reading(rows)

    ways = (("one file", ours(one)), (f"{N_SHARDS} shards", ours(many)), ("virtual dataset", theirs()))
    found = [*map(_shard_line, [name for name, _ in ways], _least_in_turn([way for _, way in ways])), _fold(many)]
    next(shards_directory(many).glob("*.h5")).unlink()
    with h5py.File(virtual) as file:
        n_zero = int((~file["embedding"][...].any(axis=1)).sum())
    found.append(
        Measurement("a virtual dataset, of which one shard is missing", f"no error; {n_zero:,} rows of zeros", "")
    )
    return found


def _shard_line(name: str, seconds: Sequence[float]) -> Measurement:
    open_s, whole_s, random_s = seconds
    speed = N_EMBEDDINGS * 2048 / whole_s / 1e9
    return Measurement(
        f"{N_EMBEDDINGS:,} embeddings, {name}",
        f"opened in {1000 * open_s:.1f} ms; all read at {speed:.2f} GB/s; {N_RANDOM:,} random rows in {random_s:.2f} s",
        "", {"open_s": open_s, "gb_per_s": speed, "random_s": random_s},
    )  # fmt: skip


def _fold(cache: Path) -> Measurement:
    """Add few images to many."""
    before = {shard.name for shard in shards_directory(cache).iterdir()}
    keys, embeddings = some_images(4096, 7)
    with CacheWriter(cache, HEADER, "new") as writer:
        writer.append(some_files(keys), embeddings)
        started = time.monotonic()
        writer.finish(some_table(4096, "new"), keys)
        seconds = time.monotonic() - started
    written = [shard for shard in shards_directory(cache).iterdir() if shard.name not in before]
    n_bytes = sum(shard.stat().st_size for shard in written)
    return Measurement(
        f"4,096 images folded into {N_SHARDS} shards of {N_EMBEDDINGS:,}",
        f"{seconds:.1f} s, {n_bytes / 1e6:.0f} MB in {len(written)} of the shards written", "",
        {"seconds": seconds, "bytes": n_bytes},
    )  # fmt: skip


def _blocks() -> Iterator[Block]:
    rng, size = np.random.default_rng(0), 1 << 14
    embeddings = rng.standard_normal((size, 512), np.float32)
    for start in range(0, N_EMBEDDINGS, size):
        n = min(size, N_EMBEDDINGS - start)
        yield Block(rng.integers(0, 256, (n, 32), np.uint8), embeddings[:n])


def _write_virtual(path: Path, cache: Path) -> None:
    with h5py.File(cache) as index:
        names, numbers = index["shards/name"][...].tolist(), index["shards/n_images"][...].tolist()
    layout, start = h5py.VirtualLayout((sum(numbers), 512), np.float32), 0
    for name, n in zip(names, numbers, strict=True):
        shard = shards_directory(cache) / name.decode()
        layout[start : start + n] = h5py.VirtualSource(str(shard), "images/embedding", (n, 512))
        start += n
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("embedding", layout)


def _least_in_turn(ways: Sequence[Sequence[Callable[[], object]]]) -> list[list[float]]:
    """Time all ways in turns, so that they see the same machine; on a shared one the least disturbed time is the truest."""
    least = [[float("inf")] * len(way) for way in ways]
    for _ in range(N_TIMES):
        for way, of_way in zip(ways, least, strict=True):
            for i, what in enumerate(way):
                started = time.monotonic()
                what()
                of_way[i] = min(of_way[i], time.monotonic() - started)
    return least


MEASUREMENTS = {"driver": driver, "stamps": stamps, "shards": shards}
