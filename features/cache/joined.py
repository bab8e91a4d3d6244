"""Several caches of the same images, read as one: an image's embedding is theirs side by side."""

import hashlib
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hoarfrost.features.cache.keys import KeyIndex
from hoarfrost.features.cache.layout import DatasetTable, Embeddings, Header, Keys, Rows, are_unseen
from hoarfrost.features.cache.store import EmbeddingCache
from hoarfrost.features.errors import CacheError
from hoarfrost.features.facts import Facts
from hoarfrost.features.fingerprint import Fingerprint
from hoarfrost.features.origins import REGION, SEVERAL

SHOWN = 3
logger = logging.getLogger(__name__)


def open_caches(paths: Sequence[Path], dataset: str | None = None) -> EmbeddingCache:
    """Open a cache for reading, or several as one; `dataset` is the name of their common dataset.

    Raises
    ------
    CacheError
        If one of them cannot be read, or several do not hold the same images of different encoders.
    """
    if len(paths) == 1:
        return EmbeddingCache(paths[0])
    with ExitStack() as stack:
        parts = [stack.enter_context(EmbeddingCache(path)) for path in paths]
        joined = JoinedCache(parts, dataset)
        stack.pop_all()
    return joined


class JoinedCache(EmbeddingCache):
    """Several caches as one, with the rows, the dataset and the keys of the first. Each contributes its first view.

    Parameters
    ----------
    parts : sequence of EmbeddingCache
        At least two; this cache closes them.
    dataset : str, optional
        The name of the dataset; not needed where each cache has one.

    Raises
    ------
    CacheError
        If two have the same fingerprint, or an image is not in all of them; the message says how many and which.
    """

    def __init__(self, parts: Sequence[EmbeddingCache], dataset: str | None = None) -> None:
        self.parts = tuple(parts)
        self.path, self.n_images = parts[0].path, parts[0].n_images
        self._check_different()
        self.header = _joined_header([part.header for part in parts])
        self._table = parts[0].dataset(dataset)
        self._rows = [self._rows_in(part) for part in parts]  # of each part, by the row in the first

    def _check_different(self) -> None:
        seen: dict[str, Path] = {}
        for part in self.parts:
            digest = part.header.fingerprint.digest
            if digest in seen:
                raise CacheError(
                    f"{part.path} and {seen[digest]} have embeddings of the same fingerprint, so one of them adds "
                    "nothing. Name caches of different encoders, or one cache only."
                )
            seen[digest] = part.path

    def _rows_in(self, part: EmbeddingCache) -> Rows:
        """Return the row in a part of each row (N,) of the first cache; -1 where it is not needed."""
        table, view, found = self._table, part.views[0], np.full(self.n_images, -1, np.int64)
        mine = table.rows[table.rows >= 0]
        keys = self.parts[0].keys(mine)
        rows = part.rows_of(keys, view)
        if part is not self.parts[0]:
            theirs = part.dataset(table.name if table.name in part.dataset_names() else None)
            rows = self._by_path(rows, keys, part, theirs)
            self._check_complete(rows, part, theirs)
            self._warn_of_labels(rows, part, theirs)
        elif (rows < 0).any():
            raise CacheError(
                f"{part.path}: {int((rows < 0).sum()):,} images have no embedding of its first view, {view}. Run `hoarfrost "
                "extract` again without --views to add them."
            )
        found[mine] = rows
        return found

    def _by_path(self, rows: Rows, keys: Keys, part: EmbeddingCache, theirs: DatasetTable) -> Rows:
        """Complete rows (n,) by path, where the key of one of the two sides is not of the image's bytes."""
        row_of = {path: row for path, row in zip(theirs.paths, theirs.rows.tolist(), strict=True) if row >= 0}
        paths = [path for path, row in zip(self._table.paths, self._table.rows.tolist(), strict=True) if row >= 0]
        candidates = np.array([row_of.get(path, -1) for path in paths], np.int64)
        is_unseen = are_unseen(keys)
        places = np.flatnonzero((rows < 0) & (candidates >= 0))
        their_keys = part.keys(candidates[places])
        is_region = any(REGION in one.header.fingerprint.preprocessing for one in (self.parts[0], part))
        may = is_unseen[places] | are_unseen(their_keys) | is_region
        rows = rows.copy()
        rows[places[may]] = part.rows_of(their_keys[may], part.views[0])
        return rows

    def _check_complete(self, rows: Rows, part: EmbeddingCache, theirs: DatasetTable) -> None:
        """Refuse images that are in one of the two caches only."""
        mine = [path for path, row in zip(self._table.paths, self._table.rows.tolist(), strict=True) if row >= 0]
        lacking = [mine[place] for place in np.flatnonzero(rows < 0).tolist()]
        readable = np.flatnonzero(theirs.rows >= 0)
        used = KeyIndex(part.keys(rows[rows >= 0]))
        extra = [theirs.paths[place] for place in readable[used.find(part.keys(theirs.rows[readable])) < 0].tolist()]
        problems = []
        if lacking:
            problems.append(f"{len(lacking):,} images of {self.path} are not in {part.path} ({_first(lacking)})")
        if extra:
            problems.append(f"{len(extra):,} images of {part.path} are not in {self.path} ({_first(extra)})")
        if problems:
            raise CacheError(
                f"The caches do not hold the same images of the dataset {self._table.name}: {'; '.join(problems)}. "
                "Extract or import the same images into each cache, or remove from the dataset's CSV those that one "
                "encoder could not read."
            )

    def _warn_of_labels(self, rows: Rows, part: EmbeddingCache, theirs: DatasetTable) -> None:
        """Warn of images that have another label there: the labels of the first cache count."""
        there: dict[int, set[str]] = {}
        for row, label in zip(theirs.rows.tolist(), theirs.labels, strict=True):
            there.setdefault(row, set()).add(label)
        mine = zip(self._table.paths, self._table.labels, self._table.rows.tolist(), strict=True)
        labelled = [(path, label) for path, label, row in mine if row >= 0]
        other = []
        for (path, label), row in zip(labelled, rows.tolist(), strict=True):
            known = there.get(row, {""})  # an image of another dataset of that cache has none here
            if label and any(known) and label not in known:
                other.append(path)
        if other:
            logger.warning(
                "The labels of %s and %s differ in %s of %s images (%s). Those of %s are used.",
                self.path, part.path, f"{len(other):,}", f"{len(labelled):,}", _first(other), self.path,
            )  # fmt: skip

    def __exit__(self, *exception: object) -> None:
        for part in self.parts:
            part.__exit__(*exception)

    def dataset_names(self) -> list[str]:
        """Return the name of the common dataset."""
        return [self._table.name]

    def dataset(self, name: str | None = None) -> DatasetTable:
        """Return the table of the common dataset, with rows of the first cache."""
        if name not in {None, self._table.name}:
            raise CacheError(
                f"{self.path} was opened for the dataset {self._table.name}, not {name}. Name it with --dataset."
            )
        return self._table

    def embeddings(self, rows: Rows | None = None) -> Embeddings:
        """Read embeddings by row, (n, D) float32, side by side."""
        rows = np.arange(self.n_images) if rows is None else rows
        pairs = zip(self.parts, self._rows, strict=True)
        return np.concatenate([part.embeddings(in_part[rows]) for part, in_part in pairs], axis=1)

    def digest(self, rows: Rows) -> str:
        """Return the SHA-256 (hex) of the digests of these rows in each cache."""
        digests = [part.digest(in_part[rows]) for part, in_part in zip(self.parts, self._rows, strict=True)]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    def keys(self, rows: Rows) -> Keys:
        """Return the images' keys by row, (n, 32) uint8, as the first cache has them."""
        return self.parts[0].keys(rows)

    def facts(self, rows: Rows) -> Facts:
        """Return the facts of images by row, from the first cache that has them."""
        found = Facts.unknown(len(rows))
        for part, in_part in zip(self.parts, self._rows, strict=True):
            lacking = np.flatnonzero(~found.known)
            found = found.filled(lacking, part.facts(in_part[rows[lacking]]))
        return found

    def rows_of(self, keys: Keys, view: str | None = None) -> Rows:
        """Return the rows (n,) int64 of images by their keys; -1 if there is none."""
        found = self.parts[0].rows_of(keys) if view is None or view in self.views else np.full(len(keys), -1, np.int64)
        found[self._rows[0][found] < 0] = -1
        return found


def _joined_header(headers: Sequence[Header]) -> Header:
    """Return the header of embeddings side by side; its fingerprint has those of all parts, with their dimensions."""
    parts = [
        {**asdict(one.fingerprint), "fingerprint": one.fingerprint.digest, "dim": one.dim, "view": one.view_names[0]}
        for one in headers
    ]
    made_by = Fingerprint(SEVERAL, "", {SEVERAL: parts}, " and ".join(one.fingerprint.precision for one in headers))
    # Random weights first: what warns of them looks at the beginning.
    weights = sorted((one.weights for one in headers), key=lambda name: not name.startswith("random:"))
    return Header(made_by, sum(one.dim for one in headers), " and ".join(weights))


def _first(paths: Sequence[str]) -> str:
    return f"first: {', '.join(paths[:SHOWN])}"
