"""Encoded bytes become the pixels that Pillow gives, or one error that says why not."""

import io
import struct
import threading
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import Resize

import hoarfrost.features.decoding.images
from hoarfrost.features.decoding.budget import PixelBudget
from hoarfrost.features.decoding.images import Decoding, decode_pixels, encode_png
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.errors import ImageDecodeError
from tests.support.builders import encode, picture, upright_over_black

# pytest turns warnings into errors, those of Pillow about odd metadata too, which decoding.images silences.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")

RGB = picture(61, 47)
GREY = RGB.convert("L")
PALETTE = RGB.quantize(32)
TRANSPARENT = RGB.convert("RGBA")
TRANSPARENT.putalpha(GREY)
BILEVEL = GREY.convert("1")


def patched(content: bytes, old: bytes, new: bytes) -> bytes:
    assert content.count(old) == 1
    return content.replace(old, new)


def without_jfif(jpeg: bytes) -> bytes:
    """Remove the JFIF header, which says that the colours are YCbCr."""
    assert jpeg[2:4] == b"\xff\xe0"
    return jpeg[:2] + jpeg[4 + int.from_bytes(jpeg[4:6]) :]


def with_adobe(jpeg: bytes, transform: int) -> bytes:
    """Put Adobe's header in its place, which names the colour transform."""
    adobe = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])
    return jpeg[:2] + adobe + without_jfif(jpeg)[2:]


def rotated_by_exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(RGB, "JPEG", exif=exif)


def interlaced_png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Write an RGB PNG with Adam7 interlacing, which Pillow reads but does not write."""
    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    rows = [row.tobytes() for x, y, dx, dy in passes for row in pixels[y::dy, x::dx]]
    return png(pixels.shape[1], pixels.shape[0], rows, depth=8, colour=2, interlace=1)


def png(width: int, height: int, rows: list[bytes], *, depth: int, colour: int, interlace: int = 0) -> bytes:
    """Write a PNG of rows without filters."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


