"""A plugin for pydicom: JPEG-LS decoded by CharLS, with the stray byte that some old encoders wrote."""

from pydicom.pixels.decoders import pyjpegls
from pydicom.pixels.decoders.base import DecodeRunner

DECODER_DEPENDENCIES = pyjpegls.DECODER_DEPENDENCIES
is_available = pyjpegls.is_available

_END = b"\xff\xd9"


def decoded(frame: bytes, runner: DecodeRunner) -> bytearray:
    """Decode a frame. Raise what CharLS raises if it cannot."""
    try:
        return pyjpegls._decode_frame(frame, runner)
    except RuntimeError:
        # DICOM's working group 4 published files with a zero byte before the end marker. CharLS from 2.3 refuses them. A
        # zero that belongs to the pixels stays: without it, CharLS misses data.
        end = frame.rfind(_END)
        if not frame.startswith(b"\0", max(end - 1, 0)):
            raise
        return pyjpegls._decode_frame(frame[: end - 1] + frame[end:], runner)
