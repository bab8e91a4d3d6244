"""Images whose decoder crashes the process: noted before decoding, retried in another process, then skipped."""

import logging
import mmap
import os
import queue
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from hoarfrost.features.decoding.apart import DecoderCrashError, decode_isolated
from hoarfrost.features.decoding.formats import EncodedFrame, unpack
from hoarfrost.features.decoding.images import Decoding, load_image
from hoarfrost.features.errors import CacheError, ImageDecodeError, Unreadable
from hoarfrost.features.fingerprint import KEY_BYTES

if TYPE_CHECKING:
    import torch

    from hoarfrost.features.datasets.table import Content

NOTES_SUFFIX = ".trying"
_NOTHING = bytes(KEY_BYTES)

logger = logging.getLogger(__name__)


class Quarantine:
    """Keeps an image whose decoder crashes from ending every extraction; a context manager.

    While a file is decoded, its key stands in `CACHE.trying`: memory that is mapped to the file, which outlives the
    process at the cost of copying 32 bytes. What stands there when the next extraction begins was being decoded when the
    process died, of whatever cause; such an image is decoded in a process of its own. If that one crashes, the image is
    unreadable from then on, as `CACHE.quarantine` says with a reason.

    Workers of a cluster have notes of their own, `CACHE.trying-WORKER`. Of what others left behind they are told by
    `suspect`; those notes stay where they are until the extraction ends.

    Parameters
    ----------
    cache : Path
        The cache's file.
    n_threads : int
        How many decode at the same time.
    worker : str
        The worker's name, if it is one.
    """

    def __init__(self, cache: Path, n_threads: int, *, worker: str = "") -> None:
        self._cache = cache
        self._worker = worker
        self._trying_path = _notes_path(cache, worker)
        self.path = _quarantine_path(cache)
        self._n_threads = n_threads
        self._reasons: dict[bytes, str] = {}
        self._suspects: dict[bytes, int | None] = {}  # and, if it is noted here, its slot: cleared once it is decoded

    def __enter__(self) -> Self:
        try:
            self._reasons = dict(_quarantined(self.path))
            earlier = [] if self._worker else _all_notes(self._cache)
            suspects = suspect_keys(self._cache) if not self._worker else set()
            slots = [*[_NOTHING] * self._n_threads, *suspects]
            new = self._trying_path.with_name(self._trying_path.name + ".tmp")
            new.write_bytes(b"".join(slots))
            new.replace(self._trying_path)
            self._slots = self._mapped(len(slots) * KEY_BYTES)
            for notes in earlier:  # what they say stands here now
                if notes != self._trying_path:
                    notes.unlink(missing_ok=True)
        except OSError as error:
            raise CacheError(f"{self._trying_path}: cannot be written: {error.strerror}.") from error
        self._suspects = {key: (self._n_threads + i) * KEY_BYTES for i, key in enumerate(suspects)}
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for i in range(self._n_threads):
            self._free.put(i * KEY_BYTES)
        if suspects:
            logger.warning(
                "the last extraction ended while it decoded %s images; they are decoded in a process apart",
                len(suspects),
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        noted = [slot for slot in self._suspects.values() if slot is not None]
        if not any(self._slots[slot : slot + KEY_BYTES] != _NOTHING for slot in noted):
            self._trying_path.unlink(missing_ok=True)

    def suspect(self, keys: Collection[bytes]) -> None:
        """Decode these in another process from now on: another worker died at them."""
        if not self._suspects.keys() >= set(keys):
            self._reasons.update(_quarantined(self.path))  # who found one to crash has written it down
        for key in keys:
            self._suspects.setdefault(key, None)

    def _mapped(self, n_bytes: int) -> mmap.mmap:
        with self._trying_path.open("r+b") as file:
            try:
                return mmap.mmap(file.fileno(), n_bytes)
            except OSError as error:
                logger.warning(
                    "%s: files cannot be mapped here (%s); a crash tells no image",
                    self._trying_path,
                    error.strerror,
                )
                return mmap.mmap(-1, n_bytes)

    def load(self, content: "Content", key: bytes, decoding: Decoding) -> "torch.Tensor":
        """Decode as `load_image` does; in another process what may crash this one, and not at all what did.

        Raises
        ------
        ImageDecodeError
            If the image is unreadable, or in quarantine.
        """
        if isinstance(content, np.ndarray):  # nothing decodes it
            return load_image(content, decoding)
        if key in self._reasons:
            raise ImageDecodeError(Unreadable.CRASHED, text=self._reasons[key])
        if key in self._suspects:
            return self._load_suspect(content, key, decoding)
        with self._noted(key):
            return load_image(content, decoding)

    @contextmanager
    def _noted(self, key: bytes) -> Iterator[None]:
        slot = self._free.get()
        self._slots[slot : slot + KEY_BYTES] = key
        try:
            yield
        finally:
            self._slots[slot : slot + KEY_BYTES] = _NOTHING
            self._free.put(slot)

    def _load_suspect(self, content: "bytes | EncodedFrame", key: bytes, decoding: Decoding) -> "torch.Tensor":
        try:
            return load_isolated(content, decoding)
        except DecoderCrashError as error:
            reason = f"{error} (in quarantine: {self.path.name})"
            self._reasons[key] = reason
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{key.hex()} {reason}\n")
                file.flush()
                os.fsync(file.fileno())
            raise ImageDecodeError(Unreadable.CRASHED, text=reason) from error
        finally:
            slot = self._suspects[key]
            if slot is not None:
                self._slots[slot : slot + KEY_BYTES] = _NOTHING


def load_isolated(content: "Content", decoding: Decoding) -> "torch.Tensor":
    """Decode as `load_image` does, in another process: a decoder that crashes costs this image only.

    Raises
    ------
    DecoderCrashError, ImageDecodeError
        As `decode_isolated`.
    """
    if isinstance(content, np.ndarray):  # nothing decodes it
        return load_image(content, decoding)
    pixels = decode_isolated(*unpack(content), decoding.max_pixels, decoding.window, size=decoding.size)
    return load_image(pixels, decoding)


def suspect_keys(cache: Path) -> set[bytes]:
    """Return the keys that were being decoded when a process of an earlier extraction died, but for those in quarantine."""
    found = {key for notes in _all_notes(cache) for key in _noted_in(notes)}
    return found - dict(_quarantined(_quarantine_path(cache))).keys()


def suspect_keys_of_worker(cache: Path, worker: str) -> set[bytes]:
    """Return the keys that a worker was decoding when it died; none if its host took the notes with it."""
    try:
        return _noted_in(_notes_path(cache, worker))
    except OSError:
        return set()


def clear_notes(cache: Path, still_suspect: Collection[bytes]) -> None:
    """Remove the notes of all workers that are gone, but for those of images that nobody has decoded since.

    On a full disk they stay as they are, to be read by the next extraction.
    """
    before, own = _all_notes(cache), _notes_path(cache, "")
    with suppress(OSError):
        if still_suspect:
            new = own.with_name(own.name + ".tmp")
            new.write_bytes(b"".join(sorted(still_suspect)))
            new.replace(own)
        for notes in before:
            if notes != own or not still_suspect:
                notes.unlink(missing_ok=True)


def _notes_path(cache: Path, worker: str) -> Path:
    return cache.with_name(cache.name + NOTES_SUFFIX + (f"-{worker}" if worker else ""))


def _quarantine_path(cache: Path) -> Path:
    return cache.with_name(cache.name + ".quarantine")


def _all_notes(cache: Path) -> list[Path]:
    prefix = cache.name + NOTES_SUFFIX
    try:
        with os.scandir(cache.parent) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(prefix)]
    except OSError:
        return []
    return [cache.with_name(name) for name in sorted(names) if name == prefix or name.startswith(f"{prefix}-")]


def _noted_in(path: Path) -> set[bytes]:
    """Return the keys that were being decoded when a process died."""
    content = path.read_bytes() if path.is_file() else b""
    whole = len(content) - len(content) % KEY_BYTES
    return {content[start : start + KEY_BYTES] for start in range(0, whole, KEY_BYTES)} - {_NOTHING}


def _quarantined(path: Path) -> Iterator[tuple[bytes, str]]:
    """Read keys and reasons; a line that a full disk cut off is passed over."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    for line in lines:
        key, _, reason = line.partition(" ")
        with suppress(ValueError):
            yield bytes.fromhex(key), reason
