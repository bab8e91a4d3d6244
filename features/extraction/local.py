"""The engine of one machine: this process, or Ray's workers where it has several GPUs."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Self

from hoarfrost.features.extraction.engines import LocalOptions, RayOptions
from hoarfrost.features.extraction.job import Job
from hoarfrost.features.extraction.plan import ExtractOptions, LoopCounts

if TYPE_CHECKING:
    from hoarfrost.features.encoder.backbone import Backbone

# Images. One GPU embeds thousands a second, so fewer are done about when Ray's workers have started. Not measured.
LEAST_FOR_ALL_GPUS = 50_000
LEAST_FOR_FAST = 2_000  # looks at images: half a minute on two cores

logger = logging.getLogger(__name__)


class LocalEngine:
    """Embeds on this machine; see `hoarfrost.features.extraction.job.Engine`.

    Torch takes seconds to import, and is imported where it is used: an unchanged dataset does not need it.
    """

    def __init__(self, own: LocalOptions, options: ExtractOptions) -> None:  # noqa: ARG002 - the signature is any engine's
        self._options = options

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def start_early(self) -> None:
        """Do nothing: there is no other process to start."""

    def choose_precision(self) -> str:
        """Return the precision that is fast on this machine."""
        from hoarfrost.features.devices import choose_device
        from hoarfrost.features.encoder.precision import choose_precision

        asked = self._options.precision
        return choose_precision(asked, choose_device(self._options.device, asked))

    def embed(self, job: Job, todo: Sequence[int]) -> LoopCounts:
        """Embed images of a dataset in this process, or on all GPUs where there are enough to repay their start."""
        from hoarfrost.features.devices import choose_batch_size, choose_device, n_gpus

        device = choose_device(job.options.device, job.recipe.precision)
        batch_size = choose_batch_size(job.options.batch_size, device)
        _recommend_fast(job, len(todo), device)
        if device == "cuda" and n_gpus() > 1 and len(todo) >= LEAST_FOR_ALL_GPUS:
            return _embed_on_all_gpus(job, todo, batch_size, n_gpus())
        return _embed_in_this_process(job, todo, device, batch_size)


def _recommend_fast(job: Job, n_images: int, device: str) -> None:
    """Say before a long extraction into a new cache that 8-bit integers would save half of its time, if they would."""
    from hoarfrost.features.encoder.precision import reason_against_int8

    is_long = n_images * sum(view.n_looks for view in job.recipe.views) >= LEAST_FOR_FAST
    if is_long and job.options.precision == "auto" and not len(job.writer.known) and not reason_against_int8(device):
        logger.warning(
            "--fast would embed these %s images at least twice as fast, in 8-bit integers, and print how far the embeddings "
            "are from those in float32. It needs a new --cache.", f"{n_images:,}",
        )  # fmt: skip


def _embed_on_all_gpus(job: Job, todo: Sequence[int], batch_size: int, n_gpus: int) -> LoopCounts:
    """Embed with one Ray worker on each GPU; on one GPU, with a warning, where Ray is not installed."""
    from hoarfrost.features.extraction.cluster import INSTALL, RayEngine, is_installed

    if is_installed():
        with RayEngine(RayOptions(), replace(job.options, device="cuda")) as engine:
            return engine.embed(job, todo)
    logger.warning(
        "Only one of this machine's %d GPUs is used: the others need Ray, which is not installed. With it, this extraction "
        "is about %d times as fast. Install it: %s", n_gpus, n_gpus, INSTALL,
    )  # fmt: skip
    return _embed_in_this_process(job, todo, "cuda", batch_size)


def _embed_in_this_process(job: Job, todo: Sequence[int], device: str, batch_size: int) -> LoopCounts:
    from hoarfrost.features.decoding.isolated import close_idle
    from hoarfrost.features.decoding.quarantine import Quarantine
    from hoarfrost.features.extraction.buffers import n_decoders, n_processes
    from hoarfrost.features.extraction.loop import EmbeddingLoop, Work

    writer, options = job.writer, job.options

    def make_backbone() -> "Backbone":
        supply = loop.pace.supply()  # a first batch has been read and decoded
        backbone = job.recipe.backbone(device, batch_size, len(todo), resumed=writer.compute, supply=supply)
        writer.set_compute(backbone.compute)
        return backbone

    n_of_processes = n_processes(options, device, len(todo))
    with Quarantine(writer.path, n_decoders(options)) as quarantine, ExitStack() as stack:
        if n_of_processes:
            stack.callback(close_idle)  # each holds 300 MB
        loop = EmbeddingLoop(
            writer, quarantine, make_backbone, device, batch_size, options, job.source_cache, job.recipe.views, n_of_processes
        )  # fmt: skip
        work = Work(job.dataset.images, job.dataset.paths, todo, job.table, job.bad.note, job.on_progress)
        return loop.run(work, job.stop)
