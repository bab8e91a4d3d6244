"""What each format, mode and bit depth becomes: a table, and the rules behind it."""

import io
import math
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageOps, features

from hoarfrost.features.datasets.frames import _read_one_header
from hoarfrost.features.decoding.formats import EncodedFrame, describe
from hoarfrost.features.decoding.images import FIRST_FRAME, Decoding, decode_pixels, opened
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.decoding.tiff import page_offsets
from hoarfrost.features.decoding.windows import Window, percentile_window, scaled
from hoarfrost.features.errors import ImageDecodeError
from tests.support.bad_images import check_truncations
from tests.support.builders import encode, picture
from tests.support.commands import RunPython

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RGB = picture(40, 30)
GREY = RGB.convert("L")
ALPHA = RGB.convert("RGBA")
ALPHA.putalpha(GREY)
DEEP = Image.fromarray((np.asarray(GREY).astype(np.uint16) * 200) + 1000)
WHOLE = Image.fromarray(np.asarray(GREY).astype(np.int32) * 90_000 - 1_000_000)
FLOAT = Image.fromarray(np.asarray(GREY).astype(np.float32) / 255 - 0.3)

GREY_8, COLOUR_8, STRETCHED, OVER_BLACK = "grey", "colour", "grey, stretched", "over black"
CORPUS: dict[str, tuple[bytes, str, str]] = {
    # name: the file, what `inspect` calls its mode and bits, what it becomes
    "PNG 1": (encode(GREY.convert("1")), "1 of 1 bit", GREY_8),
    "PNG L": (encode(GREY), "L of 8 bits", GREY_8),
    "PNG LA": (encode(ALPHA.convert("LA")), "LA of 8 bits", f"{GREY_8} {OVER_BLACK}"),
    "PNG P": (encode(RGB.quantize(32)), "P of 8 bits", COLOUR_8),
    "PNG P, transparent": (encode(RGB.quantize(32), transparency=3), "P+alpha of 8 bits", f"{COLOUR_8} {OVER_BLACK}"),
    "PNG RGB": (encode(RGB), "RGB of 8 bits", COLOUR_8),
    "PNG RGB, transparent": (
        encode(RGB, transparency=RGB.getpixel((3, 3))), "RGB+alpha of 8 bits", f"{COLOUR_8} {OVER_BLACK}",
    ),
    "PNG RGBA": (encode(ALPHA), "RGBA of 8 bits", f"{COLOUR_8} {OVER_BLACK}"),
    "PNG I;16": (encode(DEEP), "I;16 of 16 bits", STRETCHED),
    "JPEG L": (encode(GREY, "JPEG"), "L of 8 bits", GREY_8),
    "JPEG RGB": (encode(RGB, "JPEG"), "RGB of 8 bits", COLOUR_8),
    "JPEG CMYK": (encode(RGB.convert("CMYK"), "JPEG"), "CMYK of 8 bits", COLOUR_8),
    "TIFF 1": (encode(GREY.convert("1"), "TIFF"), "1 of 1 bit", GREY_8),
    "TIFF L": (encode(GREY, "TIFF"), "L of 8 bits", GREY_8),
    "TIFF P": (encode(RGB.quantize(32), "TIFF"), "P of 8 bits", COLOUR_8),
    "TIFF RGB": (encode(RGB, "TIFF"), "RGB of 8 bits", COLOUR_8),
    "TIFF RGBA": (encode(ALPHA, "TIFF"), "RGBA of 8 bits", f"{COLOUR_8} {OVER_BLACK}"),
    "TIFF CMYK": (encode(RGB.convert("CMYK"), "TIFF"), "CMYK of 8 bits", COLOUR_8),
    "TIFF YCbCr": (encode(RGB.convert("YCbCr"), "TIFF"), "YCbCr of 8 bits", COLOUR_8),
    "TIFF I;16": (encode(DEEP, "TIFF"), "I;16 of 16 bits", STRETCHED),
    "TIFF I;16, big-endian": (encode(DEEP.convert("I").convert("I;16B"), "TIFF"), "I;16B of 16 bits", STRETCHED),
    "TIFF I": (encode(WHOLE, "TIFF"), "I of 32 bits", STRETCHED),
    "TIFF F": (encode(FLOAT, "TIFF"), "F of 32 bits", STRETCHED),
    "WebP RGB": (encode(RGB, "WEBP", lossless=True), "RGB of 8 bits", COLOUR_8),
    "WebP RGBA": (encode(ALPHA, "WEBP", lossless=True), "RGBA of 8 bits", f"{COLOUR_8} {OVER_BLACK}"),
    "GIF P": (encode(RGB.quantize(32), "GIF"), "P of 8 bits", COLOUR_8),
    "GIF P, transparent": (
        encode(RGB.quantize(32), "GIF", transparency=3), "P+alpha of 8 bits", f"{COLOUR_8} {OVER_BLACK}",
    ),
    "BMP 1": (encode(GREY.convert("1"), "BMP"), "1 of 1 bit", GREY_8),
    "BMP L": (encode(GREY, "BMP"), "L of 8 bits", GREY_8),
    "BMP RGB": (encode(RGB, "BMP"), "RGB of 8 bits", COLOUR_8),
    "PGM L": (encode(GREY, "PPM"), "L of 8 bits", GREY_8),
    "PGM I": (encode(DEEP.convert("I"), "PPM"), "I of 16 bits", STRETCHED),
    "PPM RGB": (encode(RGB, "PPM"), "RGB of 8 bits", COLOUR_8),
    "JPEG 2000 L": (encode(GREY, "JPEG2000"), "L of 8 bits", GREY_8),
    "JPEG 2000 RGBA": (encode(ALPHA, "JPEG2000"), "RGBA of 8 bits", f"{COLOUR_8} {OVER_BLACK}"),
    "JPEG 2000 I;16": (encode(DEEP, "JPEG2000"), "I;16 of 16 bits", STRETCHED),
}  # fmt: skip
if features.check("avif"):
    CORPUS["AVIF RGB"] = (encode(RGB, "AVIF"), "RGB of 8 bits", COLOUR_8)
    CORPUS["AVIF RGBA"] = (encode(ALPHA, "AVIF"), "RGBA of 8 bits", f"{COLOUR_8} {OVER_BLACK}")


