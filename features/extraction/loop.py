"""The extraction loop: threads read, decode and resize ahead of the encoder."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import compress, islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hoarfrost.features.cache import EmbeddedFile, EmbeddingCache, Embeddings, PartWriter
from hoarfrost.features.datasets import Dataset, ImageSource
from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.quarantine import Quarantine, seen_isolated
from hoarfrost.features.decoding.views import View, standard_view
from hoarfrost.features.devices import compute_on_one_thread, enough_threads, threads_on_usable_cpus
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError, Reason
from hoarfrost.features.extraction.buffers import Buffers, Pixels, Places, n_decoders
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.features.extraction.pace import Pace, Readers
from hoarfrost.features.extraction.plan import ExtractOptions, ImageRecords, LoopCounts, Progress
from hoarfrost.features.extraction.reading import Failed, Loaded, Reader, Results, Unread, stacked
from hoarfrost.features.facts import ImageFacts

if TYPE_CHECKING:
    from hoarfrost.features.encoder.backbone import Backbone

SHOW_SECONDS = 0.2  # between calls of on_progress
TASKS_A_WORKER = 4  # of each batch: few enough to cost little, so many that workers end together; 1 of a process
SAMPLE_IMAGES = 128


@dataclass(frozen=True)
class Work:
    """What a run of the loop embeds: images at `todo` (ascending) of a source; `table` records the outcome of each.

    `on_failed` is called with the index and the reason of each unreadable image; it ends the run if it raises.
    """

    images: ImageSource
    paths: Sequence[str]
    todo: Sequence[int]
    table: ImageRecords
    on_failed: Callable[[int, Reason], None] = lambda *_: None
    on_progress: Callable[[Progress], None] = lambda _: None


class _Batch(NamedTuple):
    """Images that are read together: each worker fills places of its own in `pixels`.

    For each size S of views there is a buffer (B * L, 3, S, S) uint8 for the L looks of B images.
    """

    pixels: Pixels
    tasks: "list[Future[Future[Results]]]"  # reading returns the decoding
    n_images: int

    def results(self) -> "Iterator[Loaded | Failed]":
        """Yield the images in order, as soon as they are ready."""
        for task in self.tasks:
            yield from task.result().result()


class _InFlight(NamedTuple):
    """A batch on the device: its images that are embedded, and how to get the embeddings."""

    batch: _Batch
    images: list[Loaded]
    embeddings: dict[int, Callable[[], torch.Tensor]]  # of all looks of a size, in the order of the images
    compute: str  # its compute path


@dataclass(eq=False)
class EmbeddingLoop:
    """Reads, decodes and resizes in threads, and embeds in batches in this one; results keep the order of the images.

    `writer` receives the embeddings, and knows which are there already; `quarantine` is entered; `make_backbone` is called
    when the first image needs it; what `source_cache` has is copied; `views` are computed, by default the encoder's own;
    so many processes, if any, decode and resize in place of the threads.
    """

    writer: PartWriter
    quarantine: Quarantine
    make_backbone: "Callable[[], Backbone]"
    device: str
    batch_size: int
    options: ExtractOptions
    source_cache: EmbeddingCache | None = None
    views: tuple[View, ...] = ()
    n_processes: int = 0

    def __post_init__(self) -> None:
        options, encoder = self.options, self.writer.header.fingerprint.encoder
        self.views = self.views or (standard_view(encoder),)
        self._codes = {view: self.writer.header.code_of(view.name) for view in self.views}
        self._n_decoders = self.n_processes or n_decoders(options)
        self._buffers = Buffers(
            Places(self.views), self.batch_size, self.device, self.n_processes,
            may_use_threads=options.decode != "processes",
        )  # fmt: skip
        self._decoding = Decoding(
            options.max_pixels, options.window, self._buffers.budget, self._note_of_image, size=encoder.size
        )
        self._may_decode = threading.Event()
        self._may_decode.set()
        self._counting = threading.Lock()
        self._on_device: deque[_InFlight] = deque()
        self._keys_on_device: set[bytes] = set()
        # A reading thread looks a key up in the cache; those that it may miss are in batches that still had a buffer.
        self._recent_keys: deque[set[bytes]] = deque(maxlen=self._buffers.n)

    @cached_property
    def backbone(self) -> "Backbone":
        """The encoder at work, made when the first image needs it: renamed files do not."""
        return self.make_backbone()

    def run(self, work: Work, stop: StopSignals) -> LoopCounts:
        """Embed the images to do; if an error ends it early, what is finished is committed."""
        self.work, self.counts = work, LoopCounts(self.device, workers=1)
        self.pace = Pace(self._n_decoders, is_remote=work.images.is_remote)
        self._reader = Reader(
            self._buffers, self.quarantine, self._decoding, self.writer, self.source_cache, self._codes, self._may_decode,
            self.pace,
        )  # fmt: skip
        started = last_shown = time.monotonic()
        done, total = 0, len(work.todo)
        with ExitStack() as stack:
            stack.enter_context(enough_threads())
            stack.callback(self.writer.commit)
            n_threads = stack.enter_context(threads_on_usable_cpus())
            for batch in self._batches(n_threads):
                done += batch.n_images - self._start(batch)
                if done == total:
                    self._finish(keep=0)
                now = time.monotonic()
                if now - last_shown > SHOW_SECONDS or done == total:
                    last_shown = now
                    work.on_progress(Progress(done, total, done / (now - started)))
                if stop.received is not None:
                    self._finish(keep=0)
                stop.check(total - done, work.table.readable)
            if (reason := self._reader.cannot_start) is not None:
                self._finish(keep=0)
                raise HoarfrostError(f"Images that are not embedded: {total - done:,} of {total:,}. {reason}")
        return self.counts

    def _start(self, batch: _Batch) -> int:
        """Record images that failed or are known already, start the others' forward pass; return how many were stopped."""
        new, looks, read, n_stopped = [], [], [], 0
        for place, result in enumerate(batch.results()):
            if isinstance(result, Failed):
                n_stopped += self._fail(result)
                continue
            read.append(result)
            if not result.views or self._is_embedded_since_reading(result.key):
                self.work.table.set(result.index, result.stamp, result.key)
            else:
                new.append(result)
                looks += [look for view in result.views for look in self._buffers.places.of(view, place)]
                self._keys_on_device.add(result.key)
        self._copy_from_source_cache(read)
        if not new:
            self._buffers.free.append(batch.pixels)
            return n_stopped
        with self._decoding_paused():
            embeddings = {
                size: self.backbone.start(_close_gaps(pixels, [row for of, row in looks if of == size]))
                for size, pixels in batch.pixels.items()
                if any(of == size for of, _ in looks)
            }
        self._on_device.append(_InFlight(batch, new, embeddings, self.backbone.compute))
        self._finish(keep=self.backbone.n_in_flight)
        return n_stopped

    def _copy_from_source_cache(self, images: list[Loaded]) -> None:
        """Copy the embeddings that are in the source cache, and not in this one."""
        if self.source_cache is None:
            return
        for view, code in self._codes.items():
            others = {image.key: image for image in images if view not in image.views}
            is_there = self.writer.contain(stacked([*others], code)) if others else ()
            wanted = {key: image for (key, image), found in zip(others.items(), is_there, strict=True) if not found}
            if not wanted:
                continue
            rows = self.source_cache.rows_of(stacked([*wanted]), view.name)
            facts = self.source_cache.facts(rows[rows >= 0]).images()
            there = compress(wanted.values(), rows >= 0)  # the others are on the device
            files = [self._file(image, code, one) for image, one in zip(there, facts, strict=True)]
            if files:
                self.writer.append(files, self.source_cache.embeddings(rows[rows >= 0]))

    def _file(self, one: Loaded, code: bytes, facts: ImageFacts | None) -> EmbeddedFile:
        return EmbeddedFile(self.work.paths[one.index], one.stamp.size, one.stamp.mtime_ns, one.key + code, facts)

    def _is_embedded_since_reading(self, key: bytes) -> bool:
        """Return whether the same bytes went to the device after this image was looked up and not found."""
        return key in self._keys_on_device or any(key in keys for keys in self._recent_keys)

    @contextmanager
    def _decoding_paused(self) -> Iterator[None]:
        """Pause decoding while the encoder computes on the CPU; reading continues.

        The threads of a layer wait for one another at its end, and wait long if a decoding thread has one of the cores:
        both finish sooner if they alternate.
        """
        try:
            if self.device == "cpu":
                self._may_decode.clear()
            yield
        finally:
            self._may_decode.set()

    def _finish(self, *, keep: int) -> None:
        """Copy embeddings from the device to the cache, but for the latest batches."""
        while len(self._on_device) > keep:
            started = self._on_device.popleft()
            embeddings = self._in_order(started)  # (rows, D) float32
            if self.writer.header.compute != started.compute:  # a GPU that is out of memory stops using compiled code
                self.writer.commit()
                self.writer.set_compute(started.compute)
            files = [self._file(one, self._codes[view], one.facts) for one in started.images for view in one.views]
            self.writer.append(files, embeddings)
            for image in started.images:
                self.work.table.set(image.index, image.stamp, image.key)
            keys = {image.key for image in started.images}
            self._keys_on_device -= keys
            self._recent_keys.append(keys)
            self.counts.embedded += len(started.images)
            self.counts.forward_images += sum(view.n_looks for image in started.images for view in image.views)
            self._buffers.free.append(started.batch.pixels)

    def _in_order(self, started: _InFlight) -> Embeddings:
        """Return the embeddings of each image's views, one image after another; of tiles their mean."""
        found = {size: wait().numpy() for size, wait in started.embeddings.items()}
        if len(found) == 1 and not any(view.tiles > 1 for view in self.views):
            return next(iter(found.values()))
        rows, at = [], dict.fromkeys(found, 0)
        for image in started.images:
            for view in image.views:
                first = at[view.size]
                at[view.size] += view.n_looks
                rows.append(found[view.size][first : at[view.size]].mean(axis=0))
        return np.stack(rows)

    def _fail(self, failed: Failed) -> bool:
        if failed.reason is None:  # only stopped
            return True
        self.work.table.errors[failed.index] = failed.reason
        try:
            self.work.on_failed(failed.index, failed.reason)
        except HoarfrostError:
            self._finish(keep=0)
            raise
        return False

    def _batches(self, n_threads: int) -> Iterator[_Batch]:
        """Fill batches in threads, as many ahead as there are buffers, in order."""
        # One torch thread in each: the encoder's own threads use the cores already.
        decoders = ThreadPoolExecutor(self._n_decoders, "decode", compute_on_one_thread, (n_threads,))
        readers = Readers(self.pace)
        source = self.work.images.contents(self.work.todo)
        ahead: deque[_Batch] = deque()
        try:
            while True:
                while self._buffers.free and (images := list(islice(source, self._buffers.n_images))):
                    ahead.append(self._fill(images, readers.threads(), decoders))
                if not ahead:
                    return
                yield ahead.popleft()
        finally:
            self._may_decode.set()
            for pool in (readers, decoders):  # in this order: readers submit to decoders
                pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, images: list[Unread], readers: ThreadPoolExecutor, decoders: ThreadPoolExecutor) -> _Batch:
        pixels, source = self._buffers.free.pop(), self.work.images
        n_tasks = self.pace.n_readers * (TASKS_A_WORKER if self._buffers.memory is None else 1)
        size = -(-self._buffers.n_images // n_tasks)
        tasks = [
            readers.submit(self._reader.read_some, source, images[first : first + size], first, pixels, decoders)
            for first in range(0, len(images), size)
        ]
        return _Batch(pixels, tasks, len(images))

    def _note_of_image(self, note: str) -> None:
        with self._counting:
            self.counts.notes[note] += 1


def _close_gaps(pixels: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Move some rows (ascending) of a buffer to its start, and return them.

    In place, as gathering into a new tensor takes seven times as long; by NumPy, as torch's threads would wait for one
    another at each image, on cores that are decoding.
    """
    values = pixels.numpy()
    for to, row in enumerate(rows):
        if to != row:
            values[to] = values[row]
    return pixels[: len(rows)]


def sample_images(dataset: Dataset, decoding: Decoding | None = None) -> torch.Tensor:
    """Return images from all over a dataset, (N, 3, S, S) uint8 with N at most 128, without unreadable ones.

    Where views show regions, every other one is a region.

    Raise HoarfrostError if none can be read.
    """
    n_images = min(len(dataset), SAMPLE_IMAGES)
    indices = np.linspace(0, len(dataset) - 1, n_images).astype(int).tolist()
    images, decoding = [], decoding or Decoding()
    for number, (index, read) in enumerate(dataset.images.contents(indices)):
        try:
            region = dataset.images.region(index)
            view = View(decoding.size, region=region is not None and number % 2 == 1)
            (look,) = seen_isolated(read(), b"", (view,), decoding, region).looks
            images.append(look.expand(3, -1, -1))
        except (ImageDecodeError, OSError):
            continue  # the extraction itself will say why
    if not images:
        raise HoarfrostError(f"{dataset.source}: none of the {n_images} sampled images could be read.")
    return torch.stack(images)
