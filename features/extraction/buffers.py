"""The memory that decoded images wait in, batch by batch, and where in it an image's looks are."""

import logging
import threading
from collections.abc import Sequence

import torch

from hoarfrost.features.decoding.budget import PIXELS_AT_ONCE, PixelBudget
from hoarfrost.features.decoding.isolated import DecoderStartError, DecodingStoppedError
from hoarfrost.features.decoding.shared import SharedMemory, start_decoders
from hoarfrost.features.decoding.views import View
from hoarfrost.features.devices import host_tensor
from hoarfrost.features.encoder.backbone.network import CPU_GROUP
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.extraction.plan import ExtractOptions
from hoarfrost.features.processors import usable_cpus, usable_memory

Pixels = dict[int, torch.Tensor]
"""A batch: for each size S of views a buffer (B * L, 3, S, S) uint8 for the L looks of B images."""

N_BUFFERS = 3  # batches on the CPU: one that the encoder computes on, two that are filled
# Beyond so many decoders, one interpreter bounds threads: they hold it for about a fifth of the time that an image takes.
MOST_THREADS = 4
LEAST_FOR_PROCESSES = 10_000  # images: each process takes two seconds of a core to start
BYTES_A_PROCESS, MEMORY_SHARE = 300 << 20, 0.25  # of its own, nearly all of it torch's; and of what there is, at most

logger = logging.getLogger(__name__)


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


class Buffers:
    """The buffers of all batches, used again and again, and which of them are free.

    Parameters
    ----------
    places : Places
    batch_size : int
        Looks that the encoder takes at once.
    device : str
        A GPU copies from pinned memory, and has one more batch under way.
    n_processes : int
        Processes that shall decode into the buffers; 0 if this process's threads do.
    may_use_threads : bool
        Whether threads decode where processes cannot; otherwise HoarfrostError is raised there.

    Attributes
    ----------
    memory : SharedMemory or None
        What processes decode into; None if threads decode.
    """

    def __init__(
        self, places: Places, batch_size: int, device: str, n_processes: int, *, may_use_threads: bool = True
    ) -> None:
        self.places, self.n_images = places, images_in_a_batch(batch_size, places)
        self.n, pinned = (N_BUFFERS + 1, True) if device == "cuda" else (N_BUFFERS, False)
        shapes = {size: (self.n_images * n, 3, size, size) for size, n in places.n_looks.items()}
        n_bytes = self.n * sum(torch.Size(shape).numel() for shape in shapes.values())
        self._may_use_threads, self._has_warned, self._changing = may_use_threads, False, threading.Lock()
        self.memory: SharedMemory | None = None
        if n_processes:
            self._start(n_bytes, n_processes, pinned=pinned)
        self._kept = self.memory  # as long as the buffers: a GPU copies from it
        self.share = PIXELS_AT_ONCE // (2 * max(1, n_processes))  # what a process decodes without asking
        self.budget = PixelBudget(PIXELS_AT_ONCE)
        self.free: list[Pixels] = (
            self.memory.split(shapes, self.n)
            if self.memory is not None
            else [
                {size: host_tensor(shape, torch.uint8, pinned=pinned) for size, shape in shapes.items()}
                for _ in range(self.n)
            ]
        )

    def _start(self, n_bytes: int, n_processes: int, *, pinned: bool) -> None:
        try:
            self.memory = SharedMemory(n_bytes, pinned=pinned)
            start_decoders(n_processes, self.memory)
        except DecoderStartError as error:
            self.use_threads(error.reason)
        except DecodingStoppedError:
            self.memory = None  # the extraction ends with the signal that came
        except OSError as error:
            self.use_threads(error)

    def use_threads(self, reason: object) -> None:
        """Let threads decode from now on, with one warning; raise HoarfrostError if they may not."""
        if not self._may_use_threads:
            raise HoarfrostError(
                f"--decode processes: no process to decode in could be started ({reason}). Free memory, or allow more "
                "processes and open files (see ulimit -a), or use --decode threads."
            )
        with self._changing:
            has_warned, self._has_warned, self.memory = self._has_warned, True, None
        if not has_warned:
            logger.warning("No processes to decode in (%s). Continuing with threads, only slower.", reason)

    def of(self, pixels: Pixels, views: Sequence[View], image: int) -> list[torch.Tensor]:
        """Return the memory (3, S, S) of each look at an image of a batch, view by view."""
        return [pixels[size][row] for view in views for size, row in self.places.of(view, image)]


def images_in_a_batch(batch_size: int, places: Places) -> int:
    """Return how many images give a batch of looks at any size; whole groups of the encoder, if there are so many."""
    n = max(1, batch_size // max(places.n_looks.values()))
    return n if n == batch_size or n < CPU_GROUP else n - n % CPU_GROUP


def n_decoders(options: ExtractOptions) -> int:
    """Return the number of threads that read, and of those, or of the processes, that decode."""
    return options.workers or usable_cpus()


def n_processes(options: ExtractOptions, device: str, n_images: int) -> int:
    """Return how many processes decode so many images; 0 if threads do, unless the options say what decodes.

    Processes pay beside a GPU, which leaves the cores to them, and takes images faster than threads in one interpreter
    can decode them.
    """
    if options.decode != "auto":
        return n_decoders(options) if options.decode == "processes" else 0
    if device != "cuda" or n_images < LEAST_FOR_PROCESSES:
        return 0
    n = int(min(n_decoders(options), MEMORY_SHARE * usable_memory() / BYTES_A_PROCESS))
    return n if n > MOST_THREADS else 0