FILES = {
    "PNG RGB": encode(RGB),
    "PNG grey": encode(GREY),
    "PNG palette": encode(PALETTE),
    "PNG palette, one colour transparent": encode(PALETTE, transparency=3),
    "PNG palette, alpha for each colour": encode(PALETTE, transparency=bytes(range(32))),
    "PNG grey, one level transparent": encode(GREY, transparency=100),
    "PNG RGB, one colour transparent": encode(RGB, transparency=RGB.getpixel((3, 3))),
    "PNG RGBA": encode(TRANSPARENT),
    "PNG LA": encode(TRANSPARENT.convert("LA")),
    "PNG 1-bit": encode(BILEVEL),
    "PNG 2-bit palette": encode(RGB.quantize(4), bits=2),
    "PNG interlaced": interlaced_png(np.asarray(RGB)),
    "PNG RGB of 16 bits": png(
        61, 47, [row.tobytes() for row in np.asarray(RGB).astype(">u2") * 257], depth=16, colour=2
    ),
    "PNG 224 x 224": encode(picture(224, 224)),
    "PNG 1 x 1": encode(RGB.resize((1, 1))),
    "PNG 1 x 500": encode(picture(1, 500)),
    "JPEG RGB": encode(RGB, "JPEG"),
    "JPEG 4:4:4": encode(RGB, "JPEG", subsampling=0, quality=95),
    "JPEG grey": encode(GREY, "JPEG"),
    "JPEG progressive": encode(RGB, "JPEG", progressive=True),
    "JPEG grey, progressive": encode(GREY, "JPEG", progressive=True),
    "JPEG with restart markers": encode(RGB, "JPEG", restart_marker_rows=1),
    "JPEG CMYK": encode(RGB.convert("CMYK"), "JPEG"),
    "JPEG YCCK": patched(encode(RGB.convert("CMYK"), "JPEG"), b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"),
    "JPEG stored as RGB": encode(RGB, "JPEG", keep_rgb=True),
    "JPEG, Adobe, YCbCr": with_adobe(encode(RGB, "JPEG"), 1),
    "JPEG, Adobe, RGB": with_adobe(encode(RGB, "JPEG"), 0),
    "JPEG without JFIF": without_jfif(encode(RGB, "JPEG")),
    "JPEG turned by EXIF": rotated_by_exif(),
    "JPEG with an ICC profile": encode(RGB, "JPEG", icc_profile=b"profile" * 20),
    "MPO": encode(RGB, "MPO", save_all=True, append_images=[GREY.convert("RGB")]),
    "WebP": encode(RGB, "WEBP"),
    "WebP RGBA lossless": encode(TRANSPARENT, "WEBP", lossless=True),
    "WebP animated": encode(RGB, "WEBP", save_all=True, append_images=[picture(61, 47, seed=1)]),
    "BMP": encode(RGB, "BMP"),
    "BMP palette": encode(PALETTE, "BMP"),
    "GIF": encode(PALETTE, "GIF"),
    "GIF animated": encode(PALETTE, "GIF", save_all=True, append_images=[picture(61, 47, seed=1).quantize(32)]),
    "GIF transparent": encode(PALETTE, "GIF", transparency=3),
    "TIFF RGB": encode(RGB, "TIFF"),
    "TIFF LZW grey": encode(GREY, "TIFF", compression="tiff_lzw"),
    "TIFF JPEG": encode(RGB, "TIFF", compression="jpeg"),
    "TIFF CMYK": encode(RGB.convert("CMYK"), "TIFF"),
    "TIFF palette": encode(PALETTE, "TIFF"),
    "TIFF 1-bit, group 4": encode(BILEVEL, "TIFF", compression="group4"),
    "TIFF of two pages": encode(RGB, "TIFF", save_all=True, append_images=[GREY]),
    "PPM": encode(RGB, "PPM"),
    "PGM": encode(GREY, "PPM"),
    "JPEG 2000": encode(RGB, "JPEG2000"),
}


def decode_image(content: bytes) -> torch.Tensor:
    """Decode to (C, H, W)."""
    pixels = torch.from_numpy(decode_pixels(content))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def in_rgb(image: torch.Tensor) -> npt.NDArray[np.int64]:
    """Return (C, H, W) as (H, W, 3), to compare with Pillow's."""
    assert image.dtype == torch.uint8
    assert image.shape[0] in {1, 3}
    return image.expand(3, -1, -1).permute(1, 2, 0).numpy().astype(np.int64)


# -- what is decoded ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_pixels_equal_pillows(kind: str) -> None:
    difference = np.abs(
        in_rgb(decode_image(FILES[kind])) - np.asarray(upright_over_black(FILES[kind])).astype(np.int64)
    )
    is_transparent = Image.open(io.BytesIO(FILES[kind])).has_transparency_data
    assert difference.max() <= (1 if is_transparent else 0)  # two ways of laying over black, which round differently


@pytest.mark.parametrize("kind", FILES)
def test_resized_pixels_equal_torchvisions(kind: str) -> None:
    wanted = np.asarray(Resize((224, 224), antialias=True)(upright_over_black(FILES[kind]))).astype(np.int64)
    difference = np.abs(in_rgb(load_image(FILES[kind])) - wanted)
    assert difference.max() <= 2
    assert difference.mean() < 0.3


@pytest.mark.parametrize("size", [(1200, 900), (2000, 20), (225, 223), (700, 224)], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_other_sizes_are_resized_like_torchvision(size: tuple[int, int], mode: str) -> None:
    image = picture(*size).convert(mode)
    expected = np.asarray(Resize((224, 224), antialias=True)(image.convert("RGB"))).astype(np.int64)
    assert np.abs(in_rgb(load_image(encode(image, compress_level=1))) - expected).max() <= 2


@pytest.mark.parametrize("kind", ["PNG grey", "PNG LA", "PNG 1-bit", "JPEG grey", "TIFF LZW grey", "PGM"])
def test_grey_stays_one_channel(kind: str) -> None:
    assert load_image(FILES[kind]).shape == (1, 224, 224)


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (1, 1), (300, 10, 3), (224, 224), (224, 224, 3)], ids=str)
def test_arrays_are_taken_like_the_same_image_as_a_file(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    image = load_image(pixels)
    assert image.shape == (1 if len(shape) == 2 else 3, 224, 224)
    assert torch.equal(image, load_image(encode_png(pixels)))


def test_arrays_that_are_read_only_or_views_are_taken() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    read_only = np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape)
    assert torch.equal(load_image(read_only), load_image(pixels))
    assert torch.equal(load_image(pixels[::-1, :, ::-1]), load_image(pixels[::-1, :, ::-1].copy()))


