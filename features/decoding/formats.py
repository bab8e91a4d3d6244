"""The format of a file by its name and its first bytes, before any library opens it."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".tif", ".tiff", ".webp", ".avif", ".gif", ".ppm", ".pgm", ".jp2"}
)
TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".dic", ".ima"})
HEAD_BYTES = 132  # a DICOM file's preamble and its magic
MAX_PIXELS = 178_956_970  # of an image; Pillow's own limit: beyond it, a small file could fill the memory
JPEG_SCAN = 0xDA  # markers of JPEG
_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE})
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # without a length
FRAME_MARK = "#frame="  # between a file's path and the number of one of its frames, from 1

_BARE_DICOM_STARTS = (
    b"\x02\x00\x00\x00", b"\x02\x00\x10\x00",
    b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00", b"\x08\x00\x16\x00",
    b"\x00\x08\x00\x00", b"\x00\x08\x00\x05", b"\x00\x08\x00\x08", b"\x00\x08\x00\x16",  # big-endian
)  # fmt: skip
_MAGICS = {
    b"\xff\xd8\xff\xf7": "JPEG-LS, which is read only in DICOM files",
    b"\x89PNG": "a PNG, damaged or unsupported", b"\xff\xd8\xff": "a JPEG, damaged or unsupported",
    b"GIF8": "a GIF, damaged or unsupported", b"BM": "a BMP, damaged or unsupported",
    b"II*\0": "a TIFF, damaged or unsupported", b"MM\0*": "a TIFF, damaged or unsupported",
    b"II+\0": "a BigTIFF, damaged or unsupported",
    b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive", b"BZh": "a bzip2 archive", b"7z\xbc\xaf": "a 7z archive",
    b"\xfd7zXZ": "an xz archive", b"%PDF": "a PDF", b"%!PS": "PostScript", b"\x89HDF": "HDF5", b"\x93NUMPY": "a NumPy array",
    b"SQLite": "a database", b"<svg": "SVG", b"<?xml": "XML", b"<!DOCTYPE": "HTML", b"<html": "HTML",
}  # fmt: skip


class EncodedFrame(NamedTuple):
    """One of several images in a file: the file's bytes, their SHA-256, the number from 1, and the number of frames."""

    content: bytes
    digest: bytes
    number: int
    n_frames: int


def unpack(content: bytes | EncodedFrame) -> tuple[bytes, int]:
    """Return a file's bytes and the number of the frame; 0 if it is the only one."""
    return (content.content, content.number) if isinstance(content, EncodedFrame) else (content, 0)


def is_dicom(head: bytes) -> bool:
    """Return whether a file is DICOM, by the magic after its preamble."""
    return head[128:HEAD_BYTES] == b"DICM"


def may_be_bare_dicom(head: bytes) -> bool:
    """Return whether a file begins as DICOM without a preamble does. Only reading it can confirm that it is."""
    return head.startswith(_BARE_DICOM_STARTS)


def describe(content: bytes) -> str:
    """Return how a file that is not an image begins, and what it seems to be: "a zip archive", "text"."""
    start = f"the file begins with {content[:8]!r}"
    for magic, name in _MAGICS.items():
        if content.startswith(magic):
            return f"{start}: {name}"
    try:
        is_text = content[:1024].decode("utf-8", "strict").isprintable() or b"\n" in content[:1024]
    except UnicodeDecodeError:
        is_text = False
    return f"{start}: text" if is_text and b"\0" not in content[:1024] else start


def jpeg_segments(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield each segment's marker and place up to the first scan, which is the last one.

    Raises
    ------
    IndexError, struct.error
        If the file is cut off, or something is between the segments: decoders skip that, so scans might hide there.
    """
    at, marker = 2, 0
    while marker != JPEG_SCAN:
        if content[at] != 0xFF:
            raise IndexError(f"no marker at byte {at}")
        marker = content[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        yield marker, at
        at += 2 if marker in _ALONE else 2 + int(struct.unpack_from(">H", content, at + 2)[0])


def is_hierarchical_jpeg(content: bytes) -> bool:
    """Return whether a JPEG states that its frames refine one another, which no common library reads."""
    try:
        return content.startswith(b"\xff\xd8") and any(one in _HIERARCHICAL for one, _ in jpeg_segments(content))
    except (IndexError, struct.error):
        return False
