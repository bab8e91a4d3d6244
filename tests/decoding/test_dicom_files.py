"""DICOM files as they come: pydicom's own, headers, damage."""

import io
import re
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import jpeg_ls
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HEVCMP51,
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from hoarfrost.features.decoding.dicom import read_header
from hoarfrost.features.decoding.images import Decoding, decode_pixels
from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.errors import ImageDecodeError
from tests.decoding.test_dicom import WINDOW, by_pydicom, shares
from tests.support.bad_images import check_truncations
from tests.support.builders import encode, picture
from tests.support.commands import ROOT
from tests.support.dicoms import PYDICOM_FILES, dicom, encoded, grey_values

# pydicom warns of what tests write on purpose.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# -- pydicom's own files ------------------------------------------------------------------------------------------------


NOT_IMAGES = r"a DICOM file without pixels: .*(RT|SR|Waveform|its SOP class is missing|Directory|Image Storage|Media)"


REFUSED = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "damaged or truncated DICOM pixels",
    "MR_truncated.dcm": "damaged or truncated DICOM pixels",
    "badVR.dcm": "damaged or truncated DICOM pixels: 6,000 bytes, but the header states 400",
    "no_meta.dcm": "no image format recognised",
    **dict.fromkeys(["README.txt", "rtplan.dump", "rtstruct.dump", "test1.json", "test_PN.json", "README"],
                    r"no image format recognised .*: text"),
    "crayons.icc": "no image format recognised",
    "zipMR.gz": "no image format recognised .*: a gzip archive",
    **dict.fromkeys(
        ["ExplVR_BigEndNoMeta.dcm", "ExplVR_LitEndNoMeta.dcm", "UN_sequence.dcm", "empty_charset_LEI.dcm",
         "meta_missing_tsyntax.dcm", "nested_priv_SQ.dcm", "no_meta_group_length.dcm", "priv_SQ.dcm", "reportsi.dcm",
         "reportsi_with_empty_number_tags.dcm", "rtplan.dcm", "rtplan_truncated.dcm", "rtstruct.dcm", "test-SR.dcm",
         "waveform_ecg.dcm"], NOT_IMAGES),
}  # fmt: skip


ALL_FILES = sorted(path for path in PYDICOM_FILES.rglob("*") if path.is_file())


def test_pydicoms_files_are_there() -> None:
    assert len(ALL_FILES) > 120


@pytest.mark.parametrize("path", ALL_FILES, ids=lambda path: str(path.relative_to(PYDICOM_FILES)))
def test_each_of_pydicoms_files_is_an_image_or_refused_for_the_right_reason(path: Path) -> None:
    reason = REFUSED.get(path.name, NOT_IMAGES if path.name.startswith(("DICOMDIR", "IM0000")) else None)
    if reason is not None:
        with pytest.raises(ImageDecodeError, match=reason):
            load_image(path.read_bytes())
        return
    image = load_image(path.read_bytes())
    data = pydicom.dcmread(path)
    assert image.shape == (
        1 if data.SamplesPerPixel == 1 and "PALETTE" not in data.PhotometricInterpretation else 3,
        224,
        224,
    )
    has_window = data.get("WindowWidth") or data.get("VOILUTSequence")
    if data.SamplesPerPixel == 1 and has_window and "PALETTE" not in data.PhotometricInterpretation:
        assert np.abs(shares(path.read_bytes()) - by_pydicom(data)).max() <= 1 / 255


# -- headers ------------------------------------------------------------------------------------------------------------


def header_of(tmp_path: Path, **elements: Any) -> Any:
    (tmp_path / "x.dcm").write_bytes(encoded(dicom(grey_values(), **elements)))
    return read_header(io.BytesIO((tmp_path / "x.dcm").read_bytes()))


@pytest.mark.parametrize(
    ("age", "band"),
    [
        ("045Y", "40-49"),
        ("100Y", "90+"),
        ("089Y", "80-89"),
        ("018M", "0-9"),
        ("120M", "10-19"),
        ("003D", "0-9"),
        ("45", ""),
    ],
)
def test_age_is_a_decade_and_the_oldest_are_one_band(tmp_path: Path, age: str, band: str) -> None:
    assert header_of(tmp_path, PatientAge=age).age == band


