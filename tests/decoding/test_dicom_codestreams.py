"""Where a compressed codestream and the DICOM header around it disagree, the pixels are right or refused."""

import io
from typing import Any

import jpeg_ls
import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000, UID, JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, JPEGLSNearLossless

from hoarfrost.features.decoding.dicom.codestreams import read_codestream
from hoarfrost.features.decoding.images import decode_pixels
from hoarfrost.features.errors import ImageDecodeError
from tests.support.builders import picture
from tests.support.dicoms import dicom, encoded, grey_values

# pydicom warns of what tests write on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RGB = np.asarray(picture(64, 48).convert("RGB"))
WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}
JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"


def wrapped(codestream: bytes, syntax: UID, photometric: str, **elements: Any) -> bytes:
    """Write a codestream of 64 x 48 pixels of 8-bit colours into a file."""
    data = dicom(RGB, PhotometricInterpretation=photometric, **elements)
    data.PixelData, data.file_meta.TransferSyntaxUID = encapsulate([codestream]), syntax
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    return encoded(data)


def jpeg(*, is_rgb: bool = False, subsampling: int = 0) -> bytes:
    """Return a JPEG of YCbCr or RGB channels, without any marker that says which."""
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG", quality=98, subsampling=subsampling, keep_rgb=is_rgb)
    content = buffer.getvalue()
    for marker in (b"\xff\xe0", b"\xff\xee"):
        if content[2:4] == marker:
            content = content[:2] + content[4 + int.from_bytes(content[4:6]) :]
    frame = content.index(b"\xff\xc0")
    changed = bytearray(content)
    scan = content.index(b"\xff\xda")
    for i in range(3):  # not "RGB", which says it
        changed[frame + 10 + 3 * i] = changed[scan + 5 + 2 * i] = i + 1
    return bytes(changed)


def adobe(transform: int) -> bytes:
    return b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0" + bytes([transform])


def marked(content: bytes, marker: bytes) -> bytes:
    return content[:2] + marker + content[2:]


def distance(found: Any) -> float:
    return float(np.abs(found.astype(int) - RGB).mean())


# By the codestream: is it RGB, its marker, its subsampling, and how each label is read.
JPEGS: list[tuple[bool, bytes, int, dict[str, bool]]] = [
    (False, b"", 0, {"YBR_FULL": True, "YBR_FULL_422": True}),
    (True, b"", 0, {"RGB": True}),
    (False, b"", 2, {"RGB": True, "YBR_FULL": True, "YBR_FULL_422": True}),
    (False, b"", 1, {"RGB": True, "YBR_FULL_422": True}),
    (False, JFIF, 0, {"RGB": True, "YBR_FULL": True, "YBR_FULL_422": True}),
    (False, adobe(1), 0, {"RGB": True, "YBR_FULL": True, "YBR_FULL_422": True}),
    (False, adobe(1), 2, {"RGB": True, "YBR_FULL": True, "YBR_FULL_422": True}),
    (False, JFIF + adobe(1), 0, {"RGB": True, "YBR_FULL_422": True}),
    (True, adobe(0), 0, {"RGB": True, "YBR_FULL": False, "YBR_FULL_422": False}),
    (False, JFIF + adobe(0), 0, {"YBR_FULL": True, "RGB": True}),
    (False, adobe(0), 2, {"RGB": False, "YBR_FULL": False}),
    (False, b"", 0, {"YBR_RCT": False, "YBR_ICT": False}),
]


@pytest.mark.parametrize("case", range(len(JPEGS)))
def test_colours_of_a_jpeg_are_converted_once_or_it_is_refused(case: int) -> None:
    is_rgb, marker, subsampling, labels = JPEGS[case]
    content = marked(jpeg(is_rgb=is_rgb, subsampling=subsampling), marker)
    for label, is_read in labels.items():
        if is_read:
            assert distance(decode_pixels(wrapped(content, JPEGBaseline8Bit, label))) < (8 if subsampling else 3), label
        else:
            with pytest.raises(ImageDecodeError, match="DICOM pixels in a colour space that is not read: "):
                decode_pixels(wrapped(content, JPEGBaseline8Bit, label))


def jpeg_2000(*, is_transformed: bool) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG2000", no_jp2=True, mct=int(is_transformed))
    return buffer.getvalue()


def test_colour_transform_of_jpeg_2000_is_undone_once_or_the_file_is_refused() -> None:
    for is_transformed, labels in ((True, ("RGB", "YBR_RCT", "YBR_ICT")), (False, ("RGB",))):
        for label in labels:
            content = wrapped(jpeg_2000(is_transformed=is_transformed), JPEG2000Lossless, label)
            assert np.array_equal(decode_pixels(content), RGB)
    for is_transformed, labels in ((True, ("YBR_FULL", "YBR_FULL_422")), (False, ("YBR_RCT", "YBR_ICT"))):
        for label in labels:
            with pytest.raises(ImageDecodeError, match=f"transform is .*used, but the header states {label}"):
                decode_pixels(wrapped(jpeg_2000(is_transformed=is_transformed), JPEG2000Lossless, label))


@pytest.mark.parametrize("syntax", [JPEG2000Lossless, JPEGLSLossless], ids=lambda syntax: syntax.name)
@pytest.mark.parametrize("signed", [False, True])
def test_overlay_in_unused_bits_of_a_codestream_is_no_pixel(syntax: UID, signed: bool) -> None:
    values = grey_values(64, 48, bits=12, signed=signed)
    overlay = np.random.default_rng(0).integers(0, 8, values.shape).astype(np.uint16) << 12
    data = dicom(((values.astype(np.uint16) & 0xFFF) | overlay).astype(values.dtype), **WINDOW)
    data.compress(syntax, encoding_plugin="pylibjpeg" if syntax == JPEG2000Lossless else "")
    data.BitsStored, data.HighBit = 12, 11
    assert np.array_equal(decode_pixels(encoded(data)), decode_pixels(encoded(dicom(values, bits=12, **WINDOW))))


