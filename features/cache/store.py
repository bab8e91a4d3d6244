"""EmbeddingCache: a cache for readers; and where its files are."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from hoarfrost.features.cache.keys import KeyIndex, find_images
from hoarfrost.features.cache.layout import DatasetTable, Embeddings, Header, Keys, Mask, Rows, image_keys
from hoarfrost.features.cache.opened import PARTS_SUFFIX, missing_cache
from hoarfrost.features.cache.reading import CacheFile
from hoarfrost.features.errors import CacheError, FingerprintMismatchError
from hoarfrost.features.facts import Facts

PART_SUFFIX = ".h5"
DAMAGED_SUFFIX = ".damaged"  # of a damaged part, once it is renamed; `cache compact` removes it


def real_path(path: Path) -> Path:
    """Return the path without links, so that a linked cache is written where it is, under one lock."""
    return Path(os.path.realpath(path))


def parts_directory(path: Path) -> Path:
    """Return the folder of a cache's parts, which are not folded into its file yet."""
    return path.with_name(path.name + PARTS_SUFFIX)


def part_paths(path: Path, suffix: str = PART_SUFFIX) -> list[Path]:
    """List a cache's parts in the order in which they were committed; the damaged ones have DAMAGED_SUFFIX."""
    try:
        with os.scandir(parts_directory(path)) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name.endswith(suffix) and not entry.is_dir())
    except FileNotFoundError:
        return []


def remove_if_empty(directory: Path) -> None:
    """Remove a folder if it is empty."""
    with suppress(OSError):  # missing, or not empty
        directory.rmdir()


def remove_parts(cache: Path, parts: Iterable[Path]) -> None:
    """Remove parts that were folded, and their folder once it is empty."""
    for part in parts:
        part.unlink()
    remove_if_empty(parts_directory(cache))


def require_cache(path: Path) -> None:
    """Raise CacheError if neither a cache nor parts of one are at a path."""
    if not path.is_file() and not part_paths(path):
        raise missing_cache(path)


def only_damaged_parts(path: Path) -> CacheError:
    """Return the error for a cache without a file, of whose parts none can be read."""
    return CacheError(
        f"{path}: only damaged parts of this cache are left. Remove {parts_directory(path)} and extract again."
    )


def existing_header(path: Path, *, lenient: bool = False) -> Header | None:
    """Return the header of a cache, or while its first extraction is not finished of a part; None if both are missing.

    Its views are those of the cache and of its latest part. `lenient` is as in `CacheFile`.
    """
    path = real_path(path)
    parts = part_paths(path)
    found: Header | None = None
    for file_path in [path, *reversed(parts)]:
        try:
            with CacheFile(file_path, lenient=lenient) as file:
                header = file.header
        except CacheError:
            # A part may be damaged, or just have been folded into the file; the writer deals with both.
            if file_path == path and path.exists():
                raise
            continue
        if file_path != path:
            return header if found is None else found.with_views(header.view_names)
        found = header
    return found


