"""Fifteen ways in which a file that is listed as an image is none, and the reason that each is to be given."""

import os
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from hoarfrost.features.decoding.looks import load_image
from hoarfrost.features.errors import ImageDecodeError
from tests.support.builders import encode, picture
from tests.support.dicoms import dicom, encoded, grey_values

SMALL = picture(64, 48)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb() -> bytes:
    """Make a small PNG that promises 3.6 thousand million pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(60_000))) + png_chunk(b"IEND", b"")


def corrupted(content: bytes) -> bytes:
    """Flip a bit of a PNG's pixels."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


def _written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


def _grown(path: Path) -> None:
    """Make a file of 5 GB that takes no room."""
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    os.truncate(path, 5 << 30)


def _dicom_without_pixels() -> bytes:
    data = dicom(None)
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.104.1"
    return encoded(data)


JPEG, PNG, TIFF = (encode(SMALL, image_format) for image_format in ("JPEG", "PNG", "TIFF"))
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated.jpg": (_written(JPEG[: len(JPEG) // 2]), "(?i)damaged or truncated image: .*truncated"),
    "truncated.png": (_written(PNG[: len(PNG) // 2]), "(?i)damaged or truncated image: .*truncated"),
    "truncated.tif": (_written(TIFF[: len(TIFF) // 2]), "damaged or truncated image|no image format recognised"),
    "truncated.dcm": (_written(encoded(dicom(grey_values()))[:-500]), "damaged or truncated DICOM pixels"),
    "no-pixels.dcm": (_written(_dicom_without_pixels()), "a DICOM file without pixels: Encapsulated PDF Storage"),
    "flipped-bit.png": (_written(corrupted(PNG)), "damaged or truncated image: "),
    "zeros.jpg": (_written(JPEG[: len(JPEG) // 2] + bytes(len(JPEG) // 2)), "damaged or truncated image: "),
    "empty.png": (_written(b""), "the file is empty"),
    "text.png": (_written(b"path,label\n1.png,benign\n"), r"no image format recognised \(.*: text\)"),
    "archive.png": (_written(b"PK\x03\x04" + bytes(200)), r"no image format recognised \(.*: a zip archive\)"),
    "bomb.png": (_written(bomb()), "too many pixels: 3,600,000,000 are more than 178,956,970 allowed"),
    "gigantic.png": (_grown, "too large a file: 5,368,709,120 bytes"),
    "looping.png": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "folder.png": (lambda path: path.mkdir(), "Is a directory"),
}


def check_truncations(content: bytes) -> None:
    """Check that a file cut off at every percent is an image, or an error that says something, in under a second."""
    for percent in range(100):
        cut = content[: len(content) * percent // 100]
        assert _seconds_to_load(cut) < 1


def _seconds_to_load(content: bytes) -> float:
    """Return the processor time: other work on the machine takes its time too."""
    started = time.process_time()
    try:
        assert load_image(content).shape[1:] == (224, 224)
    except ImageDecodeError as error:
        assert str(error)  # noqa: PT017
    return time.process_time() - started
