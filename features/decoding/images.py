"""Encoded bytes to pixels that an encoder can take. The sole user of Pillow."""

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from hoarfrost.features.decoding.formats import MAX_PIXELS, EncodedFrame, describe, is_dicom, may_be_bare_dicom, unpack
from hoarfrost.features.decoding.windows import Window, percentile_window, scaled
from hoarfrost.features.encoder.registry import DEFAULT
from hoarfrost.features.errors import ImageDecodeError, Unreadable
from hoarfrost.features.fingerprint import jpeg_short_side

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from hoarfrost.features.datasets.table import Content

    Pixels = npt.NDArray[np.uint8]

PIXELS_AT_ONCE = 64 << 20  # of all threads together
STRIP_PIXELS = 1 << 20
MAX_REASON = 300  # characters of what a library says

# Not all that Pillow can open: its EPS reader starts Ghostscript, and a file's suffix is no promise.
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")
ANIMATED_FORMATS = frozenset({"PNG", "GIF", "WEBP", "AVIF"})
FIRST_FRAME = "animated: the first frame is taken"
FIRST_IMAGE = "several images in a file with another format's name: the first is taken"

# Pillow's modes of more than 8 bits a channel; convert("RGB") would clip them to white without a word.
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""What turns a picture upright, by EXIF's orientation."""

# TIFF's tags, and values of theirs.
_BITS_TAG, _PHOTOMETRIC_TAG, _PLANAR_TAG, _SAMPLE_FORMAT_TAG = 258, 262, 284, 339
_WHITE_IS_ZERO, _PLANES_APART, _UNSIGNED, _SIGNED = 0, 2, 1, 2

# Pillow warns of odd metadata, naming no file, and of sizes that are limited here. For good, as threads decode
# and catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Of Pillow's own 16 MB blocks, malloc keeps what is freed for each thread; those of more than 32 MB go back at once.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]