def kind_of(content: bytes | EncodedFrame) -> tuple[str, str, int]:
    with opened(content, Decoding()) as image:
        return image.kind


def by_rule(content: bytes, becomes: str) -> npt.NDArray[np.float64]:
    """Do what the table says, in another way than the code does."""
    image = Image.open(io.BytesIO(content))
    if becomes == STRETCHED:
        values = np.asarray(image).astype(np.float64)
        ordered = np.sort(values, axis=None)
        low, high = (ordered[int(np.ceil(ordered.size * share)) - 1] for share in (0.005, 0.995))
        return np.clip((values - low) / (high - low) * 255, 0, 255)
    if OVER_BLACK in becomes:
        pixels = np.asarray(image.convert("RGBA")).astype(np.float64)
        pixels = pixels[..., :3] * pixels[..., 3:] / 255
    else:
        pixels = np.asarray(image.convert("RGB")).astype(np.float64)
    return pixels[..., 0] if GREY_8 in becomes else pixels


@pytest.mark.parametrize("name", CORPUS)
def test_each_format_and_mode_becomes_what_the_table_lists(name: str) -> None:
    content, mode, becomes = CORPUS[name]
    found = decode_pixels(content)
    wanted = by_rule(content, becomes)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1
    kind = kind_of(content)
    assert f"{kind[1]} of {kind[2]} bit{'s' if kind[2] > 1 else ''}" == mode
    assert load_image(content).shape == (1 if found.ndim == 2 else 3, 224, 224)


@pytest.mark.parametrize("name", CORPUS)
def test_strips_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = decode_pixels(CORPUS[name][0])
    monkeypatch.setattr("hoarfrost.features.decoding.images.STRIP_PIXELS", 7 * 40)
    monkeypatch.setattr("hoarfrost.features.decoding.windows._STRIP_VALUES", 7 * 40)
    assert np.array_equal(decode_pixels(CORPUS[name][0]), whole)


