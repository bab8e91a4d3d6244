"""Predict from caches: the embeddings of the head's encoders are there already, and no image is opened."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hoarfrost.features.cache import DatasetTable, EmbeddingCache, Header, existing_header, is_hdf5, open_caches
from hoarfrost.features.datasets import Dataset
from hoarfrost.features.datasets.table import file_images
from hoarfrost.features.errors import FingerprintMismatchError, HoarfrostError
from hoarfrost.features.extraction.extract import EmbeddedDataset
from hoarfrost.features.files import is_url
from hoarfrost.features.fingerprint import KEY_BYTES
from hoarfrost.features.origins import encoder_of, is_elsewhere, parts_of
from hoarfrost.inference.predict.predictor import Predictor


def is_cache(data: Path | str) -> bool:
    """Return whether data are a cache's file, and not images."""
    return not is_url(data) and is_hdf5(Path(data))


@contextmanager
def cached_dataset(
    caches: Sequence[Path | str], predictor: Predictor, dataset: str | None
) -> Iterator[tuple[EmbeddedDataset, EmbeddingCache]]:
    """Open a dataset of one cache, or of one for each of the head's encoders in any order.

    Raises
    ------
    HoarfrostError
        If one of them is not a cache or damaged, they are not of the head's encoders, or they lack images.
    """
    for place in caches:
        if not is_cache(place):
            raise HoarfrostError(
                f"{place} is not a cache. Pass one place of images, or one cache for each encoder of the head."
            )
    with open_caches(_in_order([Path(place) for place in caches], predictor.header), dataset) as opened:
        table = opened.dataset(dataset)
        yield _embedded(opened, table, predictor.head.views), opened


def _in_order(caches: Sequence[Path], header: Header) -> list[Path]:
    """Return the caches in the order of the head's encoders; raise FingerprintMismatchError if they are of others."""
    of_head = header.fingerprint
    parts = parts_of(of_head.preprocessing)
    headers = {path: existing_header(path) for path in caches}
    there = {found.fingerprint.digest: path for path, found in headers.items() if found is not None}
    if not parts and len(caches) == 1 and of_head.digest not in there:
        found = headers[caches[0]]
        differences = [] if found is None else found.fingerprint.differences(of_head)
        named = " Embeddings imported without --encoder-name compare with those of the same file only." * is_elsewhere(
            of_head.backbone
        )
        raise FingerprintMismatchError(
            f"{caches[0]} holds other embeddings than the head was trained on. Differences: {'; '.join(differences)}. "
            f"Extract or import the images as those of the head were.{named}"
        )
    wanted = [str(part["fingerprint"]) for part in parts] or [of_head.digest]
    missing = [part for part in parts if part["fingerprint"] not in there]
    if missing or len(caches) != len(wanted):
        needed = " and ".join(map(_described, parts)) or of_head.encoder.title
        lacking = (
            f" None of {', '.join(map(str, caches))} has {' or '.join(map(_described, missing))}." if missing else ""
        )
        others = [str(path) for path in caches if path not in {there.get(digest) for digest in wanted}]
        way_out = (
            f"Leave out {', '.join(others)}, which is not needed."
            if others and not missing
            else "Extract or import the images into a cache for each encoder, and pass these caches."
        )
        raise FingerprintMismatchError(
            f"The head was trained on the embeddings of {needed}, so it needs one cache for each, with the same "
            f"images.{lacking} {way_out}"
        )
    return [there[digest] for digest in wanted]


def _described(part: Mapping[str, Any]) -> str:
    title = encoder_of(part["backbone"], part["preprocessing"]).title
    return f"{title}, {part['dim']} numbers (fingerprint {part['fingerprint'][:12]}…)"


def _embedded(cache: EmbeddingCache, table: DatasetTable, views: Sequence[str]) -> EmbeddedDataset:
    """Return the dataset of a cache; an image without an embedding in one of the views has the reason."""
    keys = np.zeros((len(table), KEY_BYTES), np.uint8)
    readable = np.flatnonzero(table.rows >= 0)
    keys[readable] = cache.keys(table.rows[readable])
    errors = {int(place): table.errors[place] for place in np.flatnonzero(table.rows < 0)}
    for view in views:
        lacking = readable[cache.rows_of(keys[readable], view) < 0]
        errors.update(dict.fromkeys(lacking.tolist(), f"the cache has no embedding of its view {view}"))
    dataset = Dataset(
        table.name, str(cache.path), table.paths, table.labels, table.splits, table.patients,
        file_images(table.root, table.paths),         dict(table.attributes),
    )  # fmt: skip
    return EmbeddedDataset(dataset, keys, errors, 0)
