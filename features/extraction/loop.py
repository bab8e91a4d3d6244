"""The extraction loop: threads read, decode and resize ahead of the encoder."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hoarfrost.features.cache import EmbeddedFile, EmbeddingCache, PartWriter
from hoarfrost.features.datasets import Dataset, FileStamp, ImageSource
from hoarfrost.features.datasets.table import Content
from hoarfrost.features.decoding.budget import PixelBudget
from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.quarantine import Quarantine, load_isolated
from hoarfrost.features.devices import compute_on_one_thread, host_tensor, threads_on_usable_cpus, usable_cpus
from hoarfrost.features.encoder.registry import encoder_named
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError, Reason, Unreadable, reason_of
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.features.extraction.plan import ExtractOptions, ImageRecords, LoopCounts, Progress
from hoarfrost.features.fingerprint import KEY_BYTES, image_key

if TYPE_CHECKING:
    from hoarfrost.features.encoder.backbone import Backbone

Unread = tuple[int, Callable[[], Content]]  # an image's index, and what reads it
SHOW_SECONDS = 0.2  # between calls of on_progress
N_BUFFERS = 3  # batches on the CPU: one that the encoder computes on, two that are filled
TASKS_A_WORKER = 4  # of each batch: few enough to cost little, so many that workers end together
READERS_OF_URLS = 32  # most of a read over a network is waiting
BYTES_AHEAD = 128 << 20  # of files read and not yet decoded; beyond it they are read twice
SAMPLE_IMAGES = 256


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


@dataclass(frozen=True)
class _Read:
    """One file read, without `content` if its embedding is there already, or if it is read again to be decoded."""

    index: int
    stamp: FileStamp
    key: bytes
    is_known: bool
    content: Content | None
    read: Callable[[], Content]


@dataclass(frozen=True)
class _Loaded:
    """One image read, its pixels in the batch's buffer unless its embedding is there already."""

    index: int
    stamp: FileStamp
    key: bytes
    decoded: bool


@dataclass(frozen=True)
class _Failed:
    """One image that could not be read."""

    index: int
    reason: Reason


class _Batch(NamedTuple):
    """Images that are read together: each worker fills places of its own in `pixels` (B, 3, S, S) uint8."""

    pixels: torch.Tensor
    tasks: "list[Future[Future[list[_Loaded | _Failed]]]]"  # reading returns the decoding
    n_images: int

    def results(self) -> "Iterator[_Loaded | _Failed]":
        """Yield the images in order, as soon as they are ready."""
        for task in self.tasks:
            yield from task.result().result()


class _InFlight(NamedTuple):
    """A batch on the device: its images that are embedded, and how to get the embeddings."""

    batch: _Batch
    images: list[_Loaded]
    embeddings: Callable[[], torch.Tensor]
    compute: str  # its compute path


