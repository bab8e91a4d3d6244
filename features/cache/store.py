"""EmbeddingCache: what one cache file and its parts hold, for readers."""

import hashlib
import os
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from hoarfrost.features.cache.keys import KeyIndex
from hoarfrost.features.cache.layout import DatasetTable, Embeddings, Header, Keys, Rows
from hoarfrost.features.cache.opened import no_such_cache
from hoarfrost.features.cache.reading import CacheFile
from hoarfrost.features.errors import CacheError, FingerprintMismatchError
from hoarfrost.features.fingerprint import Fingerprint

PART_SUFFIX = ".h5"
DAMAGED_SUFFIX = ".damaged"  # a part that was set aside; `cache compact` removes it


def real_path(path: Path) -> Path:
    """Follow links once, so that a linked cache is written where it lies, under one lock."""
    return Path(os.path.realpath(path))


def parts_directory(path: Path) -> Path:
    """Return the folder in which a cache's uncommitted-to-the-file parts lie."""
    return path.with_name(path.name + ".parts")


def part_paths(path: Path) -> list[Path]:
    """List a cache's parts in the order in which they were committed."""
    return _parts_ending(path, PART_SUFFIX)


def damaged_part_paths(path: Path) -> list[Path]:
    """List the parts that were set aside as damaged."""
    return _parts_ending(path, DAMAGED_SUFFIX)


def _parts_ending(path: Path, suffix: str) -> list[Path]:
    try:
        with os.scandir(parts_directory(path)) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.name.endswith(suffix))
    except FileNotFoundError:
        return []


def remove_if_empty(directory: Path) -> None:
    """Remove the folder of parts once nothing is in it."""
    with suppress(OSError):  # not there, or not empty
        directory.rmdir()


def require_cache(path: Path) -> None:
    """Refuse a path at which there is neither a cache nor the parts of one."""
    if not path.is_file() and not part_paths(path):
        raise CacheError(no_such_cache(path))


def existing_header(path: Path) -> Header | None:
    """Return the header of a cache or, while its first extraction is not finished, of a part; None if there is neither."""
    path = real_path(path)
    for file_path in [path, *part_paths(path)]:
        try:
            with CacheFile(file_path) as file:
                return file.header
        except CacheError:
            # A part may be damaged, or just have been folded into the file; the writer will see to it.
            if file_path == path and path.exists():
                raise
    return None


class EmbeddingCache:
    """A cache opened for reading; a context manager. Readers never block, and see the last finished extraction.

    Parameters
    ----------
    path : Path
        The cache's HDF5 file.

    Raises
    ------
    CacheError
        If it is missing, no cache, of a newer format version, or damaged.
    """

    def __init__(self, path: Path) -> None:
        path = real_path(path)
        if not path.exists() and part_paths(path):
            raise _unfinished(path)
        self.path = path
        self._file = CacheFile(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.__exit__(kind, error, traceback)

    @property
    def header(self) -> Header:
        """What the cache says of all its embeddings."""
        return self._file.header

    @property
    def n_images(self) -> int:
        """Number of embeddings."""
        return self._file.n_images

    def dataset_names(self) -> list[str]:
        """Return the names of the datasets in the cache, sorted."""
        return self._file.table_names()

    def dataset(self, name: str | None = None) -> DatasetTable:
        """Read a dataset's table; without a name, that of the only one.

        Raises
        ------
        CacheError
            If there is none of that name, or several and none was named.
        """
        names = self.dataset_names()
        if not names and self._file.table_names("pending"):
            raise _unfinished(self.path)
        if name is None and len(names) == 1:
            name = names[0]
        if name is None or name not in names:
            asked = f"no dataset {name!r}" if name is not None else f"{len(names)} datasets"
            raise CacheError(
                f"{self.path} holds {asked}; choose with --dataset: {', '.join(names) or '(it has none)'}."
            )
        return self._file.table(name)

    def embeddings(self, rows: Rows | None = None) -> Embeddings:
        """Read embeddings by row, (n, D) float32, checked; all by default."""
        return self._file.embeddings(rows)

    def digest(self, rows: Rows) -> str:
        """Return the SHA-256 (hex) of these rows' keys and checksums, in order: of which images, and which embeddings."""
        return hashlib.sha256(self._file.keys[rows].tobytes() + self._file.row_sums[rows].tobytes()).hexdigest()

    def keys(self, rows: Rows) -> Keys:
        """Return the images' keys by row, (n, 32) uint8: the digests of their contents."""
        return self._file.keys[rows]

    def rows_of(self, keys: Keys) -> Rows:
        """Find images by their keys (n, 32) uint8: rows (n,) int64, -1 where the cache has none."""
        return self._index.find(keys)

    def __contains__(self, key: bytes) -> bool:
        return self._index.contains(key)

    @cached_property
    def _index(self) -> KeyIndex:
        return KeyIndex(self._file.keys)

    def arrays(self, table: DatasetTable) -> tuple[Embeddings, "np.ndarray[tuple[int], np.dtype[np.bool_]]"]:
        """Read a dataset's embeddings.

        Returns
        -------
        embeddings : ndarray (m, D) float32
            Those of the m readable images, in the table's order.
        readable : ndarray (n,) bool
            Which of the table's n images they are.
        """
        readable = table.rows >= 0
        return self.embeddings(table.rows[readable]), readable


def _unfinished(path: Path) -> CacheError:
    return CacheError(
        f"{path}: its first extraction is not finished. "
        "Wait for it, or run the same `hoarfrost extract` again: it goes on from there."
    )


def check_fingerprint(path: Path, found: Header, wanted: Fingerprint, wanted_weights: str) -> None:
    """Refuse to mix embeddings that were made in different ways.

    Raises
    ------
    FingerprintMismatchError
        Naming each part that differs, here (asked for) and there (in the cache).
    """
    differences = wanted.differences(found.fingerprint)
    if differences:
        raise FingerprintMismatchError(
            f"{path} holds embeddings made in another way; nothing was mixed in. Asked for --weights {wanted_weights}, the "
            f"cache has {found.weights}. What differs: {'; '.join(differences)}. "
            "Name another --cache, or ask for what this one has."
        )
