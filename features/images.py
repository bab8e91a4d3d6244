"""Encoded bytes to pixels the backbone can take. The sole user of Pillow."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from features.errors import ImageDecodeError
from features.fingerprint import JPEG_SHORT_SIDE, SIZE

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from features.datasets.table import Content

MAX_PIXELS = 178_956_970  # Pillow's own limit: beyond it a small file may be made to fill the memory
PIXELS_AT_ONCE = 64 << 20  # of all threads together
STRIP_PIXELS = 1 << 20

# Not all that Pillow can open: its EPS reader starts Ghostscript, and a file's suffix is no promise.
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")

# Pillow's modes of more than 8 bits a channel; convert("RGB") would clip them to white without a word.
_DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})

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


def load_image(content: "Content", budget: PixelBudget | None = None) -> "torch.Tensor":
    """Turn an encoded file, or an array's pixels, into what the backbone takes.

    Parameters
    ----------
    content : bytes or ndarray (H, W) or (H, W, 3) uint8
    budget : PixelBudget, optional
        Shared by threads, it bounds what they take together.

    Returns
    -------
    Tensor (C, 224, 224) uint8
        C is 1 for grey images, else 3 (RGB).

    Raises
    ------
    ImageDecodeError
        If the bytes are no image that can be read whole.
    """
    if not isinstance(content, bytes):
        return _resized(_planes(content.copy() if content.shape[:2] == (SIZE, SIZE) else content))
    with _opened(content) as image, budget.of(image.width * image.height) if budget else nullcontext():
        return _resized(_planes(_pixels(image)))


def _resized(image: "torch.Tensor") -> "torch.Tensor":
    import torch

    if image.shape[1:] == (SIZE, SIZE):
        return image
    try:
        resized = torch.nn.functional.interpolate(image[None], (SIZE, SIZE), mode="bilinear", antialias=True)
    except RuntimeError as error:
        raise ImageDecodeError(f"cannot be resized: {str(error).splitlines()[0]}") from error
    return resized[0]  # (C, 224, 224) uint8


def decode_image(content: bytes) -> "torch.Tensor":
    """Decode a file's bytes to (C, H, W) uint8, C = 1 (grey) or 3 (RGB).

    A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which its cosine transform gives at a fraction of the
    cost, never below 448 pixels on the shorter side: twice what the backbone takes.

    Raises
    ------
    ImageDecodeError
        If the bytes are no image, a damaged or truncated one, one of more than 8 bits a channel,
        or one of more than `MAX_PIXELS`.

    Notes
    -----
    Pillow alone decodes. torchvision's decoders take 10 to 30% less time, but are deprecated, and damaged
    PNGs end the process there with a segmentation fault.
    """
    with _opened(content) as image:
        return _planes(_pixels(image))


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Open a file's bytes and check them, before any pixel is decoded; name whatever goes wrong from there on."""
    if not content:
        raise ImageDecodeError("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            _check_limits(image)
            if image.format == "PNG":
                _check_png(content)
            if image.format in {"JPEG", "MPO"}:  # phones' JPEGs, with a small picture after the large one
                image.draft(image.mode, (JPEG_SHORT_SIDE, JPEG_SHORT_SIDE))
            yield image
    except ImageDecodeError:
        raise
    except UnidentifiedImageError as error:
        raise ImageDecodeError(f"no image format recognised (the file begins with {content[:8]!r})") from error
    except Image.DecompressionBombError as error:
        raise ImageDecodeError(f"more than {MAX_PIXELS:,} pixels") from error
    except MemoryError as error:
        raise ImageDecodeError("not enough memory to decode the image") from error
    # Pillow's plugins raise nearly anything on damaged files: struct.error, SyntaxError, IndexError, zlib.error...
    except Exception as error:
        raise ImageDecodeError(f"damaged or truncated image: {error}") from error


def encode_png(pixels: "npt.NDArray[np.uint8]") -> bytes:
    """Encode (H, W) grey or (H, W, 3) RGB pixels as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def thumbnail(content: "Content", side: int) -> bytes:
    """Make a small picture of an image, for people.

    Parameters
    ----------
    content : bytes or ndarray (H, W) or (H, W, 3) uint8
    side : int
        What it measures at most, in pixels; a smaller image stays as it is.

    Returns
    -------
    bytes
        A JPEG of the pixels alone, without the file's metadata.

    Raises
    ------
    ImageDecodeError
        As `load_image`.
    """
    if isinstance(content, bytes):
        with _opened(content) as image:
            pixels = _pixels(image)
    else:
        pixels = content
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()


@cache
def _formats() -> tuple[str, ...]:
    """Give those of `FORMATS` that this build of Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_limits(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageDecodeError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,} allowed")
    if image.mode in _DEEP_MODES:
        raise ImageDecodeError(
            f"{image.format} with more than 8 bits a pixel (mode {image.mode}); convert it to 8 bits first"
        )


def _check_png(content: bytes) -> None:
    """Compare the chunks' checksums: decoding ends with the last pixel, and leaves those of the pixels unread."""
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
        image.verify()


def _pixels(image: Image.Image) -> "npt.NDArray[np.uint8]":
    """Copy the pixels, (H, W) or (H, W, 3), in strips: converting and handing over take as much again each."""
    image.info.pop("transparency", None)  # unused without alpha, and Pillow warns of it
    image.load()
    mode = "L" if image.mode in {"1", "L", "LA"} else "RGB"
    n_rows = max(1, STRIP_PIXELS // image.width)
    if n_rows >= image.height:
        return np.array(image if image.mode == mode else image.convert(mode))
    pixels = np.empty((image.height, image.width) if mode == "L" else (image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, n_rows):
        strip = image.crop((0, top, image.width, min(top + n_rows, image.height)))
        pixels[top : top + n_rows] = np.asarray(strip if strip.mode == mode else strip.convert(mode))
    return pixels


def _planes(pixels: "npt.NDArray[np.uint8]") -> "torch.Tensor":
    """Make (C, H, W) of it, channels last in memory; the pixels are shared where torch can."""
    import torch

    if not pixels.flags.writeable or any(stride < 0 for stride in pixels.strides):
        pixels = pixels.copy()
    tensor = torch.from_numpy(pixels)
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)