class PixelBudget:
    """How many pixels may be decoded at once, by all threads together: each takes up to ten bytes for a moment."""

    def __init__(self, n_pixels: int = PIXELS_AT_ONCE) -> None:
        self._n_pixels = n_pixels
        self._n_taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def of(self, n_pixels: int) -> Iterator[None]:
        """Wait until there is room; an image that is larger than all of it goes through alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._n_taken or self._n_taken + n_pixels <= self._n_pixels)
            self._n_taken += n_pixels
        try:
            yield
        finally:
            with self._changed:
                self._n_taken -= n_pixels
                self._changed.notify_all()


@dataclass(frozen=True)
class Decoding:
    """How files are decoded.

    Attributes
    ----------
    max_pixels : int
        Larger images are refused before they are decoded.
    window : Window or None
        What of a grey DICOM image is shown, in place of the file's own window.
    budget : PixelBudget or None
        Shared by threads, it bounds what they take together.
    on_note : callable
        Told, in the thread that decodes, what was left out of an image that was read all the same.
    is_isolated : bool
        Whether this process may crash; else codecs that do are used in another one.
    size : int
        Height and width of the encoder's input.
    """

    max_pixels: int = MAX_PIXELS
    window: Window | None = None
    budget: PixelBudget | None = None
    on_note: Callable[[str], None] = lambda _: None
    is_isolated: bool = False
    size: int = DEFAULT.size

    def room(self, n_pixels: int) -> AbstractContextManager[None]:
        """Wait until so many pixels may be decoded."""
        return nullcontext() if self.budget is None else self.budget.of(n_pixels)


class OpenedImage(Protocol):
    """A file whose header is read, and none of its pixels yet.

    `width` and `height` are those to be decoded, `size` those of the file; `kind` is its format, mode and bits a
    channel: ("PNG", "I;16", 16).
    """

    width: int
    height: int
    size: tuple[int, int]
    kind: tuple[str, str, int]

    def pixels(self) -> "Pixels":
        """Decode (H, W) grey or (H, W, 3) RGB."""


def load_image(content: "Content", decoding: Decoding | None = None) -> "torch.Tensor":
    """Return an encoded file, one of its frames, or an array's pixels, as the encoder takes them.

    Parameters
    ----------
    content : bytes, EncodedFrame, or ndarray (H, W) or (H, W, 3) uint8
    decoding : Decoding, optional

    Returns
    -------
    Tensor (C, S, S) uint8
        S is `decoding.size`; C is 1 for grey images, else 3 (RGB).

    Raises
    ------
    ImageDecodeError
        If the bytes are no image that can be read whole.
    """
    decoding = decoding or Decoding()
    target = (decoding.size, decoding.size)
    if isinstance(content, np.ndarray):
        return _resized(_planes(content.copy() if content.shape[:2] == target else content), target)
    with opened(content, decoding) as image, decoding.room(image.width * image.height):
        return _resized(_planes(image.pixels()), target)


def _resized(image: "torch.Tensor", target: tuple[int, int]) -> "torch.Tensor":
    import torch  # here: reading a header, or decoding in a process apart, needs none of it

    if image.shape[1:] == target:
        return image
    try:
        resized = torch.nn.functional.interpolate(image[None], target, mode="bilinear", antialias=True)
    except RuntimeError as error:
        raise ImageDecodeError(Unreadable.NOT_RESIZED, str(error).splitlines()[0]) from error
    return resized[0]  # (C, S, S) uint8


def decode_pixels(content: "bytes | EncodedFrame", decoding: Decoding | None = None) -> "Pixels":
    """Decode a file's bytes, or one of its frames, to (H, W) grey or (H, W, 3) RGB.

    What is not 8-bit grey or RGB becomes so: more bits by the window that 0.5% and 99.5% of the pixels end at, what
    is transparent over black, DICOM as `decoding.dicom` says. EXIF's orientation is applied. A large JPEG is decoded
    at 1/2, 1/4 or 1/8 of its size, which its cosine transform gives at a fraction of the cost, never below twice what
    the encoder takes on the shorter side.

    Raises
    ------
    ImageDecodeError
        If the bytes are no image, a damaged or truncated one, or one of more than `decoding.max_pixels`.

    Notes
    -----
    Pillow alone decodes. torchvision's decoders take 10 to 30% less time, but are deprecated, and damaged
    PNGs end the process there with a segmentation fault.
    """
    with opened(content, decoding or Decoding()) as image:
        return image.pixels()


@contextmanager
def opened(content: "bytes | EncodedFrame", decoding: Decoding) -> Iterator[OpenedImage]:
    """Open a file's bytes and check them, before any pixel is decoded; name whatever goes wrong from there on."""
    encoded, frame = unpack(content)
    if not encoded:
        raise ImageDecodeError(Unreadable.EMPTY)
    try:
        with (
            _opened_dicom(encoded, frame, decoding)
            if is_dicom(encoded)
            else _opened_by_pillow(encoded, frame, decoding) as image
        ):
            _check_size(image.width, image.height, decoding.max_pixels)
            yield image
    except ImageDecodeError:
        raise
    except UnidentifiedImageError as error:
        text = f"{Unreadable.NOT_RECOGNISED} ({describe(encoded)})"
        raise ImageDecodeError(Unreadable.NOT_RECOGNISED, text=text) from error
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))  # only Pillow knows how many: the file was not opened
        n_pixels = f"{int(found[0]):,}" if found else "all"
        raise ImageDecodeError(
            Unreadable.TOO_MANY_PIXELS, f"{n_pixels} are more than {decoding.max_pixels:,} allowed (--max-pixels)"
        ) from error
    except MemoryError as error:
        raise ImageDecodeError(Unreadable.NO_MEMORY_TO_DECODE) from error
    # Libraries raise nearly anything on damaged files: struct.error, SyntaxError, IndexError, zlib.error...
    except Exception as error:
        reason = " ".join(f"{error}".split())[:MAX_REASON] or type(error).__name__
        raise ImageDecodeError(Unreadable.DAMAGED, reason) from error


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageDecodeError(
            Unreadable.TOO_MANY_PIXELS, f"{width} x {height} are more than {max_pixels:,} allowed (--max-pixels)"
        )


