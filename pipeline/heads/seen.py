"""Short digests of the images that a head learned from: in its file, so that they are found again without its run."""

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

DIGEST_BYTES = 8  # two of a million images and a million others agree by chance in one of 10 million comparisons
_PURPOSE = b"hoarfrost training image\n"  # so that they are not the beginnings of a cache's keys

Digests = npt.NDArray[np.int64]
NO_DIGESTS: Digests = np.empty(0, np.int64)


def digests_of(keys: Iterable[bytes]) -> Digests:
    """Return the digests (n,) of images by their keys, see `hoarfrost.features.fingerprint`; in the order of the keys.

    Notes
    -----
    The first 8 bytes of a SHA-256. They reveal nothing of an image to those who do not have its file; those who have it can
    tell whether a head learned from it.
    """
    content = b"".join(hashlib.sha256(_PURPOSE + key).digest()[:DIGEST_BYTES] for key in keys)
    return np.frombuffer(content, "<i8").astype(np.int64)
