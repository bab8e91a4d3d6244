"""Embed the images that are missing from the cache, on this machine or on a cluster."""

import errno
import glob
import logging
import os
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hoarfrost.features.cache import CacheWriter, EmbeddingCache, Header, Keys, KnownFiles, Mask, existing_header
from hoarfrost.features.datasets import Dataset, hints, read_dataset, read_unlabelled
from hoarfrost.features.datasets.conflicts import warn_of_conflicts
from hoarfrost.features.datasets.pseudonyms import Pseudonyms, salt_path
from hoarfrost.features.errors import CacheError, HoarfrostError, ImageDecodeError, Reason, WeightsError, reason_of
from hoarfrost.features.extraction.engines import LocalOptions
from hoarfrost.features.extraction.interrupts import StopSignals
from hoarfrost.features.extraction.job import Engine, Job, open_engine
from hoarfrost.features.extraction.plan import (
    ExtractOptions,
    ExtractSummary,
    ImageRecords,
    LoopCounts,
    Progress,
    check_bad_images,
    kinds_of,
)
from hoarfrost.features.extraction.recipes import recipe_for, recipe_like, shows_regions
from hoarfrost.features.extraction.regions import with_regions
from hoarfrost.features.origins import is_elsewhere

SHOWN_MISSING = 3
COMPARED = 256  # embeddings, with each other
NO_SUCH_FILE = reason_of(OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
ROWS_AT_ONCE = 1 << 20  # looked up together: bounds the memory beside the tables

logger = logging.getLogger(__name__)


def extract(
    data: Path | str,
    cache: Path,
    *,
    name: str | None = None,
    options: ExtractOptions | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> ExtractSummary:
    """Embed a dataset's images that are missing from the cache, and record the dataset in the cache.

    Parameters
    ----------
    data : Path or str
        See `hoarfrost.features.datasets.read_dataset`.
    cache : Path
        The cache's HDF5 file; created if it is missing.
    name : str, optional
        The dataset's name in the cache.
    options : ExtractOptions, optional
    on_progress : callable
        Called at the start, and then after batches.

    Raises
    ------
    HoarfrostError
        Its subclass says what is wrong: dataset, weights, cache, or (with "fail") an image.
    """
    started = time.monotonic()
    options = options or ExtractOptions()
    if options.margin is not None and options.region is None:
        raise HoarfrostError("--margin is for --region box or mask. Add --region, or omit --margin.")
    with ExitStack() as stack:
        engine = stack.enter_context(open_engine(options))
        pseudonyms = Pseudonyms(salt_path(cache), keep_ids=options.keep_ids)
        dataset = read_dataset(data, name=name, pseudonyms=pseudonyms, options=options.table)
        for hint in hints(dataset):
            logger.warning("%s", hint)
        existing = existing_header(cache)
        are_views = shows_regions(options, existing)
        if options.region is not None:
            dataset = with_regions(
                dataset, options.region, options.margin, max_pixels=options.max_pixels, window=options.window,
                are_views=are_views,
            )  # fmt: skip
        if existing is not None and is_elsewhere(existing.fingerprint.backbone):
            raise CacheError(
                f"{cache} holds embeddings that were made elsewhere, and this program's are not comparable with them. Choose "
                "another --cache, or add embeddings of the same encoder with `hoarfrost cache import`."
            )
        if existing is None:
            engine.start_early()
        recipe = recipe_for(options, existing, dataset, engine.choose_precision)
        stop = stack.enter_context(StopSignals())
        writer = CacheWriter(
            cache, recipe.header, dataset.name, root=dataset.images.location, shard_bytes=options.shard_size
        )
        stack.enter_context(writer)
        job = Job(dataset, writer, recipe, options, on_progress, stop)
        began = time.monotonic()
        counts, table = _embed(engine, job), job.table
        seconds_per_image = (time.monotonic() - began) / counts.embedded if counts.embedded else 0.0
        if not table.readable.any():
            first, reason = next(iter(table.errors.items()))
            path = dataset.paths[first]
            raise HoarfrostError(
                f"{data}: none of the {len(dataset)} images could be read. The first: {path}: {reason.text}."
            )
        warn_of_conflicts(dataset, table.keys, table.readable)
        writer.finish(replace(table.for_dataset(dataset), seconds_per_image=seconds_per_image), table.keys)
    _warn_if_constant(cache, dataset.name)
    return _summary(job, counts, cache, time.monotonic() - started)


def _warn_if_constant(cache: Path, name: str) -> None:
    """Warn if a sample of the dataset's embeddings is one and the same: nothing can be learnt from such images."""
    with EmbeddingCache(cache) as opened:
        rows = np.unique(opened.dataset(name).rows)
        rows = rows[rows >= 0]
        some = rows[np.linspace(0, len(rows) - 1, min(len(rows), COMPARED)).astype(int)]
        embeddings = opened.embeddings(some)
    if len(rows) == 1 or (embeddings == embeddings[0]).all():
        logger.warning(
            "All images have the same embedding, so nothing can be learnt from them. Perhaps they are all black. Look at "
            "them with: hoarfrost inspect DATA --contact-sheet seen.png",
        )  # fmt: skip


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
        views=tuple(view.name for view in job.recipe.views),
        layers=header.fingerprint.layers,
        errors=errors,
        failed_by_kind=kinds_of(job.table.errors.values()),
        notes=dict(counts.notes),
        engine=job.options.engine.name,
        workers=counts.workers,
        drift=header.drift,
    )


@dataclass(frozen=True)
class EmbeddedDataset:
    """A dataset whose embeddings are in a cache that does not list it.

    `keys` (n, 32) uint8 are undefined for unreadable images; `errors` says why, by their place in the dataset.
    `forward_images` went through the encoder.
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
    read: Callable[[Pseudonyms], Dataset] | None = None,
    is_listed: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> EmbeddedDataset:
    """Embed images, labelled or not, in the way that others were; the cache gets their embeddings.

    Parameters
    ----------
    data : Path or str
        See `hoarfrost.features.datasets.read_unlabelled`.
    cache : Path
        The cache's HDF5 file; created if it is missing.
    header : Header
        How the others were embedded.
    weights : str, optional
        Where the weights are now, if not where the header says; see `hoarfrost.features.encoder.backbone.load_weights`.
    source_cache : EmbeddingCache, optional
        Embeddings that it has are copied from there.
    options : ExtractOptions, optional
        The header overrides its encoder, weights, precision and window.
    read : callable, optional
        Reads the table of images, with the pseudonyms of patients; `read_unlabelled` by default.
    is_listed : bool
        Whether the cache lists the dataset too, unless none of its images is readable.
    on_progress : callable
        Called at the start, and then after batches.

    Raises
    ------
    HoarfrostError
        Its subclass says what is wrong: dataset, weights, fingerprint, cache.
    """
    recipe, window = recipe_like(header, weights)
    # This machine's engine: Ray's workers copy nothing from a source cache.
    options = replace(
        options or ExtractOptions(), window=window, max_bad=1.0, on_error="skip",
        engine=LocalOptions(),
    )  # fmt: skip
    pseudonyms = Pseudonyms(salt_path(cache), keep_ids=options.keep_ids)
    dataset = read_unlabelled(data, pseudonyms) if read is None else read(pseudonyms)
    with (
        open_engine(options) as engine,
        StopSignals() as stop,
        CacheWriter(cache, recipe.header, dataset.name, root=dataset.images.location) as writer,
    ):
        job = Job(dataset, writer, recipe, options, on_progress, stop, source_cache)
        try:
            counts = _embed(engine, job)
        except WeightsError as error:
            raise WeightsError(
                f"New images need the weights that the head was trained with: {header.weights} "
                f"({header.weights_origin or 'of unknown origin'}). They are no longer available. {error} "
                "If they are elsewhere now, pass their path with --weights."
            ) from error
        if is_listed and job.table.readable.any():
            writer.finish(job.table.for_dataset(dataset), job.table.keys)
        else:
            writer.fold()
    return EmbeddedDataset(dataset, job.table.keys, job.table.reasons(), counts.forward_images)


def _embed(engine: Engine, job: Job) -> LoopCounts:
    """Embed the images that are not known; if all are, only check the device that was asked for."""
    dataset, table, options = job.dataset, job.table, job.options
    known, views = KnownFiles.nothing() if options.rehash else job.writer.known_files(), job.recipe.views
    todo = set_unchanged(dataset, known, table, lambda keys: job.writer.has_views(keys, [view.name for view in views]))
    _report_missing(dataset, table.errors, options)
    if todo:
        job.stop.check(len(todo), table.readable)
        _state_cost(job)
        job.on_progress(Progress(0, len(todo), 0.0))
        return engine.embed(job, todo)
    _clear_empty_notes(job.writer.path)
    if options.device in {"auto", "cpu"}:
        return LoopCounts("cpu")
    from hoarfrost.features.devices import choose_device  # here: torch takes seconds to import

    return LoopCounts(choose_device(options.device, job.recipe.precision))


def _clear_empty_notes(cache: Path) -> None:
    """Remove what a killed extraction left of its notes, if no image is in them."""
    if any(cache.parent.glob(f"{glob.escape(cache.name)}.trying*")):
        from hoarfrost.features.decoding.quarantine import clear_notes, suspect_keys  # here: it loads torch

        clear_notes(cache, suspect_keys(cache))


def set_unchanged(
    dataset: Dataset, known: KnownFiles, table: ImageRecords, is_complete: Callable[[Keys], Mask]
) -> Sequence[int]:
    """Return the images to read; record those that are unchanged since an earlier extraction, and missing files.

    `is_complete` returns which images, by their keys (n, 32) uint8, have all embeddings, (n,) bool.
    """
    stamps = dataset.images.stamps(of_urls=bool(known))
    for first in range(0, len(dataset), ROWS_AT_ONCE) if known else ():
        some = slice(first, first + ROWS_AT_ONCE)
        rows, keys = known.unchanged(dataset.paths[some], stamps.sizes[some], stamps.mtimes_ns[some])
        complete = is_complete(keys)
        rows, keys = rows[complete], keys[complete]
        table.keys[first + rows], table.readable[first + rows] = keys, True
    table.set_stamps(stamps)
    missing = np.flatnonzero(stamps.missing).tolist()
    table.errors.update(dict.fromkeys(missing, NO_SUCH_FILE))
    # Numbers side by side: a list of ten million would take five times the memory.
    return array("q", np.flatnonzero(~table.readable & ~stamps.missing).tobytes())


def _state_cost(job: Job) -> None:
    """State how much more work several views are than one look at the encoder's own size."""
    views, size = job.recipe.views, job.recipe.encoder.size
    cost = sum(view.n_looks * view.size**2 for view in views) / size**2
    if len(views) > 1 or cost > 1:
        names = ", ".join(view.name for view in views)
        what = "1 view" if len(views) == 1 else f"{len(views)} views"
        logger.warning("%s (%s): about %.3g times the work of one look at %d pixels.", what, names, cost, size)


def _report_missing(dataset: Dataset, missing: dict[int, Reason], options: ExtractOptions) -> None:
    """Warn once about missing files, with the place where they were looked for; stop if they are too many already."""
    if not missing:
        return
    first = [dataset.paths[index] for index in list(missing)[:SHOWN_MISSING]]
    place = dataset.images.location
    message = (
        f"{dataset.source}: {len(missing):,} of {len(dataset):,} listed files do not exist. The first: {', '.join(first)}. "
        f"Paths are relative to {place}, so the first was expected at {os.path.join(place, first[0])}."
    )
    if options.on_error == "fail":
        text = f"{message} Correct the paths, or pass --on-error skip to list them and continue."
        raise ImageDecodeError(NO_SUCH_FILE.kind, text=text)
    logger.warning("%s", message)
    if len(missing) < len(dataset):
        check_bad_images(dataset, missing, options.max_bad)
