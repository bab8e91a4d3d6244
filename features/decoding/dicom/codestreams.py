"""What a frame's compressed bytes state: a decoder obeys them, not the header, which may contradict them."""

import struct
from dataclasses import dataclass

from hoarfrost.features.errors import ImageDecodeError, Unreadable

_J2K_START = b"\xff\x4f\xff\x51"
_JP2_START = b"\0\0\0\x0cjP  "
_JPEG_START = b"\xff\xd8"
_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC})  # of JPEG, and JPEG-LS
_LOSSLESS_JPEG = frozenset({0xC3, 0xC7, 0xCB, 0xCF, 0xF7})
_APP0, _APP14 = 0xE0, 0xEE
_COD, _START_OF_TILE = 0x52, 0x90  # of JPEG 2000
_RLE_HEADER_BYTES = 64
_COMPONENT_IDS_OF_RGB = frozenset({b"RGB", b"rgb"})


@dataclass(frozen=True)
class Codestream:
    """The header of a JPEG, JPEG-LS or JPEG 2000 codestream.

    Attributes
    ----------
    width, height, n_channels : int
        The size that a decoder allocates memory for.
    bits : int
        Of the deepest channel.
    is_subsampled : bool
        Whether some channels have fewer samples than others.
    is_rgb : bool or None
        What the codestream itself says of its three channels: RGB, YCbCr (False), or nothing.
    is_doubtful : bool
        Whether only Adobe's marker says RGB: it is also found before YCbCr.
    is_converted : bool
        Whether the decoder returns RGB, whatever the channels in the codestream are.
    is_transformed : bool
        Whether JPEG 2000's multiple component transform was used.
    """

    width: int
    height: int
    n_channels: int
    bits: int
    is_subsampled: bool = False
    is_rgb: bool | None = None
    is_doubtful: bool = False
    is_converted: bool = False
    is_transformed: bool = False

    def is_colour_converted(self, photometric: str) -> bool:
        """Return whether the decoded channels are RGB already, rather than YCbCr.

        Raises
        ------
        ImageDecodeError
            If the codestream and the header's photometric interpretation contradict each other.
        """
        stated = photometric == "RGB"
        if self.is_transformed or photometric in {"YBR_RCT", "YBR_ICT"}:
            if self.is_transformed and (stated or photometric in {"YBR_RCT", "YBR_ICT"}):
                return True
            used = "used" if self.is_transformed else "not used"
            raise _contradiction(f"JPEG 2000's colour transform is {used}", photometric)
        if self.is_converted:
            return True
        if self.is_doubtful and not stated:
            raise _contradiction("RGB by Adobe's marker", photometric)
        if self.is_subsampled and self.is_rgb:
            raise _contradiction("RGB whose channels differ in size", photometric)
        return stated and not self.is_subsampled if self.is_rgb is None else self.is_rgb


def _contradiction(found: str, photometric: str) -> ImageDecodeError:
    return ImageDecodeError(Unreadable.DICOM_COLOURS, f"{found}, but the header states {photometric}")


def read_codestream(frame: bytes) -> Codestream | None:
    """Read the header of a JPEG, JPEG-LS or JPEG 2000 codestream. Return None for other bytes, or if it is missing."""
    try:
        start = frame.find(_J2K_START) if frame.startswith(_JP2_START) else 0  # after the boxes of a JP2 file
        if frame.startswith(_J2K_START, max(start, 0)):
            return _jpeg_2000(frame, start)
        return _jpeg(frame) if frame.startswith(_JPEG_START) else None
    except (struct.error, IndexError):  # cut off
        return None


def _jpeg_2000(frame: bytes, start: int) -> Codestream:
    length, _, right, bottom, left, top = struct.unpack_from(">HH4I", frame, start + 4)
    (n_channels,) = struct.unpack_from(">H", frame, start + 40)
    channels = [frame[at : at + 3] for at in range(start + 42, start + 42 + 3 * n_channels, 3)]
    at, is_transformed = start + 4 + length, False
    while frame[at] == 0xFF and frame[at + 1] != _START_OF_TILE:
        if frame[at + 1] == _COD:
            is_transformed = frame[at + 8] != 0
        at += 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
    return Codestream(
        right - left, bottom - top, n_channels, max((channel[0] & 0x7F) + 1 for channel in channels),
        is_subsampled=any(channel[1:] != b"\1\1" for channel in channels), is_transformed=is_transformed,
    )  # fmt: skip


def _jpeg(frame: bytes) -> Codestream | None:
    at, is_jfif, adobe = len(_JPEG_START), False, None
    while frame[at : at + 1] == b"\xff":
        marker = frame[at + 1]
        if marker in _FRAME_MARKERS:
            return _jpeg_frame(frame, at, is_jfif=is_jfif, adobe=None if marker in _LOSSLESS_JPEG else adobe)
        is_jfif = is_jfif or (marker == _APP0 and frame[at + 4 : at + 8] == b"JFIF")
        if marker == _APP14 and frame[at + 4 : at + 9] == b"Adobe":
            adobe = frame[at + 15] if int(struct.unpack_from(">H", frame, at + 2)[0]) >= 14 else None
        # A padding byte, or a segment with its length.
        at += 1 if marker == 0xFF else 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None


def _jpeg_frame(frame: bytes, at: int, *, is_jfif: bool, adobe: int | None) -> Codestream:
    """Read a frame header. Of the markers, libjpeg believes JFIF's first, then Adobe's: it converts where one says YCbCr."""
    bits, height, width, n_channels = struct.unpack_from(">BHHB", frame, at + 4)
    channels = [frame[i : i + 3] for i in range(at + 10, at + 10 + 3 * n_channels, 3)]
    is_rgb, is_named_rgb = None, bytes(channel[0] for channel in channels) in _COMPONENT_IDS_OF_RGB
    if n_channels == 3:
        says_ycbcr = is_jfif or adobe == 1
        is_rgb = False if says_ycbcr else True if is_named_rgb or adobe == 0 else None
    return Codestream(
        width, height, n_channels, bits, is_subsampled=len({channel[1] for channel in channels}) > 1, is_rgb=is_rgb,
        is_doubtful=bool(is_rgb) and not is_named_rgb,
        # pydicom has Pillow return the channels as they are, unless there is Adobe's marker.
        is_converted=n_channels == 3 and adobe is not None and is_rgb is False,
    )  # fmt: skip


def max_rle_bytes(n_pixel_bytes: int) -> int:
    """Return the greatest length of an RLE frame, where a run of one takes two bytes: a longer one has too many pixels."""
    return _RLE_HEADER_BYTES + 2 * (n_pixel_bytes + _RLE_HEADER_BYTES)
