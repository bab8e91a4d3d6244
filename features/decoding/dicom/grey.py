"""Stored grey values converted to 8 bits: rescale, window, padding."""

from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi, apply_windowing
from pydicom.valuerep import DSfloat

from hoarfrost.features.decoding.dicom.elements import number, numbers
from hoarfrost.features.decoding.windows import Window, percentile_window, scaled
from hoarfrost.features.errors import ImageDecodeError, Unreadable

_ABOVE_ZERO = float(np.nextafter(0.0, 1.0))
_LEAST_WIDTH = {"LINEAR": 1.0, "LINEAR_EXACT": _ABOVE_ZERO, "SIGMOID": _ABOVE_ZERO}


def grey_pixels(values: npt.NDArray[Any], header: Dataset, index: int, window: Window | None) -> npt.NDArray[np.uint8]:
    """Convert stored values to 8 bits.

    First the modality LUT or rescale; then the requested window, else the file's first VOI LUT, else its first usable
    window, else the window from the 0.5% to the 99.5% percentile of the pixels without padding.

    Parameters
    ----------
    values : ndarray (H, W)
    header : Dataset
    index : int
        The frame, from 0: an enhanced file has values for each frame, or for all.
    window : Window or None
        Used in place of the file's own.

    Raises
    ------
    ImageDecodeError
        If no pixel is a number.
    """
    seen = _rescaled(values, _group(header, index, "PixelValueTransformationSequence", "RescaleSlope"))
    if seen.dtype.kind == "f" and not np.isfinite(seen).any():
        raise ImageDecodeError(Unreadable.NO_NUMBERS)
    if window is not None:
        return _apply_window(seen, window.center, window.width, "LINEAR")
    voi = _group(header, index, "FrameVOILUTSequence", "WindowCenter")
    table = (voi.get("VOILUTSequence", None) or [Dataset()])[0]
    if "LUTDescriptor" in table and "LUTData" in table:
        whole = seen if seen.dtype.kind in "iu" else np.rint(seen).astype(np.int32)
        return to_8_bits(apply_voi(whole, voi, 0), int(table.LUTDescriptor[2]))
    function = str(voi.get("VOILUTFunction", None) or "LINEAR").strip().upper()
    least = _LEAST_WIDTH.get(function, np.inf)
    for center, width in zip(numbers(voi, "WindowCenter"), numbers(voi, "WindowWidth"), strict=False):
        if center is not None and width is not None and width >= least:
            return _apply_window(seen, center, width, function)
    shown = seen[_is_no_padding(values, header)]
    return scaled(seen, *percentile_window(shown if shown.size else seen))


def _rescaled(values: npt.NDArray[Any], group: Dataset) -> npt.NDArray[Any]:
    """Apply the modality LUT, else slope and intercept if both are present. An empty element counts as missing."""
    if group.get("ModalityLUTSequence", None):
        lut: npt.NDArray[Any] = apply_modality_lut(values, group)
        return lut
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


def _is_no_padding(values: npt.NDArray[Any], header: Dataset) -> npt.NDArray[np.bool_]:
    """Return which pixels are not padding, (H, W) bool."""
    first, last = number(header, "PixelPaddingValue"), number(header, "PixelPaddingRangeLimit")
    if first is None:
        return np.ones(values.shape, bool)
    low, high = sorted(_as_stored(end, values.dtype) for end in (first, first if last is None else last))
    return (values < low) | (values > high)


def _as_stored(value: float, dtype: np.dtype[Any]) -> float:
    """Return a padding value as signed if the pixels are: some scanners write 63536 for -2000."""
    is_wrapped = dtype.kind == "i" and value > np.iinfo(dtype).max
    return value - 2.0 ** (8 * dtype.itemsize) if is_wrapped else value


def _apply_window(values: npt.NDArray[Any], center: float, width: float, function: str) -> npt.NDArray[np.uint8]:
    """Apply a window as pydicom does: values from 0 to 255."""
    window = Dataset()
    window.PhotometricInterpretation = "MONOCHROME2"
    window.PixelRepresentation, window.BitsStored = 0, 8
    window.WindowCenter, window.WindowWidth = DSfloat(center, auto_format=True), DSfloat(width, auto_format=True)
    window.VOILUTFunction = function
    seen: npt.NDArray[np.uint8] = np.rint(apply_windowing(values, window)).astype(np.uint8)
    return seen


def to_8_bits(values: npt.NDArray[Any], bits: int | None) -> npt.NDArray[np.uint8]:
    """Scale whole numbers of `bits` bits (None: those of their type) to 8."""
    bits = values.dtype.itemsize * 8 if bits is None else bits
    return values.astype(np.uint8, copy=False) if bits == 8 else scaled(values, 0.0, float(2**bits - 1))
