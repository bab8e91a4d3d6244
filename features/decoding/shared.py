"""Memory that decoding processes write looks into, and a GPU copies from. Linux alone has it."""

import mmap
import os
import sys
import weakref
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from typing import Any

import torch

from hoarfrost.features.devices import warn_unpinned

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
        if sys.platform != "linux":
            raise OSError("only Linux has it")
        number = os.memfd_create("hoarfrost")
        weakref.finalize(self, os.close, number)
        os.posix_fallocate(number, 0, n_bytes)  # memory that is missing shows here, not at a write later
        self.path, self.name, self.n_bytes = (
            f"/proc/{os.getpid()}/fd/{number}",
            f"{os.getpid()}-{next(_numbers)}",
            n_bytes,
        )
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
        weakref.finalize(owner, runtime.cudaHostUnregister, address)
        return
    with suppress(RuntimeError):  # CUDA reports an error once more, at the next kernel
        torch.zeros(1, device="cuda")
    warn_unpinned()
