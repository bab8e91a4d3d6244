"""The code of a Ray worker: the loop of one machine, on one piece of the dataset after another.

Nothing here knows Ray: its processes call these methods.
"""

import logging
import os
import signal
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from hoarfrost.features.cache import KeyIndex, PartWriter, library_versions, lock_owner
from hoarfrost.features.datasets import ImageSource
from hoarfrost.features.errors import CacheError, DatasetError
from hoarfrost.features.extraction.interrupts import StoppedError, StopSignals
from hoarfrost.features.extraction.plan import ExtractOptions, ImageRecords, LoopCounts
from hoarfrost.features.extraction.recipes import Recipe
from hoarfrost.features.files import is_url


@dataclass(frozen=True)
class Plan:
    """What all workers of an extraction have in common.

    `lock_owner` is the content of the cache's lock file during this extraction; `n_images` and `resumed` decide the compute
    path (see `hoarfrost.features.encoder.backbone.choose_compute`); `location` is where the images are.
    """

    cache: Path
    recipe: Recipe
    dataset: str
    location: str
    lock_owner: str
    device: str
    options: ExtractOptions
    n_images: int
    resumed: str | None
    versions: dict[str, str]


@dataclass(frozen=True)
class Prepared:
    """A worker that is ready: its compute path, its batch size, and its warnings."""

    compute: str
    batch_size: int
    warnings: list[str]


@dataclass(frozen=True)
class EmbeddedPiece:
    """The result of a piece: a table of its images, the parts written or found, and no embedding.

    `n_done` is less than the piece's images if the worker was stopped.
    """

    table: ImageRecords
    counts: LoopCounts
    parts: list[str]
    n_done: int
    seconds: float
    warnings: list[str] = field(default_factory=list)


class Worker:
    """Embeds pieces of a dataset into parts of a cache on a shared path.

    `name` is unique within the extraction; `n_threads` read and decode, unless the options say how many.
    """

    def __init__(self, name: str, n_threads: int) -> None:
        self._name = name
        self._n_threads = n_threads
        self._stop = StopSignals()  # not entered: it receives no signals, as Ray's processes handle these
        self._warnings = _WarningsForDriver()

    def is_there(self) -> None:
        """Return as soon as this worker's process runs."""

    def choose_precision(self, asked: str, device: str) -> str:
        """Return the precision that is fast here."""
        from hoarfrost.features.devices import choose_device
        from hoarfrost.features.encoder.precision import choose_precision

        return choose_precision(asked, choose_device(device, asked))

    def prepare(self, plan: Plan, known: KeyIndex) -> Prepared:
        """Build the backbone; raise HoarfrostError if this host does not have what the others have.

        `known` are the keys in the cache: one copy for all workers of a host, which Ray keeps in shared memory.
        """
        from hoarfrost.features.decoding.quarantine import Quarantine
        from hoarfrost.features.devices import choose_batch_size, choose_device
        from hoarfrost.features.extraction.buffers import n_decoders, n_processes
        from hoarfrost.features.extraction.loop import EmbeddingLoop
        from hoarfrost.features.processors import usable_cpus

        self._plan = plan
        self._check_shared_paths()
        self._compare_versions()
        device = choose_device(plan.device, plan.recipe.precision)
        batch_size = choose_batch_size(plan.options.batch_size, device)
        backbone = plan.recipe.backbone(device, batch_size, plan.n_images, resumed=plan.resumed)
        header = replace(plan.recipe.header, compute=backbone.compute)
        self._parts = PartWriter(plan.cache, header, plan.dataset, root=plan.location, known=known)
        options = replace(plan.options, workers=plan.options.workers or min(self._n_threads, usable_cpus()))
        self._quarantine = Quarantine(plan.cache, n_decoders(options), worker=self._name)
        self._quarantine.__enter__()  # until the process ends
        self._loop = EmbeddingLoop(
            self._parts, self._quarantine, lambda: backbone, device, batch_size, options, views=plan.recipe.views,
            n_processes=n_processes(options, device, plan.n_images),
        )  # fmt: skip
        return Prepared(backbone.compute, batch_size, self._warnings.since_last())

    def _check_shared_paths(self) -> None:
        """Check that the images and the cache are at the same paths here as for the driver."""
        if not is_url(self._plan.location) and not os.path.exists(self._plan.location):
            raise DatasetError(
                f"{self._plan.location}: missing on this host. Mount the images at this path on each host."
            )
        self._check_owner()

    def _check_owner(self) -> None:
        """Check that the cache's writer is still this worker's driver, and the cache's folder the shared one.

        A worker that outlives its driver may still commit its current batches after the next writer has started. That
        does no harm: that writer, or the one after it, finds a sound part with the same embeddings, and folds each key
        once.
        """
        if lock_owner(self._plan.cache) != self._plan.lock_owner:
            raise CacheError(
                f"{self._plan.cache}: not the cache that the driver writes, as its lock file differs. Use a path on a file "
                "system that all hosts share."
            )

    def _compare_versions(self) -> None:
        here = library_versions()
        different = [f"{name} {here.get(name, 'absent')} (driver: {found})" for name, found in self._plan.versions.items()
                     if here.get(name) != found]  # fmt: skip
        if different:
            logging.getLogger(__name__).warning(
                "Versions differ from the driver's: %s. Embeddings may differ in the last bits.", ", ".join(different)
            )

    def embed(
        self, images: ImageSource, paths: list[str], suspects: Collection[bytes], is_tried_again: bool
    ) -> EmbeddedPiece:
        """Embed a piece of the dataset, and commit it; a HoarfrostError ends the extraction on all hosts.

        `images` has only this piece; `suspects` are keys of images at which other workers died; if the piece
        `is_tried_again`, another worker may have committed some of it.
        """
        from hoarfrost.features.extraction.loop import Work

        started = time.monotonic()
        self._check_owner()
        found = self._parts.read_other_parts() if is_tried_again else []
        self._quarantine.suspect(suspects)
        n_parts = len(self._parts.parts)
        table = ImageRecords(len(paths))
        with suppress(StoppedError):  # the table shows what was done
            self._loop.run(Work(images, paths, range(len(paths)), table), self._stop)
        written = [part.path.name for part in self._parts.parts[n_parts:]]
        n_done = int(table.readable.sum()) + len(table.errors)
        seconds = time.monotonic() - started
        return EmbeddedPiece(table, self._loop.counts, found + written, n_done, seconds, self._warnings.since_last())

    def stop(self) -> None:
        """Stop the current piece after its current batch; called while `embed` runs."""
        self._stop.received = signal.SIGINT


class _WarningsForDriver(logging.Handler):
    """Keeps this package's warnings for the driver: nobody reads Ray's logs, and paths may name patients."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._messages: list[str] = []
        package = logging.getLogger(__package__.partition(".")[0])
        package.handlers, package.propagate = [self], False

    def emit(self, record: logging.LogRecord) -> None:
        """Store a warning."""
        self._messages.append(record.getMessage())

    def since_last(self) -> list[str]:
        """Return the warnings since the last call."""
        warnings, self._messages = self._messages, []
        return warnings
