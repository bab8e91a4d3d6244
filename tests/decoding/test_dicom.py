"""DICOM files become the pixels that pydicom's own steps give, or one error that says why not."""

import io
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, convert_color_space
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from hoarfrost.features.decoding.dicom import read_header
from hoarfrost.features.decoding.formats import EncodedFrame
from hoarfrost.features.decoding.images import Decoding, decode_pixels
from hoarfrost.features.decoding.windows import Window, percentile_window, scaled
from hoarfrost.features.errors import ImageDecodeError
from hoarfrost.features.fingerprint import image_key
from tests.support.dicoms import PYDICOM_FILES, dicom, encoded, grey_values

# pydicom warns of what tests write on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def shares(content: bytes, window: Window | None = None, frame: int = 0) -> npt.NDArray[np.float64]:
    """Return the pixels as shares of white."""
    image = EncodedFrame(content, b"", frame, 99) if frame else content
    return decode_pixels(image, Decoding(window=window)) / 255


def by_pydicom(data: Dataset, index: int = 0) -> npt.NDArray[np.float64]:
    """Return the pixels by pydicom's own functions, as shares of the greatest possible value."""
    values = data.pixel_array if data.get("NumberOfFrames", 1) in {1, None} else data.pixel_array[index]
    seen = apply_voi_lut(apply_modality_lut(values, data), data)
    if data.get("VOILUTSequence"):
        low, high = 0.0, 2.0 ** data.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        signed = data.PixelRepresentation == 1
        low, high = (
            (-(2.0 ** (data.BitsStored - 1)), 2.0 ** (data.BitsStored - 1) - 1)
            if signed
            else (0.0, 2.0**data.BitsStored - 1)
        )
        if "ModalityLUTSequence" in data:
            low, high = 0.0, 2.0 ** data.ModalityLUTSequence[0].LUTDescriptor[2] - 1
        elif "RescaleSlope" in data:
            low, high = (float(end * data.RescaleSlope + data.RescaleIntercept) for end in (low, high))
    share = (seen - low) / (high - low)
    return 1 - share if data.PhotometricInterpretation == "MONOCHROME1" else share


def lut(entries: list[int], first: int, bits: int = 16) -> Sequence:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], entries
    item["LUTDescriptor"].VR, item["LUTData"].VR = "SS" if first < 0 else "US", "US"
    return Sequence([item])


# -- grey ---------------------------------------------------------------------------------------------------------------

