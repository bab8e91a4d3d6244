"""Pages of a TIFF are listed in one pass, and each is reached as fast as the first."""

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.decoding.images import decode_pixels
from hoarfrost.features.decoding.tiff import FromPage, page_offsets


def tiff_of(n_pages: int, *, order: str = "<", is_big: bool = False) -> bytes:
    """Write pages of 2 x 2 pixels, each with its number in the first pixels."""
    number, entry_head = ("Q", f"{order}HHQ") if is_big else ("I", f"{order}HHI")
    count = "Q" if is_big else "H"
    entry = struct.calcsize(entry_head) + struct.calcsize(number)
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}H", 43 if is_big else 42)
    head += struct.pack(f"{order}HH", 8, 0) if is_big else b""
    parts, at = (
        [head + struct.pack(order + number, len(head) + struct.calcsize(number))],
        len(head) + struct.calcsize(number),
    )
    tags = (256, 257, 258, 259, 262, 273, 277, 278, 279)
    size = struct.calcsize(order + count) + len(tags) * entry + struct.calcsize(number)
    for page in range(n_pages):
        values = (2, 2, 8, 1, 1, at + size, 1, 2, 4)
        body = struct.pack(order + count, len(tags))
        for tag, value in zip(tags, values, strict=True):
            body += struct.pack(entry_head, tag, 16 if is_big else 4, 1) + struct.pack(order + number, value)
        following = at + size + 4
        body += struct.pack(order + number, following if page + 1 < n_pages else 0)
        parts.append(body + bytes([page & 255, page >> 8 & 255, 0, 0]))
        at = following
    return b"".join(parts)


@pytest.mark.parametrize(("order", "is_big"), [("<", False), (">", False), ("<", True)])  # Pillow reads no (">", True)
def test_every_page_is_the_one_that_pillow_seeks(order: str, is_big: bool) -> None:
    content = tiff_of(5, order=order, is_big=is_big)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == len(page_offsets(io.BytesIO(content))) == 5
        for page in range(5):
            image.seek(page)
            found = decode_pixels(EncodedFrame(content, b"", page + 1, 5))
            assert np.array_equal(found, np.asarray(image))
            assert found[0, 0] == page
    with pytest.raises(EOFError):
        FromPage(content, 6)


@pytest.mark.parametrize("compression", ["tiff_deflate", "tiff_lzw", "jpeg", "packbits"])
def test_compressed_pages_are_those_that_pillow_seeks(compression: str) -> None:
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 30 + i), np.uint8)) for i in range(3)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "TIFF", save_all=True, append_images=pictures[1:], compression=compression)
    with Image.open(buffer) as image:
        for page in range(3):
            image.seek(page)
            assert np.array_equal(decode_pixels(EncodedFrame(buffer.getvalue(), b"", page + 1, 3)), np.asarray(image))


def test_last_of_16_000_pages_costs_what_the_first_costs() -> None:
    content = tiff_of(16_000)
    started = time.process_time()
    assert len(page_offsets(io.BytesIO(content))) == 16_000
    for page in (1, 16_000, *range(1, 16_000, 160)):
        assert decode_pixels(EncodedFrame(content, b"", page, 16_000))[0, 0] == (page - 1) & 255
    assert time.process_time() - started < 2  # Pillow alone: 3.5 s for the last page
