"""A plugin for pydicom: 12-bit JPEG decoded by GDCM, with the same result as libjpeg-turbo."""

import importlib.util

from pydicom import uid
from pydicom.pixels.decoders.base import DecodeRunner

DECODER_DEPENDENCIES = {uid.JPEGExtended12Bit: ("gdcm>=3.0.10",)}


def is_available(syntax: str) -> bool:
    """Return whether this codec is installed; pydicom requests this."""
    return syntax in DECODER_DEPENDENCIES and importlib.util.find_spec("gdcm") is not None


def decoded(frame: bytes, runner: DecodeRunner) -> bytes:
    """Decode a frame to values of 16 bits. Raise ValueError if GDCM cannot."""
    import gdcm  # here: it is an extra, and no other file needs it

    fragment, fragments = gdcm.Fragment(), gdcm.SequenceOfFragments.New()
    fragment.SetByteStringValue(frame)
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((runner.columns, runner.rows, 1))
    image.SetDataElement(element)
    photometric = gdcm.PhotometricInterpretation.GetPIType(str(runner.photometric_interpretation))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(photometric))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGExtendedProcess2_4))
    bits = runner.bits_stored
    depth = (runner.samples_per_pixel, runner.bits_allocated, bits, bits - 1, runner.pixel_representation)
    image.SetPixelFormat(gdcm.PixelFormat(*depth))
    values = image.GetBuffer()  # bytes that GDCM returns as text
    if values is None or runner.samples_per_pixel != 1:
        raise ValueError("GDCM cannot decode this JPEG")
    return values.encode("utf-8", "surrogateescape")  # type: ignore[no-any-return]
