"""The extraction loop: threads read, decode and resize ahead of the encoder."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from hoarfrost.features.cache import EmbeddedFile, EmbeddingCache, Embeddings, PartWriter
from hoarfrost.features.datasets import Dataset, FileStamp, ImageSource
from hoarfrost.features.datasets.table import Content
from hoarfrost.features.decoding.budget import PixelBudget
from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.isolated import DecodingStoppedError
from hoarfrost.features.decoding.quarantine import Quarantine, load_isolated
from hoarfrost.features.decoding.views import View, standard_view
from hoarfrost.features.devices import compute_on_one_thread, host_tensor, threads_on_usable_cpus, usable_cpus
from hoarfrost.features.encoder.backbone.network import CPU_GROUP
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError, Reason, Unreadable, reason_of
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.features.extraction.pace import Pace, Readers
from hoarfrost.features.extraction.plan import ExtractOptions, ImageRecords, LoopCounts, Progress
from hoarfrost.features.fingerprint import KEY_BYTES, image_key

if TYPE_CHECKING:
    from hoarfrost.features.encoder.backbone import Backbone

Unread = tuple[int, Callable[[], Content]]  # an image's index, and what reads it
SHOW_SECONDS = 0.2  # between calls of on_progress
N_BUFFERS = 3  # batches on the CPU: one that the encoder computes on, two that are filled
TASKS_A_WORKER = 4  # of each batch: few enough to cost little, so many that workers end together
BYTES_AHEAD = 128 << 20  # of files read and not yet decoded; beyond it they are read twice
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


@dataclass(frozen=True)
class _Read:
    """One file read, without `content` if no view is `missing`, or if it is read again to be decoded."""

    index: int
    stamp: FileStamp
    key: bytes
    missing: tuple[View, ...]
    content: Content | None
    read: Callable[[], Content]


@dataclass(frozen=True)
class _Loaded:
    """One image read; its looks in `views` are in the batch's buffers. There are none if its embeddings are there already."""

    index: int
    stamp: FileStamp
    key: bytes
    views: tuple[View, ...]


@dataclass(frozen=True)
class _Failed:
    """One image that could not be read; without a reason, a signal stopped its decoding."""

    index: int
    reason: Reason | None


class _Batch(NamedTuple):
    """Images that are read together: each worker fills places of its own in `pixels`.

    For each size S of views there is a buffer (B * L, 3, S, S) uint8 for the L looks of B images.
    """

    pixels: dict[int, torch.Tensor]
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
    embeddings: dict[int, Callable[[], torch.Tensor]]  # of all looks of a size, in the order of the images
    compute: str  # its compute path


