"""One HDF5 file, opened: its header and members, each checked before it is trusted."""

import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.layout import FORMAT, FORMAT_VERSION, INDEX_FORMAT, MAX_DIM, MAX_TEXT_BYTES, Header
from hoarfrost.features.encoder.drift import Drift
from hoarfrost.features.errors import CacheError
from hoarfrost.features.fingerprint import Fingerprint

SIGNATURE = b"\x89HDF\r\n\x1a\n"
PARTS_SUFFIX = ".parts"  # of the folder of a cache's parts
ALLOWED_FILTERS = frozenset({h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32})
MAX_DEFLATE_RATIO = 1100  # zlib cannot pack tighter; data that declares more is not there
HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)  # what h5py raises on damaged files
# Of HDF5's superblock: bytes of its version and flags, and the flag of a file that a writer has not closed.
_VERSION_AT, _FLAGS_AT, _VERSION_WITH_FLAGS, _OPEN_FOR_WRITING = 8, 11, 3, 1

Member = TypeVar("Member", bound=h5py.Group)


def is_hdf5(path: Path) -> bool:
    """Return whether a file begins as HDF5 files do."""
    try:
        with path.open("rb") as file:
            return file.read(len(SIGNATURE)) == SIGNATURE
    except OSError:
        return False


def missing_cache(path: Path) -> CacheError:
    """Return the error for a cache or a part that is missing, or for a path that is not a file."""
    cache = _cache_of(path)
    if cache != path:
        return DamagedCacheError(
            f"{path}: this part of the cache {cache} is missing. Run the same `hoarfrost extract` again: it embeds the "
            "part's images again, and keeps all others."
        )
    if path.exists():
        return CacheError(f"{path} is not a file, so it cannot be a cache. Check the path passed with --cache.")
    return CacheError(f"No cache at {path}. Create it with: hoarfrost extract DATA --cache {path}")


def _cache_of(path: Path) -> Path:
    """Return the cache that a part belongs to; of any other file, its own path."""
    folder = path.parent
    is_part = folder.name.endswith(PARTS_SUFFIX) and path.name.startswith("part-")
    return folder.with_name(folder.name.removesuffix(PARTS_SUFFIX)) if is_part else path


class DamagedCacheError(CacheError):
    """The bytes of a file are not those that were written."""