def test_overlay_that_lossy_compression_has_blurred_is_refused() -> None:
    values = grey_values(64, 48, bits=12)
    values[:24] |= 1 << 13
    data = dicom(values, **WINDOW)
    data.compress(JPEG2000, j2k_cr=[4], encoding_plugin="pylibjpeg")
    data.BitsStored, data.HighBit = 12, 11
    with pytest.raises(ImageDecodeError, match="values beyond the 12 bits that the header states"):
        decode_pixels(encoded(data))


def test_sign_that_a_codestream_and_the_header_do_not_share_is_the_headers() -> None:
    values = grey_values(64, 48, bits=12)
    data = dicom(values, bits=12, **WINDOW)
    data.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    data.PixelRepresentation = 1
    signed = np.where(values >= 2048, values.astype(int) - 4096, values).astype(np.int16)
    assert np.array_equal(decode_pixels(encoded(data)), decode_pixels(encoded(dicom(signed, bits=12, **WINDOW))))


def test_codestream_of_more_bits_than_are_allocated_is_refused() -> None:
    data = dicom(grey_values(64, 48, bits=16), **WINDOW)
    data.compress(JPEG2000Lossless, encoding_plugin="pylibjpeg")
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    with pytest.raises(ImageDecodeError, match="16 bits, but the header states 8"):
        decode_pixels(encoded(data))


@pytest.mark.parametrize(("rows", "columns"), [(64, 48), (47, 64), (48, 32)])
def test_codestream_of_another_size_than_the_header_is_refused(rows: int, columns: int) -> None:
    content = wrapped(jpeg_2000(is_transformed=True), JPEG2000Lossless, "YBR_RCT", Rows=rows, Columns=columns)
    with pytest.raises(ImageDecodeError, match=f"64 x 48 with 3 channels, but the header states {columns} x {rows}"):
        decode_pixels(content)


def test_compressed_colours_labelled_by_plane_are_refused() -> None:
    with pytest.raises(ImageDecodeError, match="colours by plane, which this compression does not have"):
        decode_pixels(wrapped(jpeg(), JPEGBaseline8Bit, "YBR_FULL", PlanarConfiguration=1))


def test_colours_labelled_grey_and_grey_labelled_colours_are_refused() -> None:
    with pytest.raises(ImageDecodeError, match="with 3 channels, but the header states 64 x 48 with 1"):
        decode_pixels(wrapped(jpeg(), JPEGBaseline8Bit, "MONOCHROME2", SamplesPerPixel=1))
    with pytest.raises(ImageDecodeError, match="DICOM pixels in a colour space that is not read: RGB"):
        decode_pixels(encoded(dicom(grey_values(), PhotometricInterpretation="RGB")))


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_uncompressed_colours_labelled_ybr_full_422_are_refused_by_their_length(photometric: str) -> None:
    data = dicom(RGB, PhotometricInterpretation=photometric)
    data.PhotometricInterpretation = "YBR_FULL_422"
    with pytest.raises(ImageDecodeError, match="YBR_FULL_422, but the pixels are as long as RGB or YBR_FULL"):
        decode_pixels(encoded(data))


def test_a_codestream_that_is_cut_off_has_no_header() -> None:
    for content in (jpeg()[:20], jpeg_2000(is_transformed=True)[:44], b"", b"\xff\xd8"):
        assert read_codestream(content) is None


def in_jpeg_ls(codestream: bytes, bits: int, syntax: UID = JPEGLSLossless) -> bytes:
    """Write JPEG-LS of the size of `grey_values()` into a file."""
    data = dicom(grey_values(bits=bits), bits=bits, **({} if bits == 8 else WINDOW))
    data.PixelData, data.file_meta.TransferSyntaxUID = encapsulate([codestream]), syntax
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    return encoded(data)


@pytest.mark.parametrize("near", [0, 2])
@pytest.mark.parametrize("bits", [8, 16])
def test_zero_byte_before_the_end_of_jpeg_ls_as_in_files_of_working_group_4_changes_no_pixel(
    bits: int, near: int
) -> None:
    syntax = JPEGLSNearLossless if near else JPEGLSLossless
    # Of other seeds, the pixels' data have other lengths and last bytes, and the file a byte of padding or none.
    for seed in range(8):
        whole = bytes(jpeg_ls.encode_array(grey_values(bits=bits, seed=seed), lossy_error=near))
        stray = whole[:-2] + b"\0" + whole[-2:]
        wanted = decode_pixels(in_jpeg_ls(whole, bits, syntax))
        assert np.array_equal(decode_pixels(in_jpeg_ls(stray, bits, syntax)), wanted)


@pytest.mark.parametrize(
    "harm", [lambda s: s[:-60] + b"\0\xff\xd9", lambda s: s[:-2] + b"\0", lambda s: s[:-2] + b"\1\xff\xd9"]
)
def test_jpeg_ls_that_lacks_data_or_its_end_or_has_another_byte_there_is_refused(harm: Any) -> None:
    whole = bytes(jpeg_ls.encode_array(grey_values(bits=16)))
    with pytest.raises(ImageDecodeError, match="damaged or truncated DICOM pixels"):
        decode_pixels(in_jpeg_ls(harm(whole), 16))
