"""Where the pages of a TIFF are. Pillow finds the n-th page by reading all before it, each time."""

import io
import struct
from functools import lru_cache
from typing import BinaryIO, NamedTuple

MOST_PAGES = 1 << 20
_CACHED = 16  # files whose pages are remembered


class _Layout(NamedTuple):
    """The fixed sizes of a file: where the first page's place is, and what a page's directory is made of."""

    first_at: int
    n_entries: struct.Struct
    entry_bytes: int
    offset: struct.Struct


def _layout(head: bytes) -> _Layout | None:
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None:
        return None
    if head[2:4] in {b"\x2b\0", b"\0\x2b"}:  # BigTIFF
        return _Layout(8, struct.Struct(f"{order}Q"), 20, struct.Struct(f"{order}Q"))
    return _Layout(4, struct.Struct(f"{order}H"), 12, struct.Struct(f"{order}I"))


def page_offsets(file: BinaryIO) -> list[int]:
    """Return where each page's directory is, in order; those before the first that is damaged or was there already."""
    file.seek(0)
    layout = _layout(file.read(4))
    found: dict[int, None] = {}
    if layout is None:
        return []
    at = _number(file, layout.first_at, layout.offset)
    while at and at not in found and len(found) < MOST_PAGES:
        n_entries = _number(file, at, layout.n_entries)
        if n_entries is None:
            break
        found[at] = None
        at = _number(file, at + layout.n_entries.size + n_entries * layout.entry_bytes, layout.offset)
    return list(found)


def _number(file: BinaryIO, at: int, kind: struct.Struct) -> int | None:
    try:
        file.seek(at)
        (number,) = kind.unpack(file.read(kind.size))
    except (struct.error, OSError, OverflowError):
        return None
    return int(number)


class _Content:
    """A file's bytes as a key: what remembers them does not keep them."""

    def __init__(self, content: bytes) -> None:
        self.content: bytes | None = content
        self._key = len(content), hash(content)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Content) and self._key == other._key


@lru_cache(_CACHED)
def _remembered(key: _Content) -> list[int]:
    assert key.content is not None
    found = page_offsets(io.BytesIO(key.content))
    key.content = None
    return found


class FromPage(io.BytesIO):
    """A TIFF that begins with one of its pages: only what is read of its first bytes differs, and nothing is copied.

    Raises
    ------
    EOFError
        If it has fewer pages.
    """

    def __init__(self, content: bytes, number: int) -> None:
        super().__init__(content)
        pages = _remembered(_Content(content))
        layout = _layout(content[:4])
        if layout is None or number > len(pages):
            raise EOFError
        self._head = content[: layout.first_at] + layout.offset.pack(pages[number - 1])

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file; all at once are the file's own bytes, of which libtiff is told the page."""
        at = self.tell()
        found = super().read(size)
        if size is None or size < 0 or at >= len(self._head):
            return found
        return self._head[at : at + len(found)] + found[len(self._head) - at :]