WINDOW = {"WindowCenter": 900, "WindowWidth": 1500}
RESCALE = {"RescaleSlope": 1, "RescaleIntercept": -1024}
CASES: dict[str, dict[str, Any]] = {
    "a window": WINDOW,
    "rescale and a window": {**RESCALE, "WindowCenter": 40, "WindowWidth": 400},
    "a fractional rescale": {"RescaleSlope": 0.37, "RescaleIntercept": -12.5, "WindowCenter": 300, "WindowWidth": 801.5},
    "several windows, of which the first counts": {"WindowCenter": [700, 2000], "WindowWidth": [900, 50]},
    "an exact window": {**WINDOW, "VOILUTFunction": "LINEAR_EXACT"},
    "a sigmoid": {**WINDOW, "VOILUTFunction": "SIGMOID"},
    "a window of one value": {"WindowCenter": 900, "WindowWidth": 1},
    "a VOI LUT": {"VOILUTSequence": lut(list(range(0, 65536, 16)), 0)},
    "a VOI LUT of 12 bits that begins late": {"VOILUTSequence": lut(list(range(0, 4096, 2)), 500, 12)},
    "a VOI LUT and a window, of which the LUT counts": {**WINDOW, "VOILUTSequence": lut(list(range(0, 65536, 16)), 0)},
    "a modality LUT and a window": {
        "ModalityLUTSequence": lut([min(65535, i * i // 256) for i in range(4096)], 0), "WindowCenter": 20000,
        "WindowWidth": 30000,
    },
}  # fmt: skip


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
@pytest.mark.parametrize("case", CASES)
def test_grey_pixels_equal_pydicoms_modality_and_voi_lut(case: str, photometric: str) -> None:
    data = dicom(grey_values(), bits=12, PhotometricInterpretation=photometric, **CASES[case])
    assert np.abs(shares(encoded(data)) - by_pydicom(data)).max() <= 1 / 255


def test_falling_rescale_keeps_black_below_white() -> None:
    # pydicom's output then falls where the window rises; the standard's window always rises.
    falling = {"RescaleSlope": -1, "RescaleIntercept": 4095, "WindowCenter": 2000, "WindowWidth": 1500}
    data = dicom(grey_values(), bits=12, **falling)
    rescaled = apply_modality_lut(data.pixel_array, data)
    wanted = np.clip((rescaled - (2000 - 0.5)) / 1499 + 0.5, 0, 1)
    assert np.abs(shares(encoded(data)) - wanted).max() <= 1 / 255


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", range(8, 17))
def test_signed_and_unsigned_of_8_to_16_bits_equal_pydicoms(bits: int, signed: bool) -> None:
    center = 0 if signed else 2 ** (bits - 1)
    data = dicom(grey_values(bits=bits, signed=signed), bits=bits, WindowCenter=center, WindowWidth=2 ** (bits - 1))
    assert np.abs(shares(encoded(data)) - by_pydicom(data)).max() <= 1 / 255


def test_window_asked_for_counts_before_the_files_own() -> None:
    data = dicom(grey_values(), bits=12, **RESCALE, **WINDOW)
    found = shares(encoded(data), Window(40, 400))
    data.WindowCenter, data.WindowWidth = 40, 400
    assert np.abs(found - by_pydicom(data)).max() <= 1 / 255


@pytest.mark.parametrize(
    "elements",
    [{}, {"WindowCenter": 5}, {"WindowCenter": 0, "WindowWidth": 0}, {"WindowCenter": 0, "WindowWidth": -9},
     {"WindowCenter": "", "WindowWidth": ""}, {**WINDOW, "VOILUTFunction": "CUBIC"}],
    ids=["none", "no width", "width 0", "width below 0", "empty", "unknown function"],
)  # fmt: skip
def test_without_a_usable_window_half_a_percent_at_each_end_is_cut(elements: dict[str, Any]) -> None:
    values = grey_values()
    ordered = np.sort(values.ravel())
    low, high = ordered[int(np.ceil(len(ordered) * 0.005)) - 1], ordered[int(np.ceil(len(ordered) * 0.995)) - 1]
    wanted = np.clip((values - float(low)) / (high - low), 0, 1)
    assert np.abs(shares(encoded(dicom(values, bits=12, **elements))) - wanted).max() <= 1 / 255


@pytest.mark.parametrize("first", ["", 700], ids=["empty", "width 0"])
def test_of_several_windows_the_first_usable_one_counts(first: Any) -> None:
    several = dicom(grey_values(), bits=12, WindowCenter=[first, 900], WindowWidth=[first and 0, 1500])
    assert np.array_equal(
        decode_pixels(encoded(several)), decode_pixels(encoded(dicom(grey_values(), bits=12, **WINDOW)))
    )


@pytest.mark.parametrize("rescale", [("", ""), ("1", ""), ("", "5")])
def test_rescale_that_is_left_empty_is_none(rescale: tuple[str, str]) -> None:
    slope, intercept = rescale
    empty = dicom(grey_values(), bits=12, RescaleSlope=slope, RescaleIntercept=intercept, **WINDOW)
    assert np.array_equal(
        decode_pixels(encoded(empty)), decode_pixels(encoded(dicom(grey_values(), bits=12, **WINDOW)))
    )


@pytest.mark.parametrize("rescale", [(b"nan", b"0"), (b"inf", b"0"), (b"0", b"0"), (b"1", b"nan"), (b"abc", b"0")])
def test_rescale_that_makes_nothing_of_the_pixels_is_refused(rescale: tuple[bytes, bytes]) -> None:
    content = encoded(dicom(grey_values(), bits=12, RescaleSlope="1.25", RescaleIntercept="7.75", **WINDOW))
    for written, value in zip((b"1.25", b"7.75"), rescale, strict=True):
        content = content.replace(written, value.ljust(4))
    with pytest.raises(ImageDecodeError, match="a DICOM rescale slope of 0, or one or an intercept that is no number"):
        decode_pixels(content)


def test_values_that_are_too_large_for_a_float_are_white_without_a_warning() -> None:
    data = dicom(grey_values(), bits=12, RescaleSlope="1e308", RescaleIntercept=0, WindowCenter=10, WindowWidth=20)
    assert decode_pixels(encoded(data))[20:].min() == 255


@pytest.mark.parametrize("signed", [False, True])
def test_overlays_in_the_upper_bits_are_no_pixels(signed: bool) -> None:
    values = grey_values(bits=12, signed=signed)
    rubbish = np.random.default_rng(0).integers(0, 16, values.shape).astype(np.uint16) << 12
    with_overlay = ((values.astype(np.uint16) & 0x0FFF) | rubbish).astype(values.dtype)
    assert np.array_equal(
        decode_pixels(encoded(dicom(with_overlay, bits=12, **WINDOW))),
        decode_pixels(encoded(dicom(values, bits=12, **WINDOW))),
    )


def test_pixels_that_do_not_end_at_the_lowest_bit_are_refused() -> None:
    data = dicom((grey_values() << 4).astype(np.uint16), bits=12)
    data.HighBit = 15
    with pytest.raises(
        ImageDecodeError, match="DICOM pixels that do not end at the lowest bit: the highest is 15 of 12"
    ):
        decode_pixels(encoded(data))


def test_table_that_is_too_short_is_refused() -> None:
    table = lut(list(range(100)), 0)
    table[0].LUTDescriptor[0] = 4096
    table[0]["LUTData"].VR, table[0].LUTData = "OW", bytes(100)
    with pytest.raises(ImageDecodeError, match="a DICOM look-up table or window that cannot be applied: "):
        decode_pixels(encoded(dicom(grey_values(), bits=12, VOILUTSequence=table)))


def test_padding_that_is_written_unsigned_counts_as_signed_where_pixels_are() -> None:
    values = grey_values(bits=12).astype(np.int16)
    padded = values.copy()
    padded[:, :15] = -2000
    data = dicom(padded)
    data.add_new(0x00280120, "US", 63536)
    assert np.array_equal(decode_pixels(encoded(data)), decode_pixels(encoded(dicom(padded, PixelPaddingValue=-2000))))


def test_padding_does_not_count_for_the_percentiles() -> None:
    values = grey_values(bits=12).astype(np.int16)
    padded = values.copy()
    padded[:, :15] = -2000
    found = decode_pixels(encoded(dicom(padded, PixelPaddingValue=-2000)))
    assert np.array_equal(found[:, 15:], scaled(values[:, 15:], *percentile_window(values[:, 15:])))
    assert found[:, :15].max() == 0


def test_an_image_of_one_value_is_black() -> None:
    assert decode_pixels(encoded(dicom(np.full((9, 8), 700, np.uint16)))).max() == 0


def test_float_pixels_are_shown_by_percentiles() -> None:
    data = dicom(None, PhotometricInterpretation="MONOCHROME2", SamplesPerPixel=1, Rows=4, Columns=5, BitsAllocated=32)
    data.FloatPixelData = np.linspace(-1, 1, 20, dtype=np.float32).tobytes()
    assert decode_pixels(encoded(data)).ravel().tolist() == np.rint(np.linspace(0, 255, 20)).tolist()
    data.FloatPixelData = np.full(20, np.nan, np.float32).tobytes()
    with pytest.raises(ImageDecodeError, match="no pixel is a number"):
        decode_pixels(encoded(data), Decoding(window=Window(0, 1)))


# -- colour -------------------------------------------------------------------------------------------------------------


def colours(dtype: npt.DTypeLike = np.uint8) -> npt.NDArray[Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (20, 30, 3)).astype(dtype)


@pytest.mark.parametrize("planar", [0, 1])
def test_rgb_stays_as_it_is(planar: int) -> None:
    data = dicom(colours())
    data.PlanarConfiguration = planar
    if planar:
        data.PixelData = np.ascontiguousarray(colours().transpose(2, 0, 1)).tobytes()
    assert np.array_equal(decode_pixels(encoded(data)), colours())


def test_rgb_of_16_bits_is_scaled() -> None:
    found = decode_pixels(encoded(dicom(colours(np.uint16))))
    assert np.abs(found / 255 - colours(np.uint16) / 65535).max() <= 1 / 255


def test_ybr_becomes_rgb_as_pydicom_converts_it() -> None:
    found = decode_pixels(encoded(dicom(colours(), PhotometricInterpretation="YBR_FULL")))
    assert np.array_equal(found, convert_color_space(colours(), "YBR_FULL", "RGB"))


@pytest.mark.parametrize("photometric", ["HSV", "CMYK", "YBR_PARTIAL_422", "MONOCHROME2"])
def test_colours_of_another_space_are_refused(photometric: str) -> None:
    with pytest.raises(ImageDecodeError, match=f"DICOM pixels in a colour space that is not read: {photometric}"):
        decode_pixels(encoded(dicom(colours(), PhotometricInterpretation=photometric)))


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_becomes_rgb_as_pydicom_looks_it_up(bits: int) -> None:
    data = dicom(grey_values(bits=8), PhotometricInterpretation="PALETTE COLOR")
    table = np.random.default_rng(1).integers(0, 2**bits, (3, 256)).astype(f"<u{bits // 8}")
    for name, row in zip(("Red", "Green", "Blue"), table, strict=True):
        setattr(data, f"{name}PaletteColorLookupTableDescriptor", [256, 0, bits])
        setattr(data, f"{name}PaletteColorLookupTableData", row.tobytes())
    wanted = apply_color_lut(data.pixel_array, data) / (2**bits - 1)
    assert np.abs(decode_pixels(encoded(data)) / 255 - wanted).max() <= 1 / 255


# -- transfer syntaxes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
def test_lossless_compression_gives_the_pixels_of_the_uncompressed_file(syntax: Any, signed: bool) -> None:
    data = dicom(grey_values(80, 70, bits=16, signed=signed), **WINDOW)
    plain = decode_pixels(encoded(data))
    data.compress(syntax, encoding_plugin="pylibjpeg" if syntax == JPEG2000Lossless else "")
    assert np.array_equal(decode_pixels(encoded(data)), plain)


def in_lossless_jpeg(content: bytes, folder: Path) -> bytes:
    """Compress a file as GDCM does; pydicom does not."""
    (folder / "plain.dcm").write_bytes(content)
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(folder / "plain.dcm"))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(folder / "packed.dcm"))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return (folder / "packed.dcm").read_bytes()


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_gives_the_pixels_of_the_uncompressed_file(tmp_path: Path, bits: int, signed: bool) -> None:
    plain = encoded(dicom(grey_values(80, 70, bits=bits, signed=signed), bits=bits, **WINDOW))
    packed = in_lossless_jpeg(plain, tmp_path)
    assert pydicom.dcmread(io.BytesIO(packed)).file_meta.TransferSyntaxUID == JPEGLosslessSV1
    assert np.array_equal(decode_pixels(packed), decode_pixels(plain))


@pytest.mark.parametrize("name", ["JPEG-lossy.dcm", "JPGExtended.dcm"])
def test_jpeg_of_12_bits_has_the_values_that_libjpeg_turbo_finds(name: str) -> None:
    # This window leaves values up to 255 as they are; greater ones become 255.
    found = decode_pixels((PYDICOM_FILES / name).read_bytes(), Decoding(window=Window(128, 256))).astype(int)
    assert (found.shape, found.sum(), (found > 200).sum()) == ((1024, 256), 3766993, 157)
    assert found[::100, 128].tolist() == [1, 53, 71, 57, 64, 10, 1, 1, 9, 1, 1]


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian], ids=lambda uid: uid.name
)
def test_other_encodings_of_the_same_values_give_the_same_pixels(syntax: Any) -> None:
    data = dicom(grey_values(), bits=12, **WINDOW)
    plain = decode_pixels(encoded(data))
    data.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian:
        data.PixelData = grey_values().astype(">u2").tobytes()
    buffer = io.BytesIO()
    is_little = syntax != ExplicitVRBigEndian
    pydicom.dcmwrite(buffer, data, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=is_little)
    assert np.array_equal(decode_pixels(buffer.getvalue()), plain)


