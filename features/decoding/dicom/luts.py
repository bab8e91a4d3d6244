"""Look-up tables as the standard describes them (PS3.3, C.11.1, C.11.2, C.7.6.3.1.5, C.7.9), computed in 64 bits."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from hoarfrost.features.decoding.windows import scaled
from hoarfrost.features.errors import ImageDecodeError, Unreadable

MOST_ENTRIES = 1 << 16
_STATED_BITS = range(8, 17)
_STRIP_VALUES = 1 << 20
_CHANNELS = ("Red", "Green", "Blue")
_DISCRETE, _LINEAR, _INDIRECT = range(3)  # kinds of segments


@dataclass(frozen=True)
class LookUpTable:
    """A table of at most 65,536 entries.

    Attributes
    ----------
    entries : ndarray (n,) uint16
    first : int
        The value that the first entry belongs to. Smaller values get the first entry, too great ones the last.
    """

    entries: npt.NDArray[np.uint16]
    first: int

    def applied(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """Look up whole numbers, or floats that are rounded; NaN gets the first entry."""
        flat, last = values.reshape(-1), self.first + len(self.entries) - 1
        found = np.empty(flat.size, np.uint16)
        for start in range(0, flat.size, _STRIP_VALUES):
            part = np.nan_to_num(flat[start : start + _STRIP_VALUES].astype(np.float64), nan=self.first)
            index = np.rint(np.clip(part, self.first, last)).astype(np.int64) - self.first
            found[start : start + _STRIP_VALUES] = self.entries[index]
        return found.reshape(values.shape)


def white_of(*tables: LookUpTable) -> int:
    """Return the value that is shown white: the greatest of as many bits as the entries of all tables take.

    The bits that a descriptor states are not used. Tables declared as 16 bits and filled to 12 are common, and so are
    8-bit entries in 16-bit words: by the stated bits, such an image would be nearly black.
    """
    return int(2 ** max(8, *(int(table.entries.max()).bit_length() for table in tables)) - 1)


def first_table(items: Any, lowest: float, highest: float, *, is_little_endian: bool) -> LookUpTable | None:
    """Return the first table of a Modality or VOI LUT Sequence that is not empty; None if all are.

    Parameters
    ----------
    items : sequence of Dataset, or None
    lowest, highest : float
        The least and the greatest value that can be looked up.
    is_little_endian : bool
        The byte order of the file.

    Raises
    ------
    ImageDecodeError
        If a descriptor and its data contradict each other.
    """
    for item in items or []:
        descriptor, data = item.get("LUTDescriptor", None), item.get("LUTData", None)
        if not _is_empty(descriptor) and not _is_empty(data):
            n, first = _described(descriptor, lowest, highest)
            return LookUpTable(_plain(_little(data, is_little_endian), n), first)
    return None


def coloured(
    values: npt.NDArray[Any], header: Dataset, lowest: float, highest: float, *, is_little_endian: bool
) -> npt.NDArray[np.uint8]:
    """Look up indices (H, W) in a file's palette; return RGB (H, W, 3). The other parameters are as in `first_table`."""
    if header.get("PixelPresentation", None) in {"MIXED", "COLOR"}:
        raise ImageDecodeError(Unreadable.DICOM_LOOK_UP, "a supplemental palette")
    tables = []
    for name in _CHANNELS:
        descriptor = header.get(f"{name}PaletteColorLookupTableDescriptor", None)
        plain = header.get(f"{name}PaletteColorLookupTableData", None)
        segments = header.get(f"Segmented{name}PaletteColorLookupTableData", None)
        if _is_empty(descriptor) or (_is_empty(plain) and _is_empty(segments)):
            raise ImageDecodeError(Unreadable.DICOM_LOOK_UP, "a palette without its table")
        n, first = _described(descriptor, lowest, highest)
        if _is_empty(plain):
            entries = _expanded(_little(segments, is_little_endian), n, _words(descriptor)[2])
        else:
            entries = _plain(_little(plain, is_little_endian), n)
        tables.append(LookUpTable(entries, first))
    white = white_of(*tables)
    return np.stack([scaled(table.applied(values), 0.0, float(white)) for table in tables], axis=-1)