class OpenedFile:
    """A file of the format, or the index of a cache in shards.

    It may come from elsewhere: links to other files, unknown filters, and sizes larger than the file are refused.
    Messages name `cache`, to which the file belongs; by default the one that the file is a part of, or itself.

    Raises
    ------
    CacheError
        If the file is missing, not a cache, of a newer version, or damaged.
    """

    def __init__(self, path: Path, cache: Path | None = None) -> None:
        self.path = path
        self.cache = cache or _cache_of(path)
        if not path.is_file():
            raise missing_cache(path)
        try:
            self.root = h5py.File(path, "r", locking=False)  # readers never block, nor are blocked
        except HDF5_ERRORS as error:
            raise self._not_opened(error) from error
        try:
            self.descriptor: int = self.root.id.get_vfd_handle()
            self.header = self._read_header()
        except BaseException:
            self.root.close()
            raise

    @property
    def size(self) -> int:
        """The number of bytes of the open file: another may have been renamed into its place."""
        return os.fstat(self.descriptor).st_size

    def _not_opened(self, error: Exception) -> CacheError:
        try:
            with self.path.open("rb") as file:
                start = file.read(_FLAGS_AT + 1)
        except OSError as unreadable:
            return CacheError(f"{self.path}: the cache cannot be read: {unreadable.strerror}.")
        if not start.startswith(SIGNATURE):
            if self.path != self.cache:
                return self.damaged("it is not an HDF5 file")
            return DamagedCacheError(
                f"{self.path} is not a hoarfrost cache (not an HDF5 file). Check the path passed with --cache."
            )
        if (
            len(start) > _FLAGS_AT
            and start[_VERSION_AT] >= _VERSION_WITH_FLAGS
            and start[_FLAGS_AT] & _OPEN_FOR_WRITING
        ):
            return CacheError(
                f"{self.path}: marked as open for writing by another program, such as a notebook, or one that was killed. "
                "That is not damage, so keep the file. Close the program. If none has it open, remove the mark: "
                f"h5clear -s {shlex.quote(str(self.path))} (of the HDF5 tools). Then run hoarfrost cache verify."
            )
        if self.path == self.cache:
            return DamagedCacheError(
                f"{self.path}: the cache is damaged: it is truncated, or its HDF5 structure is broken ({error}). "
                "Nothing in it can be read. Remove the file and extract again, or restore it from a backup."
            )
        return self.damaged(f"it is truncated, or its HDF5 structure is broken ({error})")

    def damaged(self, what: str) -> DamagedCacheError:
        """Return the error for damage, with what to do about it."""
        return DamagedCacheError(
            f"{self.path}: the cache is damaged: {what}. `hoarfrost cache verify {self.cache}` lists what is lost. "
            f"`hoarfrost cache compact {self.cache}` keeps what is sound. Or remove the file and extract again."
        )

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """Turn what h5py raises on damaged files into an error that names `what`."""
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
                    f"{self.path} is an HDF5 file but not a hoarfrost cache (no attribute format = {FORMAT!r}). "
                    "Check the path passed with --cache."
                )
            found = self.whole_number(self.root, "format_version")
            if found > FORMAT_VERSION:
                raise CacheError(
                    f"{self.path} was written by a newer hoarfrost (cache format {found}; this version reads up to "
                    f"{FORMAT_VERSION}). Upgrade hoarfrost, or choose another --cache."
                )
            if found < 1:
                raise self.damaged(f"its format version is {found}")
            preprocessing = json.loads(self.text(self.root, "preprocessing"))
            if not isinstance(preprocessing, dict):
                raise self.damaged("its preprocessing is not a JSON object")
            fingerprint = Fingerprint(
                backbone=self.text(self.root, "backbone"),
                weights_sha256=self.text(self.root, "weights_sha256"),
                preprocessing=preprocessing,
                precision=self.text(self.root, "precision"),
                layers=self._layers() if found > 1 else (),
            )
            if fingerprint.digest != self.text(self.root, "fingerprint"):
                raise self.damaged("its fingerprint does not match its encoder, weights, preprocessing and precision")
            dim = self.whole_number(self.root, "dim")
            if not 0 < dim <= MAX_DIM:
                raise self.damaged(f"its embeddings have {dim} numbers, not 1 to {MAX_DIM}")
            header = Header(
                fingerprint,
                dim=dim,
                weights=self.text(self.root, "weights"),
                weights_origin=self.text(self.root, "weights_origin"),
                compute=self.text(self.root, "compute"),
                weights_path=self.text(self.root, "weights_path") if "weights_path" in self.root.attrs else "",
                drift=Drift(**json.loads(self.text(self.root, "drift"))) if "drift" in self.root.attrs else None,
            )
            return self._with_views(header) if found > 1 else header

    def _with_views(self, header: Header) -> Header:
        views = json.loads(self.text(self.root, "views"))
        header = replace(header, views=tuple(views) if isinstance(views, dict) else ())
        if not header.views or views != {view: header.code_of(view).hex() for view in header.views}:
            raise self.damaged("its views are not a JSON object of names and their codes")
        return header

    def _layers(self) -> tuple[int, ...]:
        columns = json.loads(self.text(self.root, "layers"))
        if not isinstance(columns, dict) or not all(name.isdigit() for name in columns):
            raise self.damaged("its layers are not a JSON object of numbers and columns")
        return tuple(int(name) for name in columns)

    def text(self, owner: h5py.Group, name: str) -> str:
        """Read an attribute that is a short text."""
        return bytes(self._attribute(owner, name, "S", "a short text")[()]).decode("utf-8", "surrogateescape")

    def whole_number(self, owner: h5py.Group, name: str) -> int:
        """Read an attribute that is a whole number."""
        return int(self._attribute(owner, name, "iu", "a whole number"))

    def _attribute(self, owner: h5py.Group, name: str, kinds: str, expected: str) -> npt.NDArray[Any]:
        attribute = h5py.h5a.open(owner.id, name.encode())
        # Fixed length only: variable-length text could point anywhere and declare any size.
        is_short = attribute.shape == () and attribute.get_storage_size() <= MAX_TEXT_BYTES
        if attribute.dtype.kind not in kinds or not is_short:
            raise self.damaged(f"the attribute {name!r} is not {expected}")
        value = np.empty((), attribute.dtype)
        attribute.read(value)
        return value

    # -- structure ------------------------------------------------------------------------------------------------

    def child(self, group: h5py.Group, name: str, kind: type[Member]) -> Member:
        """Return a member that is in this very file: a hard link, never a soft or external one."""
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise self.damaged(f"{group.name}/{name} is a link, not data")
        child = group[name]
        if not isinstance(child, kind):
            raise self.damaged(f"{group.name}/{name} is not a {kind.__name__.lower()}")
        return child

    def dataset(self, group: h5py.Group, name: str) -> Any:
        """Return a dataset whose declared size is covered by the bytes in the file."""
        data = self.child(group, name, h5py.Dataset)
        plan = data.id.get_create_plist()
        filters = [plan.get_filter(i)[0] for i in range(plan.get_nfilters())]
        if data.is_virtual or data.external or data.chunks is None or not ALLOWED_FILTERS.issuperset(filters):
            raise self.damaged(f"{data.name} is not stored as this format requires")
        if h5py.h5z.FILTER_FLETCHER32 not in filters:
            raise self.damaged(f"{data.name} has no checksums")
        ratio = MAX_DEFLATE_RATIO if h5py.h5z.FILTER_DEFLATE in filters else 1
        stored = min(data.id.get_storage_size(), self.size)
        n_chunks = -(-data.shape[0] // data.chunks[0]) if data.shape else 0
        chunk_bytes = int(np.prod(data.chunks)) * data.dtype.itemsize
        if data.id.get_num_chunks() != n_chunks or data.nbytes > stored * ratio or chunk_bytes > (1 << 24):
            raise self.damaged(f"{data.name} declares {data.nbytes} bytes, but {stored} are there")
        return data