@pytest.mark.parametrize("name", ["PNG I;16", "TIFF F", "TIFF RGB", "JPEG RGB", "PNG RGBA", "WebP RGB", "GIF P"])
def test_truncation_at_every_percent_is_an_error_or_an_image_in_under_a_second(name: str) -> None:
    check_truncations(CORPUS[name][0])


def test_white_is_zero_of_16_bits_is_inverted() -> None:
    content = bytearray(encode(DEEP, "TIFF"))
    entry = struct.pack("<HHI", 262, 3, 1)
    at = content.index(entry) + len(entry)
    content[at : at + 2] = b"\0\0"
    assert np.array_equal(decode_pixels(bytes(content)), 255 - decode_pixels(CORPUS["TIFF I;16"][0]))


def test_16_bit_colour_keeps_its_upper_8_bits() -> None:
    from tests.decoding.test_images import png

    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(">u2")
    content = png(7, 5, [row.tobytes() for row in values], depth=16, colour=2)
    assert np.array_equal(decode_pixels(content), (values >> 8).astype(np.uint8))


def tiff(values: npt.NDArray[Any], **tags: int) -> bytes:
    """Write a TIFF of one strip, as scientific software does: (H, W), or (3, H, W) with channels stored separately."""
    *channels, height, width = values.shape
    bits, sample_format = values.dtype.itemsize * 8, {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    n, size = math.prod(channels), values[0].nbytes if channels else values.nbytes
    own = {
        256: (width,), 257: (height,), 258: (bits,) * n, 259: (1,), 262: (2 if channels else 1,), 277: (n,), 278: (height,),
        279: (size,) * n, 284: (2 if channels else 1,), 339: (sample_format,) * n,
        **{int(tag): (value,) for tag, value in tags.items()},
    }  # fmt: skip
    end = 8 + 2 + 12 * (len(own) + 1) + 4
    own[273] = tuple(end + 6 * 2 * n + 8 * n + size * i for i in range(n))
    entries, more = b"", b""
    for tag, numbers in sorted(own.items()):
        kind, code = (4, "I") if tag in {273, 279} else (3, "H")
        packed = struct.pack(f"<{len(numbers)}{code}", *numbers)
        entries += struct.pack("<HHI", tag, kind, len(numbers))
        entries += packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack("<I", end + len(more))
        more += packed if len(packed) > 4 else b""
    more = more.ljust(own[273][0] - end, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(own)) + entries + bytes(4) + more + values.tobytes()


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int16", "int32", "uint32", "float32"])
def test_tiffs_values_are_read_by_their_sample_format(dtype: str) -> None:
    ends = (-1, 1) if dtype[0] == "f" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    values = np.linspace(*ends, 1200).astype(dtype).reshape(30, 40)
    found = decode_pixels(tiff(values))
    assert np.array_equal(found, scaled(values, *slow_window(values)))
    assert kind_of(tiff(values))[2] == values.dtype.itemsize * 8


def test_tiff_of_16_bits_with_separate_channels_is_refused_and_of_8_bits_read() -> None:
    values = np.random.default_rng(0).integers(0, 256, (3, 30, 40)).astype(np.uint8)
    assert np.array_equal(decode_pixels(tiff(values)), values.transpose(1, 2, 0))
    with pytest.raises(
        ImageDecodeError, match="a TIFF of a kind that is not read: 16 bits per channel, channels stored separately"
    ):
        decode_pixels(tiff(values.astype(np.uint16) * 200))


def test_image_without_a_number_is_refused() -> None:
    with pytest.raises(ImageDecodeError, match="no pixel is a number"):
        decode_pixels(encode(Image.fromarray(np.full((3, 4), np.nan, np.float32)), "TIFF"))


@pytest.mark.parametrize(("depth", "colour", "bits"), [(4, 0, 4), (2, 0, 2), (16, 2, 16), (16, 4, 16), (16, 6, 16)])
def test_depth_of_a_png_is_that_of_the_file(depth: int, colour: int, bits: int) -> None:
    from tests.decoding.test_images import png

    row = bytes(-(-8 * depth * {0: 1, 2: 3, 4: 2, 6: 4}[colour] // 8))
    assert kind_of(png(8, 2, [row] * 2, depth=depth, colour=colour))[2] == bits


# -- bombs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["screen", "frame"])
def test_gif_of_a_few_bytes_does_not_fill_the_memory_when_it_is_opened(place: str) -> None:
    huge = struct.pack("<HH", 60_000, 60_000)
    screen = huge if place == "screen" else struct.pack("<HH", 8, 8)
    cleared_afterwards = b"\x21\xf9\x04\x08\0\0\0\0"
    content = b"GIF89a" + screen + b"\0\0\0" + cleared_afterwards + b"," + bytes(4) + huge + b"\0\x02\x02\x44\x01\0;"
    started = time.process_time()
    with pytest.raises(ImageDecodeError, match=r"too many pixels: 3,600,000,000 are more than 178,956,970 allowed"):
        decode_pixels(content)
    assert time.process_time() - started < 1


# -- orientation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(image_format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "MPO": {"save_all": True, "append_images": [GREY.convert("RGB")]}}
    content = encode(RGB, image_format, exif=exif, **options.get(image_format, {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert upright.size == ((40, 30) if orientation < 5 else (30, 40))
    assert np.array_equal(decode_pixels(content), np.asarray(upright))


def test_orientation_is_applied_to_deep_images_and_scaled_jpegs() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert np.array_equal(decode_pixels(encode(DEEP, exif=exif)), np.rot90(decode_pixels(encode(DEEP)), -1))
    assert decode_pixels(encode(picture(1500, 1000), "JPEG", exif=exif)).shape == (750, 500, 3)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"II*\0\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"\0", bytes(range(200))])
def test_damaged_exif_leaves_the_image_unchanged(image_format: str, exif: bytes) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    found = decode_pixels(encode(RGB, image_format, exif=b"Exif\0\0" + exif, **options))
    assert np.array_equal(found, decode_pixels(encode(RGB, image_format, **options)))


# -- frames and animations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_used_and_that_is_noted(image_format: str) -> None:
    notes: list[str] = []
    options = {"lossless": True} if image_format == "WEBP" else {}
    frames = [
        picture(40, 30, seed=i).quantize(16) if image_format == "GIF" else picture(40, 30, seed=i) for i in (0, 1)
    ]
    content = encode(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    found = decode_pixels(content, Decoding(on_note=notes.append))
    assert np.array_equal(found, np.asarray(frames[0].convert("RGB")))
    assert notes == [FIRST_FRAME]
    decode_pixels(encode(frames[0], image_format, **options), Decoding(on_note=notes.append))
    assert len(notes) == 1


def test_pages_of_a_tiff_are_counted_and_each_has_its_own_mode_and_size() -> None:
    content = encode(RGB, "TIFF", save_all=True, append_images=[GREY.resize((9, 8)), FLOAT])
    assert len(page_offsets(io.BytesIO(content))) == 3
    shapes = [decode_pixels(EncodedFrame(content, b"", number, 3)).shape for number in (1, 2, 3)]
    assert shapes == [(30, 40, 3), (8, 9), (30, 40)]
    assert kind_of(EncodedFrame(content, b"", 3, 3)) == ("TIFF", "F", 32)
    with pytest.raises(ImageDecodeError, match="no frame 4: the file has fewer"):
        decode_pixels(EncodedFrame(content, b"", 4, 4))


def test_frames_of_other_formats_are_refused() -> None:
    frames = [picture(40, 30, seed=i).quantize(16) for i in (0, 1)]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(ImageDecodeError, match="no frame 2: only the first frame of a GIF is read"):
        decode_pixels(EncodedFrame(content, b"", 2, 2))


def test_tiff_whose_pages_form_a_ring_is_counted() -> None:
    content = bytearray(encode(GREY, "TIFF"))
    first = struct.unpack("<I", content[4:8])[0]
    n_entries = struct.unpack("<H", content[first : first + 2])[0]
    end = first + 2 + 12 * n_entries
    content[end : end + 4] = struct.pack("<I", first)
    assert len(page_offsets(io.BytesIO(content))) == 1


@pytest.mark.parametrize("content", [b"", b"text", b"II*\0\xff\xff\xff\xff"])
def test_pages_that_cannot_be_counted_are_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.tif").write_bytes(content)
    assert [_read_one_header(str(tmp_path), name)[0] for name in ("x.tif", "nowhere.tif")] == [1, 1]


# -- windows ------------------------------------------------------------------------------------------------------------


def slow_window(values: npt.NDArray[Any]) -> tuple[float, float]:
    """Sort everything."""
    ordered = sorted(float(value) for value in values.ravel() if np.isfinite(value))
    low, high = (ordered[max(0, int(np.ceil(len(ordered) * share / 100)) - 1)] for share in (0.5, 99.5))
    return (low, high) if low < high else (ordered[0], ordered[-1])


@settings(max_examples=150)
@given(
    st.sampled_from(["uint8", "int8", "uint16", "int16", "int32", "uint32", "float32", "float64", ">u2"]).flatmap(
        lambda dtype: arrays.arrays(dtype, st.tuples(st.integers(1, 20), st.integers(1, 20)))
    )
)
def test_percentile_window_is_that_of_sorted_values(values: npt.NDArray[Any]) -> None:
    assume(np.isfinite(values).any())
    low, high = percentile_window(values)
    assert (low, high) == slow_window(values)
    pixels = scaled(values, low, high)
    assert pixels.dtype == np.uint8
    if low < high and np.isfinite(values).all():
        assert pixels[values <= low].max(initial=0) == 0
        assert pixels[values >= high].min(initial=255) == 255


def test_what_is_not_finite_does_not_count_and_has_a_place() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.0, 1.0, 2.0]])
    assert percentile_window(values) == (0.0, 2.0)
    assert scaled(values, 0.0, 2.0).tolist() == [[0, 255, 0, 0, 128, 255]]
    signalling = np.array([[0x7FA00000, 0]], np.uint32).view(np.float32)
    assert scaled(signalling, 0.0, 1.0).tolist() == [[0, 0]]
    with pytest.raises(ImageDecodeError, match="no pixel is a number"):
        percentile_window(np.array([[np.nan, np.inf, -np.inf]]))


@pytest.mark.parametrize(
    ("text", "center", "width"), [("40/400", 40, 400), ("-600/1500", -600, 1500), ("1.5/2.5", 1.5, 2.5)]
)
def test_window_is_read_as_center_and_width(text: str, center: float, width: float) -> None:
    assert Window.parse(text) == Window(center, width)
    assert str(Window.parse(text)) == text


@pytest.mark.parametrize("text", ["", "40", "40/", "/400", "40/0", "40/0.5", "nan/400", "40/inf", "a/b", "40/400/1"])
def test_text_that_is_not_a_window_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a window; write CENTER/WIDTH|could not convert"):
        Window.parse(text)


# -- what is no image ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"PK\x03\x04 rest", ": a zip archive"), (b"\x1f\x8b rest", ": a gzip archive"), (b"%PDF-1.7", ": a PDF"),
        (b"path,label\n", ": text"), (b"\x89HDF\r\n\x1a\n", ": HDF5"), (b"<!DOCTYPE html>", ": HTML"),
        (b"II*\0\0\0", "TIFF, damaged"), (b"\x93NUMPY", ": a NumPy array"), (b"\0\1\2\3", r"begins with b'\x00\x01\x02\x03'"),
    ],
)  # fmt: skip
def test_file_that_is_not_an_image_is_describe(content: bytes, name: str) -> None:
    assert describe(content).endswith(name) or name in describe(content)


# -- damage -------------------------------------------------------------------------------------------------------------


def test_thousands_of_mutated_files_raise_nothing_but_image_decode_error_and_take_no_gigabyte(
    run_python: RunPython,
) -> None:
    output = run_python("-m", "tests.support.mutated", 4000)
    assert output.status == 0, output.stderr[-2000:]
    n_refused, peak_mb = map(int, output.stdout.split())
    assert 1000 < n_refused < 4000
    assert peak_mb < 1000
