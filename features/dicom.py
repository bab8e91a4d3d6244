"""DICOM files: what their headers say, and their pixels as 8 bits. The sole user of pydicom, an extra."""

import io
import logging
import math
import re
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi, apply_windowing
from pydicom.pixels.utils import pixel_array
from pydicom.valuerep import DSfloat

from features.apart import DecoderCrashError, decoded_apart
from features.errors import ImageDecodeError
from features.formats import MAX_PIXELS
from features.windows import Window, percentile_window, scaled

OLDEST_BAND = 90  # years and more: from there on an age may tell who it is
MAX_TEXT = 64  # characters of an attribute
MAX_REASON = 200  # characters of what a codec says
_KINDS = {  # by what pydicom says of its codecs
    "does not support": "DICOM pixels of a kind that no codec reads",
    "missing dependencies": "DICOM pixels whose codec is not installed, pip install 'hoarfrost[dicom]'",
}
# The codec of each transfer syntax: pixels must not depend on what else is installed.
CODECS = {
    uid.JPEGBaseline8Bit: "pillow", uid.JPEGExtended12Bit: "pillow", uid.JPEGLossless: "gdcm", uid.JPEGLosslessSV1: "gdcm",
    uid.JPEGLSLossless: "pyjpegls", uid.JPEGLSNearLossless: "pyjpegls", uid.JPEG2000Lossless: "pylibjpeg",
    uid.JPEG2000: "pylibjpeg", uid.RLELossless: "pydicom",
}  # fmt: skip
CRASHING = frozenset(
    {"gdcm"}
)  # damaged files end its process by a C++ exception; no other free codec reads lossless JPEG
_JPEG_LS = frozenset({uid.JPEGLSLossless, uid.JPEGLSNearLossless})  # CharLS takes ten seconds over what has no end
_DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"  # ends compressed pixels
PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

# Of the header no more is parsed than is needed: what is not read cannot get into a message either.
_PATIENT_TAGS = [
    "PatientID", "PatientName", "PatientSex", "PatientAge", "StudyInstanceUID", "SOPClassUID", "InstitutionName",
    "Manufacturer", "ManufacturerModelName", "BurnedInAnnotation", "NumberOfFrames", "Rows", "SpecificCharacterSet",
]  # fmt: skip
_IMAGE_TAGS = [
    "SOPClassUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows",
    "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue",
    "PixelPaddingRangeLimit", "RescaleIntercept", "RescaleSlope", "RescaleType", "ModalityLUTSequence", "VOILUTSequence",
    "WindowCenter", "WindowWidth", "VOILUTFunction", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelPresentation", "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor", "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData", "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData", "SegmentedBluePaletteColorLookupTableData",
]  # fmt: skip

# pydicom warns of values that break the standard, and quotes them: a birth date, a name.
warnings.filterwarnings("ignore", module=r"pydicom\.")
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


@dataclass(frozen=True)
class DicomHeader:
    """What of a file's header the data set uses; texts are empty where the file does not say.

    `patient_id` and `patient_name` never leave this process as they are, unless the user wants the ids kept.
    """

    n_frames: int
    patient_id: str
    patient_name: str
    study: str
    site: str
    scanner: str
    sex: str
    age: str
    burned_in: str

    @property
    def has_patient_id(self) -> bool:
        """Whether the file says whose it is."""
        return bool(self.patient_id)

    @property
    def patient(self) -> str:
        """Whose the file is: the patient's id, or where that is blank, the study."""
        return self.patient_id or self.study

    def is_told_by(self, path: str) -> bool:
        """Tell whether a path holds the patient's id or name."""
        words = [self.patient_id, *re.split(r"[\^=\s,]+", self.patient_name)]
        return any(len(word) > 2 and word.casefold() in path.casefold() for word in words)


def read_header(file: str | BinaryIO) -> DicomHeader | None:
    """Read what a file says of its patient, site and scanner, and how many frames it has; no pixels.

    Returns
    -------
    DicomHeader or None
        None where the file cannot be read as DICOM; decoding it will say why.
    """
    try:
        data = pydicom.dcmread(file, force=True, stop_before_pixels=True, specific_tags=list(_PATIENT_TAGS))
        if "SOPClassUID" not in data and "Rows" not in data:
            return None  # `force` finds elements in anything
        manufacturer, model = _text(data, "Manufacturer"), _text(data, "ManufacturerModelName")
        return DicomHeader(
            n_frames=_count(data),
            patient_id=_text(data, "PatientID"),
            patient_name=_text(data, "PatientName"),
            study=_text(data, "StudyInstanceUID"),
            site=_text(data, "InstitutionName"),
            scanner=model if model.startswith(manufacturer) else f"{manufacturer} {model}".strip(),
            sex=_text(data, "PatientSex").upper(),
            age=_age_band(_text(data, "PatientAge")),
            burned_in=_text(data, "BurnedInAnnotation").lower(),
        )
    except Exception:  # pydicom raises nearly anything on damaged files
        return None


