"""DICOM values become the shares of white that slow, obvious arithmetic gives, for every kind of table."""

import itertools
import random
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.sequence import Sequence
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    XRayAngiographicImageStorage,
    XRayRadiofluoroscopicImageStorage,
)

from hoarfrost.features.decoding.images import decode_pixels
from hoarfrost.features.errors import ImageDecodeError
from tests.support.dicom_mutated import changed, coloured, compare, files, in_syntax, labelled, table
from tests.support.dicom_oracle import reach, shares_of_white, without_unused_bits
from tests.support.dicoms import PYDICOM_FILES, dicom, encoded, grey_values

# pydicom warns of what tests write on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WINDOW = {"WindowCenter": 900, "WindowWidth": 1500}
SYNTAXES = [
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEG2000Lossless,
    JPEGLSLossless,
]


def elements_of(kind: str, bits: int, *, is_signed: bool) -> dict[str, Any]:
    """Return the look-up tables of a kind, for values of so many bits."""
    first, n = -(2 ** (bits - 1)) if is_signed else 0, 2**bits
    ramp = np.arange(n) * 65535 // (n - 1)
    return {
        "window": WINDOW,
        "rescale": {"RescaleSlope": 2, "RescaleIntercept": -1024, **WINDOW},
        "modality LUT of 16 bits": {"ModalityLUTSequence": table(ramp, first, 16), **WINDOW},
        "modality LUT of 12 bits": {"ModalityLUTSequence": table(ramp >> 4, first, 12, "OW"), **WINDOW},
        "VOI LUT of 16 bits": {"VOILUTSequence": table(ramp[::-1], first, 16)},
        "VOI LUT of 16 bits filled to 12": {"VOILUTSequence": table(ramp >> 4, first, 16)},
        "VOI LUT of 8 bits in words": {"VOILUTSequence": table(ramp >> 8, first, 8)},
        "VOI LUT of 8 bits in bytes": {"VOILUTSequence": table(ramp >> 8, first, 8, "OW")},
        "VOI LUT after a rescale": {
            "RescaleSlope": 1, "RescaleIntercept": -1024, "VOILUTSequence": table(ramp, first - 1024, 16),
        },
        "both": {
            "ModalityLUTSequence": table(ramp >> 4, first, 12), "VOILUTSequence": table(np.arange(4096)[::-1], 0, 12),
        },
    }[kind]  # fmt: skip


def in_any_syntax(data: Any, syntax: UID) -> bytes:
    if syntax in {ImplicitVRLittleEndian, ExplicitVRBigEndian}:
        return in_syntax(data, syntax)
    if syntax != ExplicitVRLittleEndian:
        data.compress(syntax, encoding_plugin="pylibjpeg" if syntax == JPEG2000Lossless else "")
    return encoded(data)


@pytest.mark.parametrize("kind", [
    "window", "rescale", "modality LUT of 16 bits", "modality LUT of 12 bits", "VOI LUT of 16 bits",
    "VOI LUT of 16 bits filled to 12", "VOI LUT of 8 bits in words", "VOI LUT of 8 bits in bytes",
    "VOI LUT after a rescale", "both",
])  # fmt: skip
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_grey_of_every_kind_is_what_arithmetic_gives(syntax: UID, kind: str) -> None:
    for photometric, is_signed, bits in itertools.product(("MONOCHROME1", "MONOCHROME2"), (False, True), (10, 12, 14)):
        values = grey_values(48, 40, bits=bits, signed=is_signed)
        elements = elements_of(kind, bits, is_signed=is_signed)
        data = dicom(values, bits=bits, PhotometricInterpretation=photometric, **elements)
        wanted = shares_of_white(values, data)
        found = decode_pixels(in_any_syntax(data, syntax)) / 255
        assert np.abs(found - wanted).max() <= 1 / 255, (photometric, is_signed, bits)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda syntax: syntax.name)
def test_palette_of_every_kind_is_what_arithmetic_gives(syntax: UID, depth: int) -> None:
    for bits in (10, 12, 16):
        values = grey_values(48, 40, bits=bits)
        data = coloured(values, depth, 2**bits, bits=bits)
        wanted = shares_of_white(values, data)
        found = decode_pixels(in_any_syntax(data, syntax)) / 255
        assert np.abs(found - wanted).max() <= 1 / 255, bits


def test_arithmetic_is_pydicoms_where_pydicom_does_not_overflow() -> None:
    values = grey_values(bits=12)
    for kind in ("modality LUT of 16 bits", "VOI LUT of 16 bits"):
        data = dicom(values, bits=12, **elements_of(kind, 12, is_signed=False))
        seen = apply_voi_lut(apply_modality_lut(values, data), data)
        assert np.abs(seen / 65535 - shares_of_white(values, data)).max() < 1e-3


