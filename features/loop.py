"""The extraction loop: threads read, decode and resize, while the backbone computes."""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from features.cache import CacheWriter, EmbeddedFile
from features.datasets import Dataset, FileStamp
from features.devices import usable_cpus
from features.errors import ImageDecodeError
from features.fingerprint import SIZE, bytes_key, pixels_key
from features.images import load_image
from features.interrupts import StopSignals
from features.plan import ExtractOptions, ImageTable, LoopCounts, Progress

if TYPE_CHECKING:
    from features.backbone import Backbone
    from features.datasets.table import Content

SHOWN_ERRORS = 5
SHOW_SECONDS = 0.2  # between calls of on_progress

logger = logging.getLogger(__name__)


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


class EmbeddingLoop:
    """Reads, decodes and resizes in threads, and embeds in batches in this one; results keep the data set's order."""

    def __init__(
        self,
        dataset: Dataset,
        writer: CacheWriter,
        table: ImageTable,
        backbone: "Callable[[], Backbone]",
        device: str,
        options: ExtractOptions,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.dataset = dataset
        self.writer = writer
        self.table = table
        self._make_backbone = backbone
        self.options = options
        self.on_progress = on_progress
        self.counts = LoopCounts(device)
        self.batch: list[_Loaded] = []
        self.batch_keys: set[bytes] = set()
        self.pixels = torch.empty((options.batch_size, 3, SIZE, SIZE), dtype=torch.uint8)

    @cached_property
    def backbone(self) -> "Backbone":
        """Made when the first image needs it: renamed files need none."""
        return self._make_backbone()

    def run(self, todo: Sequence[int], stop: StopSignals) -> LoopCounts:
        """Embed the images to do; whatever ends it early, what is finished is committed."""
        started = last_shown = time.monotonic()
        try:
            for done, result in enumerate(self._results(todo), start=1):
                self._take(result)
                if len(self.batch) == self.options.batch_size or done == len(todo):
                    self._embed()
                now = time.monotonic()
                if now - last_shown > SHOW_SECONDS or done == len(todo):
                    last_shown = now
                    self.on_progress(Progress(done, len(todo), done / (now - started)))
                stop.check(done, len(todo))
        finally:
            self.writer.commit()
        return self.counts

    def _take(self, result: "_Loaded | _Failed") -> None:
        """Put one image where it belongs: among the errors, the known, or into the batch."""
        if isinstance(result, _Failed):
            self._fail(result)
        elif result.pixels is None or result.key in self.writer or result.key in self.batch_keys:
            self.table.set(result.index, result.stamp, result.key)
        else:
            self.pixels[len(self.batch)] = result.pixels  # one grey channel becomes three here
            self.batch.append(replace(result, pixels=None))
            self.batch_keys.add(result.key)

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

    def _embed(self) -> None:
        if not self.batch:
            return
        # A GPU's kernels depend on the batch's size: always whole batches there, the last one padded.
        size = len(self.batch) if self.counts.device == "cpu" else len(self.pixels)
        embeddings = self.backbone.embed(self.pixels[:size]).numpy()[: len(self.batch)]  # (B, 512) float32
        files = [
            EmbeddedFile(self.dataset.paths[item.index], item.stamp.size, item.stamp.mtime_ns, item.key)
            for item in self.batch
        ]
        self.writer.append(files, embeddings)
        for item in self.batch:
            self.table.set(item.index, item.stamp, item.key)
        self.counts.embedded += len(self.batch)
        self.counts.forward_images += len(self.batch)
        self.batch, self.batch_keys = [], set()

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