def _text(data: Dataset, keyword: str) -> str:
    """Give an element's text on one line, without what cannot be printed."""
    value = str(data.get(keyword, None) or "")
    return " ".join("".join(c if c.isprintable() else " " for c in value).split())[:MAX_TEXT]


def _count(data: Dataset) -> int:
    try:
        return max(1, int(data.get("NumberOfFrames", None) or 1))
    except (TypeError, ValueError):
        return 1


def _age_band(age: str) -> str:
    """Give the decade of an age such as "045Y": "40-49"."""
    found = re.fullmatch(r"(\d{3})([DWMY])", age)
    if found is None:
        return ""
    years = int(found[1]) if found[2] == "Y" else 0
    years = int(found[1]) // 12 if found[2] == "M" else years
    decade = years // 10 * 10
    return f"{OLDEST_BAND}+" if decade >= OLDEST_BAND else f"{decade}-{decade + 9}"


class DicomImage:
    """A DICOM file, or one of its frames, whose header is read.

    Parameters
    ----------
    content : bytes
    frame : int
        Which, from 1; 0 where there is only one.
    window : Window or None
        In place of the file's own; for grey images.
    is_apart : bool
        Whether this process may crash: codecs that do are used here then, else in another process.

    Raises
    ------
    ImageDecodeError
        If it is no DICOM file, one without pixels, or has no such frame.
    """

    def __init__(self, content: bytes, frame: int, window: Window | None, *, is_apart: bool = False) -> None:
        self._content = content
        self._frame = frame
        self._window = window
        self._is_apart = is_apart
        buffer = io.BytesIO(content)
        try:
            data = pydicom.dcmread(buffer, force=True, stop_before_pixels=True, specific_tags=list(_IMAGE_TAGS))
        except Exception as error:  # as in `read_header`
            raise ImageDecodeError(f"damaged or truncated DICOM header: {type(error).__name__}") from error
        self._data: FileDataset = data
        self._pixels_at = buffer.tell()
        if "Rows" not in data or "Columns" not in data:
            raise ImageDecodeError(f"a DICOM file without pixels: {_class_of(data)}")
        self.width, self.height = self.size = int(data.Columns), int(data.Rows)
        if not self.width or not self.height:
            raise ImageDecodeError(f"a DICOM image of no size: {self.width} x {self.height}")
        n_frames = _count(data)
        if frame > n_frames:
            raise ImageDecodeError(f"no frame {frame}: the file has {n_frames}")
        self._index = max(0, frame - 1)
        syntax = re.sub(r" \(.*|,.*| Compression.*| Image.*", "", self._syntax.name)
        self.kind = f"DICOM, {syntax}", str(data.get("PhotometricInterpretation", "")), int(data.get("BitsStored", 0))

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

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Decode (H, W) grey or (H, W, 3) RGB.

        Grey: the modality LUT or rescale; then the window asked for, else the file's first VOI LUT, else its first window,
        else the one that 0.5% and 99.5% of the pixels end at, those of padding left out; MONOCHROME1 is inverted.

        Raises
        ------
        ImageDecodeError
            If the pixels cannot be decoded.
        """
        if not self._is_apart and CODECS.get(self._syntax) in CRASHING:
            try:
                return decoded_apart(
                    self._content, self._frame, max(MAX_PIXELS, self.width * self.height), self._window
                )
            except DecoderCrashError as error:
                raise ImageDecodeError(f"damaged or truncated DICOM pixels: its decoder crashed, {error}") from error
        values = self._decoded()
        photometric = str(self._data.get("PhotometricInterpretation", "")).strip()
        if photometric == "PALETTE COLOR":
            return _shares(apply_color_lut(values, self._data), None)
        if values.ndim == 3 and values.shape[-1] == 3:
            return _shares(values, int(self._data.BitsStored))
        if values.ndim != 2:
            raise ImageDecodeError(f"a DICOM image of an unknown kind: {photometric} of shape {values.shape}")
        grey = self._windowed(values)
        return 255 - grey if photometric == "MONOCHROME1" else grey

    def _decoded(self) -> npt.NDArray[Any]:
        if self._syntax in _JPEG_LS and self._content.find(_DELIMITER, self._pixels_at) < 0:
            raise ImageDecodeError("damaged or truncated DICOM pixels: the JPEG-LS data have no end")
        try:
            if self._syntax == uid.DeflatedExplicitVRLittleEndian or "TransferSyntaxUID" not in self._data.file_meta:
                whole = pydicom.dcmread(
                    io.BytesIO(self._content), force=True, specific_tags=[*_IMAGE_TAGS, *PIXEL_KEYWORDS]
                )
                whole.file_meta.TransferSyntaxUID = self._syntax
                if not any(keyword in whole for keyword in PIXEL_KEYWORDS):
                    raise ImageDecodeError(f"a DICOM file without pixels: {_class_of(whole)}")
                return pixel_array(whole, index=self._index)
            codec = CODECS.get(self._syntax, "")
            # Of many frames, only this one is read.
            return pixel_array(io.BytesIO(self._content), index=self._index, decoding_plugin=codec)
        except NotImplementedError as error:
            raise ImageDecodeError(
                f"DICOM pixels of a transfer syntax that is not read: {self._syntax.name}"
            ) from error
        except (ImageDecodeError, MemoryError):
            raise
        except Exception as error:  # as in `read_header`, and whatever the codecs raise
            said = " ".join(f"{error}".split())[:MAX_REASON] or type(error).__name__
            kind = next((kind for words, kind in _KINDS.items() if words in said), "damaged or truncated DICOM pixels")
            raise ImageDecodeError(f"{kind}: {said}") from error

    def _windowed(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """Make 8 bits of (H, W) stored values."""
        seen = apply_modality_lut(values, self._group("PixelValueTransformationSequence", "RescaleSlope"))
        if self._window is not None:
            return _through(seen, self._window.center, self._window.width, "LINEAR")
        voi = self._group("FrameVOILUTSequence", "WindowCenter")
        table = (voi.get("VOILUTSequence", None) or [Dataset()])[0]
        if "LUTDescriptor" in table and "LUTData" in table:
            whole = seen if seen.dtype.kind in "iu" else np.rint(seen).astype(np.int32)
            return _shares(apply_voi(whole, voi, 0), int(table.LUTDescriptor[2]))
        center, width = _first(voi, "WindowCenter"), _first(voi, "WindowWidth")
        function = str(voi.get("VOILUTFunction", None) or "LINEAR").upper()
        least = {"LINEAR": 1.0, "LINEAR_EXACT": np.nextafter(0.0, 1.0), "SIGMOID": np.nextafter(0.0, 1.0)}
        if center is not None and width is not None and width >= least.get(function, np.inf):
            return _through(seen, center, width, function)
        shown = seen[self._is_no_padding(values)]
        return scaled(seen, *percentile_window(shown if shown.size else seen))

    def _group(self, sequence: str, keyword: str) -> Dataset:
        """Find a frame's own values: in its functional group, in those of all frames, or in the file's header."""
        frames = self._data.get("PerFrameFunctionalGroupsSequence", None) or []
        own = [frames[self._index]] if self._index < len(frames) else []
        for group in (*own, *(self._data.get("SharedFunctionalGroupsSequence", None) or [])[:1]):
            found = group.get(sequence, None) or []
            if found and keyword in found[0]:
                return found[0]  # type: ignore[no-any-return]
        return self._data

    def _is_no_padding(self, values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Tell pixels from what fills the picture's border, (H, W) bool."""
        first = _first(self._data, "PixelPaddingValue")
        if first is None:
            return np.ones(values.shape, bool)
        last = _first(self._data, "PixelPaddingRangeLimit")
        low, high = sorted((first, first if last is None else last))
        return (values < low) | (values > high)