class EmbeddingCache:
    """A cache opened for reading; a context manager. Readers never block, and see the last finished extraction.

    Raises
    ------
    CacheError
        If it is missing, not a cache, of a newer format version, or damaged.
    """

    def __init__(self, path: Path) -> None:
        path = real_path(path)
        if not path.exists() and part_paths(path):
            raise _unfinished(path)
        self.path = path
        self._file = CacheFile(path)
        self.header = self._file.header
        self.n_images = self._file.n_images

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.__exit__(*exception)

    def dataset_names(self) -> list[str]:
        """Return the names of the datasets in the cache, sorted."""
        return self._file.tables.names()

    def dataset(self, name: str | None = None) -> DatasetTable:
        """Read a dataset's table; without a name, the table of the only dataset.

        Raises
        ------
        CacheError
            If no dataset has that name, or if several exist and no name was passed.
        """
        names = self.dataset_names()
        if not names and self._file.tables.names("pending"):
            raise _unfinished(self.path)
        if name is None and len(names) == 1:
            name = names[0]
        if name is None or name not in names:
            problem = f"does not have a dataset {name!r}" if name is not None else f"has {len(names)} datasets"
            raise CacheError(
                f"{self.path} {problem}. Choose one with --dataset: {', '.join(names) or '(there are none)'}."
            )
        return self._file.tables.read(name)

    def embeddings(self, rows: Rows | None = None) -> Embeddings:
        """Read embeddings by row, (n, D) float32, checked; all by default."""
        return self._file.embeddings(rows)

    def digest(self, rows: Rows) -> str:
        """Return the SHA-256 (hex) of these rows' images and checksums, in order: it covers images and embeddings."""
        return hashlib.sha256(self.keys(rows).tobytes() + self._file.row_sums[rows].tobytes()).hexdigest()

    def keys(self, rows: Rows) -> Keys:
        """Return the images' keys by row, (n, 32) uint8: the digests of their bytes."""
        return image_keys(self._file.keys[rows])

    def facts(self, rows: Rows) -> Facts:
        """Return the facts of images by row, from the rows of other views too; unknown where the cache has none."""
        found = self._file.facts(rows)
        for view in self.views if len(self.views) > 1 else ():
            lacking = np.flatnonzero(~found.known)
            others = self.rows_of(self.keys(rows[lacking]), view)
            found = found.filled(lacking[others >= 0], self._file.facts(others[others >= 0]))
        return found

    @property
    def views(self) -> tuple[str, ...]:
        """The names of the views that the cache has embeddings of, the preferred one first."""
        return self.header.view_names

    def rows_of(self, keys: Keys, view: str | None = None) -> Rows:
        """Return the rows (n,) int64 of images' embeddings by the images' keys (n, 32) uint8; -1 if there is none.

        `view` is the name of a view; without it, each image's embedding of the first view that it has.
        """
        if view is not None and view not in self.views:
            return np.full(len(keys), -1, np.int64)
        return find_images(self._index, self.header, keys, self.views if view is None else (view,))

    def view_rows(self, rows: Rows, views: Sequence[str]) -> Rows:
        """Return the rows (n, V) int64 of images' embeddings of several views; -1 where there is none.

        `rows` (n,) are those of any view of the images, as in a dataset's table.
        """
        if tuple(views) == self.views and len(views) == 1:
            return rows[:, None]
        keys = self.keys(rows)
        return np.stack([self.rows_of(keys, view) for view in views], axis=1)

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(self._file.keys)

    def arrays(self, table: DatasetTable) -> tuple[Embeddings, Mask]:
        """Read a dataset's embeddings.

        Returns
        -------
        embeddings : ndarray (m, D) float32
            Those of the m readable images, in the table's order; each of the first view that the image has.
        readable : ndarray (n,) bool
            Which of the table's n images are readable.
        """
        readable = table.rows >= 0
        return self.embeddings(table.rows[readable]), readable


def _unfinished(path: Path) -> CacheError:
    return CacheError(
        f"{path}: its first extraction is not finished. "
        "Wait for it to end, or run the same `hoarfrost extract` again to continue."
    )


def check_fingerprint(path: Path, found: Header, wanted: Header) -> None:
    """Refuse to mix embeddings that were made with different settings.

    Raises
    ------
    FingerprintMismatchError
        If they differ; it lists each difference, here (asked for) and there (in the cache).
    """
    differences = wanted.fingerprint.differences(found.fingerprint)
    if differences:
        asked = f"You asked for --weights {wanted.weights}; the cache has {found.weights}. "
        if wanted.weights == found.weights:
            asked = ""
        raise FingerprintMismatchError(
            f"{path} holds embeddings made with other settings, so nothing was added. {asked}"
            f"Differences: {'; '.join(differences)}. "
            "Choose another --cache, or ask for the settings of this one."
        )
