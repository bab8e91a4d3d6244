"""Facts of an image that tell how it was acquired: its size, its depth, the kinds in its header, and its grey levels."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

MAX_KINDS = 1000  # in one file of a cache; images of further kinds have none
MAX_TEXT = 64  # characters
MEASURED_PIXELS = 4096  # about so many, on a grid: all of them would cost as much as resizing the image
_POWERS = np.arange(256.0) ** np.arange(1, 5)[:, None]
NUMBERS = np.dtype(
    [
        ("kind", "<u2"), ("width", "<i4"), ("height", "<i4"), ("bits", "<i2"), ("channels", "<i2"), ("mean", "<f4"),
        ("sd", "<f4"), ("skewness", "<f4"), ("kurtosis", "<f4"),
    ]
)  # fmt: skip


class Kinds(NamedTuple):
    """The kinds in a file's header: never a name, an id or a date. A text is empty where the file lacks it.

    `format` is the file's ("PNG"; for DICOM with its compression), `mode` its colours ("RGB", "MONOCHROME2"), `exif`
    "yes" or "no". `manufacturer` and `model` are those of a scanner or a camera.
    """

    format: str = ""
    mode: str = ""
    modality: str = ""
    manufacturer: str = ""
    model: str = ""
    exif: str = ""


class FileHeader(NamedTuple):
    """What a file's header states: its size in pixels, its bits per channel (0 if unknown), and its kinds."""

    width: int
    height: int
    bits: int
    kinds: Kinds

    @classmethod
    def parsed(cls, values: Sequence[Any]) -> Self:
        """Return a header from the lists that JSON makes of it."""
        width, height, bits, kinds = values
        return cls(width, height, bits, Kinds(*kinds))


class ImageFacts(NamedTuple):
    """The facts of one image: its header, the channels of its pixels, and the moments of their grey levels (0 to 255)."""

    header: FileHeader
    channels: int
    moments: tuple[float, float, float, float]

    @classmethod
    def parsed(cls, values: Sequence[Any]) -> Self:
        """Return facts from the lists that JSON makes of them."""
        header, channels, moments = values
        return cls(FileHeader.parsed(header), channels, tuple(moments))


def sound_text(value: object) -> str:
    """Return a header's text on one line if it is valid: in a damaged header, it could extend into the patient's name."""
    if not isinstance(value, str):  # bytes, or several values: their text would hide what is not printable
        return ""
    text = value.rstrip("\0 ")
    return " ".join(text.split()) if text.isprintable() and len(text) <= MAX_TEXT else ""


def kind_text(value: object) -> str:
    """Return the text of a kind; none with a caret, by which DICOM separates the parts of a person's name."""
    text = sound_text(value)
    return "" if "^" in text else text


def facts_of(pixels: npt.NDArray[np.uint8], header: FileHeader | None = None) -> ImageFacts:
    """Return the facts of an image.

    Parameters
    ----------
    pixels : ndarray (H, W) or (H, W, 3) uint8
    header : FileHeader, optional
        By default, that of an array in place of a file.
    """
    if header is None:
        header = FileHeader(pixels.shape[1], pixels.shape[0], 8, Kinds("array", "L" if pixels.ndim == 2 else "RGB"))
    return ImageFacts(header, 1 if pixels.ndim == 2 else 3, grey_moments(pixels))


def grey_moments(pixels: npt.NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """Return mean, standard deviation, skewness and kurtosis of grey levels, from about 4,096 pixels on a grid.

    Of a colour picture, green counts: a weighted mean of the channels would take three times as long. Skewness and kurtosis
    of a picture of one grey level are 0; the kurtosis of a normal distribution is 3.
    """
    step = max(1, math.isqrt(pixels.shape[0] * pixels.shape[1] // MEASURED_PIXELS))
    grey = (pixels if pixels.ndim == 2 else pixels[:, :, 1])[::step, ::step].ravel()
    mean, square, cube, fourth = (_POWERS @ np.bincount(grey, minlength=256) / len(grey)).tolist()
    variance = square - mean**2
    if variance < 1e-6:
        return mean, 0.0, 0.0, 0.0
    third = cube - 3 * mean * square + 2 * mean**3
    fourth += -4 * mean * cube + 6 * mean**2 * square - 3 * mean**4
    return mean, math.sqrt(variance), third / variance**1.5, fourth / variance**2


@dataclass(frozen=True)
class Facts:
    """The facts of n images.

    Attributes
    ----------
    numbers : ndarray (n,) of NUMBERS
        `kind` points into `kinds`. All are 0 of an image whose facts are not known.
    kinds : tuple of Kinds
        The first is without any.
    """

    numbers: npt.NDArray[np.void]
    kinds: tuple[Kinds, ...] = (Kinds(),)

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        """Which images' facts are known, (n,) bool."""
        return np.asarray(self.numbers["width"] > 0)

    @classmethod
    def unknown(cls, n: int) -> Self:
        """Return those of n images of which nothing is known."""
        return cls(np.zeros(n, NUMBERS))

    @classmethod
    def of(cls, images: Sequence[ImageFacts | None]) -> Self:
        """Return those of some images; None where they are not known."""
        codes, found = {Kinds(): 0}, np.zeros(len(images), NUMBERS)
        for place, one in enumerate(images):
            if one is not None:
                width, height, bits, kinds = one.header
                code = codes.setdefault(kinds, len(codes))
                found[place] = (code, width, height, bits, one.channels, *one.moments)
        return cls(found, tuple(codes))

    @classmethod
    def joined(cls, parts: Iterable["Facts"]) -> Self:
        """Return those of several groups of images, one after another."""
        codes = {Kinds(): 0}
        found = [part.coded(codes) for part in parts]
        return cls(np.concatenate([np.zeros(0, NUMBERS), *found]), tuple(codes))

    def coded(self, codes: dict[Kinds, int]) -> npt.NDArray[np.void]:
        """Return the numbers with `kind` by other codes; those of further kinds are added, up to MAX_KINDS."""
        new = np.zeros(len(self.kinds), np.uint16)
        for number in np.unique(self.numbers["kind"]).tolist():
            kinds = self.kinds[number]
            if kinds in codes or len(codes) <= MAX_KINDS:
                new[number] = codes.setdefault(kinds, len(codes))
        found = self.numbers.copy()
        found["kind"] = new[found["kind"]]
        return found

    def take(self, rows: slice | npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> "Facts":
        """Return those of some of the images."""
        return Facts(self.numbers[rows], self.kinds)

    def filled(self, rows: npt.NDArray[np.int64], facts: "Facts") -> "Facts":
        """Return the same with other facts (m,) at some rows (m,)."""
        both = Facts.joined([self, facts])
        both.numbers[rows] = both.numbers[len(self) :]
        return both.take(slice(len(self)))

    def texts(self, name: str) -> list[str]:
        """Return one kind of each image, by its name in `Kinds`."""
        of_code = [str(getattr(kinds, name)) for kinds in self.kinds]
        return [of_code[code] for code in self.numbers["kind"].tolist()]

    def images(self) -> list[ImageFacts | None]:
        """Return the facts of each image; None where they are not known."""
        found: list[ImageFacts | None] = []
        for code, width, height, bits, channels, *moments in self.numbers.tolist():
            header = FileHeader(width, height, bits, self.kinds[code])
            mean, sd, skewness, kurtosis = moments
            found.append(ImageFacts(header, channels, (mean, sd, skewness, kurtosis)) if width > 0 else None)
        return found
