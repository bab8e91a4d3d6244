"""Embed what the cache lacks, on this machine."""

import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch

from features.backbone import ARCHITECTURE, Backbone, Weights, load_weights
from features.cache import CacheWriter, DatasetTable, EmbeddedFile, EmbeddingCache, Header, KnownFile
from features.datasets import Dataset, FileStamp, read_dataset
from features.errors import HoarfrostError, ImageDecodeError
from features.fingerprint import KEY_BYTES, Fingerprint, bytes_key, pixels_key
from features.images import PREPROCESSING, SIZE, load_image

if TYPE_CHECKING:
    from features.datasets import Content

SHOWN_ERRORS = 5

logger = logging.getLogger(__name__)


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
        "auto" (float32 on the CPU, bfloat16 on cuda), "float32" or "bfloat16".
    batch_size : int
    workers : int or None
        Threads that read and decode; by default as many as CPUs that this process may use.
    on_error : str
        "skip" records an unreadable image and goes on; "fail" stops at the first.
    """

    weights: str = "imagenet"
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 32
    workers: int | None = None
    on_error: str = "skip"


@dataclass(frozen=True)
class Progress:
    """How far an extraction is: images done of those to do, and images embedded per second."""

    done: int
    total: int
    images_per_second: float


@dataclass(frozen=True)
class ExtractSummary:
    """What an extraction did; `extract --json` prints it.

    `images` = `embedded` + `reused` + `failed`; `forward_images` went through the backbone (fewer
    than `embedded` where the same bytes stand under several paths).
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


@dataclass(frozen=True)
class _Loaded:
    """One image read: its key, and pixels (C, 224, 224) uint8 unless an embedding is there already."""

    index: int
    stamp: FileStamp
    key: bytes
    pixels: torch.Tensor | None


@dataclass(frozen=True)
class _Failed:
    """One image that could not be read."""

    index: int
    reason: str


class _Table:
    """What is known of each image of the data set, filled in as the extraction goes."""

    def __init__(self, n_images: int) -> None:
        self.keys = np.zeros((n_images, KEY_BYTES), np.uint8)
        self.readable = np.zeros(n_images, bool)
        self.sizes = np.full(n_images, -1, np.int64)
        self.mtimes_ns = np.full(n_images, -1, np.int64)
        self.errors: dict[int, str] = {}

    def set(self, index: int, stamp: FileStamp, key: bytes) -> None:
        self.keys[index] = np.frombuffer(key, np.uint8)
        self.readable[index] = True
        self.sizes[index], self.mtimes_ns[index] = stamp.size, stamp.mtime_ns

    def for_dataset(self, dataset: Dataset) -> DatasetTable:
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


