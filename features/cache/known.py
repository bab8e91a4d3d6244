"""What earlier extractions learnt of a dataset's files."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hoarfrost.features.cache.layout import FileTable, Keys, Rows
from hoarfrost.features.columns.texts import TextIndex, Texts
from hoarfrost.features.fingerprint import KEY_BYTES


class KnownFile(NamedTuple):
    """What an earlier extraction learnt of a file: while size and mtime stay, its key stays."""

    size: int
    mtime_ns: int
    key: bytes


class KnownFiles(Mapping[str, KnownFile]):
    """What is known of files, by path; where several tables name one, the last counts.

    Parameters
    ----------
    tables : sequence of FileTable
    keys : ndarray (N, 32) uint8
        What the tables' `rows` point to.
    """

    def __init__(self, tables: Sequence[FileTable], keys: Keys) -> None:
        last_first = [*reversed(tables)]
        numbers = [
            np.concatenate([np.empty(0, np.int64), *column]) for column in list(zip(*last_first, strict=True))[1:]
        ]
        self._sizes, self._mtimes_ns, self._rows = numbers or [np.empty(0, np.int64)] * 3
        self._paths = last_first[0].paths if len(last_first) == 1 else Texts.joined(table.paths for table in last_first)
        self._keys = keys

    @classmethod
    def nothing(cls) -> "KnownFiles":
        """Return an instance without files."""
        return cls([], np.empty((0, KEY_BYTES), np.uint8))

    @cached_property
    def _index(self) -> TextIndex:
        return TextIndex(self._paths)

    def unchanged(self, paths: Texts, sizes: Rows, mtimes_ns: Rows) -> tuple[Rows, Keys]:
        """Find files that are as they were.

        Parameters
        ----------
        paths : Texts (n,)
        sizes, mtimes_ns : ndarray (n,) int64
            As they are now.

        Returns
        -------
        rows : ndarray (m,) int64
            Which of them are unchanged, ascending.
        keys : ndarray (m, 32) uint8
            And their keys.
        """
        places = self._index.find(paths) if len(self._paths) else np.full(len(paths), -1, np.int64)
        rows = np.flatnonzero(places >= 0)
        known = places[rows]
        same = (self._sizes[known] == sizes[rows]) & (self._mtimes_ns[known] == mtimes_ns[rows])
        return rows[same], self._keys[self._rows[known[same]]]

    def __getitem__(self, path: str) -> KnownFile:
        place = int(self._index.find(Texts.of([path]))[0])
        if place < 0:
            raise KeyError(path)
        key = self._keys[self._rows[place]].tobytes()
        return KnownFile(int(self._sizes[place]), int(self._mtimes_ns[place]), key)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self._paths))

    def __len__(self) -> int:
        return int((self._index.firsts() == np.arange(len(self._paths))).sum()) if len(self._paths) else 0

    def __bool__(self) -> bool:
        return len(self._paths) > 0