@dataclass(eq=False)
class EmbeddingLoop:
    """Reads, decodes and resizes in threads, and embeds in batches in this one; results keep the order of the images.

    `writer` receives the embeddings, and knows which are there already; `quarantine` is entered; `make_backbone` is called
    when the first image needs it; what `source_cache` has is copied; `views` are computed, by default the encoder's own.
    """

    writer: PartWriter
    quarantine: Quarantine
    make_backbone: "Callable[[], Backbone]"
    device: str
    batch_size: int
    options: ExtractOptions
    source_cache: EmbeddingCache | None = None
    views: tuple[View, ...] = ()

    def __post_init__(self) -> None:
        options, encoder = self.options, self.writer.header.fingerprint.encoder
        self.views = self.views or (standard_view(encoder),)
        self._codes = {view: self.writer.header.code_of(view.name) for view in self.views}
        self._places = Places(self.views)
        self._n_decoders = n_decoders(options)
        self._decoding = Decoding(
            options.max_pixels, options.window, PixelBudget(), self._note_of_image, size=encoder.size
        )
        self._n_bytes_ahead = 0
        self._counting = threading.Lock()
        self._may_decode = threading.Event()
        self._may_decode.set()
        self._on_device: deque[_InFlight] = deque()
        self._keys_on_device: set[bytes] = set()
        # A GPU copies from pinned memory, and has one more batch under way.
        n_buffers, pinned = (N_BUFFERS + 1, True) if self.device == "cuda" else (N_BUFFERS, False)
        self._n_images = images_in_a_batch(self.batch_size, self._places)
        shapes = {size: (self._n_images * n, 3, size, size) for size, n in self._places.n_looks.items()}
        self._free = [
            {size: host_tensor(shape, torch.uint8, pinned=pinned) for size, shape in shapes.items()}
            for _ in range(n_buffers)
        ]
        # A reading thread looks a key up in the cache; those that it may miss are in batches that still had a buffer.
        self._recent_keys: deque[set[bytes]] = deque(maxlen=n_buffers)

    @cached_property
    def backbone(self) -> "Backbone":
        """The encoder at work, made when the first image needs it: renamed files do not."""
        return self.make_backbone()

    def run(self, work: Work, stop: StopSignals) -> LoopCounts:
        """Embed the images to do; if an error ends it early, what is finished is committed."""
        self.work, self.counts = work, LoopCounts(self.device, workers=1)
        self.pace = Pace(self._n_decoders, is_remote=work.images.is_remote)
        started = last_shown = time.monotonic()
        done, total = 0, len(work.todo)
        with ExitStack() as stack:
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
        return self.counts

    def _start(self, batch: _Batch) -> int:
        """Record images that failed or are known already, start the others' forward pass; return how many were stopped."""
        new, looks, read, n_stopped = [], [], [], 0
        for place, result in enumerate(batch.results()):
            if isinstance(result, _Failed):
                n_stopped += self._fail(result)
                continue
            read.append(result)
            if not result.views or self._is_embedded_since_reading(result.key):
                self.work.table.set(result.index, result.stamp, result.key)
            else:
                new.append(result)
                looks += [look for view in result.views for look in self._places.of(view, place)]
                self._keys_on_device.add(result.key)
        self._copy_from_source_cache(read)
        if not new:
            self._free.append(batch.pixels)
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

    def _copy_from_source_cache(self, images: list[_Loaded]) -> None:
        """Copy the embeddings that are in the source cache, and not in this one."""
        if self.source_cache is None:
            return
        for view, code in self._codes.items():
            others = {image.key: image for image in images if view not in image.views}
            wanted = {key: image for key, image in others.items() if key + code not in self.writer}
            if not wanted:
                continue
            keys = np.frombuffer(b"".join(wanted), np.uint8).reshape(-1, KEY_BYTES)
            rows = self.source_cache.rows_of(keys, view.name)
            files = [
                self._file(image, code) for image, row in zip(wanted.values(), rows, strict=True) if row >= 0
            ]  # the others are on the device
            if files:
                self.writer.append(files, self.source_cache.embeddings(rows[rows >= 0]))

    def _file(self, image: _Loaded, code: bytes) -> EmbeddedFile:
        return EmbeddedFile(self.work.paths[image.index], image.stamp.size, image.stamp.mtime_ns, image.key + code)

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
            files = [self._file(image, self._codes[view]) for image in started.images for view in image.views]
            self.writer.append(files, embeddings)
            for image in started.images:
                self.work.table.set(image.index, image.stamp, image.key)
            keys = {image.key for image in started.images}
            self._keys_on_device -= keys
            self._recent_keys.append(keys)
            self.counts.embedded += len(started.images)
            self.counts.forward_images += sum(view.n_looks for image in started.images for view in image.views)
            self._free.append(started.batch.pixels)

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

    def _fail(self, failed: _Failed) -> bool:
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
                while self._free and (images := list(islice(source, self._n_images))):
                    ahead.append(self._fill(images, readers.threads(), decoders))
                if not ahead:
                    return
                yield ahead.popleft()
        finally:
            self._may_decode.set()
            for pool in (readers, decoders):  # in this order: readers submit to decoders
                pool.shutdown(wait=True, cancel_futures=True)

    def _fill(self, images: list[Unread], readers: ThreadPoolExecutor, decoders: ThreadPoolExecutor) -> _Batch:
        pixels = self._free.pop()
        size = -(-self._n_images // (TASKS_A_WORKER * self.pace.n_readers))
        tasks = [
            readers.submit(self._read_some, images[first : first + size], first, pixels, decoders)
            for first in range(0, len(images), size)
        ]
        return _Batch(pixels, tasks, len(images))

    def _read_some(
        self, images: list[Unread], first: int, pixels: dict[int, torch.Tensor], decoders: ThreadPoolExecutor
    ) -> "Future[list[_Loaded | _Failed]]":
        return decoders.submit(self._decode_some, [self._read(index, read) for index, read in images], first, pixels)

    def _read(self, index: int, read: Callable[[], Content]) -> "_Read | _Failed":
        try:
            # Before reading: a file that changes after this will be seen as changed the next time.
            stamp = self.work.images.stamp(index)
            content = self.pace.reading(read)
            key = image_key(content)
            missing = tuple(view for view in self.views if not self._is_known(key, view))
            return _Read(index, stamp, key, missing, self._within_budget(content) if missing else None, read)
        except (ImageDecodeError, OSError, MemoryError) as error:
            return _Failed(index, reason_of(error))

    def _is_known(self, key: bytes, view: View) -> bool:
        if key + self._codes[view] in self.writer:
            return True
        return self.source_cache is not None and self.source_cache.has(key, view.name)

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

    def _decode_some(
        self, images: "list[_Read | _Failed]", first: int, pixels: dict[int, torch.Tensor]
    ) -> "list[_Loaded | _Failed]":
        results: list[_Loaded | _Failed] = []
        for place in range(first, first + len(images)):
            image = images.pop(0)  # so that a file's bytes are freed once it is decoded
            results.append(image if isinstance(image, _Failed) else self._decode(image, place, pixels))
        return results

    def _decode(self, image: _Read, place: int, pixels: dict[int, torch.Tensor]) -> "_Loaded | _Failed":
        if not image.missing:
            return _Loaded(image.index, image.stamp, image.key, ())
        self._may_decode.wait()
        try:
            content = image.read() if image.content is None else image.content
            if image.content is None and image_key(content) != image.key:
                raise ImageDecodeError(Unreadable.CHANGED)
            load = partial(self.quarantine.load, content, image.key, image.missing, self._decoding)
            looks = self.pace.decoding(load)
            places = [look for view in image.missing for look in self._places.of(view, place)]
            for (size, row), look in zip(places, looks, strict=True):
                pixels[size][row].copy_(look)  # one grey channel is broadcast to three
        except DecodingStoppedError:
            return _Failed(image.index, None)
        except (ImageDecodeError, OSError, MemoryError) as error:  # OSError: it was there when it was read first
            return _Failed(image.index, reason_of(error))
        finally:
            if image.content is not None:
                with self._counting:
                    self._n_bytes_ahead -= _n_bytes(image.content)
        return _Loaded(image.index, image.stamp, image.key, image.missing)


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


class Places:
    """Where the looks of images are in a batch's buffers, one for each size."""

    def __init__(self, views: Sequence[View]) -> None:
        self.n_looks: dict[int, int] = {}
        self._first: dict[View, int] = {}
        for view in views:
            self._first[view] = self.n_looks.get(view.size, 0)
            self.n_looks[view.size] = self._first[view] + view.n_looks

    def of(self, view: View, image: int) -> list[tuple[int, int]]:
        """Return the size and the row of each look of a view, for the image at a place in the batch."""
        first = image * self.n_looks[view.size] + self._first[view]
        return [(view.size, row) for row in range(first, first + view.n_looks)]


def images_in_a_batch(batch_size: int, places: Places) -> int:
    """Return how many images give a batch of looks at any size; whole groups of the encoder, if there are so many."""
    n = max(1, batch_size // max(places.n_looks.values()))
    return n if n == batch_size or n < CPU_GROUP else n - n % CPU_GROUP


def n_decoders(options: ExtractOptions) -> int:
    """Return the number of threads that read, and of those that decode."""
    return options.workers or usable_cpus()


def _n_bytes(content: Content) -> int:
    if isinstance(content, EncodedFrame):
        return len(content.content) // content.n_frames  # all frames share the file's bytes
    return len(content) if isinstance(content, bytes) else content.nbytes


def sample_images(dataset: Dataset, decoding: Decoding | None = None) -> torch.Tensor:
    """Return images from all over a dataset, (N, 3, S, S) uint8 with N at most 128, without unreadable ones.

    Raise HoarfrostError if none can be read.
    """
    n_images = min(len(dataset), SAMPLE_IMAGES)
    indices = np.linspace(0, len(dataset) - 1, n_images).astype(int).tolist()
    images, decoding = [], decoding or Decoding()
    for _, read in dataset.images.contents(indices):
        try:
            images.append(load_isolated(read(), b"", (View(decoding.size),), decoding)[0].expand(3, -1, -1))
        except (ImageDecodeError, OSError):
            continue  # the extraction itself will say why
    if not images:
        raise HoarfrostError(f"{dataset.source}: none of the {n_images} sampled images could be read.")
    return torch.stack(images)
