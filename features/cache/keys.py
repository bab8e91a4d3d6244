"""Finding rows by key without a Python object for each image."""

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.layout import Keys, Rows
from hoarfrost.features.columns.lookup import Lookup


class KeyIndex:
    """Where each key stands in an array of keys; the first place counts where a key stands twice.

    Parameters
    ----------
    keys : ndarray (N, 32) uint8
    """

    def __init__(self, keys: Keys) -> None:
        self.keys = np.ascontiguousarray(keys)
        self._lookup = Lookup(_heads(self.keys))

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Keys) -> Rows:
        """Return the row of each key, (M,) int64; -1 for keys that are not there."""
        keys = np.ascontiguousarray(keys)
        return self._lookup.find(_heads(keys), lambda there, here: (self.keys[there] == keys[here]).all(axis=1))

    def firsts(self) -> Rows:
        """Return for each row the first row of the same key, (N,) int64."""
        return self._lookup.firsts(lambda there, here: (self.keys[there] == self.keys[here]).all(axis=1))

    def contains(self, key: bytes) -> bool:
        """Return whether one key is there."""
        return bool(self.find(np.frombuffer(key, np.uint8)[None])[0] >= 0)


def _heads(keys: Keys) -> npt.NDArray[np.uint64]:
    """Return each key's first eight bytes as a number: SHA-256 spreads them evenly."""
    return keys.view(np.uint64)[:, 0].copy()
