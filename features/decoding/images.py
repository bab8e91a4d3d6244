"""From encoded bytes to pixels. With `pictures`, the sole user of Pillow."""

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError

from hoarfrost.features.decoding.budget import OverBudgetError, PixelBudget
from hoarfrost.features.decoding.formats import (
    MAX_PIXELS,
    EncodedFrame,
    describe,
    is_dicom,
    is_hierarchical_jpeg,
    may_be_bare_dicom,
    unpack,
)
from hoarfrost.features.decoding.isolated import DecodingStoppedError, decode_with_header
from hoarfrost.features.decoding.png import GREY_16_WITH_ALPHA, over_black, without_texts
from hoarfrost.features.decoding.slow import is_slow, is_slow_tiff
from hoarfrost.features.decoding.tiff import FromPage
from hoarfrost.features.decoding.windows import Window, percentile_window, scaled
from hoarfrost.features.encoder.registry import DEFAULT
from hoarfrost.features.errors import ImageDecodeError, Unreadable
from hoarfrost.features.facts import FileHeader, Kinds, kind_text
from hoarfrost.features.fingerprint import jpeg_short_side

if TYPE_CHECKING:
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

STRIP_PIXELS = 1 << 20
MAX_REASON = 300  # characters of a library's message

# Not all that Pillow can open: its EPS reader starts Ghostscript, and a file's suffix is no promise.
FORMATS = ("PNG", "JPEG", "MPO", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000", "AVIF")
USUAL_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM")  # tried first: the others' libraries take time to load
ANIMATED_FORMATS = frozenset({"PNG", "GIF", "WEBP", "AVIF"})
# Keys of `notes` in --json: scripts rely on these words.
FIRST_FRAME = "animated: the first frame is taken"
SHOWN_THROUGH = "transparent everywhere: the colours are taken as they are"
FIRST_IMAGE = "several images in a file with another format's name: the first is taken"

# Pillow's modes of more than 8 bits a channel; convert("RGB") would clip them to white without a warning.
DEEP_MODES = frozenset({"I", "I;16", "I;16L", "I;16B", "I;16N", "F"})
_TURNS = {  # from EXIF's orientation to what turns the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

# TIFF's tags, and some of their values.
_BITS_TAG, _PHOTOMETRIC_TAG, _PLANAR_TAG, _SAMPLE_FORMAT_TAG = 258, 262, 284, 339
_TIFF_STARTS, _BIG_TIFF = (b"II", b"MM"), (b"+\0", b"\0+")
_TIFF_KIND_TAGS = {  # and what a file means that lacks them
    "bits per channel": (_BITS_TAG, 1), "channels": (277, 1), "sample format": (_SAMPLE_FORMAT_TAG, 1),
    "photometric interpretation": (_PHOTOMETRIC_TAG, 1), "compression": (259, 1),
}  # fmt: skip
# What Pillow says of files that it does not read.
_OTHER_DEPTH = re.compile(r"cannot handle (\d+)-bit layers")
_OTHER_TIFF = re.compile(r"unknown pixel mode$|\d+$")  # a compression's number
_WHITE_IS_ZERO, _SEPARATE_PLANES, _UNSIGNED, _SIGNED = 0, 2, 1, 2

# Pillow warns of odd metadata without naming the file, and of sizes that are limited here. Ignored for the whole process:
# threads decode, and catch_warnings is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow's blocks have 16 MB, which malloc keeps for each thread once they are freed; it returns those above 32 MB at once.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Decoding:
    """How files are decoded.

    Attributes
    ----------
    max_pixels : int
        Larger images are refused before they are decoded.
    window : Window or None
        Replaces the window of a grey DICOM file.
    budget : PixelBudget or None
        Limits what the threads that share it decode at once.
    on_note : callable
        Gets what was skipped in an image that was read nevertheless; runs in the thread that decodes.
    is_isolated : bool
        Whether this process may crash; otherwise codecs that crash run in another one.
    size : int
        Height and width of the encoder's input.
    """

    max_pixels: int = MAX_PIXELS
    window: Window | None = None
    budget: PixelBudget | None = None
    on_note: Callable[[str], None] = lambda _: None
    is_isolated: bool = False
    size: int = DEFAULT.size

    def at(self, size: int) -> "Decoding":
        """Return the same for another size of the encoder's input."""
        return replace(self, size=size)

    def room(self, n_pixels: int) -> AbstractContextManager[None]:
        """Wait until so many pixels may be decoded."""
        return nullcontext() if self.budget is None else self.budget.of(n_pixels)


class OpenedImage(Protocol):
    """A file whose header is read, but not its pixels.

    `width` and `height` are those to be decoded, `size` those of the file; `kind` is its format, mode and bits a
    channel: ("PNG", "I;16", 16).
    """

    width: int
    height: int
    size: tuple[int, int]
    kind: tuple[str, str, int]

    @property
    def header(self) -> FileHeader:
        """What is recorded of the file's header."""

    def pixels(self) -> "Pixels":
        """Decode (H, W) grey or (H, W, 3) RGB."""


def decode_pixels(content: "bytes | EncodedFrame", decoding: Decoding | None = None) -> "Pixels":
    """Decode a file's bytes, or one of its frames, to (H, W) grey or (H, W, 3) RGB.

    Other pixels become 8-bit grey or RGB: more bits by the window from 0.5% to 99.5% of the pixels, transparency over
    black, DICOM as in `decoding.dicom`. EXIF's orientation is applied. A large JPEG is decoded at 1/2, 1/4 or 1/8 of its
    size, at a fraction of the cost; its shorter side stays at least twice as long as the encoder's input. torchvision's
    decoders take 10 to 30% less time than Pillow, but are deprecated, and damaged PNGs crash them.

    Raises
    ------
    ImageDecodeError
        If the bytes are not an image, are damaged or truncated, or have more pixels than `decoding.max_pixels`.
    """
    with opened(content, decoding or Decoding()) as image:
        return image.pixels()


@contextmanager
def opened(content: "bytes | EncodedFrame", decoding: Decoding) -> Iterator[OpenedImage]:
    """Open and check a file's bytes before any pixel is decoded; raise ImageDecodeError for any error until the end."""
    encoded, frame = unpack(content)
    if not encoded:
        raise ImageDecodeError(Unreadable.EMPTY)
    try:
        open_file = _opened_dicom if is_dicom(encoded) else _opened_by_pillow
        with open_file(encoded, frame, decoding) as image:
            _check_size(image.width, image.height, decoding.max_pixels)
            yield image
    except (ImageDecodeError, DecodingStoppedError, OverBudgetError):
        raise
    except UnidentifiedImageError as error:
        _check_kind(encoded, frame)
        text = f"{Unreadable.NOT_RECOGNISED} ({describe(encoded)})"
        raise ImageDecodeError(Unreadable.NOT_RECOGNISED, text=text) from error
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))  # Pillow alone knows the number: it did not open the file
        n_pixels = f"{int(found[0]):,}" if found else "all"
        raise _too_many(n_pixels, decoding.max_pixels) from error
    except MemoryError as error:
        raise ImageDecodeError(Unreadable.NO_MEMORY_TO_DECODE) from error
    # Libraries raise nearly any error on damaged files: struct.error, SyntaxError, IndexError, zlib.error...
    except Exception as error:
        reason = " ".join(f"{error}".split())[:MAX_REASON] or type(error).__name__
        if is_hierarchical_jpeg(encoded):
            raise ImageDecodeError(
                Unreadable.OTHER_KIND.format("JPEG"), "hierarchical, frames that refine one another"
            ) from error
        is_other_kind = reason.startswith("Unsupported BMP")  # Pillow's words
        kind = Unreadable.OTHER_KIND.format("BMP") if is_other_kind else Unreadable.DAMAGED
        raise ImageDecodeError(kind, reason) from error


