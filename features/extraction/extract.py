"""Embed what the cache lacks, on this machine or on a cluster."""

import errno
import logging
import os
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hoarfrost.features.cache import CacheWriter, EmbeddingCache, Header, Keys, KnownFiles, begun_header
from hoarfrost.features.datasets import Dataset, read_dataset, read_unlabelled
from hoarfrost.features.datasets.pseudonyms import Pseudonyms, salt_path
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError, WeightsError
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.features.extraction.job import Job
from hoarfrost.features.extraction.plan import (
    BadImages,
    ExtractOptions,
    ExtractSummary,
    ImageTable,
    LoopCounts,
    Progress,
    check_bad_images,
    kinds_of,
)
from hoarfrost.features.extraction.recipes import Recipe, recipe_for, recipe_like

if TYPE_CHECKING:
    from hoarfrost.features.encoder.backbone import Backbone
    from hoarfrost.features.extraction.cluster import Cluster

SHOWN_MISSING = 3
ROWS_AT_ONCE = 1 << 20  # looked up: bounds the memory beside the tables

logger = logging.getLogger(__name__)


def extract(
    data: Path | str,
    cache: Path,
    *,
    name: str | None = None,
    options: ExtractOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ExtractSummary:
    """Embed a dataset's images that the cache lacks, and record the dataset in the cache.

    Parameters
    ----------
    data : Path or str
        What `hoarfrost.features.datasets.read_dataset` takes.
    cache : Path
        The cache's HDF5 file; made where it is missing.
    name : str, optional
        The dataset's name in the cache.
    options : ExtractOptions, optional
    on_progress : callable
        Called after each batch.

    Returns
    -------
    ExtractSummary

    Raises
    ------
    HoarfrostError
        One of its children, by what is wrong: dataset, weights, cache, or (with "fail") an image.
    """
    started = time.monotonic()
    options = options or ExtractOptions()
    with ExitStack() as stack:
        cluster = stack.enter_context(_cluster(options)) if options.engine == "ray" else None
        dataset = read_dataset(data, name=name, pseudonyms=Pseudonyms(salt_path(cache), keep_ids=options.keep_ids))
        choose_precision = _choose_precision if cluster is None else cluster.choose_precision
        begun = begun_header(cache)
        if cluster is not None and begun is None:
            cluster.start_early()
        recipe = recipe_for(options, begun, dataset, choose_precision)
        stop = stack.enter_context(StopSignals())
        root = dataset.images.location
        writer = stack.enter_context(
            CacheWriter(cache, recipe.header, dataset.name, root=root, shard_bytes=options.shard_size)
        )
        job, todo = _begun(dataset, writer, recipe, options, on_progress, stop)
        table, counts = job.table, _embed(job, todo, cluster)
        if not table.readable.any():
            raise _none_readable(data, dataset, table)
        writer.finish(table.for_dataset(dataset), table.keys)
    return _summary(job, counts, cache, time.monotonic() - started)


def _none_readable(data: Path | str, dataset: Dataset, table: ImageTable) -> HoarfrostError:
    first, reason = next(iter(table.errors.items()))
    return HoarfrostError(
        f"{data}: none of the {len(dataset)} images could be read. The first: {dataset.paths[first]}: {reason}."
    )


def _summary(job: Job, counts: LoopCounts, cache: Path, seconds: float) -> ExtractSummary:
    n_images, header = len(job.dataset), job.recipe.header
    errors = tuple((job.dataset.paths[index], reason) for index, reason in sorted(job.table.errors.items()))
    return ExtractSummary(
        images=n_images,
        embedded=counts.embedded,
        reused=n_images - counts.embedded - len(errors),
        failed=len(errors),
        forward_images=counts.forward_images,
        seconds=seconds,
        images_per_second=n_images / seconds,
        dataset=job.dataset.name,
        cache=str(cache),
        fingerprint=header.fingerprint.digest,
        weights=header.weights,
        device=counts.device,
        precision=header.fingerprint.precision,
        errors=errors,
        failed_by_kind=kinds_of(job.table.errors.values()),
        notes=dict(counts.notes),
        engine=job.options.engine,
        workers=counts.workers,
    )


@dataclass(frozen=True)
class Embedded:
    """A dataset whose embeddings are in a cache, without being one of its datasets.

    Attributes
    ----------
    dataset : Dataset
    keys : ndarray (n, 32) uint8
        Each image's; anything for those that cannot be read.
    errors : mapping of int to str
        Why images cannot be read, by their place in the dataset.
    forward_images : int
        How many went through the backbone.
    """

    dataset: Dataset
    keys: Keys
    errors: Mapping[int, str]
    forward_images: int


def embed_like(
    data: Path | str,
    cache: Path,
    header: Header,
    *,
    weights: str | None = None,
    lender: EmbeddingCache | None = None,
    options: ExtractOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Embedded:
    """Embed images, labelled or not, in the way that others were; the cache gets their embeddings, and no dataset.

    Parameters
    ----------
    data : Path or str
        What `hoarfrost.features.datasets.read_unlabelled` takes.
    cache : Path
        The cache's HDF5 file; made where it is missing.
    header : Header
        How the others were embedded.
    weights : str, optional
        Where the weights are now, if not where the header says; see `hoarfrost.features.encoder.backbone.load_weights`.
    lender : EmbeddingCache, optional
        Embeddings that it has are copied from there.
    options : ExtractOptions, optional
        Its encoder, weights, precision and window are the header's.
    on_progress : callable
        Called after each batch.

    Raises
    ------
    HoarfrostError
        One of its children, by what is wrong: dataset, weights, fingerprint, cache.
    """
    recipe, window = recipe_like(header, weights)
    options = replace(
        options or ExtractOptions(), encoder=recipe.encoder.name, window=window, max_bad=1.0, on_error="skip"
    )
    dataset = read_unlabelled(data, Pseudonyms(salt_path(cache), keep_ids=options.keep_ids))
    with StopSignals() as stop, CacheWriter(cache, recipe.header, dataset.name, root=dataset.images.location) as writer:
        try:
            job, todo = _begun(dataset, writer, recipe, options, on_progress, stop, lender)
            counts = _embed(job, todo, None)
        except WeightsError as error:
            raise WeightsError(
                f"The weights {header.weights} ({header.weights_origin or 'of unknown origin'}), by which the head's own "
                f"embeddings were made, cannot be had any more, and new images need them. {error} Say with --weights where "
                "they are now."
            ) from error
        writer.fold()
    return Embedded(dataset, job.table.keys, job.table.errors, counts.forward_images)


def _begun(
    dataset: Dataset,
    writer: CacheWriter,
    recipe: Recipe,
    options: ExtractOptions,
    on_progress: Callable[[Progress], None],
    stop: StopSignals,
    lender: EmbeddingCache | None = None,
) -> tuple[Job, Sequence[int]]:
    """Tell what is known already, and list the images that are to be read."""
    table = ImageTable(len(dataset))
    todo = recognised(dataset, KnownFiles.nothing() if options.rehash else writer.known_files(), table)
    _say_what_is_missing(dataset, table.errors, options)
    bad = BadImages(dataset, table.errors, options)
    return Job(dataset, writer, table, bad, recipe, options, on_progress, stop, lender), todo


def _cluster(options: ExtractOptions) -> "Cluster":
    from hoarfrost.features.extraction.cluster import Cluster  # here: whoever has one machine needs no Ray

    return Cluster(options)


def _embed(job: Job, todo: Sequence[int], cluster: "Cluster | None") -> LoopCounts:
    """Embed the images to do, where that was asked for."""
    if not todo:
        device = job.options.device
        if device in {"auto", "cpu"}:
            return LoopCounts("cpu")
        from hoarfrost.features.devices import choose_device

        return LoopCounts(choose_device(device, job.recipe.precision))
    if cluster is not None:
        return cluster.embed(job, todo)
    # Only here: torch takes seconds to import, and an unchanged dataset needs none of it.
    from hoarfrost.features.devices import choose_batch_size, choose_device, n_gpus

    device = choose_device(job.options.device, job.recipe.precision)
    batch_size = choose_batch_size(job.options.batch_size, device)
    if device == "cuda" and len(todo) >= n_gpus() * batch_size > batch_size:  # a batch for each
        from hoarfrost.features.extraction.cluster import Cluster, is_installed, say_what_is_idle

        if is_installed():
            with Cluster(replace(job.options, device=device)) as own:
                return own.embed(job, todo)
        say_what_is_idle(n_gpus())
    return _embed_here(job, todo, device, batch_size)


def _embed_here(job: Job, todo: Sequence[int], device: str, batch_size: int) -> LoopCounts:
    """Embed in this process."""
    from hoarfrost.features.decoding.quarantine import Quarantine
    from hoarfrost.features.extraction.loop import EmbeddingLoop, Work, n_decoders

    writer = job.writer

    def backbone() -> "Backbone":
        made = job.recipe.backbone(device, batch_size, len(todo), resumed=writer.compute)
        writer.begin(made.compute)
        return made

    with Quarantine(writer.path, n_decoders(job.options)) as quarantine:
        loop = EmbeddingLoop(writer, quarantine, backbone, device, batch_size, job.options, job.lender)
        work = Work(job.dataset.images, job.dataset.paths, todo, job.table, job.bad.note, job.on_progress)
        return loop.run(work, job.stop)


def _choose_precision(options: ExtractOptions) -> str:
    """Choose what is fast on this machine."""
    from hoarfrost.features.devices import choose_device
    from hoarfrost.features.encoder.precision import choose_precision

    return choose_precision(options.precision, choose_device(options.device, options.precision))


def recognised(dataset: Dataset, known: KnownFiles, table: ImageTable) -> Sequence[int]:
    """Fill in what is unchanged since an earlier extraction, and what is missing; list the images to read."""
    stamps = dataset.images.stamps(of_urls=bool(known))
    for first in range(0, len(dataset), ROWS_AT_ONCE) if known else ():
        some = slice(first, first + ROWS_AT_ONCE)
        rows, keys = known.unchanged(dataset.paths[some], stamps.sizes[some], stamps.mtimes_ns[some])
        table.set_known(first + rows, keys)
    table.set_stamps(stamps)
    missing = np.flatnonzero(stamps.missing).tolist()
    table.errors.update(dict.fromkeys(missing, os.strerror(errno.ENOENT)))
    # Numbers side by side: a list of ten million would take five times the memory.
    return array("q", np.flatnonzero(~table.readable & ~stamps.missing).tobytes())


def _say_what_is_missing(dataset: Dataset, missing: dict[int, str], options: ExtractOptions) -> None:
    """Say once that files are not there, and where they were looked for; stop if that is already too many."""
    if not missing:
        return
    first = [dataset.paths[index] for index in list(missing)[:SHOWN_MISSING]]
    place = dataset.images.location
    message = (
        f"{dataset.source}: {len(missing):,} of {len(dataset):,} files that it names do not exist. The first: "
        f"{', '.join(first)}. Paths are relative to {place}, so the first was looked for at {os.path.join(place, first[0])}."
    )
    if options.on_error == "fail":
        raise ImageDecodeError(f"{message} Correct the paths, or pass --on-error skip to list them and go on.")
    logger.warning("%s", message)
    if len(missing) < len(dataset):
        check_bad_images(dataset, missing, options.max_bad)
