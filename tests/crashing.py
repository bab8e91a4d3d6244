"""`hoarfrost` with a decoder that ends the process by a segmentation fault at images of 13 x 13 pixels.

Run as `python -m tests.crashing extract …`; without arguments, it is the process apart that such an image is tried in.
"""

import ctypes
import sys

from PIL import Image

import features.apart
import features.cache.parts
import features.decoder
import features.images
from tests.standin import stand_in_module

_decode = features.images._pixels


def crash_at_13(image: Image.Image) -> object:
    if image.size == (13, 13):
        ctypes.string_at(0)  # in this very thread, as a decoder would
    return _decode(image)


if __name__ == "__main__":
    features.images._pixels = crash_at_13  # type: ignore[assignment]
    if len(sys.argv) == 1:
        features.decoder.serve(sys.stdin.buffer, sys.stdout.buffer)
        sys.exit()
    from pipeline.cli import main

    features.apart.COMMAND = (sys.executable, "-m", "tests.crashing")
    features.cache.parts.COMMIT_SECONDS = 0.0
    sys.modules["features.backbone"] = stand_in_module()
    main(prog_name="hoarfrost")
