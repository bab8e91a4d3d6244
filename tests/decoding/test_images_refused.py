"""Images that are refused, each with its reason."""

import struct
import time

import jpeg_ls
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hoarfrost.features.decoding.formats import MAX_PIXELS
from hoarfrost.features.decoding.images import Decoding
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.errors import ImageDecodeError
from tests.decoding.test_images import FILES, GREY, patched, png
from tests.support.builders import encode

# pytest turns warnings into errors, those of Pillow about odd metadata too, which decoding.images silences.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"^the file is empty$"),
        (b"patient,diagnosis\n1,benign\n", r"no image format recognised \(the file begins with b'patient,': text\)"),
        (b"\0" * 100, r"no image format recognised"),
        (b"\x89PNG\r\n\x1a\n", r"no image format recognised|truncated"),
        (b"\xff\xd8\xff", r"no image format recognised|truncated"),
        (b"PK\x03\x04" + b"\0" * 100, r"no image format recognised \(the file begins with b'PK"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", r"no image format recognised"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", r"no image format recognised"),
        (
            b"\0" * 128 + b"DICM" + b"\0" * 100,
            r"a DICOM file without pixels: its SOP class is missing|damaged or truncated DICOM",
        ),
    ],
    ids=["empty", "text", "zeros", "PNG's start", "JPEG's start", "zip", "SVG", "EPS", "DICOM"],
)
def test_file_that_is_not_an_image_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(ImageDecodeError, match=message):
        load_image(content)


def tiff(
    *, bits: int = 8, sample_format: int = 1, channels: int = 1, compression: int = 1, photometric: int = 1
) -> bytes:
    """Write a TIFF of 8 x 8 black pixels."""
    pixels = bytes(8 * 8 * channels * bits // 8)
    tags = [
        (256, 8), (257, 8), (258, bits), (259, compression), (262, photometric), (273, 8 + 2 + 10 * 12 + 4),
        (277, channels), (278, 8), (279, len(pixels)), (339, sample_format),
    ]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + pixels


def with_deep_header(jpeg: bytes) -> bytes:
    """Return a JPEG whose header states 12 bits per channel."""
    at = jpeg.index(b"\xff\xc0") + 4
    return jpeg[:at] + b"\x0c" + jpeg[at + 1 :]


def with_frame(jpeg: bytes, marker: int) -> bytes:
    """Return a JPEG whose frame is of another kind."""
    at = jpeg.index(b"\xff\xc0") + 1
    return jpeg[:at] + bytes([marker]) + jpeg[at + 1 :]


def with_bmp_compression(bmp: bytes, compression: int) -> bytes:
    return bmp[:30] + struct.pack("<I", compression) + bmp[34:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(bits=64, sample_format=3), "a TIFF .*: bits per channel 64, channels 1, sample format 3, photometric"),
        (tiff(bits=16, sample_format=3), "a TIFF .*: bits per channel 16, channels 1, sample format 3"),
        (tiff(bits=10), "a TIFF .*: bits per channel 10"),
        (tiff(channels=5), "a TIFF .*: bits per channel 8, channels 5"),
        (tiff(photometric=32803), "a TIFF .*: .*photometric interpretation 32803"),
        (tiff(compression=34712), "a TIFF .*: .*compression 34712"),
        (with_deep_header(encode(GREY, "JPEG")), "a JPEG .*: 12 bits per channel"),
        *((with_frame(encode(GREY, "JPEG"), marker), "a JPEG .*: hierarchical") for marker in (0xC5, 0xC6, 0xCE)),
        (with_bmp_compression(encode(GREY, "BMP"), 4), r"a BMP .*: Unsupported BMP compression \(4\)"),
    ],
    ids=[
        "64-bit",
        "16-bit float",
        "10-bit",
        "5 channels",
        "raw",
        "JPEG 2000 in TIFF",
        "12-bit JPEG",
        "SOF5",
        "SOF6",
        "SOF14",
        "JPEG in BMP",
    ],
)
def test_image_of_a_kind_that_is_not_read_is_not_called_damaged(content: bytes, message: str) -> None:
    with pytest.raises(ImageDecodeError, match=f"^{message.replace('.*', 'of a kind that is not read', 1)}") as caught:
        load_image(content)
    assert caught.value.kind.endswith("of a kind that is not read")


def test_tiff_that_ends_early_is_not_of_another_kind() -> None:
    assert load_image(tiff()).shape == (1, 224, 224)
    for end in range(8, len(tiff()) - 1):
        with pytest.raises(ImageDecodeError, match="damaged|truncated"):
            load_image(tiff()[:end])


def test_jpeg_ls_that_is_not_in_a_dicom_file_is_named() -> None:
    with pytest.raises(ImageDecodeError, match="JPEG-LS, which is read only in DICOM files"):
        load_image(bytes(jpeg_ls.encode_array(np.asarray(GREY))))


