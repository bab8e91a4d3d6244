"""PartWriter: writes embeddings into parts that a crash cannot harm. Several may write at once, on several hosts."""

import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hoarfrost.features.cache.keys import KeyIndex
from hoarfrost.features.cache.layout import Block, DatasetTable, Embeddings, FileTable, Header, Keys, Mask, joined_keys
from hoarfrost.features.cache.reading import CacheFile
from hoarfrost.features.cache.store import PART_SUFFIX, part_paths, parts_directory, real_path
from hoarfrost.features.cache.writing import write_cache_file
from hoarfrost.features.columns.texts import Texts
from hoarfrost.features.errors import CacheError
from hoarfrost.features.facts import Facts, ImageFacts
from hoarfrost.features.files.whole import sync_folder

COMMIT_SECONDS = 4.0  # at most 5 s of work may be lost; the batch under way counts too
COMMIT_ROWS = 4_096  # 8 MiB, for a moment twice: bounds the memory where a GPU fills seconds with a hundred thousand


class EmbeddedFile(NamedTuple):
    """An image whose embedding is appended: its file, the key of the embedding's row, see `Block`, and its facts."""

    path: str
    size: int
    mtime_ns: int
    key: bytes
    facts: ImageFacts | None = None


class Part(NamedTuple):
    """A committed part; `known` is what it records of the dataset's files (empty for parts of this very extraction)."""

    path: Path
    keys: Keys
    known: list[FileTable]
    compute: str
    by_view: bool

    def blocks(self) -> Iterator[Block]:
        """Read the images; the file is opened only now: there may be more parts than a process may open files."""
        with CacheFile(self.path, by_view=self.by_view) as file:
            yield from file.blocks()


class PartWriter:
    """Writes parts of a cache, without its lock: the process that holds the lock must add the parts to the cache.

    `append` keeps embeddings in memory, and `commit` (called automatically every few seconds) writes them as a part.

    Parameters
    ----------
    path : Path
        The cache's HDF5 file.
    header : Header
    dataset : str
        The dataset that the images belong to.
    root : str
        The resolved location of its files: what is known of files elsewhere says nothing about these.
    known : KeyIndex, optional
        The keys that are in the cache already.
    """

    def __init__(
        self, path: Path, header: Header, dataset: str, *, root: str = "", known: KeyIndex | None = None
    ) -> None:
        self.path = real_path(path)
        self.header = header
        self.dataset = dataset
        self.root = root
        self.parts: list[Part] = []  # in the order in which they were written or found
        self._known = known or KeyIndex(joined_keys([]))
        self._added: list[Keys] = []  # since then
        self._added_index = KeyIndex(joined_keys([]))
        self._new_keys: set[bytes] = set()  # not in that index yet
        self._read_parts: set[str] = set()  # names of others' parts
        self._pending: list[EmbeddedFile] = []
        self._embeddings: list[Embeddings] = []
        self._last_commit = time.monotonic()
        self._last_append = self._last_commit

    def set_compute(self, compute: str) -> None:
        """Set the compute path of the embeddings that follow."""
        self.header = replace(self.header, compute=compute)

    @property
    def known(self) -> KeyIndex:
        """The keys that were in the cache before this writer added any."""
        return self._known

    @property
    def by_view(self) -> bool:
        """Whether rows' keys state the view, as in version 2 of the format."""
        return bool(self.header.views)

    def __contains__(self, key: bytes) -> bool:
        """Return whether there is a row of this key."""
        return bool(self.contain(np.frombuffer(key, np.uint8)[None])[0])

    def contain(self, keys: Keys) -> Mask:
        """Return which of some keys (n, K) uint8 there is a row of, (n,) bool; other threads may ask."""
        # First of those that are not in an index yet: they are moved to it meanwhile.
        found = np.fromiter((key.tobytes() in self._new_keys for key in keys), bool, len(keys))
        return found | (self.known.find(keys) >= 0) | (self._added_index.find(keys) >= 0)

    def append(self, files: list[EmbeddedFile], embeddings: Embeddings) -> None:
        """Add a batch; it is committed within the next few seconds.

        Parameters
        ----------
        files : list of EmbeddedFile, length B
        embeddings : ndarray (B, D) float32

        Raises
        ------
        ValueError
            If their dimension is not that of the header.
        """
        if embeddings.shape != (len(files), self.header.dim):
            raise ValueError(f"embeddings are {embeddings.shape}, not {(len(files), self.header.dim)}")
        self._pending += files
        self._new_keys.update(file.key for file in files)
        self._embeddings.append(embeddings)
        now = time.monotonic()
        batch_s, self._last_append = now - self._last_append, now
        if now - self._last_commit + batch_s > COMMIT_SECONDS or len(self._pending) >= COMMIT_ROWS:
            self.commit()

    def commit(self) -> None:
        """Write what was appended to the disk as one part.

        Raises
        ------
        CacheError
            If it cannot be written (a full disk, say).
        """
        if self._pending:
            directory = parts_directory(self.path)
            try:
                if not directory.is_dir():
                    directory.mkdir(exist_ok=True)
                    sync_folder(directory.parent)  # a power cut would lose the part with its folder
            except OSError as error:
                raise CacheError(f"{directory}: the folder of parts cannot be created: {error.strerror}.") from error
            # Zero-padded time first, so that names sort in the order of commits.
            path = directory / f"part-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{PART_SUFFIX}"
            keys = np.frombuffer(b"".join(file.key for file in self._pending), np.uint8).reshape(
                -1, self.header.key_bytes
            )
            facts = Facts.of([file.facts for file in self._pending])
            block = Block(keys, np.concatenate(self._embeddings), facts)
            write_cache_file(path, self.header, len(self._pending), [block], [self._part_table()])
            self.parts.append(Part(path, keys, [], self.header.compute, self.by_view))
            self._pending, self._embeddings = [], []
            self._added.append(keys)
            # A sorted array holds a key in 48 bytes, a Python set in 150; sorting seldom keeps it cheap.
            if len(self._new_keys) > max(65_536, len(self._added_index) // 4):
                self._index_added()
        self._last_commit = time.monotonic()

    def read_other_parts(self) -> list[str]:
        """Add the keys of all parts by other writers to the known keys; return the names of these parts.

        Raises
        ------
        CacheError
            If one cannot be read.
        """
        own = {part.path for part in self.parts}
        others = [path for path in part_paths(self.path) if path not in own]
        for path in others:
            if path.name not in self._read_parts:
                with CacheFile(path, by_view=self.by_view) as file:
                    self._added.append(file.keys)
                self._read_parts.add(path.name)
        self._index_added()
        return [path.name for path in others]

    def _index_added(self) -> None:
        """Sort the keys of what was committed, or read from others' parts; nothing may be pending then."""
        self._added = [joined_keys(self._added)]
        self._added_index, self._new_keys = KeyIndex(self._added[0]), set()

    def _part_table(self) -> DatasetTable:
        """Return what a resumed extraction needs to skip the files of this part unread: each file once."""
        first: dict[str, int] = {}
        for row, file in enumerate(self._pending):
            first.setdefault(file.path, row)
        files, n = [self._pending[row] for row in first.values()], len(first)
        return DatasetTable(
            name=self.dataset,
            source="",
            root=self.root,
            paths=Texts.of(file.path for file in files),
            rows=np.fromiter(first.values(), np.int64, n),
            labels=Texts.repeated("", n),
            errors=Texts.repeated("", n),
            sizes=np.array([file.size for file in files], np.int64),
            mtimes_ns=np.array([file.mtime_ns for file in files], np.int64),
        )
