"""An index of rows by hash, sorted in one array, without a Python object for each row."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]
IsSame = Callable[[Ints, Ints], npt.NDArray[np.bool_]]
"""Takes stored rows and as many positions among the queries; returns which of these pairs are really equal."""

BLOCK_ROWS = 1 << 19  # queries at a time: limits the memory needed beside the index


class Lookup:
    """An index of rows by hash. Where several rows are equal, it finds the first of them.

    Parameters
    ----------
    hashes : ndarray (N,) uint64
        Equal for equal rows, and evenly spread.
    """

    def __init__(self, hashes: Hashes) -> None:
        order = np.argsort(hashes)
        self._hashes = hashes[order]
        shared = self._is_shared()
        if shared.any():  # equal hashes in the order of their rows; a stable sort of all would take twice the time
            order[shared] = order[shared][np.lexsort((order[shared], self._hashes[shared]))]
        self._order = order.astype(np.uint32) if len(order) <= 1 << 32 else order

    def __len__(self) -> int:
        return len(self._hashes)

    def _is_shared(self) -> npt.NDArray[np.bool_]:
        """Return which of the sorted hashes belong to several rows, (N,) bool."""
        shared = np.zeros(len(self), bool)
        equals_next = self._hashes[1:] == self._hashes[:-1]
        shared[:-1] |= equals_next
        shared[1:] |= equals_next
        return shared

    def find(self, hashes: Hashes, is_same: IsSame) -> Ints:
        """Return the row of each query, (M,) int64; -1 for queries that are not in the index."""
        rows = np.full(len(hashes), -1, np.int64)
        for first in range(0, len(hashes) if len(self) else 0, BLOCK_ROWS):
            self._find(hashes[first : first + BLOCK_ROWS], rows[first : first + BLOCK_ROWS], first, is_same)
        return rows

    def _find(self, hashes: Hashes, rows: Ints, first: int, is_same: IsSame) -> None:
        """Write the rows of one block of queries, which begins at position `first`, into `rows`."""
        order = np.argsort(hashes)  # ascending hashes read the memory in order
        places = np.empty(len(hashes), np.int64)
        places[order] = np.searchsorted(self._hashes, hashes[order])
        open_ = np.flatnonzero(places < len(self))
        # One pass nearly always suffices; more are needed only where different rows share a hash.
        while len(open_):
            open_ = open_[self._hashes[places[open_]] == hashes[open_]]
            candidates = self._order[places[open_]].astype(np.int64)
            same = is_same(candidates, open_ + first)
            rows[open_[same]] = candidates[same]
            open_ = open_[~same]
            places[open_] += 1
            open_ = open_[places[open_] < len(self)]

    def firsts(self, is_same: IsSame) -> Ints:
        """Return for each row the first row equal to it, (N,) int64: itself if no earlier row is equal."""
        firsts = np.arange(len(self))
        shared = self._is_shared()
        rows = self._order[shared].astype(np.int64)
        firsts[rows] = self.find(self._hashes[shared], lambda there, here: is_same(there, rows[here]))
        return firsts
