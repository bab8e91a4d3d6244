"""Processes that decode into memory which a GPU copies from. Linux alone has such memory."""

import mmap
import os
import sys
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any, NamedTuple

import torch

from hoarfrost.features.decoding.formats import EncodedFrame, unpack
from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.isolated import Process, a_process, request_of, start_idle
from hoarfrost.features.decoding.region import Region
from hoarfrost.features.decoding.views import View
from hoarfrost.features.devices import warn_unpinned
from hoarfrost.features.errors import Reason
from hoarfrost.features.facts import ImageFacts

MOST_ASKED = 16  # images, before their answers are read

_numbers = count()


class SharedMemory:
    """Memory of no file system: a container's small /dev/shm does not limit it.

    A process of the same user opens it at `path`, while this object exists. `name` belongs to it alone, unlike the path.

    Parameters
    ----------
    n_bytes : int
    pinned : bool
        Whether a GPU shall copy from it by itself.

    Raises
    ------
    OSError
        If the system has no such memory, or not enough of it.
    """

    def __init__(self, n_bytes: int, *, pinned: bool) -> None:
        if sys.platform != "linux" or not hasattr(os, "memfd_create"):  # a Python built for an old C library lacks it
            raise OSError("this system, or this Python, lacks shared memory without a name")
        number = os.memfd_create("hoarfrost")
        weakref.finalize(self, os.close, number)
        os.posix_fallocate(number, 0, n_bytes)  # memory that is missing shows here, not at a write later
        self.path, self.n_bytes = f"/proc/{os.getpid()}/fd/{number}", n_bytes
        self.name = f"{os.getpid()}-{next(_numbers)}"
        # The tensors keep the mapping, beyond this object too.
        self._pixels = torch.frombuffer(mmap.mmap(number, n_bytes), dtype=torch.uint8)
        if pinned:
            _pin(self, self._pixels)

    def split(self, shapes: Mapping[int, tuple[int, ...]], n: int) -> list[dict[int, torch.Tensor]]:
        """Return `n` sets of uint8 tensors with these shapes, by the same keys, one after another in this memory."""
        sizes = {key: torch.Size(shape).numel() for key, shape in shapes.items()}
        pieces = iter(torch.split(self._pixels, [*sizes.values()] * n))
        return [{key: next(pieces).view(shape) for key, shape in shapes.items()} for _ in range(n)]

    def offset(self, pixels: torch.Tensor) -> int:
        """Return where a tensor of this memory begins, in bytes."""
        return pixels.data_ptr() - self._pixels.data_ptr()


def _pin(owner: SharedMemory, pixels: torch.Tensor) -> None:
    """Let a GPU copy from a tensor's memory by itself, until its owner is gone; warn where the system does not allow it."""
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = pixels.data_ptr()
    if int(runtime.cudaHostRegister(address, pixels.nbytes, 0)) == 0:
        weakref.finalize(owner, _unpin, address)
        return
    with suppress(RuntimeError):  # CUDA reports an error once more, at the next kernel
        torch.zeros(1, device="cuda")
    warn_unpinned()


def _unpin(address: int) -> None:
    with suppress(RuntimeError):  # of an error that ended the extraction
        torch.cuda.synchronize()  # a copy may be under way
        torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


class WantedLooks(NamedTuple):
    """An image whose looks a process shall write into shared memory: the views, and where each look begins, in bytes.

    `region` is where views of its region look.
    """

    content: bytes | EncodedFrame
    key: bytes
    views: Sequence[View]
    offsets: Sequence[int]
    region: Region | None = None


def start_decoders(n: int, memory: SharedMemory) -> None:
    """Start so many processes that write into shared memory, unless they run already.

    Raises
    ------
    DecoderStartError
        If that is not possible here.
    """
    start_idle(n)
    with ExitStack() as stack:
        started = [stack.enter_context(a_process()) for _ in range(n)]
        for process in started:
            process.open(memory.name, memory.path, memory.n_bytes)
        for process in started:  # they load torch side by side; it would look like slow decoding
            process.wait_until_ready()


def decode_looks(
    images: Sequence[WantedLooks], memory: SharedMemory, decoding: Decoding, most_at_once: int
) -> list[Reason | ImageFacts]:
    """Decode images in another process, which writes the looks into shared memory, three channels each.

    Parameters
    ----------
    images : sequence of WantedLooks
    memory : SharedMemory
    decoding : Decoding
        Its `room` is taken for `most_at_once` pixels, which the process decodes without asking, and for each larger image.
    most_at_once : int

    Returns
    -------
    list of Reason or ImageFacts
        Why an image is unreadable, or its facts if its looks are there.

    Raises
    ------
    DecoderCrashError
        If the process crashed or hung at one of the images.
    DecodingStoppedError
        If `stop_decoding` was called; DecoderStartError if no process could be started.
    """
    with a_process() as process:
        process.open(memory.name, memory.path, memory.n_bytes)
        found: list[Reason | ImageFacts] = []
        for image, (answer, _) in _answered(process, images, decoding, most_at_once):
            while (n_pixels := answer.get("n_pixels")) is not None:
                with decoding.room(n_pixels):
                    ((answer, _),) = process.ask_all([_looks_of(image, decoding, n_pixels)], None)
            for note in answer.get("notes", ()):
                decoding.on_note(note)
            is_unreadable = "error" in answer
            found.append(
                Reason(answer["kind"], answer["error"]) if is_unreadable else ImageFacts.parsed(answer["facts"])
            )
    return found


def _answered(
    process: Process, images: Sequence[WantedLooks], decoding: Decoding, most_at_once: int
) -> Iterator[tuple[WantedLooks, tuple[dict[str, Any], bytes]]]:
    """Yield each image with its answer, some at a time: answers that nobody reads yet must not fill the pipe."""
    for first in range(0, len(images), MOST_ASKED):
        some = images[first : first + MOST_ASKED]
        asked = [_looks_of(image, decoding, most_at_once) for image in some]
        with decoding.room(most_at_once):
            answers = process.ask_all(asked, None)
        yield from zip(some, answers, strict=True)


def _looks_of(image: WantedLooks, decoding: Decoding, most_at_once: int) -> tuple[bytes, dict[str, Any]]:
    encoded, frame = unpack(image.content)
    return encoded, {
        **request_of(frame, decoding.max_pixels, decoding.window, decoding.size),
        "want": "looks",
        "key": image.key.hex(),
        "views": [vars(view) for view in image.views],
        "offsets": image.offsets,
        "region": image.region,
        "most_at_once": most_at_once,
    }
