"""What a dataset of millions costs before anything is read: listing, hashing, and telling what the cache lacks.

Run as a script by `tests.benchmarks.scale`, in a process of its own: its memory is part of the answer.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from hoarfrost.features.cache import CacheWriter, DatasetTable, Keys
from hoarfrost.features.cache.layout import Block
from hoarfrost.features.cache.writing import write_cache_file
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.datasets import Dataset, FileStamp, Stamps, read_dataset
from hoarfrost.features.extraction.extract import set_unchanged
from hoarfrost.features.extraction.plan import ImageRecords
from tests.support.caches import HEADER

BLOCK = 100_000
LABELS, SPLITS = ("benign", "malignant", "normal"), ("train", "train", "train", "val", "test")


def path_of(i: int) -> str:
    return f"site{i % 17:02d}/patient{i // 3:08d}/image{i:08d}.png"


def write_csv(path: Path, n: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("path,label,patient,split\n")
        for first in range(0, n, BLOCK):
            file.writelines(
                f"{path_of(i)},{LABELS[i // 3 % 3]},patient{i // 3:08d},{SPLITS[i // 3 % 5]}\n"
                for i in range(first, min(n, first + BLOCK))
            )


def hash_into(keys: Keys) -> Keys:
    """Hash records of 32 bytes, one for each image."""
    n = len(keys)
    for first in range(0, n, BLOCK):
        numbers = np.arange(first, min(n, first + BLOCK), dtype=np.int64)
        records = np.repeat(numbers, 4).tobytes()
        digests = [hashlib.sha256(records[at : at + 32]).digest() for at in range(0, len(records), 32)]
        keys[first : first + len(numbers)] = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
    return keys


def stamps_of(n: int) -> Stamps:
    return Stamps(np.arange(n) + 1000, np.arange(n) + 10**18, np.zeros(n, bool))


@dataclass(frozen=True)
class Unread:
    """Files that are as they were, and are never read."""

    location: str
    n: int

    def stamp(self, index: int) -> FileStamp:
        raise NotImplementedError

    def stamps(self, *, of_urls: bool) -> Stamps:  # noqa: ARG002 - the protocol's
        return stamps_of(self.n)

    def contents(self, indices: Sequence[int]) -> Iterator[tuple[int, Callable[[], bytes]]]:
        raise NotImplementedError

    def region(self, index: int) -> None: ...


def write_cache(path: Path, root: str, n: int) -> None:
    """Write a cache of `n` images whose table and keys are real, and whose embeddings take no room."""
    some = (first for first in range(0, n, BLOCK))
    table = DatasetTable(
        name="large",
        source="large",
        root=root,
        paths=Texts.joined(Texts.of(map(path_of, range(first, min(n, first + BLOCK)))) for first in some),
        rows=np.arange(n),
        labels=Texts.of(LABELS).take(np.arange(n) // 3 % 3),
        errors=Texts.repeated("", n),
        sizes=stamps_of(n).sizes,
        mtimes_ns=stamps_of(n).mtimes_ns,
    )
    one = Block(np.zeros((1, 32), np.uint8), np.zeros((1, 512), np.float32))
    write_cache_file(path, HEADER, 1, [one], [table])
    keys = hash_into(np.empty((n, 32), np.uint8))
    with h5py.File(path, "r+", libver=("v110", "v110")) as file:
        images, n_chunks = file["images"], -(-n // 1024)
        for name in list(images):
            del images[name]
        images.create_dataset("key", data=keys, chunks=(1024, 32), fletcher32=True)
        images.create_dataset("row_crc32", (n,), np.uint32, chunks=(1 << 16,), fletcher32=True)[...] = 0
        images.create_dataset("chunk_crc32", (n_chunks,), np.uint32, chunks=(n_chunks,), fletcher32=True)[...] = 0
        shape, chunks = (n, 512), (1024, 512)
        embeddings = images.create_dataset(
            "embedding", shape, np.float32, chunks=chunks, compression="gzip", fletcher32=True
        )
        embeddings[:1024] = 0
        zeros = embeddings.id.read_direct_chunk((0, 0))[1]  # the chunk as it is stored, packed to next to nothing
        for number in range(1, n_chunks):
            embeddings.id.write_direct_chunk((number * 1024, 0), zeros)


def measure(csv: Path, cache: Path, n: int) -> dict[str, float]:
    """Do it, in the order of an extraction."""
    seconds: dict[str, float] = {}
    clock, cpu = time.monotonic(), time.process_time()

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name], clock = time.monotonic() - clock, time.monotonic()

    dataset: Dataset = read_dataset(csv, name="large")
    lap("listing")
    dataset = replace(dataset, images=Unread(os.path.realpath(csv.parent), n))
    with CacheWriter(cache, HEADER, "large", root=dataset.images.location) as writer:
        table = ImageRecords(n)
        todo = set_unchanged(dataset, writer.known_files(), table, lambda keys: np.ones(len(keys), bool))
        lap("missing")
        hash_into(table.keys)
        lap("hashing")
        rows = writer.find(table.keys)
        lap("lookup")
    return {**seconds, "cpu": time.process_time() - cpu, "to_do": len(todo), "not_in_cache": int((rows < 0).sum())}


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))))
