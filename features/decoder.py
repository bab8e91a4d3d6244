"""What `features.apart` starts: decodes images from stdin, one after another, in a process that may crash.

A request is a line of JSON (frame, max_pixels, window, n_bytes: null for the file sent before) and the file's bytes. The
answer is a line of JSON (n_bytes, shape: null where the image is unreadable) and the pixels, or the reason.
"""

import json
import os
import sys
from typing import BinaryIO

from features.errors import ImageDecodeError
from features.formats import Frame
from features.images import Decoding, decode_pixels
from features.windows import Window


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until there are no more."""
    content = b""
    while line := requests.readline():
        asked = json.loads(line)
        if asked["n_bytes"] is not None:
            content = requests.read(asked["n_bytes"])
        image = Frame(content, b"", asked["frame"], 0) if asked["frame"] else content
        window = None if asked["window"] is None else Window(*asked["window"])
        try:
            pixels = decode_pixels(image, Decoding(asked["max_pixels"], window, is_apart=True))
            shape, payload = pixels.shape, pixels.tobytes()
        except ImageDecodeError as error:
            shape, payload = None, str(error).encode()
        answers.write(json.dumps({"n_bytes": len(payload), "shape": shape}).encode() + b"\n" + payload)
        answers.flush()


if __name__ == "__main__":
    # What a library prints must not get between the answers.
    own = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    serve(sys.stdin.buffer, own)