@pytest.mark.parametrize("is_implicit", [False, True])
def test_first_value_below_zero_counts_although_the_pixels_have_no_sign(is_implicit: bool) -> None:
    ramp = np.arange(4096) * 16
    below, unsigned = table(ramp, -1024, 16), table(ramp, -1024 % 65536, 16)
    found = []
    for tables in (below, unsigned):
        data = dicom(grey_values(), bits=12, RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=tables)
        found.append(decode_pixels(in_syntax(data, ImplicitVRLittleEndian) if is_implicit else encoded(data)))
    assert np.array_equal(found[0], found[1])
    assert np.abs(found[0] / 255 - grey_values() * 16 / 65535).max() <= 1 / 255


def test_palette_with_8_bit_values_in_words_is_not_black() -> None:
    values = grey_values(bits=8)
    bytes_, words = coloured(values, 8, 256), coloured(values, 8, 256)
    for name in ("Red", "Green", "Blue"):
        element = words[f"{name}PaletteColorLookupTableData"]
        element.value = np.frombuffer(element.value, np.uint8).astype("<u2").tobytes()
    assert np.array_equal(decode_pixels(encoded(words)), decode_pixels(encoded(bytes_)))
    for name in ("Red", "Green", "Blue"):
        words[f"{name}PaletteColorLookupTableDescriptor"].value = [256, 0, 16]
    assert np.array_equal(decode_pixels(encoded(words)), decode_pixels(encoded(bytes_)))


def test_segmented_palette_is_expanded() -> None:
    values = grey_values(bits=8)
    data = dicom(values, PhotometricInterpretation="PALETTE COLOR")
    # Ten entries as they are, a line up to 255 in 100 steps, the same two again from the beginning, and 26 more.
    segments = bytes([0, 10, *range(0, 20, 2), 1, 100, 255, 2, 2, 0, 0, 0, 0, 0, 36, *range(36)])
    line = np.rint(np.linspace(18, 255, 101)[1:])
    entries = np.concatenate([np.arange(0, 20, 2), line, np.arange(0, 20, 2), line, np.arange(36)])
    for name in ("Red", "Green", "Blue"):
        data.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 8])
        data.add_new(f"Segmented{name}PaletteColorLookupTableData", "OW", segments)
    assert np.array_equal(decode_pixels(encoded(data))[..., 1], entries[values].astype(np.uint8))


@pytest.mark.parametrize("sequence", ["ModalityLUTSequence", "VOILUTSequence"])
def test_empty_table_item_counts_as_missing(sequence: str) -> None:
    item = Dataset()
    item.LUTDescriptor = item.LUTData = None
    item["LUTDescriptor"].VR = item["LUTData"].VR = "US"
    plain = decode_pixels(encoded(dicom(grey_values(), bits=12, **WINDOW)))
    for items in (Sequence([item]), Sequence([Dataset()]), Sequence([])):
        found = decode_pixels(encoded(dicom(grey_values(), bits=12, **{sequence: items}, **WINDOW)))
        assert np.array_equal(found, plain)


@pytest.mark.parametrize(
    ("words", "reason"),
    [([4095, 0, 12], "states 4,095 entries, its data have 8,192 bytes"), ([4096, 0, 24], "states 24 bits per entry"),
     ([4096, 0], "does not have three numbers")],
)  # fmt: skip
def test_table_that_contradicts_its_descriptor_is_refused(words: list[int], reason: str) -> None:
    data = dicom(grey_values(), bits=12, VOILUTSequence=table(np.arange(4096), 0, 12))
    data.VOILUTSequence[0]["LUTDescriptor"].value = words
    with pytest.raises(ImageDecodeError, match=f"a DICOM look-up table or window that cannot be applied: .*{reason}"):
        decode_pixels(encoded(data))


@pytest.mark.parametrize("kind", [XRayAngiographicImageStorage, XRayRadiofluoroscopicImageStorage])
def test_modality_lut_of_angiography_is_not_for_display(kind: UID) -> None:
    tables = {"ModalityLUTSequence": table(np.arange(4096)[::-1], 0, 12)}
    found = decode_pixels(encoded(dicom(grey_values(), bits=12, SOPClassUID=kind, **tables, **WINDOW)))
    assert np.array_equal(found, decode_pixels(encoded(dicom(grey_values(), bits=12, **WINDOW))))


