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

import numpy as np

from hoarfrost.features.cache import CacheWriter, EmbeddingCache, Header, Keys, KnownFiles, existing_header
from hoarfrost.features.datasets import Dataset, read_dataset, read_unlabelled
from hoarfrost.features.datasets.pseudonyms import Pseudonyms, salt_path
from hoarfrost.features.errors import HoarfrostError, ImageDecodeError, Reason, WeightsError, reason_of
from hoarfrost.features.extraction.engines import LocalOptions
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.features.extraction.job import Engine, Job, open_engine
from hoarfrost.features.extraction.plan import (
    BadImages,
    ExtractOptions,
    ExtractSummary,
    ImageRecords,
    LoopCounts,
    Progress,
    check_bad_images,
    kinds_of,
)
from hoarfrost.features.extraction.recipes import Recipe, recipe_for, recipe_like

SHOWN_MISSING = 3
NO_SUCH_FILE = reason_of(OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
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
        engine = stack.enter_context(open_engine(options))
        dataset = read_dataset(data, name=name, pseudonyms=Pseudonyms(salt_path(cache), keep_ids=options.keep_ids))
        existing = existing_header(cache)
        if existing is None:
            engine.start_early()
        recipe = recipe_for(options, existing, dataset, engine.choose_precision)
        stop = stack.enter_context(StopSignals())
        root = dataset.images.location
        writer = stack.enter_context(
            CacheWriter(cache, recipe.header, dataset.name, root=root, shard_bytes=options.shard_size)
        )
        job, todo = _prepare_job(dataset, writer, recipe, options, on_progress, stop)
        table, counts = job.table, _embed(engine, job, todo)
        if not table.readable.any():
            raise _none_readable(data, dataset, table)
        writer.finish(table.for_dataset(dataset), table.keys)
    return _summary(job, counts, cache, time.monotonic() - started)


def _none_readable(data: Path | str, dataset: Dataset, table: ImageRecords) -> HoarfrostError:
    first, reason = next(iter(table.errors.items()))
    return HoarfrostError(
        f"{data}: none of the {len(dataset)} images could be read. The first: {dataset.paths[first]}: {reason.text}."
    )


def _summary(job: Job, counts: LoopCounts, cache: Path, seconds: float) -> ExtractSummary:
    n_images, header = len(job.dataset), job.recipe.header
    errors = tuple((job.dataset.paths[index], reason) for index, reason in job.table.reasons().items())
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
        engine=job.options.engine.name,
        workers=counts.workers,
    )


@dataclass(frozen=True)
class EmbeddedDataset:
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
    source_cache: EmbeddingCache | None = None,
    options: ExtractOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> EmbeddedDataset:
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
    source_cache : EmbeddingCache, optional
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
    # This machine's engine: Ray's workers copy nothing from a source cache.
    options = replace(
        options or ExtractOptions(), encoder=recipe.encoder.name, window=window, max_bad=1.0, on_error="skip",
        engine=LocalOptions(),
    )  # fmt: skip
    dataset = read_unlabelled(data, Pseudonyms(salt_path(cache), keep_ids=options.keep_ids))
    with (
        open_engine(options) as engine,
        StopSignals() as stop,
        CacheWriter(cache, recipe.header, dataset.name, root=dataset.images.location) as writer,
    ):
        try:
            job, todo = _prepare_job(dataset, writer, recipe, options, on_progress, stop, source_cache)
            counts = _embed(engine, job, todo)
        except WeightsError as error:
            raise WeightsError(
                f"The weights {header.weights} ({header.weights_origin or 'of unknown origin'}), by which the head's own "
                f"embeddings were made, cannot be had any more, and new images need them. {error} Say with --weights where "
                "they are now."
            ) from error
        writer.fold()
    return EmbeddedDataset(dataset, job.table.keys, job.table.reasons(), counts.forward_images)


def _prepare_job(
    dataset: Dataset,
    writer: CacheWriter,
    recipe: Recipe,
    options: ExtractOptions,
    on_progress: Callable[[Progress], None],
    stop: StopSignals,
    source_cache: EmbeddingCache | None = None,
) -> tuple[Job, Sequence[int]]:
    """Return the job, with what is known already filled in, and the images to read."""
    table = ImageRecords(len(dataset))
    todo = set_unchanged(dataset, KnownFiles.nothing() if options.rehash else writer.known_files(), table)
    _report_missing(dataset, table.errors, options)
    bad = BadImages(dataset, table.errors, options)
    return Job(dataset, writer, table, bad, recipe, options, on_progress, stop, source_cache), todo


def _embed(engine: Engine, job: Job, todo: Sequence[int]) -> LoopCounts:
    """Embed the images to do; where there are none, only check the device that was asked for."""
    if todo:
        return engine.embed(job, todo)
    device = job.options.device
    if device in {"auto", "cpu"}:
        return LoopCounts("cpu")
    from hoarfrost.features.devices import choose_device  # here: torch takes seconds to import

    return LoopCounts(choose_device(device, job.recipe.precision))


def set_unchanged(dataset: Dataset, known: KnownFiles, table: ImageRecords) -> Sequence[int]:
    """Fill in what is unchanged since an earlier extraction, and what is missing; return the images to read."""
    stamps = dataset.images.stamps(of_urls=bool(known))
    for first in range(0, len(dataset), ROWS_AT_ONCE) if known else ():
        some = slice(first, first + ROWS_AT_ONCE)
        rows, keys = known.unchanged(dataset.paths[some], stamps.sizes[some], stamps.mtimes_ns[some])
        table.set_known(first + rows, keys)
    table.set_stamps(stamps)
    missing = np.flatnonzero(stamps.missing).tolist()
    table.errors.update(dict.fromkeys(missing, NO_SUCH_FILE))
    # Numbers side by side: a list of ten million would take five times the memory.
    return array("q", np.flatnonzero(~table.readable & ~stamps.missing).tobytes())


def _report_missing(dataset: Dataset, missing: dict[int, Reason], options: ExtractOptions) -> None:
    """Warn once of missing files, with the place where they were looked for; stop if they are too many already."""
    if not missing:
        return
    first = [dataset.paths[index] for index in list(missing)[:SHOWN_MISSING]]
    place = dataset.images.location
    message = (
        f"{dataset.source}: {len(missing):,} of {len(dataset):,} files that it names do not exist. The first: "
        f"{', '.join(first)}. Paths are relative to {place}, so the first was looked for at {os.path.join(place, first[0])}."
    )
    if options.on_error == "fail":
        text = f"{message} Correct the paths, or pass --on-error skip to list them and go on."
        raise ImageDecodeError(NO_SUCH_FILE.kind, text=text)
    logger.warning("%s", message)
    if len(missing) < len(dataset):
        check_bad_images(dataset, missing, options.max_bad)
