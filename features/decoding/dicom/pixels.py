"""DICOM pixels as 8 bits, decoded by one fixed codec per transfer syntax."""

import io
import re
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import (
    JPEGExtended12BitDecoder,
    JPEGLSLosslessDecoder,
    JPEGLSNearLosslessDecoder,
    get_decoder,
)
from pydicom.pixels.processing import convert_color_space
from pydicom.pixels.utils import as_pixel_options

from hoarfrost.features.decoding.dicom import elements
from hoarfrost.features.decoding.dicom.codestreams import Codestream, max_rle_bytes, read_codestream
from hoarfrost.features.decoding.dicom.elements import number
from hoarfrost.features.decoding.dicom.grey import grey_pixels, stored_range
from hoarfrost.features.decoding.dicom.luts import coloured
from hoarfrost.features.decoding.formats import MAX_PIXELS
from hoarfrost.features.decoding.isolated import DecoderCrashError, decode_isolated
from hoarfrost.features.decoding.slow import is_slow
from hoarfrost.features.decoding.windows import Window, scaled
from hoarfrost.features.errors import ImageDecodeError, Unreadable
from hoarfrost.features.facts import FileHeader, Kinds, kind_text

MAX_REASON = 200  # characters of a codec's message
# By a part of pydicom's message about its codecs.
_KINDS = {
    "does not support": Unreadable.DICOM_NO_CODEC, "missing dependencies": Unreadable.DICOM_CODEC_MISSING,
    "'Bits Allocated' value": Unreadable.DICOM_NO_CODEC, "'Samples per Pixel' value": Unreadable.DICOM_NO_CODEC,
    "not supported by NumPy": Unreadable.DICOM_NO_CODEC,
}  # fmt: skip
# One codec per transfer syntax, because pixels must not depend on what else is installed.
CODECS = {
    uid.JPEGBaseline8Bit: "pillow", uid.JPEGExtended12Bit: "pillow", uid.JPEGLossless: "gdcm", uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "CharLS", uid.JPEGLSNearLossless: "CharLS", uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg", uid.HTJ2KLossless: "pylibjpeg", uid.HTJ2KLosslessRPCL: "pylibjpeg", uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pydicom",
}  # fmt: skip
TWELVE_BITS = "gdcm, 12 bits"  # of JPEG: Pillow reads 8 bits, and pydicom has no such plugin for GDCM
# Damaged files end GDCM's process by a C++ exception; no other free codec reads lossless JPEG.
CRASHING = frozenset({"gdcm", TWELVE_BITS})
JPEGExtended12BitDecoder.add_plugin(TWELVE_BITS, ("hoarfrost.features.decoding.dicom.jpeg12", "decoded"))
for _decoder in (JPEGLSLosslessDecoder, JPEGLSNearLosslessDecoder):
    _decoder.add_plugin("CharLS", ("hoarfrost.features.decoding.dicom.jpegls", "decoded"))

