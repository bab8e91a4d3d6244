"""Pictures for people: resized, and with lines of text."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from hoarfrost.features.decoding.images import Decoding, decode_pixels
from hoarfrost.features.decoding.windows import Window
from hoarfrost.features.errors import HoarfrostError
from hoarfrost.features.files.whole import check_writable, whole_file

if TYPE_CHECKING:
    from hoarfrost.features.datasets.table import Content
    from hoarfrost.features.decoding.images import Pixels

SHEET_MARK = "hoarfrost contact sheet"
_MARK_BYTES = 256  # the mark is within the first bytes of a contact sheet


def fitted(pixels: "Pixels", side: int) -> "Pixels":
    """Resize (H, W) or (H, W, 3) pixels to RGB whose longer side has `side` pixels."""
    picture = Image.fromarray(pixels).convert("RGB")
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return np.array(picture.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS))


def thumbnail(
    content: "Content", side: int | None, window: Window | None = None, *, most_bytes: int | None = None
) -> bytes:
    """Return a JPEG of an image, without the file's metadata.

    Parameters
    ----------
    content : bytes, EncodedFrame, or ndarray (H, W) or (H, W, 3) uint8
    side : int or None
        At most so many pixels has the longer side; None for the image's own size.
    window : Window, optional
        Replaces the window of a grey DICOM file.
    most_bytes : int, optional
        A larger JPEG is made again with fewer pixels.

    Raises
    ------
    ImageDecodeError
        If the image cannot be read.
    """
    pixels = content if isinstance(content, np.ndarray) else decode_pixels(content, Decoding(window=window))
    small = Image.fromarray(pixels)
    while True:
        if side is not None:
            small.thumbnail((side, side))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=80, optimize=True)
        if most_bytes is None or buffer.tell() <= most_bytes or max(small.size) == 1:
            return buffer.getvalue()
        side = max(1, int(max(small.size) * 0.95 * math.sqrt(most_bytes / buffer.tell())))


def with_texts(pixels: "Pixels", texts: Sequence[tuple[int, int, str]], *, size: int = 13) -> "Pixels":
    """Return (H, W, 3) RGB pixels with lines of dark text, each a left, a top and a text."""
    picture = Image.fromarray(pixels)
    drawing, font = ImageDraw.Draw(picture), ImageFont.load_default(size)
    for left, top, text in texts:
        # Bytes that are not UTF-8 and line breaks do not have a glyph.
        plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
        drawing.text((left, top), plain, fill=(30, 30, 30), font=font)
    return np.array(picture)


def text_width(text: str, *, size: int = 13) -> int:
    """Return the width in pixels of a line as `with_texts` writes it."""
    return math.ceil(ImageFont.load_default(size).getlength(text.encode("utf-8", "replace").decode()))


def check_sheet(path: Path) -> None:
    """Check that a contact sheet can be written, and make its folder, before any work is done.

    Raises
    ------
    HoarfrostError
        If the name does not end in .png, a file other than an earlier contact sheet exists, or the folder cannot be
        written.
    """
    if path.suffix.lower() != ".png":
        raise HoarfrostError(f"--contact-sheet {path}: a contact sheet is a PNG. Choose a name that ends in .png.")
    try:
        if path.exists() and not _is_sheet(path):
            raise HoarfrostError(
                f"--contact-sheet {path} would overwrite a file that is not a hoarfrost contact sheet. Name another file."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        check_writable(path.parent)
    except OSError as error:
        raise _not_written(path, error) from error


def _not_written(path: Path, error: OSError) -> HoarfrostError:
    return HoarfrostError(f"--contact-sheet {path}: cannot be written: {error}. Name another file.")


def _is_sheet(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return SHEET_MARK.encode() in file.read(_MARK_BYTES)


def write_sheet(path: Path, pixels: "Pixels") -> None:
    """Write (H, W, 3) RGB pixels as a PNG that `check_sheet` recognises; raise HoarfrostError if that fails."""
    mark = PngInfo()
    mark.add_text("Software", SHEET_MARK)
    try:
        with whole_file(path) as file:
            Image.fromarray(pixels).save(file, "PNG", compress_level=1, pnginfo=mark)
    except OSError as error:
        raise _not_written(path, error) from error
