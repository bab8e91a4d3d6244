"""More than 8 bits a pixel become 8: by a window of values that black and white lie at the ends of."""

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
    """What DICOM calls a window: `width` values around `center` are spread from black to white."""

    center: float
    width: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read CENTER/WIDTH, as in 40/400.

        Raises
        ------
        ValueError
            If that is no window, or a width under 1.
        """
        center, mark, width = text.partition("/")
        window = cls(float(center), float(width)) if mark else None
        if window is None or not (math.isfinite(window.center) and 1 <= window.width < math.inf):
            raise ValueError(f"{text!r} is no window; write CENTER/WIDTH, as in 40/400, with a width of at least 1")
        return window

    def __str__(self) -> str:
        return f"{self.center:g}/{self.width:g}"


def percentile_window(values: "npt.NDArray[Any]") -> tuple[float, float]:
    """Return the values that 0.5% and 99.5% of the pixels do not exceed; least and greatest where those are equal.

    Parameters
    ----------
    values : ndarray of any shape
        Whole numbers or floats; what is not finite does not count.

    Returns
    -------
    low, high : float
        Two of the values themselves.

    Raises
    ------
    ImageDecodeError
        If none is finite: such an image says nothing.
    """
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        return _counted_window(values)
    flat = values.ravel()
    flat = flat[np.isfinite(flat)] if values.dtype.kind == "f" else flat
    if not flat.size:
        raise ImageDecodeError(Unreadable.NO_NUMBERS)
    places = [_place(share, flat.size) for share in PERCENTILES]
    ends = np.partition(flat, sorted({*places, 0, flat.size - 1}))
    low, high = (float(ends[place]) for place in places)
    return (low, high) if low < high else (float(ends[0]), float(ends[-1]))


def _counted_window(values: "npt.NDArray[Any]") -> tuple[float, float]:
    """Return the same for up to 16 bits, by counting each value: no sorting, and no second copy."""
    least = int(values.min())
    counts = np.zeros(int(values.max()) - least + 1, np.int64)
    flat = values.reshape(-1)
    for start in range(0, flat.size, _STRIP_VALUES):
        part = flat[start : start + _STRIP_VALUES].astype(np.int64) - least
        counts += np.bincount(part, minlength=len(counts))
    until = np.cumsum(counts)
    low, high = (least + int(np.searchsorted(until, _place(share, flat.size) + 1)) for share in PERCENTILES)
    return (float(low), float(high)) if low < high else (float(least), float(least + len(counts) - 1))


def _place(percentile: float, n: int) -> int:
    """Return the rank, from 0, of the least value that this percentage of `n` values does not exceed."""
    return max(0, math.ceil(n * percentile / 100) - 1)


def scaled(values: "npt.NDArray[Any]", low: float, high: float) -> "npt.NDArray[np.uint8]":
    """Scale values linearly from `low` (0) to `high` (255), rounded; what is not a number is 0.

    Where `low` is `high` the image says nothing, and is black.
    """
    pixels = np.zeros(values.shape, np.uint8)
    if not high > low:
        return pixels
    n_rows = max(1, _STRIP_VALUES // max(1, math.prod(values.shape[1:])))
    for top in range(0, len(values), n_rows):
        with np.errstate(invalid="ignore"):  # of NaNs that signal
            strip = values[top : top + n_rows].astype(np.float64)
        np.clip(np.nan_to_num(strip, copy=False, nan=low, posinf=high, neginf=low), low, high, out=strip)
        # Halved: the greatest floats' distance is more than a float holds.
        pixels[top : top + n_rows] = np.rint((strip / 2 - low / 2) / (high / 2 - low / 2) * 255)
    return pixels
