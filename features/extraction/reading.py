"""What the loop's threads do: read files, look their keys up, and decode into a batch's buffers, or let processes decode."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from hoarfrost.features.cache import EmbeddingCache, PartWriter
from hoarfrost.features.cache.layout import Keys
from hoarfrost.features.datasets import FileStamp, ImageSource
from hoarfrost.features.datasets.table import Content
from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.isolated import DecoderCrashError, DecoderStartError, DecodingStoppedError
from hoarfrost.features.decoding.quarantine import Quarantine
from hoarfrost.features.decoding.region import Region
from hoarfrost.features.decoding.shared import WantedLooks, decode_looks
from hoarfrost.features.decoding.views import View
from hoarfrost.features.errors import ImageDecodeError, Reason, Unreadable, reason_of
from hoarfrost.features.extraction.buffers import Buffers, Pixels
from hoarfrost.features.extraction.pace import Pace
from hoarfrost.features.facts import ImageFacts
from hoarfrost.features.fingerprint import image_key

Unread = tuple[int, Callable[[], Content]]  # an image's index, and what reads it
BYTES_AHEAD = 128 << 20  # of files read and not yet decoded; beyond it they are read twice


@dataclass(frozen=True)
class Loaded:
    """One image read; its looks in `views` are in the batch's buffers. There are none if its embeddings are there already."""

    index: int
    stamp: FileStamp
    key: bytes
    views: tuple[View, ...]
    facts: ImageFacts | None = None


@dataclass(frozen=True)
class Failed:
    """One image that could not be read; without a reason, nothing is known of it: a signal stopped its decoding."""

    index: int
    reason: Reason | None


Results = list[Loaded | Failed]


@dataclass
class _Read:
    """One file read; without `content` if too much is waiting to be decoded: then it is read again."""

    index: int
    stamp: FileStamp
    key: bytes
    content: Content | None
    region: Region | None
    n_counted: int  # bytes of it among those ahead
    read: Callable[[], Content]
    missing: tuple[View, ...] = ()

    def loaded(self, facts: ImageFacts | None = None) -> Loaded:
        return Loaded(self.index, self.stamp, self.key, self.missing, facts)