@dataclass(eq=False)
class EmbeddingLoop:
    """Reads, decodes and resizes in threads, and embeds in batches in this one; results keep the order of the images.

    The same on one machine, for a whole dataset, and in each worker of a cluster, for one piece of it after another.
    `writer` receives the embeddings, and knows which are there already; `quarantine` is entered already;
    `make_backbone` is called when the first image needs it; embeddings that `source_cache` has are copied from there.
    """

    writer: PartWriter
    quarantine: Quarantine
    make_backbone: "Callable[[], Backbone]"
    device: str
    batch_size: int
    options: ExtractOptions
    source_cache: EmbeddingCache | None = None

    def __post_init__(self) -> None:
        options, size = self.options, encoder_named(self.options.encoder).size
        self._n_decoders = n_decoders(options)
        self._decoding = Decoding(options.max_pixels, options.window, PixelBudget(), self._note_of_image, size=size)
        self._n_bytes_ahead = 0
        self._counting = threading.Lock()
        self._may_decode = threading.Event()
        self._may_decode.set()
        self._on_device: deque[_InFlight] = deque()
        self._keys_on_device: set[bytes] = set()
        # A GPU copies from pinned memory beside its computation, and has one more batch under way.
        n_buffers, pinned = (N_BUFFERS + 1, True) if self.device == "cuda" else (N_BUFFERS, False)
        shape = (self.batch_size, 3, size, size)
        self._free = [host_tensor(shape, torch.uint8, pinned=pinned) for _ in range(n_buffers)]
        # A reading thread looks a key up in the cache; those that it may miss are in batches that still had a buffer.
        self._recent_keys: deque[set[bytes]] = deque(maxlen=n_buffers)

    @cached_property
    def backbone(self) -> "Backbone":
        """The encoder at work, made when the first image needs it: renamed files do not."""
        return self.make_backbone()

    def run(self, work: Work, stop: StopSignals) -> LoopCounts:
        """Embed the images to do; if an error ends it early, what is finished is committed."""
        self.work, self.counts = work, LoopCounts(self.device, workers=1)
        self._n_readers = max(self._n_decoders, READERS_OF_URLS) if work.images.is_remote else self._n_decoders
        started = last_shown = time.monotonic()
        done, total = 0, len(work.todo)
        with ExitStack() as stack:
            stack.callback(self.writer.commit)
            n_threads = stack.enter_context(threads_on_usable_cpus())
            for batch in self._batches(n_threads):
                self._start(batch)
                done += batch.n_images
                if done == total:
                    self._finish(keep=0)
                now = time.monotonic()
                if now - last_shown > SHOW_SECONDS or done == total:
                    last_shown = now
                    work.on_progress(Progress(done, total, done / (now - started)))
                if stop.received is not None:
                    self._finish(keep=0)
                stop.check(total - done, work.table.readable)
        return self.counts

    def _start(self, batch: _Batch) -> None:
        """Record images that failed or are known already, and start the forward pass of the others."""
        new, places, found_elsewhere = [], [], []
        for place, result in enumerate(batch.results()):
            if isinstance(result, _Failed):
                self._fail(result)
            elif not result.decoded or self._is_embedded_since_reading(result.key):
                self.work.table.set(result.index, result.stamp, result.key)
                found_elsewhere.append(result)
            else:
                new.append(result)
                places.append(place)
                self._keys_on_device.add(result.key)
        self._copy_from_source_cache(found_elsewhere)
        if not new:
            self._free.append(batch.pixels)
            return
        # Gaps are closed in place, as gathering into a new tensor takes seven times as long; by NumPy, as torch's threads
        # would wait for one another at each image, on cores that are decoding.
        rows = batch.pixels.numpy()
        for to, place in enumerate(places):
            if to != place:
                rows[to] = rows[place]
        pixels = batch.pixels[: len(new)]
        with self._decoding_paused():  # the first time, the backbone is also made and timed
            embeddings = self.backbone.start(pixels)
        self._on_device.append(_InFlight(batch, new, embeddings, self.backbone.compute))
        self._finish(keep=self.backbone.n_in_flight)

    def _copy_from_source_cache(self, images: list[_Loaded]) -> None:
        """Copy the embeddings that are in the source cache, and not in this one."""
        wanted = {image.key: image for image in images if image.key not in self.writer}
        if self.source_cache is None or not wanted:
            return
        rows = self.source_cache.rows_of(np.frombuffer(b"".join(wanted), np.uint8).reshape(-1, KEY_BYTES))
        found = [image for image, row in zip(wanted.values(), rows, strict=True) if row >= 0]
        if found:  # the others are on the device
            self.writer.append([self._file(image) for image in found], self.source_cache.embeddings(rows[rows >= 0]))

    def _file(self, image: _Loaded) -> EmbeddedFile:
        return EmbeddedFile(self.work.paths[image.index], image.stamp.size, image.stamp.mtime_ns, image.key)

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
        """Copy embeddings from the device to the cache, all but those of the latest batches."""
        while len(self._on_device) > keep:
            started = self._on_device.popleft()
            embeddings = started.embeddings().numpy()  # (B, D) float32
            if self.writer.header.compute != started.compute:  # a GPU that is out of memory stops using compiled code
                self.writer.commit()
                self.writer.set_compute(started.compute)
            files = [self._file(image) for image in started.images]
            self.writer.append(files, embeddings)
            for image in started.images:
                self.work.table.set(image.index, image.stamp, image.key)
            keys = {image.key for image in started.images}
            self._keys_on_device -= keys
            self._recent_keys.append(keys)
            self.counts.embedded += len(files)
            self.counts.forward_images += len(files)
            self._free.append(started.batch.pixels)

    def _fail(self, failed: _Failed) -> None:
        self.work.table.errors[failed.index] = failed.reason
        try:
            self.work.on_failed(failed.index, failed.reason)
        except HoarfrostError:
            self._finish(keep=0)
            raise

    def _batches(self, n_threads: int) -> Iterator[_Batch]:
        """Fill batches in threads, as many ahead as there are buffers, in order."""
        # One torch thread in each: the encoder's own threads use the cores already.
        decoders = ThreadPoolExecutor(self._n_decoders, "decode", compute_on_one_thread, (n_threads,))
        readers = ThreadPoolExecutor(self._n_readers, "read")
        source = self.work.images.contents(self.work.todo)
        ahead: deque[_Batch] = deque()
        try:
            while True:
                while self._free and (images := list(islice(source, self.batch_size))):
                    ahead.append(self._fill(images, readers, decoders))
                if not ahead:
                    return
                yield ahead.popleft()
        finally:
            self._may_decode.set()
            for pool in (readers, decoders):  # in this order: readers submit to decoders
                pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, images: list[Unread], readers: ThreadPoolExecutor, decoders: ThreadPoolExecutor) -> _Batch:
        pixels = self._free.pop()
        size = -(-self.batch_size // (TASKS_A_WORKER * self._n_readers))
        parts = [slice(first, first + size) for first in range(0, len(images), size)]
        tasks = [readers.submit(self._read_some, images[part], pixels[part], decoders) for part in parts]
        return _Batch(pixels, tasks, len(images))

    def _read_some(
        self, images: list[Unread], places: torch.Tensor, decoders: ThreadPoolExecutor
    ) -> "Future[list[_Loaded | _Failed]]":
        return decoders.submit(self._decode_some, [self._read(index, read) for index, read in images], places)

    def _read(self, index: int, read: Callable[[], Content]) -> "_Read | _Failed":
        try:
            # Before reading: a file that changes after this will be seen as changed the next time.
            stamp = self.work.images.stamp(index)
            content = read()
            key = image_key(content)
            is_known = key in self.writer or (self.source_cache is not None and key in self.source_cache)
            return _Read(index, stamp, key, is_known, None if is_known else self._within_budget(content), read)
        except (ImageDecodeError, OSError, MemoryError) as error:
            return _Failed(index, reason_of(error))

    def _within_budget(self, content: Content) -> Content | None:
        """Return what was read, or None if too much is waiting to be decoded: a second read costs less than memory."""
        with self._counting:
            if self._n_bytes_ahead + _n_bytes(content) > BYTES_AHEAD:
                return None
            self._n_bytes_ahead += _n_bytes(content)
        return content

    def _note_of_image(self, note: str) -> None:
        with self._counting:
            self.counts.notes[note] += 1

    def _decode_some(self, images: "list[_Read | _Failed]", places: torch.Tensor) -> "list[_Loaded | _Failed]":
        results: list[_Loaded | _Failed] = []
        for place in places[: len(images)]:
            image = images.pop(0)  # so that a file's bytes are freed once it is decoded
            results.append(image if isinstance(image, _Failed) else self._decode(image, place))
        return results

    def _decode(self, image: _Read, place: torch.Tensor) -> "_Loaded | _Failed":
        if image.is_known:
            return _Loaded(image.index, image.stamp, image.key, decoded=False)
        self._may_decode.wait()
        try:
            content = image.read() if image.content is None else image.content
            if image.content is None and image_key(content) != image.key:
                raise ImageDecodeError(Unreadable.CHANGED)
            # One grey channel is broadcast to three.
            place.copy_(self.quarantine.load(content, image.key, self._decoding))
        except (ImageDecodeError, OSError, MemoryError) as error:  # OSError: it was there when it was read first
            return _Failed(image.index, reason_of(error))
        finally:
            if image.content is not None:
                with self._counting:
                    self._n_bytes_ahead -= _n_bytes(image.content)
        return _Loaded(image.index, image.stamp, image.key, decoded=True)


def n_decoders(options: ExtractOptions) -> int:
    """Return the number of threads that read, and of those that decode."""
    return options.workers or usable_cpus()


def _n_bytes(content: Content) -> int:
    if isinstance(content, EncodedFrame):
        return len(content.content) // content.n_frames  # all frames share the file's bytes
    return len(content) if isinstance(content, bytes) else content.nbytes


def sample_images(dataset: Dataset, decoding: Decoding | None = None) -> torch.Tensor:
    """Return images from all over a dataset, (N, 3, S, S) uint8 with N at most 256, without unreadable ones.

    Raise HoarfrostError if none can be read.
    """
    n_images = min(len(dataset), SAMPLE_IMAGES)
    indices = np.linspace(0, len(dataset) - 1, n_images).astype(int).tolist()
    images = []
    for _, read in dataset.images.contents(indices):
        try:
            images.append(load_isolated(read(), decoding or Decoding()).expand(3, -1, -1))
        except (ImageDecodeError, OSError):
            continue  # the extraction itself will say why
    if not images:
        raise HoarfrostError(f"{dataset.source}: none of the {n_images} sampled images could be read.")
    return torch.stack(images)