@pytest.mark.parametrize(
    ("manufacturer", "model", "scanner"),
    [("GE", "LOGIQ 700", "GE LOGIQ 700"), ("GE", "", "GE"), ("", "Avanto", "Avanto"), ("Acme", "Acme One", "Acme One")],
)
def test_scanner_is_manufacturer_and_model(tmp_path: Path, manufacturer: str, model: str, scanner: str) -> None:
    assert header_of(tmp_path, Manufacturer=manufacturer, ManufacturerModelName=model).scanner == scanner


def test_file_without_a_patient_id_belongs_to_its_study(tmp_path: Path) -> None:
    assert header_of(tmp_path, PatientID="", StudyInstanceUID="1.2.3").patient == "1.2.3"


@pytest.mark.parametrize("content", [b"", b"text", b"\x08\x00\x05\x00" * 50, b"\0" * 128 + b"DICM"])
def test_header_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.dcm").write_bytes(content)
    assert read_header(io.BytesIO((tmp_path / "x.dcm").read_bytes())) is None


# -- damage -------------------------------------------------------------------------------------------------------------


SMALL = {
    "uncompressed": encoded(dicom(grey_values(20, 16), bits=12, **WINDOW)),
    "RLE": (PYDICOM_FILES / "MR_small_RLE.dcm").read_bytes(),
    "JPEG": (PYDICOM_FILES / "SC_rgb_small_odd_jpeg.dcm").read_bytes(),
    "JPEG-LS": (PYDICOM_FILES / "MR_small_jpeg_ls_lossless.dcm").read_bytes(),
    "JPEG 2000": (PYDICOM_FILES / "MR_small_jp2klossless.dcm").read_bytes(),
    "JPEG lossless": (PYDICOM_FILES / "SC_rgb_jpeg_gdcm.dcm").read_bytes(),
    "JPEG of 12 bits": (PYDICOM_FILES / "JPEG-lossy.dcm").read_bytes(),
    "several frames": (PYDICOM_FILES / "rtdose_rle.dcm").read_bytes(),
    "deflated": (PYDICOM_FILES / "image_dfl.dcm").read_bytes(),
}


@pytest.mark.parametrize("kind", SMALL)
def test_truncation_at_every_percent_is_an_error_or_an_image_in_under_a_second(kind: str) -> None:
    check_truncations(SMALL[kind])


def test_uncompressed_pixels_that_are_cut_off_are_refused() -> None:
    with pytest.raises(ImageDecodeError, match="damaged or truncated DICOM pixels"):
        load_image(SMALL["uncompressed"][:-100])


def test_a_size_that_a_header_promises_is_limited_before_it_is_believed() -> None:
    data = dicom(grey_values())
    data.Rows = data.Columns = 65_000
    with pytest.raises(ImageDecodeError, match="too many pixels: 65000 x 65000"):
        load_image(encoded(data))


def wrapped(codestream: bytes, syntax: Any) -> bytes:
    """Write compressed pixels of any kind into a file whose header states 64 x 48."""
    data = dicom(np.zeros((48, 64), np.uint8))
    data.PixelData, data.file_meta.TransferSyntaxUID = encapsulate([codestream]), syntax
    data["PixelData"].VR, data["PixelData"].is_undefined_length = "OB", True
    return encoded(data)


def of_another_size(codestream: bytes, syntax: Any) -> bytes:
    """Return compressed pixels that state a size of 30,000 x 30,000."""
    changed = bytearray(codestream)
    if syntax == JPEG2000Lossless:
        at = codestream.index(b"\xff\x51")
        changed[at + 6 : at + 14] = changed[at + 22 : at + 30] = struct.pack(">II", 30_000, 30_000)
    else:
        at = codestream.index(b"\xff\xf7" if syntax == JPEGLSLossless else b"\xff\xc0")
        changed[at + 5 : at + 9] = struct.pack(">HH", 30_000, 30_000)
    return bytes(changed)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEGLSLossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_compressed_pixels_larger_than_the_header_says_are_refused_before_memory_is_taken(syntax: Any) -> None:
    grey = picture(64, 48).convert("L")
    codestream = {
        JPEGBaseline8Bit: encode(grey, "JPEG"),
        JPEGLSLossless: bytes(jpeg_ls.encode_array(np.asarray(grey))),
        JPEG2000Lossless: encode(grey, "JPEG2000", no_jp2=True),
    }[syntax]
    assert decode_pixels(wrapped(codestream, syntax)).shape == (48, 64)
    started = time.process_time()
    with pytest.raises(ImageDecodeError, match="30000 x 30000 with 1 channels, but the header states 64 x 48 with 1"):
        decode_pixels(wrapped(of_another_size(codestream, syntax), syntax))
    assert time.process_time() - started < 0.5  # to fill the memory takes seconds


