"""Finding rows by key without a Python object for each image."""

import numpy as np
import numpy.typing as npt

from features.cache.layout import Keys, Rows


class KeyIndex:
    """Where each key stands in an array of keys; the first place counts where a key stands twice.

    Parameters
    ----------
    keys : ndarray (N, 32) uint8
    """

    def __init__(self, keys: Keys) -> None:
        self._keys = np.ascontiguousarray(keys)
        heads = _heads(self._keys)
        self._order = np.argsort(heads, kind="stable")  # stable: the first of equal keys stays first
        self._heads = heads[self._order]

    def __len__(self) -> int:
        return len(self._keys)

    def find(self, keys: Keys) -> Rows:
        """Give the row of each key, (M,) int64; -1 for keys that are not there."""
        rows = np.full(len(keys), -1, np.int64)
        if not len(self._keys) or not len(keys):
            return rows
        keys = np.ascontiguousarray(keys)
        heads = _heads(keys)
        places = np.searchsorted(self._heads, heads)
        open_ = np.flatnonzero(places < len(self._heads))
        # Eight bytes nearly always decide; the loop runs on only where two keys share them.
        while len(open_):
            open_ = open_[self._heads[np.minimum(places[open_], len(self._heads) - 1)] == heads[open_]]
            candidates = self._order[places[open_]]
            same = (self._keys[candidates] == keys[open_]).all(axis=1)
            rows[open_[same]] = candidates[same]
            open_ = open_[~same]
            places[open_] += 1
            open_ = open_[places[open_] < len(self._heads)]
        return rows

    def contains(self, key: bytes) -> bool:
        """Tell whether one key is there."""
        return bool(self.find(np.frombuffer(key, np.uint8)[None])[0] >= 0)


def _heads(keys: Keys) -> npt.NDArray[np.uint64]:
    """Give each key's first eight bytes as a number: SHA-256 spreads them evenly."""
    return keys[:, :8].copy().view(np.uint64).ravel()
