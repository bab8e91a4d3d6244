"""A file's elements before its pixels, read within limits: a malicious header could take minutes and gigabytes."""

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable
from itertools import count
from typing import BinaryIO, NamedTuple

import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filereader import read_dataset, read_preamble
from pydicom.multival import MultiValue
from pydicom.tag import BaseTag, Tag
from pydicom.values import converters

from hoarfrost.features.decoding.formats import HEAD_BYTES, is_dicom
from hoarfrost.features.errors import ImageDecodeError, Unreadable

MAX_ELEMENTS = 1 << 16  # before the pixels; real headers have some hundreds
MAX_INFLATED_BYTES = 1 << 28

_PIXEL_TAGS = {Tag(keyword): keyword for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")}
_PIXEL_KINDS = frozenset({b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"UN"})
_UNDEFINED = 0xFFFFFFFF  # the length of pixels in fragments
_DEFLATED, _PLAIN = (b"1.2.840.10008.1.2.1" + end for end in (b".99", b"\0\0\0"))  # transfer syntaxes of equal length
META_BYTES = 4096  # within which the file meta information ends
_LONG_KINDS = frozenset({b"OB", b"OW", b"UN", b"UT", b"SQ"})  # have two reserved bytes, then four bytes of length
_META_GROUP = 2
_SIZE_KEYWORDS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")  # of a frame
_ITEM = b"\xfe\xff\x00\xe0"

# pydicom warns of values that break the standard, and quotes them: a birth date, a name.
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def read_elements(file: BinaryIO, keywords: Iterable[str]) -> FileDataset:
    """Read some of the elements before a file's pixels, and leave the file at the pixels.

    Only these are parsed: what is not read cannot get into a message either. Raise ImageDecodeError if there are more
    elements than in any real header, and nearly any of pydicom's errors on damaged files.
    """
    preamble = read_preamble(file, force=True)
    meta = FileMetaDataset(read_dataset(file, False, True, stop_when=_stop_at(lambda tag: tag >> 16 != _META_GROUP)))
    is_implicit, is_little_endian = _encoding(meta, file)
    wanted: list[BaseTag | int] = [Tag(keyword) for keyword in keywords]
    stop = _stop_at(_PIXEL_TAGS.__contains__)
    data = read_dataset(file, is_implicit, is_little_endian, stop_when=stop, specific_tags=wanted)
    whole = FileDataset("", data, preamble, meta, is_implicit, is_little_endian)
    whole.set_original_encoding(is_implicit, is_little_endian)
    return whole


def _stop_at(is_end: Callable[[int], bool]) -> Callable[..., bool]:
    """Return a function by which pydicom stops at a tag, and which refuses endless headers."""
    n_elements = count(1)

    def stops(tag: int, *_: object) -> bool:
        if next(n_elements) > MAX_ELEMENTS:
            raise ImageDecodeError(Unreadable.DICOM_TOO_MANY_ELEMENTS.format(f"{MAX_ELEMENTS:,}"))
        return is_end(tag)

    return stops


def _encoding(meta: Dataset, file: BinaryIO) -> tuple[bool, bool]:
    """Return whether elements have implicit kinds, and are little-endian: by the transfer syntax, else by the first one."""
    syntax = meta.get("TransferSyntaxUID", None)
    if syntax:
        is_known = syntax.is_transfer_syntax
        return is_known and syntax.is_implicit_VR, not is_known or syntax.is_little_endian
    start = file.read(6)
    file.seek(-len(start), io.SEEK_CUR)
    group, kind = start[:2], start[4:].decode("latin-1")
    return kind not in converters, kind not in converters or group[1:] == b"\0"


def inflated(content: bytes) -> bytes:
    """Return a file of the deflated transfer syntax uncompressed, and any other unchanged.

    Raise ImageDecodeError if its end is missing, or it is longer than an image may be.
    """
    if not is_deflated(content):
        return content
    start = _end_of_meta(content)
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    elements = unpacker.decompress(memoryview(content)[start:], MAX_INFLATED_BYTES)
    if unpacker.unconsumed_tail:
        raise ImageDecodeError(Unreadable.DICOM_INFLATES_TOO_FAR.format(f"{MAX_INFLATED_BYTES:,}"))
    if not unpacker.eof:
        raise ImageDecodeError(Unreadable.DICOM_HEADER, "the end of its deflated data is missing")
    return content[:start].replace(_DEFLATED, _PLAIN) + elements


def is_deflated(content: bytes) -> bool:
    """Return whether a file has the deflated transfer syntax."""
    return is_dicom(content) and _DEFLATED in content[HEAD_BYTES : _end_of_meta(content)]


def _end_of_meta(content: bytes) -> int:
    """Return where the file meta information (group 2, never compressed) ends."""
    at = HEAD_BYTES
    while content[at : at + 2] == b"\x02\0" and len(content) >= at + 12:
        is_long = content[at + 4 : at + 6] in _LONG_KINDS
        (length,) = struct.unpack_from("<I" if is_long else "<H", content, at + (8 if is_long else 6))
        at += (12 if is_long else 8) + length
    return at


class PixelElement(NamedTuple):
    """Where the pixels of a file are: their keyword, kind, first byte, and length; None if they are in fragments."""

    keyword: str
    kind: str
    start: int
    length: int | None


def pixel_element(content: bytes, at: int, *, is_little_endian: bool) -> PixelElement:
    """Read the head of the element with the pixels, by its bytes: whether kinds are explicit is often stated wrongly.

    An element without a kind is read as one of implicit kind. Two zero bytes in place of a kind make a length that is too
    short, which is refused later.

    Raises
    ------
    ImageDecodeError
        If there are no pixels.
    """
    order = "<" if is_little_endian else ">"
    head = content[at : at + 12].ljust(12, b"\0")
    keyword = _PIXEL_TAGS.get(Tag(*struct.unpack_from(order + "HH", head)))
    if keyword is None:
        raise ImageDecodeError(Unreadable.DICOM_PIXELS, "there are none")
    is_explicit = head[4:6] in _PIXEL_KINDS
    (length,) = struct.unpack_from(order + "I", head, 8 if is_explicit else 4)
    kind = head[4:6].decode() if is_explicit else "OW"
    return PixelElement(keyword, kind, at + (12 if is_explicit else 8), None if length == _UNDEFINED else length)


def n_frames_stated(data: Dataset) -> int:
    """Return the number of frames that a header states."""
    try:
        return max(1, int(data.get("NumberOfFrames", None) or 1))
    except (TypeError, ValueError):
        return 1


def n_frames_present(data: FileDataset, file: BinaryIO) -> int:
    """Count the frames that a file, open where its pixels begin, has room for; at most as many as its header states."""
    stated, start = n_frames_stated(data), file.tell()
    if stated == 1:
        return 1
    syntax = data.file_meta.get("TransferSyntaxUID", None)
    if syntax and syntax.is_transfer_syntax and syntax.is_encapsulated:
        return min(stated, _n_fragments(file, stated))
    height, width, n_samples, depth = (number(data, keyword) or 0 for keyword in _SIZE_KEYWORDS)
    if data.get("PhotometricInterpretation", "") == "YBR_FULL_422":
        n_samples = 2  # two pixels share their colour
    n_bits = height * width * n_samples * depth
    n_bits_present = (file.seek(0, io.SEEK_END) - start) * 8
    return min(stated, int(n_bits_present // n_bits)) if n_bits > 0 else stated


def _n_fragments(file: BinaryIO, most: int) -> int:
    """Count the items of compressed pixels after the first, which is an index. A frame has at least one."""
    file.seek(12, io.SEEK_CUR)
    n_items = 0
    while n_items <= most and len(head := file.read(8)) == 8 and head.startswith(_ITEM):
        file.seek(int.from_bytes(head[4:], "little"), io.SEEK_CUR)
        n_items += 1
    return max(0, n_items - 1)


def number(data: Dataset, keyword: str) -> float | None:
    """Return the first of an element's numbers; None if it is missing or not finite."""
    found = numbers(data, keyword)
    return found[0] if found else None


def numbers(data: Dataset, keyword: str) -> list[float | None]:
    """Return an element's numbers; None for each that is missing, not a number or not finite."""
    value = data.get(keyword, None)
    values = list(value) if isinstance(value, MultiValue | list | tuple) else [value]
    return [_finite(part) for part in values]


def _finite(value: object) -> float | None:
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None
