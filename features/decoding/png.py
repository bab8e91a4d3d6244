"""What Pillow does not read of a PNG: large texts and profiles, and 16-bit grey with alpha."""

import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from hoarfrost.features.decoding.windows import percentile_window, scaled

if TYPE_CHECKING:
    import numpy.typing as npt

GREY_16_WITH_ALPHA = "LA;16B"  # Pillow's raw mode of it; its own modes with alpha have 8 bits

_START = b"\x89PNG\r\n\x1a\n"
_CHUNK_BYTES = 12  # of a chunk without data
# They are not used, and Pillow refuses those that unpack to more than a megabyte.
_UNUSED_CHUNKS = frozenset({b"iCCP", b"tEXt", b"zTXt", b"iTXt"})
_OPAQUE = 0xFFFF  # of 16-bit alpha


def without_texts(content: bytes) -> bytes:
    """Return a PNG without its texts and profiles; anything else, and a PNG that is cut off, as it is."""
    if not content.startswith(_START):
        return content
    kept, at, start = [], len(_START), 0
    while at + _CHUNK_BYTES <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        end = at + _CHUNK_BYTES + length
        if kind in _UNUSED_CHUNKS and end <= len(content):
            kept.append(memoryview(content)[start:at])
            start = end
        at = end
    return b"".join([*kept, memoryview(content)[start:]]) if kept else content


def over_black(values: "npt.NDArray[Any]", alpha: "npt.NDArray[Any]") -> "npt.NDArray[np.uint8]":
    """Return 16-bit grey values (H, W) as 8 bits, by the percentiles of what is visible, over black.

    Where alpha (H, W) is 0 everywhere, it is ignored.
    """
    if not alpha.any():
        return scaled(values, *percentile_window(values))
    pixels = scaled(values, *percentile_window(values[alpha > 0]))
    shown: npt.NDArray[np.uint8] = np.rint(pixels * (alpha / _OPAQUE)).astype(np.uint8)
    return shown
