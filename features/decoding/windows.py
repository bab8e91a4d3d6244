"""From more than 8 bits per pixel to 8: by a window of values, from black to white."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from hoarfrost.features.errors import ImageDecodeError, Unreadable

if TYPE_CHECKING:
    import numpy.typing as npt

PERCENTILES = (0.5, 99.5)
_STRIP_VALUES = 1 << 20


@dataclass(frozen=True)
class Window:
    """A window as in DICOM: `width` values around `center` are spread from black to white."""

    center: float
    width: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read CENTER/WIDTH, as in 40/400; raise ValueError if it is not a window, or its width is below 1."""
        center, mark, width = text.partition("/")
        window = cls(float(center), float(width)) if mark else None
        if window is None or not (math.isfinite(window.center) and 1 <= window.width < math.inf):
            raise ValueError(f"{text!r} is not a window; write CENTER/WIDTH, as in 40/400, with a width of at least 1")
        return window

    def __str__(self) -> str:
        return f"{self.center:g}/{self.width:g}"


def percentile_window(values: "npt.NDArray[Any]") -> tuple[float, float]:
    """Return the values that 0.5% and 99.5% of the pixels do not exceed; the least and the greatest if those are equal.

    Parameters
    ----------
    values : ndarray of any shape
        Integers or floats; those that are not finite do not count.

    Returns
    -------
    low, high : float
        Two of the values themselves.

    Raises
    ------
    ImageDecodeError
        If no value is finite.
    """
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        return _counted_window(values)
    flat = values.ravel()
    flat = flat[np.isfinite(flat)] if values.dtype.kind == "f" else flat
    if not flat.size:
        raise ImageDecodeError(Unreadable.NO_NUMBERS)
    ranks = [_rank(percentile, flat.size) for percentile in PERCENTILES]
    ordered = np.partition(flat, sorted({*ranks, 0, flat.size - 1}))
    low, high = (float(ordered[rank]) for rank in ranks)
    return (low, high) if low < high else (float(ordered[0]), float(ordered[-1]))


def _counted_window(values: "npt.NDArray[Any]") -> tuple[float, float]:
    """Return the same for up to 16 bits, by counting each value, without sorting or a second copy."""
    least = int(values.min())
    counts = np.zeros(int(values.max()) - least + 1, np.int64)
    flat = values.reshape(-1)
    for start in range(0, flat.size, _STRIP_VALUES):
        part = flat[start : start + _STRIP_VALUES].astype(np.int64) - least
        counts += np.bincount(part, minlength=len(counts))
    cumulative = np.cumsum(counts)
    low, high = (
        least + int(np.searchsorted(cumulative, _rank(percentile, flat.size) + 1)) for percentile in PERCENTILES
    )
    return (float(low), float(high)) if low < high else (float(least), float(least + len(counts) - 1))


def _rank(percentile: float, n: int) -> int:
    """Return the rank, from 0, of the least value that this percentage of `n` values does not exceed."""
    return max(0, math.ceil(n * percentile / 100) - 1)


def scaled(values: "npt.NDArray[Any]", low: float, high: float) -> "npt.NDArray[np.uint8]":
    """Scale values linearly from `low` (0) to `high` (255), rounded; NaN is 0, and so is all of it if `low` is `high`."""
    pixels = np.zeros(values.shape, np.uint8)
    if not high > low:
        return pixels
    n_rows = max(1, _STRIP_VALUES // max(1, math.prod(values.shape[1:])))
    for top in range(0, len(values), n_rows):
        with np.errstate(invalid="ignore"):  # signalling NaNs
            strip = values[top : top + n_rows].astype(np.float64)
        np.clip(np.nan_to_num(strip, copy=False, nan=low, posinf=high, neginf=low), low, high, out=strip)
        # Halved: the distance of the greatest floats would overflow.
        pixels[top : top + n_rows] = np.rint((strip / 2 - low / 2) / (high / 2 - low / 2) * 255)
    return pixels