def _check_kind(content: bytes, frame: int) -> None:
    """Raise ImageDecodeError if a file that Pillow did not open is sound, but of a kind that Pillow does not read."""
    details = ""
    try:
        if content.startswith(b"\xff\xd8"):
            JpegImagePlugin.JpegImageFile(io.BytesIO(content))
        elif content.startswith(_TIFF_STARTS):
            details = _tiff_kind(content, frame)
            TiffImagePlugin.TiffImageFile(_from_frame(content, frame))
    except SyntaxError as error:
        if deep := _OTHER_DEPTH.match(str(error)):
            raise ImageDecodeError(Unreadable.OTHER_KIND.format("JPEG"), f"{deep[1]} bits per channel") from error
        if details and _OTHER_TIFF.match(str(error)):
            raise ImageDecodeError(Unreadable.OTHER_KIND.format("TIFF"), details) from error
    except Exception:  # as in `opened`: a damaged file
        return


def _tiff_kind(content: bytes, frame: int) -> str:
    """Return what decides whether a TIFF can be read, by the tags of its page."""
    file = _from_frame(content, frame)
    tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(16 if content[2:4] in _BIG_TIFF else 8))
    file.seek(tags.next)
    tags.load(file)
    found = {name: tags.get(tag, default) for name, (tag, default) in _TIFF_KIND_TAGS.items()}
    text = ", ".join(f"{name} {value[0] if isinstance(value, tuple) else value}" for name, value in found.items())
    return text[:MAX_REASON]  # a malicious file states numbers as long texts


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise _too_many(f"{width} x {height}", max_pixels)


def _too_many(found: str, allowed: int) -> ImageDecodeError:
    return ImageDecodeError(Unreadable.TOO_MANY_PIXELS, f"{found} are more than {allowed:,} allowed (--max-pixels)")