def _class_of(data: Dataset) -> str:
    """Name what the file is: "Encapsulated PDF Storage"."""
    meta = getattr(data, "file_meta", Dataset())
    return (
        uid.UID(str(data.get("SOPClassUID", None) or meta.get("MediaStorageSOPClassUID", None) or "")).name
        or "of no class"
    )


def _first(data: Dataset, keyword: str) -> float | None:
    """Give the first of an element's numbers, None where there is none that is finite."""
    value = data.get(keyword, None)
    if isinstance(value, pydicom.multival.MultiValue):
        value = value[0] if value else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _through(values: npt.NDArray[Any], center: float, width: float, function: str) -> npt.NDArray[np.uint8]:
    """Look at values through a window, as pydicom does: 0 to 255."""
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.PixelRepresentation, window.BitsStored = 0, 8
    window.WindowCenter, window.WindowWidth = DSfloat(center, auto_format=True), DSfloat(width, auto_format=True)
    window.VOILUTFunction = function
    seen: npt.NDArray[np.uint8] = np.rint(apply_windowing(values, window)).astype(np.uint8)
    return seen


def _shares(values: npt.NDArray[Any], bits: int | None) -> npt.NDArray[np.uint8]:
    """Make 8 bits of whole numbers of so many (by default all that they have): the share of the greatest."""
    bits = values.dtype.itemsize * 8 if bits is None else bits
    return values.astype(np.uint8, copy=False) if bits == 8 else scaled(values, 0.0, float(2**bits - 1))
