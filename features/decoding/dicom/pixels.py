"""DICOM pixels as 8 bits, by the one codec of their transfer syntax."""

import io
import re
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import get_frame
from pydicom.pixels.decoders.base import JPEGExtended12BitDecoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array

from hoarfrost.features.decoding.dicom.codestreams import codestream_size, most_rle_bytes
from hoarfrost.features.decoding.dicom.elements import (
    inflated,
    is_deflated,
    n_frames_there,
    n_promised,
    number,
    read_elements,
)
from hoarfrost.features.decoding.dicom.grey import grey_pixels, shares
from hoarfrost.features.decoding.formats import MAX_PIXELS
from hoarfrost.features.decoding.isolated import DecoderCrashError, decode_isolated
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.errors import ImageDecodeError, Unreadable

MAX_REASON = 200  # characters of what a codec says
_KINDS = {  # by what pydicom says of its codecs
    "does not support": Unreadable.DICOM_NO_CODEC,
    "missing dependencies": Unreadable.DICOM_CODEC_MISSING,
}
# The codec of each transfer syntax: pixels must not depend on what else is installed.
CODECS = {
    uid.JPEGBaseline8Bit: "pillow", uid.JPEGExtended12Bit: "pillow", uid.JPEGLossless: "gdcm", uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls", uid.JPEGLSNearLossless: "pyjpegls", uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg", uid.HTJ2KLossless: "pylibjpeg", uid.HTJ2KLosslessRPCL: "pylibjpeg", uid.HTJ2K: "pylibjpeg",
    uid.RLELossless: "pydicom",
}  # fmt: skip
TWELVE_BITS = "gdcm, 12 bits"  # of JPEG: Pillow reads 8, and pydicom does not let GDCM
# Damaged files end GDCM's process by a C++ exception; no other free codec reads lossless JPEG.
CRASHING = frozenset({"gdcm", TWELVE_BITS})
JPEGExtended12BitDecoder.add_plugin(TWELVE_BITS, ("hoarfrost.features.decoding.dicom.jpeg12", "decoded"))

_JPEG_LS = frozenset({uid.JPEGLSLossless, uid.JPEGLSNearLossless})  # CharLS takes ten seconds over what has no end
_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"  # ends compressed pixels
_GREYS = frozenset({"MONOCHROME1", "MONOCHROME2", "PALETTE COLOR"})
_COLOURS = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})  # that pydicom makes RGB of
_OTHER_COLOURS = frozenset({"YBR_PARTIAL_422", "YBR_PARTIAL_420", "XYB", "HSV", "ARGB", "CMYK"})

_KEYWORDS = (
    "SOPClassUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence", "VOILUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "PixelPresentation", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
)  # fmt: skip