def extract(
    data: Path,
    cache: Path,
    *,
    name: str | None = None,
    options: ExtractOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ExtractSummary:
    """Embed a data set's images that the cache lacks, and record the data set in the cache.

    Parameters
    ----------
    data : Path
        What `features.datasets.read_dataset` takes.
    cache : Path
        The cache's HDF5 file; made where it is missing.
    name : str, optional
        The data set's name in the cache.
    options : ExtractOptions, optional
    on_progress : callable
        Called after each batch.

    Returns
    -------
    ExtractSummary

    Raises
    ------
    HoarfrostError
        One of its children, by what is wrong: data set, weights, cache, or (with "fail") an image.
    """
    started = time.monotonic()
    options = options or ExtractOptions()
    dataset = read_dataset(data, name=name)
    device = choose_device(options.device)
    precision = choose_precision(options.precision, device)
    weights = _weights(options.weights, cache)
    fingerprint = Fingerprint(ARCHITECTURE, weights.sha256, PREPROCESSING, precision)
    with CacheWriter(cache, Header(fingerprint, weights.name), dataset.name) as writer:
        table = _Table(len(dataset))
        todo = _recognise(dataset, writer.known_files(), table)
        backbone = partial(Backbone, weights, device=device, precision=precision)
        counts = _Extraction(dataset, writer, table, backbone, options, on_progress).run(todo)
        if not table.readable.any():
            first, reason = next(iter(table.errors.items()))
            raise HoarfrostError(
                f"{data}: none of the {len(dataset)} images could be read. The first: {dataset.paths[first]}: {reason}."
            )
        writer.finish(table.for_dataset(dataset), table.keys)
    seconds = time.monotonic() - started
    errors = tuple((dataset.paths[index], reason) for index, reason in sorted(table.errors.items()))
    return ExtractSummary(
        images=len(dataset),
        embedded=counts.embedded,
        reused=len(dataset) - counts.embedded - len(errors),
        failed=len(errors),
        forward_images=counts.forward_images,
        seconds=seconds,
        images_per_second=len(dataset) / seconds,
        dataset=dataset.name,
        cache=str(cache),
        fingerprint=fingerprint.digest,
        weights=weights.name,
        device=device,
        precision=precision,
        errors=errors,
    )


def choose_device(asked: str) -> str:
    """Turn "auto" into a device that is there; refuse one that is not."""
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise HoarfrostError("--device cuda: torch finds no CUDA device here. Pass --device cpu or auto.")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise HoarfrostError("--device mps: torch finds no Apple GPU here. Pass --device cpu or auto.")
    return asked


def choose_precision(asked: str, device: str) -> str:
    """Turn "auto" into the precision that is fast on the device."""
    if asked == "auto":
        return "bfloat16" if device == "cuda" else "float32"
    return asked


def usable_cpus() -> int:
    """Count the CPUs that this process may use (its affinity), not those of the host."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _weights(spec: str, cache: Path) -> Weights:
    """Load the weights; "auto" stays with what the cache was begun with, whatever the network says today."""
    if spec == "auto" and cache.exists():
        with EmbeddingCache(cache) as begun:
            if begun.header.weights.startswith("random:"):
                logger.warning(
                    "%s was begun with the untrained backbone %s; going on with it.", cache, begun.header.weights
                )
                return load_weights(begun.header.weights)
    return load_weights(spec)


def _recognise(dataset: Dataset, known: dict[str, KnownFile], table: _Table) -> list[int]:
    """Fill in the files that are unchanged since an earlier extraction; list the images to read."""
    todo = []
    for index, path in enumerate(dataset.paths):
        before = known.get(path)
        try:
            stamp = dataset.images.stamp(index) if before is not None else None
        except OSError:
            stamp = None  # reading it will say why
        if before is not None and stamp is not None and (stamp.size, stamp.mtime_ns) == (before.size, before.mtime_ns):
            table.set(index, stamp, before.key)
        else:
            todo.append(index)
    return todo


# -- the loop -----------------------------------------------------------------------------------------------------------


@dataclass
class _Counts:
    """What the loop did so far."""

    embedded: int = 0
    forward_images: int = 0


class _Extraction:
    """Reads, decodes and resizes in threads, and embeds in batches in this one; results keep the data set's order."""

    def __init__(
        self,
        dataset: Dataset,
        writer: CacheWriter,
        table: _Table,
        backbone: Callable[[], Backbone],
        options: ExtractOptions,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.dataset = dataset
        self.writer = writer
        self.table = table
        self.make_backbone = backbone
        self.options = options
        self.on_progress = on_progress
        self.counts = _Counts()
        self.batch: list[_Loaded] = []
        self.pixels = torch.empty((options.batch_size, 3, SIZE, SIZE), dtype=torch.uint8)

    def run(self, todo: Sequence[int]) -> _Counts:
        """Embed the images to do; whatever ends it early, what is finished is committed."""
        if not todo:
            return self.counts
        backbone = self.make_backbone()
        started = time.monotonic()
        try:
            with _StopSignals() as stop:
                for done, result in enumerate(self._results(todo), start=1):
                    self._take(result)
                    if len(self.batch) == self.options.batch_size or done == len(todo):
                        self._embed(backbone)
                        self.on_progress(Progress(done, len(todo), self.counts.embedded / (time.monotonic() - started)))
                        stop.check(done, len(todo))
        finally:
            self.writer.commit()
        return self.counts

    def _take(self, result: "_Loaded | _Failed") -> None:
        """Put one image where it belongs: among the errors, the known, or into the batch."""
        if isinstance(result, _Failed):
            self._fail(result)
        elif result.pixels is None or result.key in self.writer or any(result.key == item.key for item in self.batch):
            self.table.set(result.index, result.stamp, result.key)
        else:
            self.pixels[len(self.batch)] = result.pixels  # one grey channel becomes three here
            self.batch.append(replace(result, pixels=None))

    def _fail(self, failed: _Failed) -> None:
        path = self.dataset.paths[failed.index]
        if self.options.on_error == "fail":
            raise ImageDecodeError(
                f"{path}: {failed.reason}. Copy it again, or pass --on-error skip to list it and go on."
            )
        self.table.errors[failed.index] = failed.reason
        if len(self.table.errors) <= SHOWN_ERRORS:
            logger.warning("%s: %s; left out", path, failed.reason)
        elif len(self.table.errors) == SHOWN_ERRORS + 1:
            logger.warning("more unreadable images; from here on they are recorded without a message each")

    def _embed(self, backbone: Backbone) -> None:
        if not self.batch:
            return
        embeddings = backbone.embed(self.pixels[: len(self.batch)]).numpy()  # (B, 512) float32
        files = [
            EmbeddedFile(self.dataset.paths[item.index], item.stamp.size, item.stamp.mtime_ns, item.key)
            for item in self.batch
        ]
        self.writer.append(files, embeddings)
        for item in self.batch:
            self.table.set(item.index, item.stamp, item.key)
        self.counts.embedded += len(self.batch)
        self.counts.forward_images += len(self.batch)
        self.batch = []

    def _results(self, todo: Sequence[int]) -> "Iterator[_Loaded | _Failed]":
        """Load images in threads, a bounded number ahead, in order."""
        workers = self.options.workers or usable_cpus()
        ahead: deque[Future[_Loaded | _Failed]] = deque()
        # One torch thread in each worker: the backbone's own threads have the cores already.
        with ThreadPoolExecutor(workers, "decode", initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                for index, read in self.dataset.images.contents(todo):
                    ahead.append(pool.submit(self._load, index, read))
                    if len(ahead) >= 2 * self.options.batch_size + workers:
                        yield ahead.popleft().result()
                while ahead:
                    yield ahead.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _load(self, index: int, read: "Callable[[], Content]") -> "_Loaded | _Failed":
        try:
            # Before reading: a file that changes from here on will be seen as changed the next time.
            stamp = self.dataset.images.stamp(index)
            content = read()
            key = bytes_key(content) if isinstance(content, bytes) else pixels_key(content)
            return _Loaded(index, stamp, key, None if key in self.writer else load_image(content))
        except ImageDecodeError as error:
            return _Failed(index, str(error))
        except OSError as error:
            return _Failed(index, error.strerror or str(error))


class _StopSignals:
    """Turns the first SIGINT or SIGTERM into a stop after the batch under way; a second one acts as ever."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signature is Python's
        self.received = signal.Signals(number)
        self._restore()

    def check(self, done: int, total: int) -> None:
        """Stop here if a signal came, unless all is done."""
        if self.received is not None and done < total:
            raise HoarfrostError(
                f"Stopped by {self.received.name} after {done} of {total} images; what is finished is committed. "
                "Run the same command again to go on from there."
            )