@contextmanager
def _opened_dicom(content: bytes, frame: int, decoding: Decoding) -> Iterator[OpenedImage]:
    try:  # here: pydicom is an extra, and most images are not DICOM
        from hoarfrost.features.decoding.dicom import DicomImage
    except ImportError as error:
        raise ImageDecodeError(Unreadable.DICOM_MISSING, "pip install 'hoarfrost[dicom]'") from error
    image = DicomImage(content, frame, decoding.window, is_isolated=decoding.is_isolated)
    if not frame and image.n_frames > 1:
        decoding.on_note(FIRST_IMAGE)
    yield image


@contextmanager
def _opened_by_pillow(content: bytes, frame: int, decoding: Decoding) -> Iterator[OpenedImage]:
    # Limits what some formats allocate before their size is known: a GIF's background, a TIFF's tile. For all threads.
    Image.MAX_IMAGE_PIXELS = decoding.max_pixels
    content = without_texts(content)
    try:
        image = _identified(content, frame)
    except UnidentifiedImageError:
        if not may_be_bare_dicom(content):
            raise
        with _opened_dicom(content, frame, decoding) as bare:
            yield bare
        return
    with image:
        _check_size(*image.size, decoding.max_pixels)
        if frame and image.format != "TIFF":
            reason = f"only the first frame of a {image.format} is read"
            raise ImageDecodeError(Unreadable.NO_FRAME.format(frame), reason)
        if image.format in ANIMATED_FORMATS and getattr(image, "is_animated", False):
            decoding.on_note(FIRST_FRAME)
        if image.format == "PNG":  # decoding ends with the last pixel, before the pixels' checksums
            with Image.open(io.BytesIO(content), formats=("PNG",)) as unread:
                unread.verify()
        if image.format == "TIFF":
            # Of 16-bit channels that are stored separately, Pillow takes the bytes for pixels.
            if len(image.getbands()) > 1 and _bits(image) > 8 and _tiff_tag(image, _PLANAR_TAG, 1) == _SEPARATE_PLANES:
                reason = f"{_bits(image)} bits per channel, channels stored separately"
                raise ImageDecodeError(Unreadable.OTHER_KIND.format("TIFF"), reason)
            if not frame and getattr(image, "is_animated", False):
                decoding.on_note(FIRST_IMAGE)
        size = image.size
        if image.format in {"JPEG", "MPO"}:  # MPO: a phone's JPEG, with a smaller one after it
            image.draft(image.mode, (jpeg_short_side(decoding.size),) * 2)
        opened_image = _PillowImage(image, size, decoding.on_note)
        is_thread_enough = decoding.is_isolated or not _is_slow(content, image, size[0] * size[1])
        yield opened_image if is_thread_enough else _SlowImage(opened_image, content, frame, decoding)


def _from_frame(content: bytes, frame: int) -> io.BytesIO:
    """Open a file; of a TIFF, so that it begins with the frame."""
    try:
        return FromPage(content, frame) if frame and content.startswith((b"II", b"MM")) else io.BytesIO(content)
    except EOFError as error:
        raise ImageDecodeError(Unreadable.NO_FRAME.format(frame), "the file has fewer") from error


class _PillowImage:
    def __init__(self, image: Image.Image, size: tuple[int, int], on_note: Callable[[str], None]) -> None:
        self.width, self.height = image.size
        self.size = size
        is_keyed = "transparency" in image.info and image.mode not in DEEP_MODES
        mode = GREY_16_WITH_ALPHA if _is_deep_grey_with_alpha(image) else image.mode
        self.kind = (image.format or "", mode + ("+alpha" if is_keyed else ""), _bits(image))
        self._image, self._on_note = image, on_note

    @property
    def header(self) -> FileHeader:
        has_exif = "yes" if "exif" in self._image.info else "no"
        return FileHeader(*self.size, self.kind[2], Kinds(*self.kind[:2], "", *_camera(self._image), has_exif))

    def pixels(self) -> "Pixels":
        if self.kind[1] == GREY_16_WITH_ALPHA:
            return _deep_grey_with_alpha(self._image, self._on_note)
        image = self._image
        if image.has_transparency_data and not _alpha(image).getbbox():
            self._on_note(SHOWN_THROUGH)  # some programs write an alpha of 0 for "not used"
            image = _opaque(image)
        return _pixels(image)


def _camera(image: Image.Image) -> tuple[str, str]:
    """Return a camera's make and model, by EXIF or a TIFF's own tags."""
    try:
        found = getattr(image, "tag_v2", None) or ("exif" in image.info and image.getexif()) or {}
        return kind_text(found.get(ExifTags.Base.Make)), kind_text(found.get(ExifTags.Base.Model))
    except Exception:  # as in `opened`; damaged EXIF is ignored
        return "", ""


