"""What earlier extractions recorded of a dataset's files."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from hoarfrost.features.cache.layout import FileTable, Keys, Rows, image_keys, joined_keys
from hoarfrost.features.columns.texts import TextIndex, Texts


class KnownFiles:
    """The files of earlier extractions, by path; if several tables have one, the last counts.

    The tables' `rows` point to `keys` (N, K) uint8 of rows.
    """

    def __init__(self, tables: Sequence[FileTable], keys: Keys) -> None:
        last_first, none = [*reversed(tables)], np.empty(0, np.int64)
        self.paths = last_first[0].paths if len(last_first) == 1 else Texts.joined(table.paths for table in last_first)
        self._sizes = np.concatenate([none, *(table.sizes for table in last_first)])
        self._mtimes_ns = np.concatenate([none, *(table.mtimes_ns for table in last_first)])
        self._rows = np.concatenate([none, *(table.rows for table in last_first)])
        self._keys = keys

    @classmethod
    def nothing(cls) -> "KnownFiles":
        """Return an instance without files."""
        return cls([], joined_keys([]))

    def __bool__(self) -> bool:
        return len(self.paths) > 0

    @cached_property
    def _index(self) -> TextIndex:
        return TextIndex(self.paths)

    def unchanged(self, paths: Texts, sizes: Rows, mtimes_ns: Rows) -> tuple[Rows, Keys]:
        """Find the files that have not changed.

        Parameters
        ----------
        paths : Texts (n,)
        sizes, mtimes_ns : ndarray (n,) int64
            Their present size and modification time.

        Returns
        -------
        rows : ndarray (m,) int64
            Which of them are unchanged, ascending.
        keys : ndarray (m, 32) uint8
            And the images' keys.
        """
        places = self._index.find(paths) if self else np.full(len(paths), -1, np.int64)
        rows = np.flatnonzero(places >= 0)
        known = places[rows]
        same = (self._sizes[known] == sizes[rows]) & (self._mtimes_ns[known] == mtimes_ns[rows])
        return rows[same], image_keys(self._keys[self._rows[known[same]]])
