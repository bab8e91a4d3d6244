"""Finding rows by numbers that nearly always tell them apart, without a Python object for each."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Heads = npt.NDArray[np.uint64]
IsSame = Callable[[Ints, Ints], npt.NDArray[np.bool_]]
"""From rows of what is looked in, and as many places of what is looked for: which of these pairs are really equal."""

BLOCK_ROWS = 1 << 19  # looked for at once: bounds the memory beside the rows themselves


class Lookup:
    """Where each of many things stands; the first place counts where one stands twice.

    Parameters
    ----------
    heads : ndarray (N,) uint64
        Equal for what is equal, and evenly spread.
    """

    def __init__(self, heads: Heads) -> None:
        order = np.argsort(heads)
        self._heads = heads[order]
        twins = self._heads[1:] == self._heads[:-1]
        if twins.any():  # the first of equals comes first; sorting all so would take twice the time
            shared = np.append(twins, False) | np.append(False, twins)
            order[shared] = order[shared][np.lexsort((order[shared], self._heads[shared]))]
        self._order = order.astype(np.uint32) if len(order) <= 1 << 32 else order

    def __len__(self) -> int:
        return len(self._heads)

    def find(self, heads: Heads, is_same: IsSame) -> Ints:
        """Give the row of each that is looked for, (M,) int64; -1 for what is not there."""
        rows = np.full(len(heads), -1, np.int64)
        for first in range(0, len(heads) if len(self) else 0, BLOCK_ROWS):
            self._find(heads[first : first + BLOCK_ROWS], rows[first : first + BLOCK_ROWS], first, is_same)
        return rows

    def _find(self, heads: Heads, rows: Ints, first: int, is_same: IsSame) -> None:
        order = np.argsort(heads)  # ascending, they are looked up along the memory, not across it
        places = np.empty(len(heads), np.int64)
        places[order] = np.searchsorted(self._heads, heads[order])
        open_ = np.flatnonzero(places < len(self))
        # The heads nearly always decide; the loop runs on only where unequal things share one.
        while len(open_):
            open_ = open_[self._heads[places[open_]] == heads[open_]]
            candidates = self._order[places[open_]].astype(np.int64)
            same = is_same(candidates, open_ + first)
            rows[open_[same]] = candidates[same]
            open_ = open_[~same]
            places[open_] += 1
            open_ = open_[places[open_] < len(self)]

    def firsts(self, is_same: IsSame) -> Ints:
        """Give for each row the first row that is equal to it, (N,) int64: itself where nothing is before it."""
        firsts = np.arange(len(self))
        twins = self._heads[1:] == self._heads[:-1]
        if twins.any():
            shared = np.append(twins, False) | np.append(False, twins)
            rows = self._order[shared].astype(np.int64)
            firsts[rows] = self.find(self._heads[shared], lambda there, here: is_same(there, rows[here]))
        return firsts
