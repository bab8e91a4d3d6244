"""The size stated in a frame's compressed bytes: a decoder allocates memory for it, not for the size in the header."""

import struct
from typing import NamedTuple

_J2K_START = b"\xff\x4f\xff\x51"
_JPEG_START = b"\xff\xd8"
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})  # of JPEG, and JPEG-LS
_RLE_HEADER_BYTES = 64


class CodestreamSize(NamedTuple):
    """The size that a decoder allocates memory for."""

    width: int
    height: int
    n_channels: int


def codestream_size(frame: bytes) -> CodestreamSize | None:
    """Read the size of a JPEG, JPEG-LS or JPEG 2000 codestream. Return None for other bytes, or if it is missing."""
    try:
        start = frame.find(_J2K_START, 0, 1024)  # after the boxes of a JP2 file, if it is one
        if start >= 0:
            right, bottom, left, top = struct.unpack_from(">4I", frame, start + 8)
            (n_channels,) = struct.unpack_from(">H", frame, start + 40)
            return CodestreamSize(right - left, bottom - top, n_channels)
        return _jpeg_size(frame) if frame.startswith(_JPEG_START) else None
    except struct.error:  # cut off
        return None


def _jpeg_size(frame: bytes) -> CodestreamSize | None:
    at = len(_JPEG_START)
    while frame[at : at + 1] == b"\xff":
        marker = frame[at + 1]
        if marker in _FRAME_MARKERS:
            height, width, n_channels = struct.unpack_from(">HHB", frame, at + 5)
            return CodestreamSize(width, height, n_channels)
        # A padding byte, or a segment with its length.
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def max_rle_bytes(n_pixel_bytes: int) -> int:
    """Return the greatest length of an RLE frame, where a run of one takes two bytes: a longer one has too many pixels."""
    return _RLE_HEADER_BYTES + 2 * (n_pixel_bytes + _RLE_HEADER_BYTES)
