"""Images whose decoder crashes the process: noted before decoding, tried again in another process, then skipped."""

import logging
import mmap
import os
import queue
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from hoarfrost.features.decoding.formats import EncodedFrame, unpack
from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.isolated import (
    Cancellation,
    DecoderCrashError,
    DecodingStoppedError,
    decoded,
)
from hoarfrost.features.decoding.looks import Decoded, Seen, by_decoding, seen_by, seen_in
from hoarfrost.features.decoding.region import Region
from hoarfrost.features.decoding.views import View
from hoarfrost.features.errors import CacheError, ImageDecodeError, Unreadable
from hoarfrost.features.fingerprint import KEY_BYTES

if TYPE_CHECKING:
    import torch

    from hoarfrost.features.datasets.table import Content

NOTES_SUFFIX = ".trying"
_NO_KEY = bytes(KEY_BYTES)

logger = logging.getLogger(__name__)


class Quarantine:
    """A context manager that keeps an image whose decoder crashes from ending every extraction.

    While a file is decoded, its key is in `CACHE.trying`: memory that is mapped to the file, which outlives the process at
    the cost of copying 32 bytes. A key that is there when the next extraction starts was being decoded when the process
    died, whatever the cause. Such an image is decoded in a process of its own. If that process crashes too, the image is
    unreadable from then on: `CACHE.quarantine` records it with a reason.

    Each worker of a cluster has its own notes, `CACHE.trying-WORKER`, which stay until the extraction ends. `suspect`
    passes it the images that other workers died at.

    Parameters
    ----------
    cache : Path
        The cache file.
    n_threads : int
        How many threads decode at the same time.
    worker : str
        The worker's name, on a cluster.
    """

    def __init__(self, cache: Path, n_threads: int, *, worker: str = "") -> None:
        self.path = _quarantine_path(cache)
        self._cache, self._n_threads, self._worker = cache, n_threads, worker
        self._notes_path = _notes_path(cache, worker)
        self._reasons: dict[bytes, str] = {}
        self._suspects: dict[bytes, int | None] = {}  # with the slot of its note, to be cleared, unless noted elsewhere

    def __enter__(self) -> Self:
        try:
            self._reasons = dict(_quarantined(self.path))
            earlier = [] if self._worker else _all_notes(self._cache)
            suspects = set() if self._worker else suspect_keys(self._cache)
            _write_notes(self._notes_path, [*[_NO_KEY] * self._n_threads, *suspects])
            self._slots = self._mapped((self._n_threads + len(suspects)) * KEY_BYTES)
            for path in earlier:  # their keys are in this process's notes now
                if path != self._notes_path:
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise CacheError(f"{self._notes_path}: cannot be written: {error.strerror}.") from error
        self._suspects = {key: (self._n_threads + i) * KEY_BYTES for i, key in enumerate(suspects)}
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(self._n_threads):
            self._free.put(i * KEY_BYTES)
        if suspects:
            logger.warning(
                "Images that were being decoded when the last extraction ended: %s. They now get a process of their own.",
                len(suspects),
            )
        return self

    def __exit__(self, *_: object) -> None:
        noted = [slot for slot in self._suspects.values() if slot is not None]
        is_known = all(self._slots[slot : slot + KEY_BYTES] == _NO_KEY for slot in noted)
        self._slots.close()  # Windows removes no file that is mapped
        if is_known:
            self._notes_path.unlink(missing_ok=True)

    def suspect(self, keys: Collection[bytes]) -> None:
        """Decode these images in another process from now on: another worker died at them."""
        if not self._suspects.keys() >= set(keys):
            self._reasons.update(_quarantined(self.path))  # the worker that found one to crash has recorded it
        for key in keys:
            self._suspects.setdefault(key, None)

    def _mapped(self, n_bytes: int) -> mmap.mmap:
        with self._notes_path.open("r+b") as file:
            try:
                return mmap.mmap(file.fileno(), n_bytes)
            except OSError as error:
                text = "%s: files cannot be mapped in this folder (%s). After a crash, its image will be unknown."
                logger.warning(text, self._notes_path, error.strerror)
                return mmap.mmap(-1, n_bytes)

    def is_special(self, key: bytes) -> bool:
        """Return whether an image is a suspect, or in quarantine."""
        return key in self._suspects or key in self._reasons

    def load(
        self, content: "Content", key: bytes, views: Sequence[View], decoding: Decoding, region: Region | None = None
    ) -> Seen:
        """Decode as `seen_in` does, a suspect in another process; raise ImageDecodeError for an image in quarantine."""
        if isinstance(content, np.ndarray):  # no decoder
            return seen_in(content, key, views, decoding, region)
        if key in self._reasons:
            raise ImageDecodeError(Unreadable.CRASHED, text=self._reasons[key])
        if key in self._suspects:
            return self._load_suspect(content, key, views, decoding, region)
        slot = self._free.get()
        self._slots[slot : slot + KEY_BYTES] = key
        try:
            return seen_in(content, key, views, decoding, region)
        except DecoderCrashError as error:  # of a file that `slow` found
            raise self._quarantined(key, error) from error
        finally:
            self._slots[slot : slot + KEY_BYTES] = _NO_KEY
            self._free.put(slot)

    def _load_suspect(
        self,
        content: "bytes | EncodedFrame",
        key: bytes,
        views: Sequence[View],
        decoding: Decoding,
        region: Region | None,
    ) -> Seen:
        is_known = True
        try:
            return seen_isolated(content, key, views, decoding, region)
        except DecodingStoppedError:
            is_known = False
            raise
        except DecoderCrashError as error:
            raise self._quarantined(key, error) from error
        finally:
            if is_known and (slot := self._suspects[key]) is not None:
                self._slots[slot : slot + KEY_BYTES] = _NO_KEY

    def _quarantined(self, key: bytes, error: DecoderCrashError) -> ImageDecodeError:
        reason = f"{error} (in quarantine: {self.path.name})"
        self._reasons[key] = reason
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{key.hex()} {reason}\n")
            file.flush()
            os.fsync(file.fileno())
        return ImageDecodeError(Unreadable.CRASHED, text=reason)


