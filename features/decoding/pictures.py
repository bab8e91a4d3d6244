"""Pictures for people: resized, and with lines of text."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.files.whole import check_writable, whole_file

if TYPE_CHECKING:
    from hoarfrost.features.decoding.images import Pixels

SHEET_MARK = "hoarfrost contact sheet"
_MARK_ENDS = 256  # bytes of a file in which the mark is, if it is there


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


def check_sheet(path: Path) -> None:
    """Refuse a place where a contact sheet would take something else's, and make its folder, before any work is done.

    Raises
    ------
    HoarfrostError
        If the name does not end in .png, something other than an earlier contact sheet is there, or the folder cannot be
        made.
    """
    if path.suffix.lower() != ".png":
        raise HoarfrostError(f"--contact-sheet {path} would be a PNG. Give it a name that ends in .png.")
    try:
        if path.exists() and not _is_sheet(path):
            raise HoarfrostError(
                f"--contact-sheet {path} would overwrite what is no contact sheet of hoarfrost's. Name another file."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path.parent)
    except OSError as error:
        raise HoarfrostError(f"--contact-sheet {path}: cannot be written: {error}. Name another file.") from error


def _is_sheet(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return SHEET_MARK.encode() in file.read(_MARK_ENDS)


def write_sheet(path: Path, pixels: "Pixels") -> None:
    """Write (H, W, 3) RGB pixels as a PNG that `check_sheet` knows again.

    Raises
    ------
    HoarfrostError
        If it cannot be written.
    """
    mark = PngInfo()
    mark.add_text("Software", SHEET_MARK)
    try:
        with whole_file(path) as file:
            Image.fromarray(pixels).save(file, "PNG", compress_level=1, pnginfo=mark)
    except OSError as error:
        raise HoarfrostError(f"--contact-sheet {path}: cannot be written: {error}. Name another file.") from error
