"""The numbers by which images are assigned to splits: a keyed hash of the patient, or of the image. Knows no files."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from hoarfrost.evaluation.checks import Floats, Ints

Identities = npt.NDArray[np.uint64]

_NUMBER_BYTES = 8


def identities_of(keys: npt.NDArray[np.uint8], patients: Sequence[str] | None) -> Identities:
    """Return a number for each image that does not depend on the others: its patient's, or its own.

    Parameters
    ----------
    keys : ndarray (n, 32) uint8
        Digests of the images' bytes.
    patients : sequence of str, length n, or None
        An empty text is an unknown patient.

    Returns
    -------
    ndarray (n,) uint64
    """
    numbers: Identities = np.ascontiguousarray(keys[:, :_NUMBER_BYTES]).view(np.uint64).ravel()
    if patients is not None:
        hashed = {name: _number(name.encode("utf-8", "surrogateescape")) for name in set(patients) if name}
        known = np.array([name != "" for name in patients], bool)
        numbers[known] = np.array([hashed[name] for name in patients if name], np.uint64)
    return numbers


def draws_of(group: Ints, identities: Identities, seed: int) -> Floats:
    """Return a number in [0, 1) for each group: the hash, keyed by the seed, of the smallest identity in it.

    Parameters
    ----------
    group : ndarray (n,) int64, 0 to G - 1
    identities : ndarray (n,) uint64
    seed : int

    Returns
    -------
    ndarray (G,) float64
    """
    smallest = np.full(int(group.max()) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(smallest, group, identities)
    key = str(seed).encode()
    hashed = np.fromiter((_number(one.tobytes(), key) for one in smallest), np.uint64, len(smallest))
    return hashed / 2.0 ** (8 * _NUMBER_BYTES)


def _number(content: bytes, key: bytes = b"") -> int:
    return int.from_bytes(blake2b(content, digest_size=_NUMBER_BYTES, key=key).digest(), "little")