@pytest.mark.parametrize("implicit", [True, False], ids=["implicit", "explicit"])
def test_file_without_preamble_is_told_and_read(implicit: bool) -> None:
    data = dicom(grey_values(), bits=12, **WINDOW)
    plain = decode_pixels(encoded(data))
    buffer = io.BytesIO()
    bare = Dataset({element.tag: element for element in data})
    pydicom.dcmwrite(buffer, bare, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
    assert buffer.getvalue()[128:132] != b"DICM"
    assert np.array_equal(decode_pixels(buffer.getvalue()), plain)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, RLELossless], ids=lambda uid: uid.name
)
def test_file_that_begins_with_its_transfer_syntax_is_read_by_it(syntax: Any) -> None:
    data = dicom(grey_values(bits=16), **WINDOW)
    plain = decode_pixels(encoded(data))
    if syntax == RLELossless:
        data.compress(syntax)
    data.file_meta.TransferSyntaxUID = syntax
    content = encoded(data)
    bare = content[
        content.index(b"\x02\0\x10\0UI") :
    ]  # without the preamble, the magic and the elements (0002,0000) to 0003
    assert np.array_equal(decode_pixels(bare), plain)


# -- frames -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [False, True])
def test_each_frame_is_an_image_of_its_own(compressed: bool) -> None:
    frames = np.stack([grey_values(bits=12, seed=i) for i in range(4)])
    data = dicom(frames, bits=12, **WINDOW)
    if compressed:
        data.compress(RLELossless)
    content = encoded(data)
    for i, frame in enumerate(frames, start=1):
        alone = decode_pixels(encoded(dicom(frame, bits=12, **WINDOW)))
        assert np.array_equal(decode_pixels(EncodedFrame(content, b"", i, 4)), alone)
    with pytest.raises(ImageDecodeError, match="no frame 5: the file has 4"):
        decode_pixels(EncodedFrame(content, b"", 5, 5))


