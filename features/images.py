"""Encoded bytes to pixels the backbone can take. The sole user of Pillow and torchvision.io."""

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg, decode_png

from features.errors import ImageDecodeError

if TYPE_CHECKING:
    import numpy.typing as npt

    from features.datasets import Content

SIZE = 224
MAX_PIXELS = 178_956_970  # Pillow's own limit: beyond it a small file may be made to fill the memory
PREPROCESSING = {
    "decode": "to 8-bit RGB as Pillow's convert('RGB') does",
    "resize": [SIZE, SIZE],
    "interpolation": "bilinear, antialiased, 8-bit",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
"""From bytes to the backbone's input; part of the fingerprint. Change a value's meaning: change the text."""

# Pillow's modes of more than 8 bits a channel; convert("RGB") would clip them to white without a word.
_DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})


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
    resized: torch.Tensor = torch.nn.functional.interpolate(image[None], (SIZE, SIZE), mode="bilinear", antialias=True)[
        0
    ]
    return resized  # (C, 224, 224) uint8


def decode_image(content: bytes) -> torch.Tensor:
    """Decode a file's bytes to (C, H, W) uint8, C = 1 (grey) or 3 (RGB).

    Grey and RGB files of 8 bits go to torchvision's decoders, which are faster; palettes, alpha,
    CMYK and all other formats to Pillow. Whatever torchvision refuses, Pillow has the last word on.
    """
    if not content:
        raise ImageDecodeError("the file is empty")
    mode = _fast_mode(content)
    if mode is not None:
        decode = decode_png if content[:1] == b"\x89" else decode_jpeg
        try:
            # A copy: torch warns of (and could be harmed by) tensors over read-only memory.
            return decode(torch.frombuffer(bytearray(content), dtype=torch.uint8), mode=mode)
        except RuntimeError:
            pass  # Pillow reads it, or says in a user's words why not
    return _decode_with_pillow(content)


def encode_png(pixels: "npt.NDArray[np.uint8]") -> bytes:
    """Encode (H, W) grey or (H, W, 3) RGB pixels as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _planes(pixels: "npt.NDArray[np.uint8]") -> torch.Tensor:
    tensor = torch.from_numpy(np.array(pixels))  # a copy, writable
    return tensor[None] if tensor.ndim == 2 else tensor.permute(2, 0, 1).contiguous()


def _fast_mode(content: bytes) -> ImageReadMode | None:
    """Tell how torchvision should read the file, or None where Pillow must."""
    if content[:8] == b"\x89PNG\r\n\x1a\n" and content[12:16] == b"IHDR" and len(content) > 33:
        width, height = int.from_bytes(content[16:20]), int.from_bytes(content[20:24])
        depth, colour = content[24], content[25]
        # A tRNS chunk before the pixels gives grey and RGB files alpha, which torchvision would apply.
        plain = depth == 8 and colour in {0, 2} and b"tRNS" not in content[33:2048]
        if not plain or width * height > MAX_PIXELS:
            return None
        return ImageReadMode.GRAY if colour == 0 else ImageReadMode.RGB
    if content[:3] == b"\xff\xd8\xff":
        return _fast_jpeg_mode(content)
    return None


def _fast_jpeg_mode(content: bytes) -> ImageReadMode | None:
    """Walk the JPEG's markers to its frame header: 8 bits, one or three components are read fast."""
    position = 2
    while position + 9 < len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker in {0xC0, 0xC1, 0xC2}:
            depth, components = content[position + 4], content[position + 9]
            height = int.from_bytes(content[position + 5 : position + 7])
            width = int.from_bytes(content[position + 7 : position + 9])
            if depth != 8 or width * height > MAX_PIXELS:
                return None
            return {1: ImageReadMode.GRAY, 3: ImageReadMode.RGB}.get(components)
        if marker == 0xFF:  # padding
            position += 1
            continue
        position += 2 + int.from_bytes(content[position + 2 : position + 4])
    return None


def _decode_with_pillow(content: bytes) -> torch.Tensor:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # e.g. palette images with transparency in bytes: decoded all the same
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise ImageDecodeError(
                        f"{image.width} x {image.height} pixels are more than {MAX_PIXELS:,} allowed"
                    )
                if image.mode in _DEEP_MODES:
                    raise ImageDecodeError(
                        f"{image.format} with more than 8 bits a pixel (mode {image.mode}); convert it to 8 bits first"
                    )
                grey = image.mode in {"1", "L", "LA"}
                return _planes(np.asarray(image.convert("L" if grey else "RGB")))
    except ImageDecodeError:
        raise
    except UnidentifiedImageError as error:
        raise ImageDecodeError(f"no image format recognised (the file begins with {content[:8]!r})") from error
    except Image.DecompressionBombError as error:
        raise ImageDecodeError(f"more than {MAX_PIXELS:,} pixels") from error
    # Pillow's plugins raise nearly anything on damaged files: struct.error, SyntaxError, IndexError, zlib.error...
    except Exception as error:
        raise ImageDecodeError(f"damaged or truncated image: {error}") from error