@contextmanager
def _opened_dicom(content: bytes, frame: int, decoding: Decoding) -> Iterator[OpenedImage]:
    try:
        from hoarfrost.features.decoding.dicom import (
            DicomImage,  # here: pydicom is an extra, and most images are no DICOM
        )
    except ImportError as error:
        raise ImageDecodeError(Unreadable.DICOM_MISSING, "pip install 'hoarfrost[dicom]'") from error
    image = DicomImage(content, frame, decoding.window, is_isolated=decoding.is_isolated)
    if not frame and image.n_frames > 1:
        decoding.on_note(FIRST_IMAGE)
    yield image


@contextmanager
def _opened_by_pillow(content: bytes, frame: int, decoding: Decoding) -> Iterator[OpenedImage]:
    # What some formats allocate before they tell their size: a GIF's background, a TIFF's tile. All threads set the same.
    Image.MAX_IMAGE_PIXELS = decoding.max_pixels
    try:
        image = Image.open(io.BytesIO(content), formats=_formats())
    except UnidentifiedImageError:
        if not may_be_bare_dicom(content):
            raise
        with _opened_dicom(content, frame, decoding) as bare:
            yield bare
        return
    with image:
        _check_size(*image.size, decoding.max_pixels)  # before any other frame, for which some are decoded
        if frame:
            _seek(image, frame)
        elif image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False):
            decoding.on_note(FIRST_FRAME)
        if image.format == "PNG":
            _check_png(content)
        if image.format == "TIFF":
            _check_planes(image)
            if not frame and getattr(image, "n_frames", 1) > 1:
                decoding.on_note(FIRST_IMAGE)
        size = image.size
        if image.format in {"JPEG", "MPO"}:  # phones' JPEGs, with a small picture after the large one
            image.draft(image.mode, (jpeg_short_side(decoding.size),) * 2)
        yield _PillowImage(image, size)


def _seek(image: Image.Image, frame: int) -> None:
    if image.format != "TIFF":
        raise ImageDecodeError(Unreadable.NO_FRAME.format(frame), f"of a {image.format} only the first is taken")
    try:
        image.seek(frame - 1)
    except EOFError as error:
        raise ImageDecodeError(Unreadable.NO_FRAME.format(frame), "the file has fewer") from error


class _PillowImage:
    """An image that Pillow has opened."""

    def __init__(self, image: Image.Image, size: tuple[int, int]) -> None:
        self.width, self.height = image.size
        self.size = size
        is_keyed = "transparency" in image.info and image.mode not in DEEP_MODES
        self.kind = (image.format or "", image.mode + ("+alpha" if is_keyed else ""), _bits(image))
        self._image = image

    def pixels(self) -> "Pixels":
        """Decode (H, W) grey or (H, W, 3) RGB."""
        return _pixels(self._image)


def _bits(image: Image.Image) -> int:
    """Return how many bits a channel has in the file; Pillow's mode is that after decoding."""
    if image.format == "PNG" and image.mode not in DEEP_MODES:
        depth = re.search(r";(\d+)", str(getattr(image, "tile", "")))  # of its raw mode: "RGB;16B", "P;4"
        return int(depth[1]) if depth else 1 if image.mode == "1" else 8
    if image.format == "TIFF":
        return int(_tiff_tag(image, _BITS_TAG, 1))
    if image.mode == "I":
        return 16 if image.format == "PPM" else 32
    return {"1": 1, "F": 32}.get(image.mode, 16 if image.mode in DEEP_MODES else 8)


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """Return a TIFF's number, that of the first channel where there is one for each."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) else value  # type: ignore[no-any-return]


def _check_planes(image: Image.Image) -> None:
    """Refuse channels of 16 bits that are stored one after another: Pillow takes their bytes for pixels."""
    if len(image.getbands()) > 1 and _bits(image) > 8 and _tiff_tag(image, _PLANAR_TAG, 1) == _PLANES_APART:
        raise ImageDecodeError(Unreadable.TIFF_KIND, f"{_bits(image)} bits a channel, each channel apart")


def n_pages(file: str | BinaryIO) -> int:
    """Count a TIFF's pages; 1 where they cannot be counted, for decoding will say why."""
    try:
        with Image.open(file, formats=("TIFF",)) as image:
            return max(1, int(getattr(image, "n_frames", 1)))
    except Exception:  # as in `opened`
        return 1


