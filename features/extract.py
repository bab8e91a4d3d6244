"""Embed what the cache lacks, on this machine or on a cluster."""

import errno
import logging
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from features.cache import CacheWriter, KnownFile, begun_header
from features.datasets import Dataset, read_dataset
from features.errors import HoarfrostError, ImageDecodeError
from features.interrupts import StopSignals
from features.job import Job
from features.plan import (
    BadImages,
    ExtractOptions,
    ExtractSummary,
    ImageTable,
    LoopCounts,
    Progress,
    check_bad_images,
    kinds_of,
)
from features.pseudonyms import Pseudonyms, salt_path
from features.recipe import settle_recipe

if TYPE_CHECKING:
    from features.backbone import Backbone
    from features.cluster import Cluster

SHOWN_MISSING = 3

logger = logging.getLogger(__name__)


def extract(
    data: Path,
    cache: Path,
    *,
    name: str | None = None,
    options: ExtractOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ExtractSummary:
    """Embed a data set's images that the cache lacks, and record the data set in the cache.

    Parameters
    ----------
    data : Path
        What `features.datasets.read_dataset` takes.
    cache : Path
        The cache's HDF5 file; made where it is missing.
    name : str, optional
        The data set's name in the cache.
    options : ExtractOptions, optional
    on_progress : callable
        Called after each batch.

    Returns
    -------
    ExtractSummary

    Raises
    ------
    HoarfrostError
        One of its children, by what is wrong: data set, weights, cache, or (with "fail") an image.
    """
    started = time.monotonic()
    options = options or ExtractOptions()
    with ExitStack() as stack:
        cluster = stack.enter_context(_cluster(options)) if options.engine == "ray" else None
        dataset = read_dataset(data, name=name, pseudonyms=Pseudonyms(salt_path(cache), keep_ids=options.keep_ids))
        choose_precision = _choose_precision if cluster is None else cluster.choose_precision
        recipe = settle_recipe(options, begun_header(cache), dataset, choose_precision)
        stop = stack.enter_context(StopSignals())
        root = dataset.images.location
        writer = stack.enter_context(CacheWriter(cache, recipe.header, dataset.name, root=root))
        table = ImageTable(len(dataset))
        todo = _recognise(dataset, {} if options.rehash else writer.known_files(), table)
        _say_what_is_missing(dataset, table.errors, options)
        bad = BadImages(dataset, table.errors, options)
        job = Job(dataset, writer, table, bad, recipe, options, on_progress, stop)
        counts = _embed(job, todo, cluster)
        if not table.readable.any():
            first, reason = next(iter(table.errors.items()))
            raise HoarfrostError(
                f"{data}: none of the {len(dataset)} images could be read. The first: {dataset.paths[first]}: {reason}."
            )
        writer.finish(table.for_dataset(dataset), table.keys)
    seconds = time.monotonic() - started
    errors = tuple((dataset.paths[index], reason) for index, reason in sorted(table.errors.items()))
    return ExtractSummary(
        images=len(dataset),
        embedded=counts.embedded,
        reused=len(dataset) - counts.embedded - len(errors),
        failed=len(errors),
        forward_images=counts.forward_images,
        seconds=seconds,
        images_per_second=len(dataset) / seconds,
        dataset=dataset.name,
        cache=str(cache),
        fingerprint=recipe.header.fingerprint.digest,
        weights=recipe.header.weights,
        device=counts.device,
        precision=recipe.header.fingerprint.precision,
        errors=errors,
        failed_by_kind=kinds_of(table.errors.values()),
        notes=dict(counts.notes),
        engine=options.engine,
        workers=counts.workers,
    )


def _cluster(options: ExtractOptions) -> "Cluster":
    from features.cluster import Cluster  # here: whoever has one machine needs no Ray

    return Cluster(options)


def _embed(job: Job, todo: list[int], cluster: "Cluster | None") -> LoopCounts:
    """Embed the images to do, where that was asked for."""
    if not todo:
        device = job.options.device
        return LoopCounts("cpu" if device == "auto" else device)
    if cluster is not None:
        return cluster.embed(job, todo)
    # Only here: torch takes seconds to import, and an unchanged data set needs none of it.
    from features.devices import choose_batch_size, choose_device, n_gpus

    device = choose_device(job.options.device, job.recipe.precision)
    batch_size = choose_batch_size(job.options.batch_size, device)
    if device == "cuda" and len(todo) >= n_gpus() * batch_size > batch_size:  # a batch for each
        from features.cluster import Cluster, is_installed, say_what_is_idle

        if is_installed():
            with Cluster(replace(job.options, device=device)) as own:
                return own.embed(job, todo)
        say_what_is_idle(n_gpus())
    return _embed_here(job, todo, device, batch_size)


def _embed_here(job: Job, todo: list[int], device: str, batch_size: int) -> LoopCounts:
    """Embed in this process."""
    from features.loop import EmbeddingLoop, Work, n_decoders
    from features.quarantine import Quarantine

    writer = job.writer

    def backbone() -> "Backbone":
        made = job.recipe.backbone(device, batch_size, len(todo), resumed=writer.compute)
        writer.begin(made.compute)
        return made

    with Quarantine(writer.path, n_decoders(job.options)) as quarantine:
        loop = EmbeddingLoop(writer, quarantine, backbone, device, batch_size, job.options)
        work = Work(job.dataset.images, job.dataset.paths, todo, job.table, job.bad.note, job.on_progress)
        return loop.run(work, job.stop)


def _choose_precision(options: ExtractOptions) -> str:
    """Choose what is fast on this machine."""
    from features.devices import choose_device, choose_precision

    return choose_precision(options.precision, choose_device(options.device, options.precision))


def _recognise(dataset: Dataset, known: dict[str, KnownFile], table: ImageTable) -> list[int]:
    """Fill in what is unchanged since an earlier extraction, and what is missing; list the images to read."""
    todo = []
    for index, path in enumerate(dataset.paths):
        before = known.get(path)
        try:
            stamp = dataset.images.stamp(index) if before is not None else None
        except OSError:
            stamp = None  # reading it will say why
        if before is not None and stamp is not None and (stamp.size, stamp.mtime_ns) == (before.size, before.mtime_ns):
            table.set(index, stamp, before.key)
        elif dataset.images.is_missing(index):
            table.errors[index] = os.strerror(errno.ENOENT)
        else:
            todo.append(index)
    return todo


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
