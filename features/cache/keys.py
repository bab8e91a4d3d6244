"""Finding rows by key, without a Python object for each image."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from hoarfrost.features.cache.layout import Header, Keys, Mask, Rows, row_keys
from hoarfrost.features.columns.lookup import Lookup
from hoarfrost.features.fingerprint import KEY_BYTES


class KeyIndex:
    """An index of rows by key, (N, K) uint8. If a key occurs twice, its first row counts."""

    def __init__(self, keys: Keys) -> None:
        self.keys = np.ascontiguousarray(keys)
        self._lookup = Lookup(_hashes(self.keys))

    def __len__(self) -> int:
        return len(self.keys)

    def find(self, keys: Keys) -> Rows:
        """Return the row of each key, (M,) int64; -1 for keys that are not in the index."""
        keys = np.ascontiguousarray(keys)
        if not len(self) or not len(keys):
            return np.full(len(keys), -1, np.int64)
        return self._lookup.find(_hashes(keys), lambda there, here: (self.keys[there] == keys[here]).all(axis=1))

    def firsts(self) -> Rows:
        """Return for each row the first one of its key, (N,) int64."""
        return self._lookup.firsts(lambda there, here: (self.keys[there] == self.keys[here]).all(axis=1))

    def is_first(self) -> Mask:
        """Return which rows are the first of their key, (N,) bool."""
        return np.equal(self.firsts(), np.arange(len(self)))


def find_images(index: KeyIndex, header: Header, keys: Keys, views: Sequence[str]) -> Rows:
    """Return each image's row of the first of some views that it has, (n,) int64; -1 if it has none.

    Parameters
    ----------
    index : KeyIndex
        Of rows, as `header` describes them.
    keys : ndarray (n, 32) uint8
        The images'.
    views : sequence of str
    """
    if not header.views:
        return index.find(keys)
    rows = np.full(len(keys), -1, np.int64)
    for view in views:
        left = np.flatnonzero(rows < 0)
        rows[left] = index.find(row_keys(keys[left], header.code_of(view)))
    return rows


def count_by_view(header: Header, keys: Keys) -> dict[str, int]:
    """Return how many rows there are of each view, by the rows' keys (n, K) uint8."""
    if not header.views or not len(keys):
        return dict.fromkeys(header.view_names, len(keys))
    codes = keys[:, KEY_BYTES:]
    own = {view: np.frombuffer(header.code_of(view), np.uint8) for view in header.views}
    return {view: int((codes == code).all(axis=1).sum()) for view, code in own.items()}


def _hashes(keys: Keys) -> npt.NDArray[np.uint64]:
    """Return the first eight bytes of each key as a number, mixed with a view's code: SHA-256 spreads both evenly."""
    numbers = keys.view(np.uint64)
    return numbers[:, 0].copy() if keys.shape[1] == KEY_BYTES else numbers[:, 0] ^ numbers[:, -1]