class DicomImage:
    """A DICOM file, or one of its frames, whose header is read.

    Parameters
    ----------
    content : bytes
    frame : int
        Which, from 1; 0 where there is only one.
    window : Window or None
        In place of the file's own; for grey images.
    is_isolated : bool
        Whether this process may crash: codecs that do are used here then, else in another process.

    Raises
    ------
    ImageDecodeError
        If it is no DICOM file, one without pixels, or has no such frame.
    """

    def __init__(self, content: bytes, frame: int, window: Window | None, *, is_isolated: bool = False) -> None:
        self._frame = frame
        self._window = window
        self._is_apart = is_isolated
        try:
            self._content = inflated(content)
            buffer = io.BytesIO(self._content)
            data = read_elements(buffer, _KEYWORDS)
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
        syntax = "Deflated " * is_deflated(content) + re.sub(
            r" \(.*|,.*| Compression.*| Image.*", "", self._syntax.name
        )
        self.kind = f"DICOM, {syntax}", self._photometric, int(data.get("BitsStored", None) or 0)

    def _check_frame(self, buffer: io.BytesIO) -> None:
        promised, there = n_promised(self._data), n_frames_there(self._data, buffer)
        self.n_frames = there
        if self._frame > promised:
            raise ImageDecodeError(Unreadable.NO_FRAME.format(self._frame), f"the file has {promised}")
        if self._frame > there:
            raise ImageDecodeError(
                Unreadable.DICOM_PIXELS, f"{promised:,} frames are promised, and at most {there:,} are there"
            )

    @cached_property
    def _syntax(self) -> uid.UID:
        """The transfer syntax; as the bytes look where the file does not say."""
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
        """Decode (H, W) grey, as `grey_pixels` says, or (H, W, 3) RGB.

        Raises
        ------
        ImageDecodeError
            If the pixels cannot be decoded.
        """
        if not self._is_apart and self._codec in CRASHING:
            try:
                return decode_isolated(
                    self._content, self._frame, max(MAX_PIXELS, self.width * self.height), self._window
                )
            except DecoderCrashError as error:
                raise ImageDecodeError(Unreadable.DICOM_PIXELS, str(error)) from error
        values = self._decoded()
        try:
            with np.errstate(all="ignore"):  # what is too large for a float is white or black
                return self._to_8_bits(values)
        except (ImageDecodeError, MemoryError):
            raise
        except Exception as error:  # as in `read_header`: look-up tables are checked when they are used
            said = " ".join(f"{error}".split())[:MAX_REASON] or type(error).__name__
            raise ImageDecodeError(Unreadable.DICOM_LOOK_UP, said) from error

    def _to_8_bits(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Convert (H, W) or (H, W, 3) stored values to 8 bits."""
        if self._photometric == "PALETTE COLOR":
            return shares(apply_color_lut(values, self._data), None)
        if values.ndim == 3 and self._photometric in _COLOURS:
            return shares(values, int(self._data.BitsStored))
        if values.ndim != 2:
            raise ImageDecodeError(Unreadable.DICOM_COLOURS, self._photometric)
        grey = grey_pixels(values, self._data, self._index, self._window)
        return 255 - grey if self._photometric == "MONOCHROME1" else grey

    def _decoded(self) -> npt.NDArray[Any]:
        if self._syntax in _JPEG_LS and self._content.find(_DELIMITER, self._pixels_at) < 0:
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, "the JPEG-LS data have no end")
        if self._photometric not in _GREYS | _COLOURS:
            raise ImageDecodeError(Unreadable.DICOM_COLOURS, self._photometric)
        high, stored = number(self._data, "HighBit"), number(self._data, "BitsStored")
        if self._codec in {"", "pydicom"} and high is not None and stored is not None and high != stored - 1:
            raise ImageDecodeError(Unreadable.DICOM_HIGH_BIT, f"the highest is {high:g} of {stored:g}")
        if not self._syntax.is_transfer_syntax:
            raise ImageDecodeError(Unreadable.DICOM_SYNTAX, self._syntax[:64])
        try:
            if self._syntax.is_encapsulated:
                self._check_codestream()
            # Of many frames, only this one is read.
            return pixel_array(
                io.BytesIO(self._content), index=self._index, decoding_plugin=self._codec, transfer_syntax_uid=self._syntax
            )  # fmt: skip
        except NotImplementedError as error:
            raise ImageDecodeError(Unreadable.DICOM_SYNTAX, self._syntax.name) from error
        except (ImageDecodeError, MemoryError):
            raise
        except Exception as error:  # as in `read_header`, and whatever the codecs raise
            said = " ".join(f"{error}".split())[:MAX_REASON] or type(error).__name__
            kind = next((kind for words, kind in _KINDS.items() if words in said), Unreadable.DICOM_PIXELS)
            raise ImageDecodeError(kind, said) from error

    def _check_codestream(self) -> None:
        """Refuse compressed pixels that are more than the header says, before a decoder makes room for them."""
        buffer = io.BytesIO(self._content)
        buffer.seek(self._pixels_at + 12)  # behind the element's tag, kind and length
        frame = get_frame(buffer, self._index, number_of_frames=n_promised(self._data))
        n_channels = int(number(self._data, "SamplesPerPixel") or 1)
        size = codestream_size(frame)
        if size is not None and (size.width * size.height > self.width * self.height or size.n_channels > n_channels):
            raise ImageDecodeError(
                Unreadable.DICOM_PIXELS,
                f"{size.width} x {size.height} of {size.n_channels} channels, where the "
                f"header says {self.width} x {self.height} of {n_channels}",
            )
        n_bytes = self.width * self.height * n_channels * int(number(self._data, "BitsAllocated") or 8) // 8
        if self._syntax == uid.RLELossless and len(frame) > most_rle_bytes(n_bytes):
            raise ImageDecodeError(Unreadable.DICOM_PIXELS, "more runs than there are pixels")


def _class_of(data: Dataset) -> str:
    """Return what the file is: "Encapsulated PDF Storage". A damaged header's text is not repeated: it may be a name."""
    meta = getattr(data, "file_meta", Dataset())
    found = str(data.get("SOPClassUID", None) or meta.get("MediaStorageSOPClassUID", None) or "")
    if not found:
        return "of no class"
    name = uid.UID(found).name
    return "of an unknown class" if name == found else name
