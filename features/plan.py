"""What an extraction is asked for, what it knows of each image, and how it reports."""

from dataclasses import dataclass

import numpy as np

from features.cache import DatasetTable
from features.datasets import Dataset, FileStamp
from features.fingerprint import KEY_BYTES


@dataclass(frozen=True)
class ExtractOptions:
    """How to extract.

    Attributes
    ----------
    weights : str
        See `features.backbone.load_weights`.
    device : str
        "auto" (cuda where there is one, else cpu), "cpu", "cuda" or "mps".
    precision : str
        "auto" (the cache's own; for a new one bfloat16 where the device multiplies it natively, else
        float32), "float32", "bfloat16" or "int8" (on the CPU, by OpenVINO).
    batch_size : int or None
        By default 256 on a GPU, else 32. On a CPU, where results do not depend on it, no more than 64 are taken at
        once, so that an extraction commits and stops within seconds.
    workers : int or None
        Threads that read and decode; by default as many as CPUs that this process may use.
    on_error : str
        "skip" records an unreadable image and goes on; "fail" stops at the first.
    rehash : bool
        Read every file again, even where size and mtime say that it is unchanged.
    """

    weights: str = "imagenet"
    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    on_error: str = "skip"
    rehash: bool = False


@dataclass(frozen=True)
class Progress:
    """How far an extraction is: images done of those to do, and images embedded per second."""

    done: int
    total: int
    images_per_second: float


@dataclass(frozen=True)
class ExtractSummary:
    """What an extraction did; `extract --json` prints it.

    `images` = `embedded` + `reused` + `failed`; `forward_images` went through the backbone.
    """

    images: int
    embedded: int
    reused: int
    failed: int
    forward_images: int
    seconds: float
    images_per_second: float
    dataset: str
    cache: str
    fingerprint: str
    weights: str
    device: str
    precision: str
    errors: tuple[tuple[str, str], ...] = ()


@dataclass
class LoopCounts:
    """What the loop did so far, and on which device."""

    device: str
    embedded: int = 0
    forward_images: int = 0


class ImageTable:
    """What is known of each image of the data set, filled in as the extraction goes."""

    def __init__(self, n_images: int) -> None:
        self.keys = np.zeros((n_images, KEY_BYTES), np.uint8)
        self.readable = np.zeros(n_images, bool)
        self.sizes = np.full(n_images, -1, np.int64)
        self.mtimes_ns = np.full(n_images, -1, np.int64)
        self.errors: dict[int, str] = {}

    def set(self, index: int, stamp: FileStamp, key: bytes) -> None:
        """Note a readable image: the key of its bytes, and size and mtime of its file."""
        self.keys[index] = np.frombuffer(key, np.uint8)
        self.readable[index] = True
        self.sizes[index], self.mtimes_ns[index] = stamp.size, stamp.mtime_ns

    def for_dataset(self, dataset: Dataset) -> DatasetTable:
        """Make the cache's table; `rows` says only which images are readable (0) and which are not (-1)."""
        return DatasetTable(
            name=dataset.name,
            source=dataset.source,
            paths=dataset.paths,
            rows=np.where(self.readable, 0, -1),
            labels=dataset.labels,
            errors=[self.errors.get(index, "") for index in range(len(dataset))],
            sizes=self.sizes,
            mtimes_ns=self.mtimes_ns,
            splits=dataset.splits,
            patients=dataset.patients,
            attributes=dataset.attributes,
        )
