"""Pictures for people: resized, and with lines of text."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from features.images import Pixels


def fitted(pixels: "Pixels", side: int) -> "Pixels":
    """Resize (H, W) or (H, W, 3) pixels, for people: RGB whose longer side measures `side`."""
    picture = Image.fromarray(pixels).convert("RGB")
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return np.array(picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS))


def with_texts(pixels: "Pixels", texts: Sequence[tuple[int, int, str]], *, size: int = 13) -> "Pixels":
    """Write lines of dark text into (H, W, 3) RGB pixels, each at its left and top."""
    picture = Image.fromarray(pixels)
    drawing, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    for left, top, text in texts:
        # What is not UTF-8, and what breaks lines, has no glyph.
        plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        drawing.text((left, top), plain, fill=(30, 30, 30), font=font)
    return np.array(picture)


def text_width(text: str, *, size: int = 13) -> int:
    """Measure a line as `with_texts` writes it, in pixels."""
    return math.ceil(ImageFont.load_default(size).getlength(text.encode("utf-8", "replace").decode()))
