"""Encoded bytes to pixels the backbone can take. The sole user of Pillow."""

import io
import warnings
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from features.errors import ImageDecodeError
from features.fingerprint import JPEG_SHORT_SIDE, SIZE

if TYPE_CHECKING:
    import numpy.typing as npt

    from features.datasets.table import Content

MAX_PIXELS = 178_956_970  # Pillow's own limit: beyond it a small file may be made to fill the memory

# Not all that Pillow can open: its EPS reader starts Ghostscript, and a file's suffix is no promise.
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")

# Pillow's modes of more than 8 bits a channel; convert("RGB") would clip them to white without a word.
_DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})

# Pillow warns of odd metadata, naming no file, and of sizes that are limited here. For good, as threads decode
# and catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")


def load_image(content: "Content") -> torch.Tensor:
    """Turn an encoded file, or an array's pixels, into what the backbone takes.

    Parameters
    ----------
    content : bytes or ndarray (H, W) or (H, W, 3) uint8

    Returns
    -------
    Tensor (C, 224, 224) uint8
        C is 1 for grey images, else 3 (RGB).

    Raises
    ------
    ImageDecodeError
        If the bytes are no image that can be read whole.
    """
    image = decode_image(content) if isinstance(content, bytes) else _planes(content)
    if image.shape[1:] == (SIZE, SIZE):
        return image
    resized = torch.nn.functional.interpolate(image[None], (SIZE, SIZE), mode="bilinear", antialias=True)
    return resized[0]  # (C, 224, 224) uint8


def decode_image(content: bytes) -> torch.Tensor:
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
    if not content:
        raise ImageDecodeError("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=_formats()) as image:
            _check_limits(image)
            if image.format == "PNG":
                _check_png(content)
            if image.format == "JPEG":
                image.draft(image.mode, (JPEG_SHORT_SIDE, JPEG_SHORT_SIDE))
            return _planes(_pixels(image))
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
    image.info.pop("transparency", None)  # unused without alpha, and Pillow warns of it
    mode = "L" if image.mode in {"1", "L", "LA"} else "RGB"
    return np.asarray(image if image.mode == mode else image.convert(mode))


def _planes(pixels: "npt.NDArray[np.uint8]") -> torch.Tensor:
    tensor = torch.from_numpy(np.array(pixels))  # a copy: torch wants writable memory
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1)  # (C, H, W), channels last in memory