def test_result_is_independent_of_the_array_it_came_from() -> None:
    pixels = np.zeros((224, 224), np.uint8)
    image = load_image(pixels)
    pixels[:] = 255
    assert image.max() == 0


@given(st.integers(1, 9), st.integers(1, 9), st.booleans(), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_encoded_png_is_decoded_to_the_same_pixels(height: int, width: int, colour: bool, seed: int) -> None:
    shape = (height, width, 3) if colour else (height, width)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    decoded = decode_image(encode_png(pixels))
    assert np.array_equal(decoded.permute(1, 2, 0).numpy() if colour else decoded[0].numpy(), pixels)


def test_the_same_bytes_give_the_same_pixels_in_many_threads() -> None:
    kinds = ["PNG RGB", "JPEG RGB", "PNG palette, alpha for each colour", "WebP", "TIFF LZW grey"] * 4
    expected = {kind: load_image(FILES[kind]) for kind in kinds}
    found: dict[int, torch.Tensor] = {}
    filters = list(warnings.filters)
    threads = [
        threading.Thread(target=lambda i=i, kind=kind: found.update({i: load_image(FILES[kind])}))
        for i, kind in enumerate(kinds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], expected[kind]) for i, kind in enumerate(kinds))
    assert warnings.filters == filters


# -- large JPEGs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((2048, 2048), (512, 512)),
        ((1500, 1000), (750, 500)),
        ((1000, 1500), (500, 750)),
        ((800, 800), (800, 800)),
        ((896, 896), (448, 448)),
        ((895, 900), (895, 900)),
        ((4000, 897), (2000, 449)),
        ((901, 1791), (451, 896)),
        ((1792, 1792), (448, 448)),
        ((1791, 1800), (896, 900)),
        ((3583, 3600), (896, 900)),
        ((3584, 3600), (448, 450)),
        ((447, 5000), (447, 5000)),
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_large_jpeg_is_decoded_scaled_its_short_side_never_below_448(
    mode: str, size: tuple[int, int], decoded: tuple[int, int]
) -> None:
    jpeg = encode(Image.new(mode, size, 90), "JPEG")
    width, height = decoded
    assert decode_image(jpeg).shape == (1 if mode == "L" else 3, height, width)
    assert load_image(jpeg).shape == (1 if mode == "L" else 3, 224, 224)


LARGE = picture(1500, 1000)


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}, {"restart_marker_rows": 1}], ids=str
)
def test_large_jpeg_of_any_kind_is_scaled(options: dict[str, bool]) -> None:
    assert decode_image(encode(LARGE, "JPEG", **options)).shape == (3, 500, 750)


def test_large_jpeg_in_cmyk_is_scaled() -> None:
    assert decode_image(encode(LARGE.convert("CMYK"), "JPEG")).shape == (3, 500, 750)


