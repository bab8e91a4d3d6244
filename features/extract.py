"""Embed what the cache lacks, on this machine."""

import errno
import logging
import os
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from features.cache import CacheWriter, Header, KnownFiles, begun_header
from features.datasets import Dataset, read_dataset
from features.errors import HoarfrostError, ImageDecodeError
from features.fingerprint import Fingerprint, preprocessing, weights_origin
from features.interrupts import StopSignals
from features.plan import (
    ExtractOptions,
    ExtractSummary,
    ImageTable,
    LoopCounts,
    Progress,
    check_bad_images,
    kinds_of,
)
from features.pseudonyms import Pseudonyms, salt_path

if TYPE_CHECKING:
    from features.backbone import Backbone, Weights

ARCHITECTURE = "resnet18"
SHOWN_MISSING = 3
ROWS_AT_ONCE = 1 << 20  # looked up: bounds the memory beside the tables

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
    dataset = read_dataset(data, name=name, pseudonyms=Pseudonyms(salt_path(cache), keep_ids=options.keep_ids))
    recipe = _recipe(options, begun_header(cache), dataset)
    with StopSignals() as stop, _writer(cache, recipe, dataset, options) as writer:
        table = ImageTable(len(dataset))
        todo = recognised(dataset, KnownFiles.nothing() if options.rehash else writer.known_files(), table)
        _say_what_is_missing(dataset, table.errors, options)
        counts = _embed(todo, dataset, writer, table, recipe, options, on_progress, stop)
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
    )


def _writer(cache: Path, recipe: "_Recipe", dataset: Dataset, options: ExtractOptions) -> CacheWriter:
    root = dataset.images.location
    return CacheWriter(cache, recipe.header, dataset.name, root=root, shard_bytes=options.shard_size)


@dataclass(frozen=True)
class _Recipe:
    """How embeddings are made. The weights are loaded when an image needs them, or when nothing else tells their digest."""

    header: Header
    device: str
    weights_spec: str
    weights: "Weights | None"

    def backbone(self, device: str, batch_size: int, n_images: int, writer: CacheWriter) -> "Backbone":
        """Make the backbone, on the compute path that an interrupted extraction began with."""
        from features.backbone import Backbone, load_weights, settle_compute

        weights = self.weights or load_weights(self.weights_spec)
        precision = self.header.fingerprint.precision
        backbone = Backbone(weights, device=device, precision=precision, batch_size=batch_size)
        settle_compute(backbone, n_images, resumed=writer.compute)
        writer.begin(backbone.compute)
        return backbone


def _recipe(options: ExtractOptions, begun: Header | None, dataset: Dataset) -> _Recipe:
    """Settle how embeddings are made: as asked; where "auto" leaves it open, as the cache was begun."""
    spec, weights = options.weights, None
    if spec == "auto" and begun is not None and (begun.weights == "imagenet" or begun.weights.startswith("random:")):
        spec = begun.weights  # whatever the network says today
        if spec != "imagenet":
            logger.warning("the cache was begun with the untrained backbone %s; going on with it", spec)
    origin = weights_origin(spec)
    if begun is not None and origin and origin == begun.weights_origin:
        name, sha256 = begun.weights, begun.fingerprint.weights_sha256
    else:
        from features.backbone import load_weights

        weights = load_weights(spec)
        name, sha256 = weights.name, weights.sha256
        origin = weights_origin(name if spec == "auto" else spec)
    precision = _begun_precision(options.precision, begun)
    if precision is None:
        from features.devices import choose_device, choose_precision

        precision = choose_precision(options.precision, choose_device(options.device, options.precision))
    if precision == "int8":
        if begun is not None:
            precision = "int8:"  # on a cache of another precision: the writer will refuse it, whatever the ranges are
        else:
            weights, precision = _calibrated(weights, spec, dataset, options)
    steps = preprocessing(None if options.window is None else str(options.window))
    header = Header(Fingerprint(ARCHITECTURE, sha256, steps, precision), name, origin)
    return _Recipe(header, options.device, spec, weights)


def _begun_precision(asked: str, begun: Header | None) -> str | None:
    """Give the precision that the cache was begun with, if that is what is asked for."""
    if begun is None:
        return None
    found = begun.fingerprint.precision
    return found if asked in {"auto", found} or (asked == "int8" and found.startswith("int8:")) else None


def _calibrated(
    weights: "Weights | None", spec: str, dataset: Dataset, options: ExtractOptions
) -> "tuple[Weights, str]":
    """Calibrate 8-bit integers on the data set's own images."""
    from features.backbone import load_weights
    from features.backbone.int8 import calibrated_precision, require_openvino
    from features.images import Decoding
    from features.loop import sample_images

    require_openvino()
    weights = weights or load_weights(spec)
    return weights, calibrated_precision(weights, sample_images(dataset, Decoding(options.max_pixels, options.window)))


def _embed(
    todo: Sequence[int],
    dataset: Dataset,
    writer: CacheWriter,
    table: ImageTable,
    recipe: _Recipe,
    options: ExtractOptions,
    on_progress: Callable[[Progress], None],
    stop: StopSignals,
) -> LoopCounts:
    if not todo:
        return LoopCounts(device="cpu" if options.device == "auto" else options.device)
    # Only here: torch takes seconds to import, and an unchanged data set needs none of it.
    from features.devices import choose_batch_size, choose_device
    from features.loop import EmbeddingLoop

    device = choose_device(options.device, recipe.header.fingerprint.precision)
    batch_size = choose_batch_size(options.batch_size, device)
    backbone = partial(recipe.backbone, device, batch_size, len(todo), writer)
    return EmbeddingLoop(dataset, writer, table, backbone, device, batch_size, options, on_progress).run(todo, stop)


def recognised(dataset: Dataset, known: KnownFiles, table: ImageTable) -> Sequence[int]:
    """Fill in what is unchanged since an earlier extraction, and what is missing; list the images to read."""
    stamps = dataset.images.stamps()
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
