"""Grey of 16 bits with alpha, images that are transparent everywhere, and PNGs with large profiles."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hoarfrost.features.decoding.images import SHOWN_THROUGH, Decoding, decode_pixels
from hoarfrost.features.decoding.windows import percentile_window, scaled
from tests.support.builders import encode, picture

RGB = picture(61, 47)
VALUES = np.random.default_rng(0).integers(0, 4096, (20, 30)).astype(np.uint16)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(values: Any, alpha: Any) -> bytes:
    """Write a PNG of 16-bit grey and alpha, which Pillow cannot."""
    height, width = values.shape
    both = np.stack([values, alpha], axis=-1).astype(">u2")
    lines = b"".join(b"\0" + both[row].tobytes() for row in range(height))
    header = struct.pack(">2I5B", width, height, 16, 4, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def noted(content: bytes) -> tuple[Any, list[str]]:
    notes: list[str] = []
    return decode_pixels(content, Decoding(on_note=notes.append)), notes


def test_opaque_grey_of_16_bits_is_read_as_without_alpha() -> None:
    found, notes = noted(deep_png(VALUES, np.full_like(VALUES, 65535)))
    assert np.array_equal(found, decode_pixels(encode(Image.fromarray(VALUES))))
    assert not notes


def test_transparent_grey_of_16_bits_is_over_black_and_does_not_count_for_the_percentiles() -> None:
    alpha = np.full_like(VALUES, 65535)
    alpha[:10] = 0
    values = VALUES.copy()
    values[:10] = 65535
    found, _ = noted(deep_png(values, alpha))
    assert not found[:10].any()
    assert np.array_equal(found[10:], scaled(VALUES[10:], *percentile_window(VALUES[10:])))


def in_bmp_v5(rgba: Any) -> bytes:
    """Write a BMP with a mask of alpha."""
    height, width = rgba.shape[:2]
    pixels = rgba[::-1, :, [2, 1, 0, 3]].tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    return struct.pack("<2sIHHI", b"BM", 138 + len(pixels), 0, 0, 138) + head.ljust(124, b"\0") + pixels


TRANSPARENT: dict[str, Callable[[], bytes]] = {
    "PNG RGBA": lambda: encode(Image.fromarray(rgba())),
    "PNG LA": lambda: encode(Image.merge("LA", [RGB.convert("L"), Image.new("L", RGB.size)])),
    "PNG palette": lambda: encode(RGB.quantize(32), transparency=bytes(32)),
    "BMP V5": lambda: in_bmp_v5(rgba()),
    "WebP": lambda: encode(Image.fromarray(rgba()), "WEBP", lossless=True, exact=True),
    "TIFF": lambda: encode(Image.fromarray(rgba()), "TIFF"),
}


def rgba() -> Any:
    return np.dstack([np.asarray(RGB), np.zeros(RGB.size[::-1], np.uint8)])


@pytest.mark.parametrize("kind", TRANSPARENT)
def test_image_that_is_transparent_everywhere_is_shown_and_said(kind: str) -> None:
    found, notes = noted(TRANSPARENT[kind]())
    grey = np.asarray(RGB.convert("L"))
    shown = {"PNG LA": grey, "PNG palette": np.asarray(RGB.quantize(32).convert("RGB"))}.get(kind, np.asarray(RGB))
    assert np.array_equal(found, shown)
    assert notes == [SHOWN_THROUGH]


def test_deep_grey_that_is_transparent_everywhere_is_shown_and_said() -> None:
    found, notes = noted(deep_png(VALUES, np.zeros_like(VALUES)))
    assert np.array_equal(found, decode_pixels(encode(Image.fromarray(VALUES))))
    assert notes == [SHOWN_THROUGH]


def with_chunk(content: bytes, kind: bytes, data: bytes, *, is_last: bool = False) -> bytes:
    at = len(content) - 12 if is_last else 33
    return content[:at] + chunk(kind, data) + content[at:]


LARGE = bytes(3 << 20)
TEXTS = {
    "profile": (b"iCCP", b"large\0\0" + zlib.compress(LARGE)),
    "compressed text": (b"zTXt", b"large\0\0" + zlib.compress(LARGE)),
    "international text": (b"iTXt", b"large\0\1\0\0\0" + zlib.compress(LARGE)),
    "text": (b"tEXt", b"large\0" + b"x" * (70 << 20)),
}


@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize("kind", TEXTS)
def test_png_with_a_large_profile_or_text_is_sound(kind: str, is_last: bool) -> None:
    content = encode(RGB)
    assert np.array_equal(decode_pixels(with_chunk(content, *TEXTS[kind], is_last=is_last)), decode_pixels(content))


def test_orientation_of_a_png_with_texts_is_applied() -> None:
    exif, texts, buffer = Image.Exif(), PngInfo(), io.BytesIO()
    exif[0x0112] = 6
    texts.add_text("Comment", "none")
    RGB.save(buffer, "PNG", exif=exif, pnginfo=texts)
    assert np.array_equal(decode_pixels(buffer.getvalue()), np.rot90(np.asarray(RGB), -1))