def test_frames_of_an_enhanced_file_have_their_own_rescale_and_window() -> None:
    frames = np.stack([grey_values(bits=12, seed=i) for i in range(2)])
    data = dicom(frames, bits=12)
    groups = []
    for slope, center in ((1.0, 900), (0.5, 300)):
        transformation, window, group = Dataset(), Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, -100
        window.WindowCenter, window.WindowWidth = center, 700
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = (
            Sequence([transformation]),
            Sequence([window]),
        )
        groups.append(group)
    data.PerFrameFunctionalGroupsSequence = Sequence(groups)
    content = encoded(data)
    for i, (slope, center) in enumerate(((1.0, 900), (0.5, 300))):
        own = dicom(frames[i], bits=12, RescaleSlope=slope, RescaleIntercept=-100, WindowCenter=center, WindowWidth=700)
        assert np.array_equal(decode_pixels(EncodedFrame(content, b"", i + 1, 2)), decode_pixels(encoded(own)))


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_that_a_header_promises_and_the_file_lacks_are_one_row(tmp_path: Path, compressed: bool) -> None:
    data = dicom(np.stack([grey_values(bits=12, seed=i) for i in range(3)]), bits=12, **WINDOW)
    if compressed:
        data.compress(RLELossless)
    data.NumberOfFrames = 2**31 - 1
    content = encoded(data)
    (tmp_path / "x.dcm").write_bytes(content)
    header = read_header(io.BytesIO((tmp_path / "x.dcm").read_bytes()))
    assert header is not None
    assert header.n_frames == 4
    assert decode_pixels(EncodedFrame(content, b"", 3, 4)).shape == (30, 40)
    with pytest.raises(
        ImageDecodeError, match="pixels: the header states 2,147,483,647 frames, the file has at most 3"
    ):
        decode_pixels(EncodedFrame(content, b"", 4, 4))


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL_422"])
def test_frames_of_colour_are_counted(tmp_path: Path, photometric: str) -> None:
    data = dicom(np.stack([colours(), colours(), colours()]), PhotometricInterpretation=photometric)
    if photometric == "YBR_FULL_422":
        data.PixelData = bytes(3 * 20 * 30 * 2)
    (tmp_path / "x.dcm").write_bytes(encoded(data))
    header = read_header(io.BytesIO((tmp_path / "x.dcm").read_bytes()))
    assert header is not None
    assert header.n_frames == 3
    assert decode_pixels(EncodedFrame(encoded(data), b"", 3, 3)).shape == (20, 30, 3)


def test_keys_of_frames_differ_by_bytes_and_by_number() -> None:
    frames = [EncodedFrame(b"x", digest, number, 3) for digest in (b"a" * 32, b"b" * 32) for number in (1, 2, 3)]
    assert len({image_key(frame) for frame in frames}) == 6
