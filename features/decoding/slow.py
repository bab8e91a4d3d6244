"""Files that may take far longer than their pixels: found by a look at their bytes, which costs microseconds.

Threads decode all others, as no thread can be stopped; these are decoded in a process that has a limit.
"""

import struct
from collections.abc import Mapping

from hoarfrost.features.decoding.formats import JPEG_SCAN, jpeg_segments

MOST_SCAN_PIXELS = 1 << 30  # of all scans of a JPEG: about a second
MOST_PARTS = 50_000  # packets and tiles of JPEG 2000, tiles of TIFF
MOST_BLOCKS = 1 << 20  # of JPEG 2000
MOST_TEXT_BYTES = 1 << 20  # of a PPM whose numbers are text

_SCAN = bytes([0xFF, JPEG_SCAN])
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})
_TEXT_PPM = (b"P1", b"P2", b"P3")
_J2K_START, _JP2_START = b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  "
_COD, _COC, _POC, _START_OF_TILE, _START_OF_DATA, _END = 0x52, 0x53, 0x5F, 0x90, 0x93, 0xD9
_TIFF_JPEG = 7


def is_slow(content: bytes, n_pixels: int) -> bool:
    """Return whether a JPEG, a JPEG 2000 or a PPM of so many pixels may be slow; False for other files."""
    try:
        if content.startswith(b"\xff\xd8"):
            return _is_slow_jpeg(content, n_pixels)
        start = content.find(_J2K_START) if content.startswith(_JP2_START) else 0
        if content.startswith(_J2K_START, max(start, 0)):
            return _is_slow_j2k(content, start, n_pixels)
    except (struct.error, IndexError):  # cut off, or not as the standard has it
        return True
    return content.startswith(_TEXT_PPM) and len(content) > MOST_TEXT_BYTES


def is_slow_tiff(content: bytes, n_pixels: int, tags: Mapping[int, object]) -> bool:
    """Return whether a TIFF of so many pixels may be slow, by the tags of the page.

    Its tiles or strips may be very many, or far larger than the page, or JPEGs of many scans.
    """
    offsets = tags.get(324, tags.get(273, ()))
    n_parts = len(offsets) if isinstance(offsets, tuple) else 1
    sides = tags.get(322), tags.get(323)
    area = sides[0] * sides[1] if isinstance(sides[0], int) and isinstance(sides[1], int) else 0
    if n_parts > MOST_PARTS or n_parts * area > 4 * n_pixels + MOST_SCAN_PIXELS:
        return True
    return tags.get(259) == _TIFF_JPEG and content.count(_SCAN) // max(1, n_parts) * n_pixels > MOST_SCAN_PIXELS


def _is_slow_jpeg(content: bytes, n_pixels: int) -> bool:
    """Count the scans only if there are several: a progressive JPEG, or one whose channels are stored separately."""
    at, n_channels, is_progressive = 2, 1, False
    for marker, at in jpeg_segments(content):
        if marker in _FRAMES:
            is_progressive, n_channels = marker in _PROGRESSIVE, content[at + 9]
    if not is_progressive and content[at + 4] == n_channels:
        return False
    return content.count(_SCAN, at) * n_pixels > MOST_SCAN_PIXELS


def _is_slow_j2k(content: bytes, start: int, n_pixels: int) -> bool:
    """Count the packets and the code blocks that the main header states; a tile with a header of its own may be slow."""
    length, _, right, bottom, left, top, width, height, tiles_left, tiles_top = struct.unpack_from(
        ">HH8I", content, start + 4
    )
    (n_channels,) = struct.unpack_from(">H", content, start + 40)
    n_tiles = -(-(right - tiles_left) // max(1, width)) * -(-(bottom - tiles_top) // max(1, height))
    n_pixels = max(n_pixels, (right - left) * (bottom - top))
    at, n_packets, n_blocks = start + 4 + length, MOST_PARTS + 1, 0
    while content[at + 1] != _START_OF_TILE:
        if content[at + 1] in {_COC, _POC}:
            return True
        if content[at + 1] == _COD:
            style, layers, levels, block_width, block_height = struct.unpack_from(">BxHxBBB", content, at + 4)
            # Precincts of their own size, of which the smallest counts, or of 32,768 x 32,768.
            sizes = content[at + 14 : at + 15 + levels] if style & 1 else b"\xff"
            n_precincts = 1 + (n_pixels >> min((size & 15) + (size >> 4) for size in sizes))
            n_packets = n_tiles * layers * (levels + 1) * n_channels * n_precincts
            n_blocks = n_pixels * n_channels >> (block_width + block_height + 4)
        at += 2 + int(struct.unpack_from(">H", content, at + 2)[0])
    return n_packets > MOST_PARTS or n_blocks > MOST_BLOCKS or _has_tile_header(content, at)


def _has_tile_header(content: bytes, at: int) -> bool:
    for _ in range(MOST_PARTS):
        if content[at + 1] == _END or at + 12 >= len(content):
            return False
        if content[at + 1] != _START_OF_TILE:
            return True
        if content[at + 13] in {_COD, _COC, _POC}:
            return True
        (n_bytes,) = struct.unpack_from(">I", content, at + 6)
        if not n_bytes:  # the last one
            return False
        at += n_bytes
        if at + 1 >= len(content):
            return False
    return True