def _is_slow(content: bytes, image: Image.Image, n_pixels: int) -> bool:
    if image.format == "TIFF":
        return is_slow_tiff(content, n_pixels, getattr(image, "tag_v2", {}))
    return is_slow(content, n_pixels)


class _SlowImage:
    """An image that is decoded in another process, which has a limit; see `slow`."""

    def __init__(self, header: OpenedImage, content: bytes, frame: int, decoding: Decoding) -> None:
        self.width, self.height, self.size, self.kind = header.width, header.height, header.size, header.kind
        self.header = header.header
        self._content, self._frame, self._decoding = content, frame, decoding

    def pixels(self) -> "Pixels":
        limits = self._decoding.max_pixels, self._decoding.window
        pixels, self.header = decode_with_header(self._content, self._frame, *limits, size=self._decoding.size)
        return pixels


def _is_deep_grey_with_alpha(image: Image.Image) -> bool:
    return image.format == "PNG" and any(GREY_16_WITH_ALPHA in tile for tile in getattr(image, "tile", []))


def _deep_grey_with_alpha(image: Image.Image, on_note: Callable[[str], None]) -> "Pixels":
    """Decode a PNG of 16-bit grey and alpha, as four channels of 8 bits: Pillow itself drops the lower halves."""
    image.tile = [tile._replace(args="RGBA") for tile in image.tile]  # type: ignore[attr-defined]
    image.load()
    values, alpha = np.ascontiguousarray(np.asarray(_upright(image))).view(">u2").transpose(2, 0, 1)
    if not alpha.any():
        on_note(SHOWN_THROUGH)
    return over_black(values, alpha)


def _bits(image: Image.Image) -> int:
    """Return the bits of a channel in the file; Pillow's mode is that after decoding."""
    if image.format == "PNG" and image.mode not in DEEP_MODES:
        depth = re.search(r";(\d+)", str(getattr(image, "tile", "")))  # of its raw mode: "RGB;16B", "P;4"
        return int(depth[1]) if depth else 1 if image.mode == "1" else 8
    if image.format == "TIFF":
        return int(_tiff_tag(image, _BITS_TAG, 1))
    if image.mode == "I":
        return 16 if image.format == "PPM" else 32
    return {"1": 1, "F": 32}.get(image.mode, 16 if image.mode in DEEP_MODES else 8)


def _tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """Return the value of a TIFF's tag; of several, one for each channel, the first."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) else value  # type: ignore[no-any-return]


def encode_png(pixels: "Pixels") -> bytes:
    """Encode (H, W) grey or (H, W, 3) RGB pixels as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _identified(content: bytes, frame: int) -> Image.Image:
    """Return an image whose pixels are not decoded yet; raise UnidentifiedImageError if it is none."""
    with suppress(UnidentifiedImageError):
        return Image.open(_from_frame(content, frame), formats=USUAL_FORMATS)
    return Image.open(_from_frame(content, frame), formats=_formats())


@cache
def _formats() -> tuple[str, ...]:
    """Return the `FORMATS` that this build of Pillow can read."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _pixels(image: Image.Image) -> "Pixels":
    """Copy the pixels, (H, W) or (H, W, 3), in strips: converting and copying take as much memory again each."""
    image.load()
    image = _upright(image)
    stored = _stored_type(image)
    if image.mode in DEEP_MODES or stored is not None:
        values = np.asarray(image) if stored is None else np.asarray(image).view(stored)
        pixels = scaled(values, *percentile_window(values))
        # Pillow itself inverts white-is-zero TIFFs of 8 bits, but not those of more.
        is_inverted = image.mode != "L" and _tiff_tag(image, _PHOTOMETRIC_TAG, 1) == _WHITE_IS_ZERO
        return 255 - pixels if is_inverted else pixels
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
    """Apply EXIF's orientation; Pillow applies a TIFF's itself."""
    if "exif" not in image.info or image.format == "TIFF":
        return image
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # as in `opened`; damaged EXIF is ignored
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


def _opaque(image: Image.Image) -> Image.Image:
    opaque = image.convert("LA" if image.mode in {"LA", "La"} else "RGBA")
    opaque.putalpha(255)
    opaque.format = image.format
    return opaque


def _alpha(image: Image.Image) -> Image.Image:
    return (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")


def _stored_type(image: Image.Image) -> "npt.DTypeLike | None":
    """Return the stored type if Pillow takes a TIFF's signed bytes as unsigned, or unsigned words as signed."""
    sample_format = _tiff_tag(image, _SAMPLE_FORMAT_TAG, _UNSIGNED)
    if image.mode == "L" and sample_format == _SIGNED:
        return np.int8
    return np.uint32 if image.mode == "I" and image.format == "TIFF" and sample_format == _UNSIGNED else None