@pytest.mark.parametrize("image_format", ["PNG", "WEBP", "BMP", "TIFF"])
def test_other_formats_are_never_scaled(image_format: str) -> None:
    assert decode_image(encode(LARGE, image_format)).shape == (3, 1000, 1500)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_scaled_pixels_are_near_those_of_the_whole_image(mode: str) -> None:
    image = LARGE.convert(mode)
    expected = np.asarray(image.resize((750, 500), Image.Resampling.BOX).convert("RGB")).astype(np.int64)
    difference = np.abs(in_rgb(decode_image(encode(image, "JPEG", quality=95))) - expected)
    assert difference.mean() < 3


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_truncated_large_jpeg_is_refused(mode: str, progressive: bool) -> None:
    content = encode(LARGE.convert(mode), "JPEG", progressive=progressive)
    for length in (len(content) // 10, len(content) // 2, len(content) * 9 // 10, len(content) - 2, len(content) - 1):
        with pytest.raises(ImageDecodeError, match=r"(?i)truncated|no image format recognised"):
            load_image(content[:length])


# -- memory -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FILES)
def test_pixels_taken_in_strips_are_the_same(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    expected = decode_image(FILES[kind])
    monkeypatch.setattr("hoarfrost.features.decoding.images.STRIP_PIXELS", 7 * expected.shape[2])
    assert torch.equal(decode_image(FILES[kind]), expected)


def most_at_once(monkeypatch: pytest.MonkeyPatch, budget: PixelBudget, n_images: int) -> int:
    """Load as many images of 1200 pixels in a thread each; tell how many were decoded at the same time at most."""
    now, most, lock = [0], [0], threading.Lock()
    pixels = hoarfrost.features.decoding.images._pixels

    def slow(image: Image.Image) -> npt.NDArray[np.uint8]:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return pixels(image)

    monkeypatch.setattr(hoarfrost.features.decoding.images, "_pixels", slow)
    content = encode(picture(40, 30))
    with ThreadPoolExecutor(n_images) as pool:
        list(pool.map(lambda _: load_image(content, Decoding(budget=budget)), range(n_images)))
    return most[0]


@pytest.mark.parametrize(("n_pixels", "most"), [(1, 1), (1200, 1), (2399, 1), (2400, 2), (3600, 3)])
def test_no_more_pixels_are_decoded_at_once_than_the_budget_has(
    monkeypatch: pytest.MonkeyPatch, n_pixels: int, most: int
) -> None:
    assert most_at_once(monkeypatch, PixelBudget(n_pixels), 6) <= most


def test_an_image_that_cannot_be_read_gives_its_share_of_the_budget_back() -> None:
    budget = PixelBudget(1200)
    with pytest.raises(ImageDecodeError, match="truncated"):
        load_image(encode(picture(40, 30), "JPEG")[:-200], Decoding(budget=budget))
    assert load_image(encode(picture(40, 30)), Decoding(budget=budget)).shape == (3, 224, 224)


def test_large_pictures_memory_goes_back_to_the_system() -> None:
    assert Image.core.get_block_size() > 32 << 20  # glibc maps what is larger by itself, whatever was freed before


def test_a_resize_without_memory_is_one_images_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nat file.cpp")

    monkeypatch.setattr(torch.nn.functional, "interpolate", fail)
    for content in (encode(picture(40, 30)), np.zeros((40, 30), np.uint8)):
        with pytest.raises(ImageDecodeError, match="cannot be resized: .*can't allocate memory$"):
            load_image(content)


# -- phones' JPEGs ------------------------------------------------------------------------------------------------------


def test_a_large_mpo_is_scaled_as_the_jpeg_that_it_begins_with() -> None:
    large = picture(2400, 2000)
    mpo = encode(large, "MPO", save_all=True, append_images=[picture(640, 480, seed=1)])
    assert Image.open(io.BytesIO(mpo)).format == "MPO"
    assert torch.equal(decode_image(mpo), decode_image(encode(large, "JPEG")))
    assert decode_image(mpo).shape == (3, 500, 600)