def test_runs_that_unpack_to_far_more_than_the_pixels_are_refused() -> None:
    runs = struct.pack("<16I", 1, 64, *[0] * 14) + b"\x81\0" * 100_000
    with pytest.raises(ImageDecodeError, match="more runs than pixels"):
        decode_pixels(wrapped(runs, RLELossless))


def with_pixel_kind(kind: bytes, syntax: Any) -> bytes:
    """Write a file whose pixel element has these bytes after its tag, then its length of four bytes, and its values."""
    data, values = dicom(grey_values(20, 16), bits=12, **WINDOW), grey_values(20, 16).tobytes()
    data.file_meta.TransferSyntaxUID = syntax
    content = encoded(data)
    head = content[: content.rindex(b"\xe0\x7f\x10\0", 0, -len(values))]
    return head + b"\xe0\x7f\x10\0" + kind + len(values).to_bytes(4, "little") + values


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda uid: uid.name)
@pytest.mark.parametrize("kind", [b"", *(kind + b"\0\0" for kind in (b"OB", b"OW", b"OL", b"OV", b"UN"))])
def test_pixels_of_implicit_kind_or_of_any_that_holds_them_are_read_whatever_the_header_states(
    kind: bytes, syntax: Any
) -> None:
    assert np.array_equal(decode_pixels(with_pixel_kind(kind, syntax)), decode_pixels(SMALL["uncompressed"]))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda uid: uid.name)
@pytest.mark.parametrize("kind", [b"\0\0", b"  ", b"??", b"--", b"ow", b"OX", b"US", b"UT"])
def test_pixels_whose_kind_is_missing_or_holds_no_pixels_are_refused_never_shifted(kind: bytes, syntax: Any) -> None:
    content = with_pixel_kind(kind + b"\0\0", syntax)
    with pytest.raises(
        ImageDecodeError, match="damaged or truncated DICOM pixels: .* bytes, but the header states 640"
    ):
        decode_pixels(content)
    if kind == b"\0\0":  # pydicom takes those of "??" from four bytes too early
        with pytest.raises(TypeError):
            _ = pydicom.dcmread(io.BytesIO(content)).pixel_array


@pytest.mark.parametrize("syntax", [MPEG2MPML, HEVCMP51, UID("1.2.840.10008.1.2.4.52")], ids=lambda uid: uid.name)
def test_transfer_syntax_that_is_not_read_is_not_called_damage(syntax: Any) -> None:
    with pytest.raises(ImageDecodeError, match=re.escape(f"of a transfer syntax that is not read: {syntax.name}")):
        decode_pixels(wrapped(b"\0\0\1\xb3", syntax))