def load_isolated(content: "Content", key: bytes, views: Sequence[View], decoding: Decoding) -> "list[torch.Tensor]":
    """Decode as `load_looks` does, but in another process; raises as `decode_with_header` does."""
    return seen_isolated(content, key, views, decoding).looks


def seen_isolated(
    content: "Content",
    key: bytes,
    views: Sequence[View],
    decoding: Decoding,
    region: Region | None = None,
    *,
    seconds: float | None = None,
    cancellation: Cancellation | None = None,
) -> Seen:
    """Decode as `seen_in` does, but in another process; raises as `decode_with_header` does."""
    if isinstance(content, np.ndarray):  # no decoder
        return seen_in(content, key, views, decoding, region)
    return seen_by(_decoded_isolated(content, views, decoding, seconds, cancellation), key, views, region)


def _decoded_isolated(
    content: "bytes | EncodedFrame",
    views: Sequence[View],
    decoding: Decoding,
    seconds: float | None,
    cancellation: Cancellation | None,
) -> Iterator[Decoded]:
    encoded, frame = unpack(content)
    limits, room = (decoding.max_pixels, decoding.window), decoding.room if decoding.budget is not None else None
    for some in by_decoding(encoded, views):
        with decoded(
            encoded, frame, *limits, room, size=some[0].decoded_size, seconds=seconds, cancellation=cancellation
        ) as (pixels, header):
            yield Decoded(pixels, some, header)


def suspect_keys(cache: Path) -> set[bytes]:
    """Return the keys that were being decoded when a process of an earlier extraction died, without those in quarantine."""
    found = {key for notes in _all_notes(cache) for key in _noted_in(notes)}
    return found - dict(_quarantined(_quarantine_path(cache))).keys()


def suspect_keys_of_worker(cache: Path, worker: str) -> set[bytes]:
    """Return the keys that a worker was decoding when it died; none if the notes were lost with its host."""
    try:
        return _noted_in(_notes_path(cache, worker))
    except OSError:
        return set()


def clear_notes(cache: Path, still_suspect: Collection[bytes]) -> None:
    """Remove the notes of all workers that have ended; keep those of images that have not been decoded since.

    On a full disk all notes stay, for the next extraction.
    """
    before, own = _all_notes(cache), _notes_path(cache, "")
    with suppress(OSError):
        if still_suspect:
            _write_notes(own, sorted(still_suspect))
        for path in before:
            if path != own or not still_suspect:
                path.unlink(missing_ok=True)


def _write_notes(path: Path, keys: Collection[bytes]) -> None:
    new = path.with_name(path.name + ".tmp")
    new.write_bytes(b"".join(keys))
    new.replace(path)


def _notes_path(cache: Path, worker: str) -> Path:
    return cache.with_name(cache.name + NOTES_SUFFIX + (f"-{worker}" if worker else ""))


def _quarantine_path(cache: Path) -> Path:
    return cache.with_name(cache.name + ".quarantine")


def _all_notes(cache: Path) -> list[Path]:
    prefix = cache.name + NOTES_SUFFIX
    try:
        names = sorted(path.name for path in cache.parent.iterdir())
    except OSError:
        return []
    return [cache.with_name(name) for name in names if name == prefix or name.startswith(f"{prefix}-")]


def _noted_in(path: Path) -> set[bytes]:
    """Return the keys that were being decoded when a process died."""
    content = path.read_bytes() if path.is_file() else b""
    whole = range(0, len(content) - KEY_BYTES + 1, KEY_BYTES)
    return {content[start : start + KEY_BYTES] for start in whole} - {_NO_KEY}


def _quarantined(path: Path) -> Iterator[tuple[bytes, str]]:
    """Read keys and reasons; skip a line that a full disk cut off."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        key, _, reason = line.partition(" ")
        with suppress(ValueError):
            yield bytes.fromhex(key), reason