@dataclass(eq=False)
class Reader:
    """Reads images, and decodes those that miss an embedding; its methods run in threads.

    `decoders` are the threads that decode, or that wait for the processes which decode into `buffers`; they wait while
    `may_decode` is not set. `pace` times both. `codes` are those of each view in the keys of `writer`, which, like
    `source_cache`, knows what is there already. `cannot_start` says why images had to be left, if any had: each needs a
    process of its own.
    """

    buffers: Buffers
    quarantine: Quarantine
    decoding: Decoding
    writer: PartWriter
    source_cache: EmbeddingCache | None
    codes: dict[View, bytes]
    may_decode: threading.Event
    pace: Pace

    cannot_start: DecoderStartError | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._n_bytes_ahead = 0
        self._counting = threading.Lock()

    def read_some(
        self, source: ImageSource, images: list[Unread], first: int, pixels: Pixels, decoders: ThreadPoolExecutor
    ) -> "Future[Results]":
        """Read images, and submit their decoding into a batch's buffers, the first one at a place."""
        some = [self._read(source, index, read) for index, read in images]
        self._look_up([image for image in some if isinstance(image, _Read)])
        return decoders.submit(self._decode_some, some, first, pixels)

    def _read(self, source: ImageSource, index: int, read: Callable[[], Content]) -> "_Read | Failed":
        try:
            # Before reading: a file that changes after this will be seen as changed the next time.
            stamp = source.stamp(index)
            content = self.pace.reading(read)
            region = source.region(index)
            key, n_counted = image_key(content, region), self._count(content)
            return _Read(index, stamp, key, content if n_counted else None, region, n_counted, read)
        except (ImageDecodeError, OSError, MemoryError) as error:
            return Failed(index, reason_of(error))

    def _look_up(self, images: list[_Read]) -> None:
        """Find which views of images are missing, with one look-up of all; free what is there already."""
        if not images:
            return
        keys, is_there = [image.key for image in images], {}
        for view, code in self.codes.items():
            is_there[view] = self.writer.contain(stacked(keys, code))
            if self.source_cache is not None:
                is_there[view] |= self.source_cache.rows_of(stacked(keys), view.name) >= 0
        for i, image in enumerate(images):
            image.missing = tuple(view for view, found in is_there.items() if not found[i])
            if not image.missing:
                self._free(image)

    def _count(self, content: Content) -> int:
        """Return the bytes of what was read; 0 if too much is waiting to be decoded: a second read costs less than memory."""
        n_bytes = max(1, _n_bytes(content))
        with self._counting:
            if self._n_bytes_ahead + n_bytes > BYTES_AHEAD:
                return 0
            self._n_bytes_ahead += n_bytes
        return n_bytes

    def _free(self, image: _Read) -> None:
        with self._counting:
            self._n_bytes_ahead -= image.n_counted
        image.content, image.n_counted = None, 0

    def _decode_some(self, images: "list[_Read | Failed]", first: int, pixels: Pixels) -> Results:
        read = {place: image for place, image in enumerate(images, first) if isinstance(image, _Read)}
        results = self._decode_by_process(read, pixels)
        for place in range(first, first + len(images)):
            image = images.pop(0)  # so that a file's bytes are freed once it is decoded
            if place not in results:
                results[place] = image if isinstance(image, Failed) else self._decode(image, place, pixels)
            if isinstance(image, _Read):
                self._free(image)
        return [results[place] for place in sorted(results)]

    def _decode_by_process(self, read: dict[int, _Read], pixels: Pixels) -> dict[int, Loaded | Failed]:
        """Let one process decode what is in memory; return results by place, without those that a thread shall decode.

        That is what needs no decoder; what is decoded alone, as a process crashed at it, or at one decoded with it; and
        everything if there is no process.
        """
        wanted, looks = {}, []
        if (memory := self.buffers.memory) is None:
            return {}
        for place, image in read.items():
            if not image.missing or self.quarantine.is_special(image.key):
                continue
            if isinstance(content := image.content, bytes | EncodedFrame):
                wanted[place] = image
                offsets = [memory.offset(look) for look in self.buffers.of(pixels, image.missing, place)]
                looks.append(WantedLooks(content, image.key, image.missing, offsets, image.region))
        if not wanted:
            return {}
        self.may_decode.wait()
        try:
            decode = partial(decode_looks, looks, memory, self.decoding, self.buffers.share)
            decoded = self.pace.decoding(decode, len(looks))
        except DecoderStartError as error:
            self.buffers.use_threads(error.reason)
            return {}
        except DecodingStoppedError:
            return {place: Failed(image.index, None) for place, image in wanted.items()}
        except DecoderCrashError:
            self.quarantine.suspect([image.key for image in wanted.values()])
            return {}
        return {
            place: Failed(image.index, found) if isinstance(found, Reason) else image.loaded(found)
            for (place, image), found in zip(wanted.items(), decoded, strict=True)
        }

    def _decode(self, image: _Read, place: int, pixels: Pixels) -> Loaded | Failed:
        if not image.missing:
            return image.loaded()
        self.may_decode.wait()
        try:
            if image.content is None:
                image.content = _read_again(image)
                if alone := self._decode_by_process({place: image}, pixels):
                    return alone[place]
            load = partial(self.quarantine.load, image.content, image.key, image.missing, self.decoding, image.region)
            seen = self.pace.decoding(load)
            for into, look in zip(self.buffers.of(pixels, image.missing, place), seen.looks, strict=True):
                into.copy_(look)  # one grey channel is broadcast to three
        except DecodingStoppedError as error:
            if isinstance(error, DecoderStartError):
                self.cannot_start = error
            return Failed(image.index, None)
        except (ImageDecodeError, OSError, MemoryError) as error:  # OSError: it was there when it was read first
            return Failed(image.index, reason_of(error))
        return image.loaded(seen.facts)


def stacked(keys: Sequence[bytes], code: bytes = b"") -> Keys:
    """Return keys, each followed by a view's code, (n, K) uint8."""
    return np.frombuffer(b"".join(key + code for key in keys), np.uint8).reshape(len(keys), -1)


def _read_again(image: _Read) -> Content:
    content = image.read()
    if image_key(content, image.region) != image.key:
        raise ImageDecodeError(Unreadable.CHANGED)
    return content


def _n_bytes(content: Content) -> int:
    if isinstance(content, EncodedFrame):
        return len(content.content) // content.n_frames  # all frames share the file's bytes
    return len(content) if isinstance(content, bytes) else content.nbytes