def _is_empty(value: Any) -> bool:
    return value is None or (not isinstance(value, int) and len(value) == 0)


def _words(descriptor: Any) -> list[int]:
    """Return a descriptor's three numbers as 16 bits without a sign; it may be read as signed, unsigned or bytes."""
    if isinstance(descriptor, bytes):
        descriptor = np.frombuffer(descriptor, "<u2").tolist() if len(descriptor) == 6 else []
    if isinstance(descriptor, int) or len(descriptor) != 3:
        raise ImageDecodeError(Unreadable.DICOM_LOOK_UP, "its descriptor does not have three numbers")
    return [int(word) & 0xFFFF for word in descriptor]


def _described(descriptor: Any, lowest: float, highest: float) -> tuple[int, int]:
    """Return a table's number of entries and the first value mapped."""
    n, first, bits = _words(descriptor)
    n = n or MOST_ENTRIES
    if bits not in _STATED_BITS:
        raise ImageDecodeError(Unreadable.DICOM_LOOK_UP, f"its descriptor states {bits} bits per entry")
    # The sign is lost in files with implicit kinds, and often wrong in others: it follows from the values that occur.
    stated = int(descriptor[1]) if not isinstance(descriptor, bytes) else first
    both = (stated, first if stated < 0 else first - MOST_ENTRIES if first >= MOST_ENTRIES // 2 else first)
    return n, max(both, key=lambda start: min(start + n - 1, highest) - max(start, lowest))


def _little(data: Any, is_little_endian: bool) -> bytes:
    """Return a table's data as little-endian bytes; words may be read as numbers already."""
    if isinstance(data, bytes):
        return data if is_little_endian or len(data) % 2 else np.frombuffer(data, ">u2").astype("<u2").tobytes()
    words = np.atleast_1d(np.asarray(data, np.int64))
    return (words & 0xFFFF).astype("<u2").tobytes()


def _plain(data: bytes, n: int) -> npt.NDArray[np.uint16]:
    """Return the entries, each a word, or packed as bytes with a byte of padding where `n` is odd."""
    if len(data) == 2 * n:
        return np.frombuffer(data, "<u2")
    if len(data) in {n, n + n % 2}:
        return np.frombuffer(data, np.uint8, n).astype(np.uint16)
    raise ImageDecodeError(
        Unreadable.DICOM_LOOK_UP, f"its descriptor states {n:,} entries, its data have {len(data):,} bytes"
    )


def _expanded(data: bytes, n: int, bits: int) -> npt.NDArray[np.uint16]:
    """Return the `n` entries of a segmented palette, whose segments are of bytes or of words."""
    words = np.frombuffer(data, np.uint8 if bits == 8 else "<u2", len(data) // (1 if bits == 8 else 2)).tolist()
    entries: list[int] = []
    _expand(words, 0, len(words), entries, n)
    if len(entries) != n:
        text = f"its descriptor states {n:,} entries, its segments have {len(entries):,}"
        raise ImageDecodeError(Unreadable.DICOM_LOOK_UP, text)
    return np.array(entries, np.uint16)


def _expand(words: list[int], at: int, n_segments: int, entries: list[int], most: int) -> None:
    """Append the entries of at most `n_segments` segments from a place in the data, until there are more than `most`."""
    for _ in range(n_segments):
        if at + 2 >= len(words) or len(entries) > most:  # the last word may be padding
            return
        kind, length = words[at : at + 2]
        at += 2
        if kind == _DISCRETE:
            entries += words[at : at + length]
            at += length
        elif kind == _LINEAR and entries and length:
            entries += np.rint(np.linspace(entries[-1], words[at], length + 1)[1:]).astype(int).tolist()
            at += 1
        elif kind == _INDIRECT and entries and n_segments == len(words) and max(words) < 256 and at + 4 <= len(words):
            start = int.from_bytes(bytes(words[at : at + 4]), "little")
            _expand(words, start, length, entries, most)
            at += 4
        else:
            # Also segments of words that refer to others: programs disagree whether they count bytes or words.
            raise ImageDecodeError(Unreadable.DICOM_LOOK_UP, "a segmented palette that cannot be expanded")