@pytest.mark.parametrize(
    ("elements", "of"),
    [
        ({"BitsAllocated": 12}, "'Bits Allocated' value of '12'"),
        ({"BitsAllocated": 24}, "u3"),
        ({"SamplesPerPixel": 4}, "'Samples per Pixel' value of '4'"),
    ],
)
def test_pixels_of_a_depth_or_a_number_of_channels_that_no_codec_reads_are_not_called_damaged(
    elements: dict[str, int], of: str
) -> None:
    data = dicom(grey_values(20, 16, bits=8), PlanarConfiguration=0, **elements)
    data.BitsStored, data.HighBit = data.BitsAllocated, data.BitsAllocated - 1
    data.PixelData = bytes(20 * 16 * data.SamplesPerPixel * data.BitsAllocated // 8)
    with pytest.raises(ImageDecodeError, match=f"DICOM pixels of a kind that no codec reads: .*{of}"):
        decode_pixels(encoded(data))


def in_deflated_form(data: Dataset, more: bytes = b"") -> bytes:
    """Write a file of the deflated transfer syntax, with further elements at its end."""
    plain = encoded(data)
    start = 144 + int.from_bytes(plain[140:144], "little")
    data.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated = encoded(data)
    packer = zlib.compressobj(wbits=-15)
    meta = deflated[: 144 + int.from_bytes(deflated[140:144], "little")]
    return meta + packer.compress(plain[start:] + more) + packer.flush()


def test_deflated_file_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hoarfrost.features.decoding.dicom.elements.MAX_INFLATED_BYTES", 1 << 16)
    data = dicom(grey_values(), bits=12, **WINDOW)
    wanted = decode_pixels(encoded(data))
    assert np.array_equal(decode_pixels(in_deflated_form(data)), wanted)
    bomb = in_deflated_form(
        dicom(grey_values(), bits=12), b"\xfc\xff\xfc\xffOB\0\0" + (1 << 20).to_bytes(4, "little") + bytes(1 << 20)
    )
    with pytest.raises(ImageDecodeError, match="a deflated DICOM file of more than 65,536 bytes"):
        decode_pixels(bomb)
    (tmp_path / "x.dcm").write_bytes(bomb)
    assert read_header(io.BytesIO((tmp_path / "x.dcm").read_bytes())) is None


@pytest.mark.parametrize("beginning", [b"\0" * 128 + b"DICM", b"\x08\0\x05\0\0\0\0\0"], ids=["DICM", "bare"])
def test_header_without_end_is_refused_at_once(tmp_path: Path, beginning: bytes) -> None:
    content = beginning + bytes(50 << 20)
    (tmp_path / "x.dcm").write_bytes(content)
    started = time.process_time()
    with pytest.raises(ImageDecodeError, match="a DICOM header of more than 65,536 elements"):
        decode_pixels(content)
    assert read_header(io.BytesIO((tmp_path / "x.dcm").read_bytes())) is None
    assert time.process_time() - started < 3


def test_a_message_quotes_nothing_of_the_patient() -> None:
    data = dicom(grey_values(), PatientID="ID-SECRET", PatientName="NAME^SECRET", PatientBirthDate="19700101")
    for end in range(200, len(encoded(data)), 37):
        try:
            load_image(encoded(data)[:end])
        except ImageDecodeError as error:
            assert "SECRET" not in str(error)  # noqa: PT017
            assert "1970" not in str(error)  # noqa: PT017


@settings(max_examples=150)
@given(st.data())
def test_mutated_files_raise_nothing_but_image_decode_error(data: st.DataObject) -> None:
    content = bytearray(SMALL[data.draw(st.sampled_from(sorted(SMALL)), label="kind")])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 40))] = data.draw(st.binary(max_size=8))
    try:
        assert load_image(bytes(content), Decoding(max_pixels=1 << 24)).shape[1:] == (224, 224)
    except ImageDecodeError as error:
        assert str(error)  # noqa: PT017


# -- without the extra --------------------------------------------------------------------------------------------------


def test_without_pydicom_the_way_out_is_named_and_other_images_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1").write_bytes(SMALL["uncompressed"])
    code = f"""
import sys; sys.modules["pydicom"] = None
from pathlib import Path
from hoarfrost.features.datasets import read_dataset
from hoarfrost.features.decoding.images import decode_pixels
folder = Path({str(tmp_path)!r})
for what in (lambda: read_dataset(folder), lambda: decode_pixels((folder / "a" / "1").read_bytes())):
    try:
        what()
    except Exception as error:
        print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["DatasetError", "ImageDecodeError"]
    assert all(re.search(r"pip install 'hoarfrost\[dicom\]'", line) for line in lines)


def test_codec_that_is_not_installed_is_named_with_the_way_out() -> None:
    code = f"""
import sys; sys.modules["openjpeg"] = sys.modules["pylibjpeg"] = None
from pathlib import Path
from hoarfrost.features.decoding.images import decode_pixels
try:
    decode_pixels(Path({str(PYDICOM_FILES)!r}, "MR_small_jp2klossless.dcm").read_bytes())
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.match(
        r"ImageDecodeError DICOM pixels whose codec is not installed, pip install 'hoarfrost\[dicom\]'", done.stdout
    )
