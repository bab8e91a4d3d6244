"""One HDF5 file, opened: its header and members, of which nothing is believed that was not checked."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from hoarfrost.features.cache.layout import FORMAT, FORMAT_VERSION, INDEX_FORMAT, MAX_DIM, MAX_TEXT_BYTES, Header
from hoarfrost.features.errors import CacheError
from hoarfrost.features.fingerprint import Fingerprint

ALLOWED_FILTERS = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32})
MAX_DEFLATE_RATIO = 1100  # zlib cannot pack tighter; what declares more declares what is not there
HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)  # what h5py raises on damaged files

Member = TypeVar("Member", bound=h5py.Group)


def no_such_cache(path: Path) -> str:
    """Return the message for a cache that is missing, or for a file that is something else."""
    if path.exists():
        return f"{path} is no file, and so no cache. Check the path given with --cache."
    return f"{path}: no such cache. Make one with `hoarfrost extract DATA --cache {path}`."


class DamagedCacheError(CacheError):
    """Bytes of the file are not what was written."""


class OpenedFile:
    """A file of the format, or the index of one in shards.

    It may come from elsewhere: links out of it, foreign filters and declared sizes that the file
    does not have are refused.

    Parameters
    ----------
    path : Path
    cache : Path, optional
        The cache that the file belongs to, for messages; by default itself.

    Raises
    ------
    CacheError
        The file is missing, no cache, of a newer version, or damaged.
    """

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        self.path = path
        self.cache = cache or path
        if not path.is_file():
            raise CacheError(no_such_cache(path))
        try:
            self.root = h5py.File(path, "r", locking=False)  # readers never block, nor are blocked
        except HDF5_ERRORS as error:
            raise self._not_opened(error) from error
        try:
            self.header = self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.root.close()

    @property
    def number(self) -> int:
        """The operating system's number of the open file."""
        number: int = self.root.id.get_vfd_handle()
        return number

    @property
    def size(self) -> int:
        """Its bytes. Of the open file: another may have been renamed into its place."""
        return os.fstat(self.number).st_size

    def _not_opened(self, error: Exception) -> CacheError:
        try:
            with self.path.open("rb") as file:
                begins = file.read(8)
        except OSError as unreadable:
            return CacheError(f"{self.path}: the cache cannot be read: {unreadable.strerror}.")
        if begins != b"\x89HDF\r\n\x1a\n":
            return DamagedCacheError(
                f"{self.path} is no hoarfrost cache (not an HDF5 file). Check the path given with --cache."
            )
        if self.path == self.cache:
            return DamagedCacheError(
                f"{self.path}: the cache is damaged: it is truncated, or its HDF5 structure is broken ({error}). "
                "Nothing of it can be read. Remove the file and extract again, or take it from a backup."
            )
        return self.damaged(f"it is truncated, or its HDF5 structure is broken ({error})")

    def damaged(self, what: str) -> DamagedCacheError:
        """Return the error for damage at a place, with the way out."""
        return DamagedCacheError(
            f"{self.path}: the cache is damaged: {what}. `hoarfrost cache verify {self.cache}` names what is lost, "
            "`hoarfrost cache compact` keeps what is sound; or remove the file and extract again."
        )

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Raise what h5py raises on damaged files as an error that says where."""
        try:
            yield
        except CacheError:
            raise
        except HDF5_ERRORS as error:
            raise self.damaged(f"{what} cannot be read ({error})") from error

    # -- header ---------------------------------------------------------------------------------------------------

    def _read_header(self) -> Header:
        with self.reading("its root attributes"):
            self.format = self.text(self.root, "format") if "format" in self.root.attrs else ""
            if self.format not in {FORMAT, INDEX_FORMAT}:
                raise DamagedCacheError(
                    f"{self.path} is an HDF5 file but no hoarfrost cache (no attribute format = {FORMAT!r}). "
                    "Check the path given with --cache."
                )
            found = self.whole_number(self.root, "format_version")
            if found > FORMAT_VERSION:
                raise CacheError(
                    f"{self.path} was written by a newer hoarfrost (cache format {found}; this one reads up to "
                    f"{FORMAT_VERSION}). Upgrade hoarfrost, or name another --cache."
                )
            preprocessing = json.loads(self.text(self.root, "preprocessing"))
            if not isinstance(preprocessing, dict):
                raise self.damaged("its preprocessing is not a JSON object")
            fingerprint = Fingerprint(
                backbone=self.text(self.root, "backbone"),
                weights_sha256=self.text(self.root, "weights_sha256"),
                preprocessing=preprocessing,
                precision=self.text(self.root, "precision"),
            )
            if fingerprint.digest != self.text(self.root, "fingerprint"):
                raise self.damaged("its fingerprint is not that of the parts it names")
            return Header(
                fingerprint,
                dim=self._dim(),
                weights=self.text(self.root, "weights"),
                weights_origin=self.text(self.root, "weights_origin"),
                compute=self.text(self.root, "compute"),
                weights_path=self.text(self.root, "weights_path") if "weights_path" in self.root.attrs else "",
            )

    def _dim(self) -> int:
        dim = self.whole_number(self.root, "dim")
        if not 0 < dim <= MAX_DIM:
            raise self.damaged(f"its embeddings are of {dim} numbers")
        return dim

    def text(self, owner: "h5py.Group", name: str) -> str:
        """Read an attribute that is a short text."""
        attribute = h5py.h5a.open(owner.id, name.encode())
        # Fixed-length text only: variable-length text could point anywhere and declare any size.
        if attribute.dtype.kind != "S" or attribute.shape != () or attribute.get_storage_size() > MAX_TEXT_BYTES:
            raise self.damaged(f"the attribute {name!r} is not a short text")
        value = np.empty((), attribute.dtype)
        attribute.read(value)
        return bytes(value[()]).decode("utf-8", "surrogateescape")

    def whole_number(self, owner: "h5py.Group", name: str) -> int:
        """Read an attribute that is a whole number."""
        attribute = h5py.h5a.open(owner.id, name.encode())
        if attribute.dtype.kind not in "iu" or attribute.shape != ():
            raise self.damaged(f"the attribute {name!r} is not a whole number")
        value = np.empty((), attribute.dtype)
        attribute.read(value)
        return int(value)

    # -- structure ------------------------------------------------------------------------------------------------

    def child(self, group: h5py.Group, name: str, kind: "type[Member]") -> "Member":
        """Get a member that lies in this very file: a hard link, never a soft or external one."""
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise self.damaged(f"{group.name}/{name} is a link, not data")
        child = group[name]
        if not isinstance(child, kind):
            raise self.damaged(f"{group.name}/{name} is not a {kind.__name__.lower()}")
        return child

    def dataset(self, group: h5py.Group, name: str) -> Any:
        """Get a dataset whose declared size is covered by bytes that are there."""
        data = self.child(group, name, h5py.Dataset)
        plan = data.id.get_create_plist()
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        if data.is_virtual or data.external or data.chunks is None or not ALLOWED_FILTERS.issuperset(filters):
            raise self.damaged(f"{data.name} is not stored as this format stores it")
        if h5py.h5z.FILTER_FLETCHER32 not in filters:
            raise self.damaged(f"{data.name} has no checksums")
        ratio = MAX_DEFLATE_RATIO if h5py.h5z.FILTER_DEFLATE in filters else 1
        stored = min(data.id.get_storage_size(), self.size)
        n_chunks = -(-data.shape[0] // data.chunks[0]) if data.shape else 0
        chunk_bytes = int(np.prod(data.chunks)) * data.dtype.itemsize
        if data.id.get_num_chunks() != n_chunks or data.nbytes > stored * ratio or chunk_bytes > (1 << 24):
            raise self.damaged(f"{data.name} declares {data.nbytes} bytes, {stored} are there")
        return data
