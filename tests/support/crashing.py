"""`hoarfrost` with a decoder that ends the process by a segmentation fault at images of 13 x 13 pixels.

Run as `python -m tests.support.crashing extract …`. Without arguments, it is the separate process that decodes images.
"""

import ctypes
import sys

from PIL import Image

import hoarfrost.features.cache.parts
import hoarfrost.features.decoding.decoder
import hoarfrost.features.decoding.images
import hoarfrost.features.decoding.isolated
from tests.support.standin import stand_in_module

_decode = hoarfrost.features.decoding.images._pixels


def crash_at_13(image: Image.Image) -> object:
    if image.size == (13, 13):
        ctypes.string_at(0)  # in this very thread, as a decoder would
    return _decode(image)


if __name__ == "__main__":
    hoarfrost.features.decoding.images._pixels = crash_at_13  # type: ignore[assignment]
    if len(sys.argv) == 1:
        hoarfrost.features.decoding.decoder.Decoder().serve(sys.stdin.buffer, sys.stdout.buffer)
        sys.exit()
    from hoarfrost.cli import main

    hoarfrost.features.decoding.isolated.COMMAND = (sys.executable, "-m", "tests.support.crashing")
    hoarfrost.features.cache.parts.COMMIT_SECONDS = 0.0
    sys.modules["hoarfrost.features.encoder.backbone"] = stand_in_module()
    main(prog_name="hoarfrost")