def test_bomb_of_png_is_refused() -> None:
    with pytest.raises(ImageDecodeError, match=f"too many pixels: 3,600,000,000 are more than {MAX_PIXELS:,} allowed"):
        load_image(png(60_000, 60_000, [bytes(60_000)], depth=8, colour=0))


def test_image_over_the_limit_is_refused_with_its_size() -> None:
    with pytest.raises(ImageDecodeError, match="too many pixels: 61 x 47 are more than 2,866 allowed"):
        load_image(FILES["PNG RGB"], Decoding(max_pixels=61 * 47 - 1))


@pytest.mark.parametrize("progressive", [False, True])
def test_bomb_of_jpeg_is_refused(progressive: bool) -> None:
    jpeg = encode(GREY, "JPEG", progressive=progressive)
    bomb = patched(jpeg, struct.pack(">HH", 47, 61), struct.pack(">HH", 60_000, 60_000))
    with pytest.raises(ImageDecodeError, match=f"too many pixels: 3,600,000,000 are more than {MAX_PIXELS:,} allowed"):
        load_image(bomb)


@pytest.mark.parametrize("position", ["header", "pixels", "pixels' checksum", "last pixels"])
def test_png_with_a_wrong_checksum_is_refused(position: str) -> None:
    png = bytearray(FILES["PNG RGB"])
    # Pillow alone stops at the last pixel, and never looks at the pixels' checksum.
    at = {"header": 30, "pixels": 80, "pixels' checksum": len(png) - 14, "last pixels": len(png) - 22}[position]
    png[at] ^= 0x10
    with pytest.raises(ImageDecodeError, match="no image format recognised|damaged or truncated image: "):
        load_image(bytes(png))


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind.startswith("PNG")])
def test_truncated_png_is_refused(kind: str) -> None:
    content = FILES[kind]
    end = len(content) - 5  # the very last chunk's checksum says nothing of the pixels
    for length in (*range(1, end, max(1, len(content) // 10)), end - 7, end):
        with pytest.raises(ImageDecodeError, match="truncated|no image format recognised|the file is empty"):
            load_image(content[:length])


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind.startswith("JPEG") and kind != "JPEG 2000"])
def test_truncated_jpeg_is_refused_never_half_grey(kind: str) -> None:
    content = FILES[kind]
    for length in (*range(1, len(content), len(content) // 10), len(content) - 2, len(content) - 1):
        with pytest.raises(ImageDecodeError, match=r"(?i)truncated|no image format recognised"):
            load_image(content[:length])


@pytest.mark.parametrize("kind", ["PNG RGB", "JPEG RGB", "JPEG progressive", "JPEG grey"])
def test_copy_that_stopped_and_left_zeros_is_refused(kind: str) -> None:
    half = len(FILES[kind]) // 2
    # Pillow before 11 does not even call such a JPEG a JPEG.
    with pytest.raises(ImageDecodeError, match="damaged or truncated image|no image format recognised"):
        load_image(FILES[kind][:half] + bytes(len(FILES[kind]) - half))


@pytest.mark.parametrize("kind", FILES)
def test_every_truncation_is_an_error_or_a_whole_image_in_under_a_second(kind: str) -> None:
    content = FILES[kind]
    whole = load_image(content)
    for tenth in range(1, 10):
        started = time.process_time()
        try:
            image = load_image(content[: len(content) * tenth // 10])
        except ImageDecodeError:
            image = whole  # refused: as good
        assert torch.equal(image, whole)
        assert time.process_time() - started < 1


def test_running_out_of_memory_is_one_images_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "convert", too_much)
    with pytest.raises(ImageDecodeError, match="not enough memory"):
        load_image(FILES["PNG palette"])


def mutations(content: bytes) -> st.SearchStrategy[bytes]:
    """Change bytes, cut pieces out, put pieces in, repeat the end."""
    positions = st.integers(0, len(content) - 1)

    def mutate(edits: list[tuple[int, int, bytes]]) -> bytes:
        changed = bytearray(content)
        for position, length, new in edits:
            changed[position : position + length] = new
        return bytes(changed)

    return st.lists(st.tuples(positions, st.integers(0, 40), st.binary(max_size=8)), min_size=1, max_size=4).map(mutate)


# The decoders that real datasets use; a few examples of each.
@settings(max_examples=250)
@given(st.data())
def test_damaged_files_raise_nothing_but_image_decode_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(FILES)), label="kind")
    content = data.draw(mutations(FILES[kind]), label="content")
    try:
        assert load_image(content).shape[1:] == (224, 224)
    except ImageDecodeError as error:
        assert str(error)  # noqa: PT017 - most examples are refused, some are not


@settings(max_examples=60)
@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"P6"]), st.binary()
)
def test_noise_raises_nothing_but_image_decode_error(start: bytes, noise: bytes) -> None:
    try:
        load_image(start + noise)
    except ImageDecodeError as error:
        assert str(error)  # noqa: PT017
