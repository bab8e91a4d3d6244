"""Finding rows by key, without a Python object for each image."""

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.layout import Keys, Mask, Rows
from hoarfrost.features.columns.lookup import Lookup


class KeyIndex:
    """An index of rows by key, (N, 32) uint8. If a key occurs twice, its first row counts."""

    def __init__(self, keys: Keys) -> None:
        self.keys = np.ascontiguousarray(keys)
        self._lookup = Lookup(_hashes(self.keys))

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Keys) -> Rows:
        """Return the row of each key, (M,) int64; -1 for keys that are not in the index."""
        keys = np.ascontiguousarray(keys)
        return self._lookup.find(_hashes(keys), lambda there, here: (self.keys[there] == keys[here]).all(axis=1))

    def is_first(self) -> Mask:
        """Return which rows are the first of their key, (N,) bool."""
        firsts = self._lookup.firsts(lambda there, here: (self.keys[there] == self.keys[here]).all(axis=1))
        return np.equal(firsts, np.arange(len(self)))

    def contains(self, key: bytes) -> bool:
        """Return whether one key is in the index."""
        return bool(self.find(np.frombuffer(key, np.uint8)[None])[0] >= 0)


def _hashes(keys: Keys) -> npt.NDArray[np.uint64]:
    """Return the first eight bytes of each key as a number: SHA-256 spreads them evenly."""
    return keys.view(np.uint64)[:, 0].copy()