@pytest.mark.parametrize(("written", "stored"), [(-2000, 63536), (63536, 63536)])
def test_padding_with_a_sign_counts_on_pixels_without_one(written: int, stored: int) -> None:
    padded = grey_values(bits=12)
    padded[:, :15] = stored
    plain = dicom(padded)
    plain.add_new(0x00280120, "SS" if written < 0 else "US", written)
    found = decode_pixels(encoded(plain))
    assert found[:, 15:].max() == 255
    assert np.unique(found[:, 15:]).size > 200
    without = decode_pixels(encoded(dicom(padded)))
    assert np.unique(without[:, 15:]).size < 20  # else the padding would be white, and all else black


def test_white_is_what_a_table_reaches() -> None:
    assert [reach([top]) for top in (1, 255, 256, 4000, 65535)] == [255, 255, 511, 4095, 65535]


# -- changed headers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", range(0, 1000, 250))
def test_changed_headers_are_read_as_arithmetic_says_or_refused(start: int) -> None:
    """`make fuzz` has 5,000 others."""
    chance = random.Random(f"suite {start}")
    results = [compare(changed(files()[i % len(files())], chance)) for i in range(start, start + 250)]
    assert set(results) == {"equal", "refused"}
    assert results.count("equal") > 60


# What pydicom's own path refuses, and is right here.
EXPLAINED = {
    "JPEG-lossy.dcm": "refused by the oracle",  # 12-bit JPEG: pydicom has no decoder; tested in test_dicom.py
    "JPGExtended.dcm": "refused by the oracle",
}


@pytest.mark.parametrize("path", sorted(PYDICOM_FILES.rglob("*.dcm")), ids=lambda path: path.name)
def test_each_of_pydicoms_files_is_shown_as_by_pydicoms_reader_and_arithmetic_or_refused(path: Any) -> None:
    result = compare(path.read_bytes())
    assert result in {"equal", "refused"} or EXPLAINED.get(path.name, "-") in result


# Valid files of pydicom's that GDCM reads too: JPEG, JPEG-LS and JPEG 2000.
BY_GDCM = (
    "693_J2KI.dcm", "GDCMJ2K_TextGBR.dcm", "J2K_pixelrep_mismatch.dcm", "JPEG2000.dcm", "JPEGLSNearLossless_08.dcm",
    "JPEGLSNearLossless_16.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm",
    "SC_jpeg_no_color_transform.dcm", "SC_jpeg_no_color_transform_2.dcm", "SC_rgb_dcmtk_+eb+cr.dcm",
    "SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_dcmtk_+eb+cy+s2.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm", "SC_rgb_gdcm_KY.dcm",
    "SC_rgb_jls_lossy_line.dcm", "SC_rgb_jpeg.dcm", "SC_rgb_jpeg_app14_dcmd.dcm", "SC_rgb_jpeg_gdcm.dcm",
    "SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_small_odd_jpeg.dcm", "examples_jpeg2k.dcm", "examples_ybr_color.dcm",
)  # fmt: skip


@pytest.mark.parametrize("name", BY_GDCM)
def test_compressed_pixels_are_those_that_gdcm_decodes(name: str) -> None:
    data = pydicom.dcmread(PYDICOM_FILES / name)
    values = pixel_array(data, index=0, decoding_plugin="gdcm")
    values = without_unused_bits(values, data.BitsStored) if values.ndim == 2 else values
    found = decode_pixels((PYDICOM_FILES / name).read_bytes()) / 255
    assert np.abs(found - shares_of_white(values, data)).max() <= 1 / 255


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_explicit_data_labelled_implicit_and_the_reverse_are_read_by_what_they_are(syntax: UID) -> None:
    data = dicom(grey_values(), bits=12, **WINDOW)
    plain = decode_pixels(encoded(data))
    other = ImplicitVRLittleEndian if syntax == ExplicitVRLittleEndian else ExplicitVRLittleEndian
    assert np.array_equal(decode_pixels(labelled(in_any_syntax(data, syntax), other)), plain)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_data_labelled_uncompressed_and_the_reverse_are_refused(syntax: UID) -> None:
    data = dicom(grey_values(80, 70), bits=12, **WINDOW)
    plain, packed = encoded(data), in_any_syntax(data, syntax)
    for content in (labelled(plain, syntax), labelled(packed, ExplicitVRLittleEndian)):
        with pytest.raises(ImageDecodeError, match="as the header states"):
            decode_pixels(content)


def test_pixels_of_more_bits_or_frames_than_the_header_states_are_refused() -> None:
    data = dicom(grey_values(), bits=8, **WINDOW)
    data.BitsAllocated = 8
    with pytest.raises(ImageDecodeError, match="2,400 bytes, but the header states 1,200"):
        decode_pixels(encoded(data))