def encode_png(pixels: "Pixels") -> bytes:
    """Encode (H, W) grey or (H, W, 3) RGB pixels as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def thumbnail(content: "Content", side: int, window: Window | None = None) -> bytes:
    """Return a small picture of an image, for people.

    Parameters
    ----------
    content : bytes, EncodedFrame, or ndarray (H, W) or (H, W, 3) uint8
    side : int
        What it measures at most, in pixels; a smaller image stays as it is.
    window : Window, optional
        What of a grey DICOM image is shown; by default the file's own.

    Returns
    -------
    bytes
        A JPEG of the pixels alone, without the file's metadata.

    Raises
    ------
    ImageDecodeError
        As `load_image`.
    """
    pixels = content if isinstance(content, np.ndarray) else decode_pixels(content, Decoding(window=window))
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


@cache
def _formats() -> tuple[str, ...]:
    """Return those of `FORMATS` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_png(content: bytes) -> None:
    """Compare the chunks' checksums: decoding ends with the last pixel, and leaves those of the pixels unread."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        image.verify()


def _pixels(image: Image.Image) -> "Pixels":
    """Copy the pixels, (H, W) or (H, W, 3), in strips: converting and handing over take as much again each."""
    image.load()
    image = _upright(image)
    stored = _stored_type(image)
    if image.mode in DEEP_MODES or stored is not None:
        return _deep_pixels(image, stored)
    mode = "L" if image.mode in {"1", "L", "LA", "La"} else "RGB"
    n_rows = max(1, STRIP_PIXELS // image.width)
    if n_rows >= image.height:
        return np.array(_flattened(image, mode))
    pixels = np.empty((image.height, image.width) if mode == "L" else (image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, n_rows):
        strip = image.crop((0, top, image.width, min(top + n_rows, image.height)))
        pixels[top : top + n_rows] = np.asarray(_flattened(strip, mode))
    return pixels


def _upright(image: Image.Image) -> Image.Image:
    """Rotate a photograph as its EXIF says; Pillow rotates TIFFs by itself."""
    if "exif" not in image.info or image.format == "TIFF":
        return image
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as in `opened`; damaged EXIF says nothing, and leaves the pixels as they are
        return image
    return image if turn is None else image.transpose(turn)


def _flattened(image: Image.Image, mode: str) -> Image.Image:
    """Convert to L or RGB, transparent pixels over black."""
    if not image.has_transparency_data:
        return image if image.mode == mode else image.convert(mode)
    with_alpha = image.convert("LA" if mode == "L" else "RGBA")
    flat = Image.new(mode, image.size)
    flat.paste(with_alpha.convert(mode), mask=with_alpha.getchannel("A"))
    return flat


def _stored_type(image: Image.Image) -> "npt.DTypeLike | None":
    """Return the stored type where Pillow takes a TIFF's signed bytes as unsigned, or unsigned words as signed."""
    sample_format = _tiff_tag(image, _SAMPLE_FORMAT_TAG, _UNSIGNED)
    if image.mode == "L" and sample_format == _SIGNED:
        return np.int8
    return np.uint32 if image.mode == "I" and image.format == "TIFF" and sample_format == _UNSIGNED else None


def _deep_pixels(image: Image.Image, stored: "npt.DTypeLike | None") -> "Pixels":
    """Convert more bits to 8, by the window from 0.5% to 99.5% of the image's own pixels."""
    values = np.asarray(image)
    values = values if stored is None else values.view(stored)
    pixels = scaled(values, *percentile_window(values))
    # Pillow inverts white-is-zero TIFFs of 8 bits itself, and not those of more.
    is_inverted = image.mode != "L" and _tiff_tag(image, _PHOTOMETRIC_TAG, 1) == _WHITE_IS_ZERO
    return 255 - pixels if is_inverted else pixels


def _planes(pixels: "Pixels") -> "torch.Tensor":
    """Return the pixels as (C, H, W), channels last in memory; without a copy where torch can."""
    import torch

    if not pixels.flags.writeable or any(stride < 0 for stride in pixels.strides):
        pixels = pixels.copy()
    tensor = torch.from_numpy(pixels)
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)