_JPEG_LS = frozenset({uid.JPEGLSLossless, uid.JPEGLSNearLossless})  # CharLS takes ten seconds if the end is missing
_LOSSY = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000, uid.HTJ2K})
_LEAST = {"SamplesPerPixel": 1, "BitsAllocated": 8}  # where a header lacks them
_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"  # ends compressed pixels
_GREYS = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
_COLOURS = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})  # that pydicom converts to RGB
_OTHER_COLOURS = frozenset({"YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB", "HSV", "ARGB", "CMYK"})
KINDS = ("Modality", "Manufacturer", "ManufacturerModelName")  # of a header, that facts have
_KEYWORDS = (
    *KINDS, "SOPClassUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence", "VOILUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "PixelPresentation", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData", "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)  # fmt: skip


class _SlowError(Exception):
    """The pixels are to be decoded in another process, which has a limit."""


class DicomImage:
    """A DICOM file, or one of its frames, whose header has been read.

    Parameters
    ----------
    content : bytes
    frame : int
        The frame's number from 1; 0 if it is the only one.
    window : Window or None
        Used in place of the file's own, for grey images.
    is_isolated : bool
        Whether this process may crash: then codecs that crash run here, else in another process.

    Raises
    ------
    ImageDecodeError
        If it is not a DICOM file, or its pixels or this frame are missing.
    """

    def __init__(self, content: bytes, frame: int, window: Window | None, *, is_isolated: bool = False) -> None:
        self._frame = frame
        self._window = window
        self._is_isolated = is_isolated
        try:
            self._content = elements.inflated(content)
            buffer = io.BytesIO(self._content)
            data = elements.read_elements(buffer, _KEYWORDS)
        except ImageDecodeError:
            raise
        except Exception as error:  # as in `read_header`
            raise ImageDecodeError(Unreadable.DICOM_HEADER, type(error).__name__) from error
        self._data: FileDataset = data
        self._pixels_at = buffer.tell()
        if "Rows" not in data or "Columns" not in data:
            raise ImageDecodeError(Unreadable.DICOM_NO_PIXELS, _class_of(data))
        self.width, self.height = self.size = int(data.Columns), int(data.Rows)
        if not self.width or not self.height:
            raise ImageDecodeError(Unreadable.DICOM_NO_SIZE, f"{self.width} x {self.height}")
        self._check_frame(buffer)
        self._index = max(0, frame - 1)
        syntax = re.sub(r" \(.*|,.*| Compression.*| Image.*", "", self._syntax.name)
        name = f"DICOM, {'Deflated ' * elements.is_deflated(content)}{syntax}"
        self.kind = name, self._photometric, int(data.get("BitsStored", None) or 0)

    def _check_frame(self, buffer: io.BytesIO) -> None:
        stated, present = elements.n_frames_stated(self._data), elements.n_frames_present(self._data, buffer)
        self.n_frames = present
        if self._frame > stated:
            raise ImageDecodeError(Unreadable.NO_FRAME.format(self._frame), f"the file has {stated}")
        if self._frame > present:
            details = f"the header states {stated:,} frames, the file has at most {present:,}"
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, details)

    @property
    def header(self) -> FileHeader:
        """What is recorded of the file's header."""
        name, photometric, bits = self.kind
        modality, manufacturer, model = (kind_text(self._data.get(keyword, None)) for keyword in KINDS)
        return FileHeader(self.width, self.height, bits, Kinds(name, photometric, modality, manufacturer, model, "no"))

    @cached_property
    def _syntax(self) -> uid.UID:
        """The transfer syntax; if the file does not state it, the one that its bytes suggest."""
        found = self._data.file_meta.get("TransferSyntaxUID", None)
        if found:
            return uid.UID(found)
        is_implicit, is_little_endian = self._data.original_encoding
        if not is_little_endian:
            return uid.ExplicitVRBigEndian
        return uid.ImplicitVRLittleEndian if is_implicit else uid.ExplicitVRLittleEndian

    @cached_property
    def _photometric(self) -> str:
        found = str(self._data.get("PhotometricInterpretation", None) or "").strip()
        return found if found in _GREYS | _COLOURS | _OTHER_COLOURS else "unknown"

    @cached_property
    def _codec(self) -> str:
        is_deep = self._syntax == uid.JPEGExtended12Bit and (number(self._data, "BitsStored") or 0) > 8
        return TWELVE_BITS if is_deep else CODECS.get(self._syntax, "")

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Decode to (H, W) grey, see `grey_pixels`, or (H, W, 3) RGB. Raise ImageDecodeError if that is impossible."""
        if not self._is_isolated and self._codec in CRASHING:
            return self._isolated()
        try:
            values, codestream = self._decoded()
        except _SlowError:
            return self._isolated()
        try:
            with np.errstate(all="ignore"):  # a value too large for a float becomes white or black
                return self._to_8_bits(values, codestream)
        except (ImageDecodeError, MemoryError):
            raise
        except Exception as error:  # as in `read_header`: look-up tables are checked when they are used
            raise ImageDecodeError(Unreadable.DICOM_LOOK_UP, _one_line(error)) from error

    def _isolated(self) -> npt.NDArray[np.uint8]:
        try:
            return decode_isolated(self._content, self._frame, max(MAX_PIXELS, self.width * self.height), self._window)
        except DecoderCrashError as error:
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, str(error)) from error

    def _to_8_bits(self, values: npt.NDArray[Any], codestream: Codestream | None) -> npt.NDArray[np.uint8]:
        """Convert (H, W) or (H, W, 3) stored values to 8 bits."""
        is_little_endian = self._syntax.is_little_endian
        if values.ndim == 3 and self._photometric in _COLOURS:
            return self._rgb(values, codestream)
        if values.ndim != 2 or self._photometric not in _GREYS:
            raise ImageDecodeError(Unreadable.DICOM_COLOURS, self._photometric)
        ends = stored_range(values, number(self._data, "BitsStored"))
        if self._photometric == "PALETTE COLOR":
            return coloured(values, self._data, *ends, is_little_endian=is_little_endian)
        grey = grey_pixels(values, self._data, self._index, self._window, is_little_endian=is_little_endian)
        return 255 - grey if self._photometric == "MONOCHROME1" else grey

    def _rgb(self, values: npt.NDArray[Any], codestream: Codestream | None) -> npt.NDArray[np.uint8]:
        """Convert (H, W, 3) stored values to RGB of 8 bits."""
        if values.dtype.kind != "u":
            raise ImageDecodeError(Unreadable.DICOM_COLOURS, f"{self._photometric} of values with a sign")
        stated, bits = self._photometric, int(self._data.BitsStored)
        if codestream is None and stated in {"YBR_RCT", "YBR_ICT"}:
            raise ImageDecodeError(Unreadable.DICOM_COLOURS, f"{stated} without JPEG 2000")
        if codestream is not None and codestream.bits > bits:
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, f"{codestream.bits} bits, but the header states {bits}")
        is_rgb = stated == "RGB" if codestream is None else codestream.is_colour_converted(stated)
        if not is_rgb and (bits != 8 or values.dtype.itemsize > 1):  # the only conversion that the standard defines
            raise ImageDecodeError(Unreadable.DICOM_COLOURS, f"{stated} of {bits} bits")
        values = values if is_rgb else convert_color_space(values, "YBR_FULL", "RGB")
        return values.astype(np.uint8, copy=False) if bits == 8 else scaled(values, 0.0, float(2**bits - 1))

    def _decoded(self) -> tuple[npt.NDArray[Any], Codestream | None]:
        """Return stored values (H, W) or (H, W, 3), colours unconverted, and what their codestream states."""
        if self._syntax in _JPEG_LS and self._content.find(_DELIMITER, self._pixels_at) < 0:
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, "the end of the JPEG-LS data is missing")
        if self._photometric not in _GREYS | _COLOURS:
            raise ImageDecodeError(Unreadable.DICOM_COLOURS, self._photometric)
        if not self._syntax.is_transfer_syntax:
            raise ImageDecodeError(Unreadable.DICOM_SYNTAX, self._syntax[:64])
        try:
            decoder = get_decoder(self._syntax)
        except NotImplementedError as error:
            raise ImageDecodeError(Unreadable.DICOM_SYNTAX, self._syntax.name) from error
        try:
            element = elements.pixel_element(
                self._content, self._pixels_at, is_little_endian=self._syntax.is_little_endian
            )
            codestream = self._checked(element)
            self._check_high_bit(codestream)
            options = as_pixel_options(
                self._data, transfer_syntax_uid=self._syntax, pixel_keyword=element.keyword, pixel_vr=element.kind
            )
            buffer = io.BytesIO(self._content)
            buffer.seek(element.start)
            # Only this one of many frames is read.
            values, _ = decoder.as_array(buffer, index=self._index, raw=True, decoding_plugin=self._codec, **options)
            return self._without_unused_bits(values, codestream), codestream
        except (ImageDecodeError, MemoryError, _SlowError):
            raise
        except Exception as error:  # as in `read_header`, and anything that codecs raise
            text = _one_line(error)
            kind = next((kind for words, kind in _KINDS.items() if words in text), Unreadable.DICOM_PIXELS)
            raise ImageDecodeError(kind, text) from error

    def _checked(self, element: elements.PixelElement) -> Codestream | None:
        """Compare the length or the codestream of the pixels with the header, before a decoder allocates memory for them."""
        if self._syntax.is_encapsulated == (element.length is not None):
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, f"they are not {self._syntax.name}, as the header states")
        n_channels, bits = (int(number(self._data, keyword) or least) for keyword, least in _LEAST.items())
        n_bytes = self.width * self.height * n_channels * bits // 8
        if element.length is not None:
            self._check_length(element.length, self.width * self.height * n_channels * bits)
            return None
        buffer = io.BytesIO(self._content)
        buffer.seek(element.start)
        frame = get_frame(buffer, self._index, number_of_frames=elements.n_frames_stated(self._data))
        if self._syntax == uid.RLELossless:
            if len(frame) > max_rle_bytes(n_bytes):
                raise ImageDecodeError(Unreadable.DICOM_PIXELS, "more runs than pixels")
            return None
        if not self._is_isolated and is_slow(frame, self.width * self.height):
            raise _SlowError
        found = read_codestream(frame)
        if found is None:
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, "no header of a codestream")
        if (found.width, found.height, found.n_channels) != (self.width, self.height, n_channels):
            raise ImageDecodeError(
                Unreadable.DICOM_PIXELS,
                f"{found.width} x {found.height} with {found.n_channels} channels, but the header states {self.width} x "
                f"{self.height} with {n_channels}",
            )
        if n_channels > 1 and self._syntax not in _JPEG_LS and number(self._data, "PlanarConfiguration"):
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, "colours by plane, which this compression does not have")
        if found.bits > bits:
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, f"{found.bits} bits, but the header states {bits}")
        return found

    def _check_length(self, n_bytes: int, n_bits: int) -> None:
        """Refuse uncompressed pixels that are longer by a frame or by what YBR_FULL_422 leaves out, or end before the frame.

        Of too short an element, the length is wrong: after one, a decoder would take any bytes for pixels.
        """
        n_frames = elements.n_frames_stated(self._data)
        if self._photometric == "YBR_FULL_422" and n_bytes * 8 >= n_bits * n_frames:
            raise ImageDecodeError(
                Unreadable.DICOM_COLOURS, "YBR_FULL_422, but the pixels are as long as RGB or YBR_FULL"
            )
        least = n_bits * (self._index + 1) * (2 if self._photometric == "YBR_FULL_422" else 3) // 3
        if not least <= n_bytes * 8 < n_bits * (n_frames + 1):
            reason = f"{n_bytes:,} bytes, but the header states {n_bits * n_frames // 8:,}"
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, reason)

    def _check_high_bit(self, codestream: Codestream | None) -> None:
        """Refuse values above unused bits, unless a codestream has no unused bits."""
        high, stored = number(self._data, "HighBit"), number(self._data, "BitsStored")
        if high is None or stored is None or high == stored - 1 or (codestream and codestream.bits <= stored):
            return
        raise ImageDecodeError(Unreadable.DICOM_HIGH_BIT, f"the highest is {high:g} of {stored:g}")

    def _without_unused_bits(self, values: npt.NDArray[Any], codestream: Codestream | None) -> npt.NDArray[Any]:
        """Clear the bits above the stored ones, such as overlays, that a codec preserved: pydicom clears only others'.

        Lossy compression blurs such bits into values. Values that are hardly too large are clipped there, as rounding
        errors; others are refused.
        """
        stored = int(number(self._data, "BitsStored") or 0)
        if codestream is None or codestream.bits <= stored or values.ndim != 2 or values.dtype.kind not in "iu":
            return values
        low, high = stored_range(values, stored)
        if self._syntax not in _LOSSY:
            shift = values.dtype.itemsize * 8 - stored
            cleared: npt.NDArray[Any] = (values << shift) >> shift
            return cleared
        most = (high - low) // 16
        if values.min() < low - most or values.max() > high + most:
            text = f"values beyond the {stored} bits that the header states"
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, text)
        return values.clip(low, high)


def _one_line(error: Exception) -> str:
    """Return an error's message on one line, or its class."""
    return " ".join(f"{error}".split())[:MAX_REASON] or type(error).__name__


def _class_of(data: Dataset) -> str:
    """Return a file's kind: "Encapsulated PDF Storage". A damaged header's text is not repeated: it could be a name."""
    meta = getattr(data, "file_meta", Dataset())
    found = str(data.get("SOPClassUID", None) or meta.get("MediaStorageSOPClassUID", None) or "")
    if not found:
        return "its SOP class is missing"
    name = uid.UID(found).name
    return "its SOP class is unknown" if name == found else name
