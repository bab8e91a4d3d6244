"""Stored grey values converted to 8 bits: rescale, window, padding."""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_windowing
from pydicom.valuerep import DSfloat

from hoarfrost.features.decoding.dicom.elements import number, numbers
from hoarfrost.features.decoding.dicom.luts import first_table, white_of
from hoarfrost.features.decoding.windows import Window, percentile_window, scaled
from hoarfrost.features.errors import ImageDecodeError, Unreadable

_MOST = (1 << 16) - 1  # that a table's entry can be
_ABOVE_ZERO = float(np.nextafter(0.0, 1.0))
_LEAST_WIDTH = {"LINEAR": 1.0, "LINEAR_EXACT": _ABOVE_ZERO, "SIGMOID": _ABOVE_ZERO}


# Their modality LUT leads back to the intensity of the beam. It is not for display (PS3.3, C.8.7.1.1.2).
_NO_MODALITY_LUT = frozenset({
    uid.XRayAngiographicImageStorage, uid.XRayRadiofluoroscopicImageStorage, uid.EnhancedXAImageStorage,
    uid.EnhancedXRFImageStorage, uid.UID("1.2.840.10008.5.1.4.1.1.12.3"),  # biplane, retired
})  # fmt: skip


def grey_pixels(
    values: npt.NDArray[Any], header: Dataset, index: int, window: Window | None, *, is_little_endian: bool = True
) -> npt.NDArray[np.uint8]:
    """Convert stored values to 8 bits.

    First the modality LUT (but not of angiography and fluoroscopy) or rescale; then the requested window, else the
    file's first VOI LUT, else its first usable window, else the window from the 0.5% to the 99.5% percentile of the
    pixels without padding.

    Parameters
    ----------
    values : ndarray (H, W)
    header : Dataset
    index : int
        The frame, from 0: an enhanced file has values for each frame, or for all.
    window : Window or None
        Used in place of the file's own.
    is_little_endian : bool
        The byte order of the file's tables.

    Raises
    ------
    ImageDecodeError
        If no pixel is a number, or a table or rescale cannot be applied.
    """
    ends = stored_range(values, number(header, "BitsStored"))
    group = _group(header, index, "PixelValueTransformationSequence", "RescaleSlope")
    modality = None
    if str(header.get("SOPClassUID", "")) not in _NO_MODALITY_LUT:
        modality = first_table(group.get("ModalityLUTSequence", None), *ends, is_little_endian=is_little_endian)
    seen = _rescaled(values, group) if modality is None else modality.applied(values)
    low, high = (0.0, _MOST) if modality else sorted(float(_rescaled(np.array(end), group)) for end in ends)
    if seen.dtype.kind == "f" and not np.isfinite(seen).any():
        raise ImageDecodeError(Unreadable.NO_NUMBERS)
    if window is not None:
        return _apply_window(seen, window.center, window.width, "LINEAR")
    voi = _group(header, index, "FrameVOILUTSequence", "WindowCenter")
    table = first_table(voi.get("VOILUTSequence", None), low, high, is_little_endian=is_little_endian)
    if table is not None:
        return scaled(table.applied(seen), 0.0, float(white_of(table)))
    function = str(voi.get("VOILUTFunction", None) or "LINEAR").strip().upper()
    least = _LEAST_WIDTH.get(function, np.inf)
    for center, width in zip(numbers(voi, "WindowCenter"), numbers(voi, "WindowWidth"), strict=False):
        if center is not None and width is not None and width >= least:
            return _apply_window(seen, center, width, function)
    shown = seen[_is_no_padding(values, header)]
    return scaled(seen, *percentile_window(shown if shown.size else seen))


def _rescaled(values: npt.NDArray[Any], group: Dataset) -> npt.NDArray[Any]:
    """Apply slope and intercept if both are present. An empty element counts as missing."""
    if any(group.get(keyword, None) in (None, "") for keyword in ("RescaleSlope", "RescaleIntercept")):
        return values
    slope, intercept = number(group, "RescaleSlope"), number(group, "RescaleIntercept")
    if not slope or intercept is None:
        raise ImageDecodeError(Unreadable.DICOM_RESCALE)
    return values.astype(np.float64) * slope + intercept


def _group(header: Dataset, index: int, sequence: str, keyword: str) -> Dataset:
    """Return the group with a frame's values: its own functional group, the shared one, or the file's header."""
    frames = header.get("PerFrameFunctionalGroupsSequence", None) or []
    own = [frames[index]] if index < len(frames) else []
    for group in (*own, *(header.get("SharedFunctionalGroupsSequence", None) or [])[:1]):
        found = group.get(sequence, None) or []
        if found and (keyword in found[0] or "VOILUTSequence" in found[0]):
            return found[0]  # type: ignore[no-any-return]
    return header


def stored_range(values: npt.NDArray[Any], bits: float | None) -> tuple[int, int]:
    """Return the least and the greatest value that so many bits can store, with or without a sign as the values have."""
    if values.dtype.kind not in "iu":
        return -_MOST - 1, _MOST
    n = int(bits or values.dtype.itemsize * 8)
    return (-(2 ** (n - 1)), 2 ** (n - 1) - 1) if values.dtype.kind == "i" else (0, 2**n - 1)


def _is_no_padding(values: npt.NDArray[Any], header: Dataset) -> npt.NDArray[np.bool_]:
    """Return which pixels are not padding, (H, W) bool."""
    first, last = number(header, "PixelPaddingValue"), number(header, "PixelPaddingRangeLimit")
    if first is None:
        return np.ones(values.shape, bool)
    ends = stored_range(values, number(header, "BitsStored"))
    low, high = sorted(_as_stored(end, *ends) for end in (first, first if last is None else last))
    return (values < low) | (values > high)


def _as_stored(value: float, lowest: int, highest: int) -> float:
    """Return a padding value as the pixels store it: some scanners write 63536 for -2000, others the reverse."""
    n_values = highest - lowest + 1
    return value if lowest <= value <= highest else (value - lowest) % n_values + lowest


def _apply_window(values: npt.NDArray[Any], center: float, width: float, function: str) -> npt.NDArray[np.uint8]:
    """Apply a window as pydicom does: values from 0 to 255."""
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.PixelRepresentation, window.BitsStored = 0, 8
    window.WindowCenter, window.WindowWidth = DSfloat(center, auto_format=True), DSfloat(width, auto_format=True)
    window.VOILUTFunction = function
    seen: npt.NDArray[np.uint8] = np.rint(apply_windowing(values, window)).astype(np.uint8)
    return seen
